"""Sequences of pictures as GIF and MP4."""
import numpy as np
from PIL import Image

from common.errors import UserError, reason


def write_mp4(path, frames, fps, size):
    """Writes frames, an iterable of (h, w, 3) uint8, as H.264.

    size: (w, h). Raises UserError where it cannot be written.
    """
    try:
        import imageio_ffmpeg  # here, as nothing else needs it
    except ImportError as error:
        raise UserError(f"MP4 needs imageio-ffmpeg, pip install -r requirements.txt installs it ({reason(error)})")
    even = [value + value % 2 for value in size]  # as H.264's colours demand
    try:
        writer = imageio_ffmpeg.write_frames(path, tuple(even), fps=fps, quality=8, macro_block_size=2,
                                             ffmpeg_log_level="quiet")
        writer.send(None)
        for frame in frames:
            padding = [(0, even[1] - frame.shape[0]), (0, even[0] - frame.shape[1]), (0, 0)]
            writer.send(np.ascontiguousarray(np.pad(frame, padding, mode="edge")))
        writer.close()
        written = imageio_ffmpeg.read_frames(path)  # of a full disk, say, ffmpeg tells nobody
        next(written)
        written.close()
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no ffmpeg
        raise UserError(f"{path}: cannot be written: {reason(error)}")


def write_gif(path, frames, fps):
    """Writes frames, a list of (h, w, 3) uint8, as a GIF that repeats. Raises UserError where it cannot be written."""
    images = [Image.fromarray(frame).quantize(256, method=Image.MEDIANCUT) for frame in frames]
    # A GIF counts in hundredths of a second: some frames are a hundredth longer, so that the whole lasts as it should.
    ends = [int(round(100.0 * (k + 1) / fps)) for k in range(len(frames))]
    durations = [10 * (end - begin) for begin, end in zip([0] + ends, ends)]
    try:
        images[0].save(path, format="GIF", save_all=True, append_images=images[1:], duration=durations, loop=0)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {reason(error)}")
