"""Videos: their frames, and the poses of one person in them over time."""
import logging
import os
import warnings

import numpy as np
from PIL import Image

from common.errors import UserError, reason, shown
from common.threads import read_ahead
from dataset.boxes import body, box_around, shares_of, torso_length
from dataset.index import MAX_PIXELS, TORSO, J
from dataset.poses import MAX_SIDE, choose, is_usable

# ffmpeg's reader for each extension. Named, so that no file is read as what it only pretends not to be, such as a
# playlist that sends ffmpeg to other files or to the network.
READERS = {".mp4": "mov", ".m4v": "mov", ".mov": "mov", ".avi": "avi", ".webm": "matroska", ".mkv": "matroska",
           ".gif": "gif"}
DEFAULT_FPS = 25.0  # of videos that do not say
MAX_FPS = 240.0
MAX_FRAMES = 100000
CHUNK = 8  # frames that threads work on at a time

MAX_GAP = 0.5  # seconds without a joint that are bridged
MAX_STEP = 1.0  # torso lengths that somebody may be from where they were seen last, up to MAX_GAP before
# Of the One Euro filter (Casiez, Roussel, Vogel 2012): Hz, and Hz per torso length a second.
MIN_CUTOFF, SPEED_COEFFICIENT, SPEED_CUTOFF = 1.5, 1.0, 1.5

TORSO_NUMBERS = [J[name] for name in TORSO]


class Video:
    """A video file; iterating gives its frames, (h, w, 3) uint8, at most MAX_SIDE pixels long, fps of them a second.

    n_frames: about how many. Raises UserError, here and while iterating, where it cannot be read.
    """

    def __init__(self, path):
        self.path = path
        with self._read([]) as frames:
            about = frames.about
        self.fps = min(about["fps"] or DEFAULT_FPS, MAX_FPS)
        self.n_frames = max(1, int(round(about["duration"] * self.fps)))
        width, height = about["source_size"]
        if width * height > MAX_PIXELS:
            raise self._unreadable(f"expected at most {MAX_PIXELS} pixels, found {width} x {height}")
        if self.n_frames > MAX_FRAMES:
            raise self._unreadable(f"expected at most {MAX_FRAMES} frames, found {self.n_frames}")

    def __iter__(self):
        # Phones film at varying rates; this makes frames at a steady one.
        scale = f"scale='min({MAX_SIDE},iw)':'min({MAX_SIDE},ih)':force_original_aspect_ratio=decrease"
        with self._read(["-vf", scale, "-r", f"{self.fps:g}"]) as frames:
            width, height = frames.about["size"]
            count = 0
            for count, frame in enumerate(frames, 1):
                if count > MAX_FRAMES:  # it said less
                    raise self._unreadable(f"expected at most {MAX_FRAMES} frames, found more")
                yield np.frombuffer(frame, np.uint8).reshape(height, width, 3)
            if not count:
                raise self._unreadable("there is no frame in it")

    def _read(self, output_params):
        return _Frames(self, output_params)

    def _unreadable(self, why):
        return UserError(f"{shown(self.path, 1000)}: cannot be read as a video: {why}")


class _Frames:
    """ffmpeg at work on a Video; iterating gives bytes. about: what it says of the video."""

    def __init__(self, video, output_params):
        self._video = video
        self._output_params = output_params

    def __enter__(self):
        try:
            import imageio_ffmpeg  # here, as little else needs it
        except ImportError as error:
            raise UserError("videos need imageio-ffmpeg, which pip install -r requirements.txt installs "
                            f"({reason(error)})")
        logging.getLogger("imageio_ffmpeg").setLevel(logging.CRITICAL)
        path = os.path.abspath(self._video.path)
        reader = READERS[os.path.splitext(path)[1].lower()]
        self._frames = self._guarded(imageio_ffmpeg.read_frames(
            path, input_params=["-nostdin", "-protocol_whitelist", "file,pipe", "-max_pixels", str(MAX_PIXELS),
                                "-f", reader], output_params=["-an", "-sn", "-dn"] + self._output_params))
        self.about = next(self._frames)
        return self

    def __iter__(self):
        return self._frames

    def __exit__(self, *unused):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pipes that are left to Python to close
            self._frames.close()

    def _guarded(self, frames):
        try:
            yield from frames
        except GeneratorExit:
            raise
        except Exception as error:  # what is missing in ffmpeg's report of a damaged file comes as many things
            lines = str(error).split("=== stderr ===")[-1].strip().split("\n")
            raise self._video._unreadable(shown(lines[-1], 200) or type(error).__name__)


def is_video(path):
    """Whether a file is one of READERS by its name; a GIF also needs a second frame."""
    extension = os.path.splitext(path)[1].lower()
    if extension != ".gif":
        return extension in READERS
    try:
        with Image.open(path, formats=("GIF",)) as image:
            return getattr(image, "n_frames", 1) > 1
    except Exception:  # whoever reads it as a picture says what is wrong
        return False


# ---------------------------------------------------------------------------------------------- poses over time

def poses_over_time(people_of_frames, fps, *, aspect, person=None):
    """(joints (n, 15, 2) in shares of one box, notes) of somebody whom n frames show; notes are lines to print.

    people_of_frames: for each frame its people, [joints in pixels]. The person is the one of the first frame that shows
    any with hips and shoulders: the one with the largest torso or number `person` from the left. The box, of this
    aspect, holds all poses: one for each frame would make the person swim. Raises UserError if there is nobody.
    """
    most = max(map(len, people_of_frames))
    if person is not None and person > most:
        raise UserError(f"expected a person {person} from the left, found at most {most} in one frame")
    followed = follow(people_of_frames, fps, person)
    joints = smooth(bridge(followed, fps), fps)
    seen = np.isfinite(joints[:, TORSO_NUMBERS]).all(axis=(1, 2))
    if not seen.any():
        raise UserError("nobody is seen in it with both hips and both shoulders")
    notes = []
    n_repeated = int(len(joints) - seen.sum())
    if n_repeated:
        notes.append(f"{n_repeated} of {len(joints)} frames repeat a pose, as they do not show the person")
    last = np.maximum.accumulate(np.where(seen, np.arange(len(joints)), -1))
    joints = joints[np.where(last < 0, np.argmax(seen), last)]
    joints = np.where(np.isfinite(joints), joints, -1)
    box = box_around(np.concatenate([body(pose) for pose in joints]), aspect=aspect)
    return shares_of(joints, box), notes


def find_in_video(video, estimator, bar):
    """The people of each frame of a Video, [[joints]], found in threads. bar: a progress bar of frames."""
    def chunks():
        chunk = []
        for frame in video:
            chunk.append(Image.fromarray(frame))
            if len(chunk) == CHUNK:
                yield chunk
                chunk = []
        yield chunk

    found = []
    for people in read_ahead(estimator, chunks()):
        found += people
        bar.update(len(people))
    return found


def follow(people_of_frames, fps, person=None):
    """Joints (n, 15, 2) of one person in n frames, nan where not seen."""
    joints = np.full((len(people_of_frames), len(J), 2), np.nan)
    last, when = None, 0
    for i, people in enumerate(people_of_frames):
        usable = [candidate for candidate in people if is_usable(candidate)]
        if last is None:
            found = choose(people, person)[0] if len(people) >= (person or 1) else None
        else:
            found = min(usable, key=lambda candidate: _distance(candidate, last), default=None)
            is_near = found is not None and _distance(found, last) <= MAX_STEP
            if not is_near and (i - when) <= MAX_GAP * fps:
                found = None
        if found is not None:
            joints[i] = np.where(found < 0, np.nan, found)
            last, when = found, i
    return joints


def _distance(joints, last):
    """How far the torso is from where it was last, in torso lengths."""
    way = np.linalg.norm(joints[TORSO_NUMBERS] - last[TORSO_NUMBERS], axis=1).mean()
    return way / max(1.0, torso_length(last))


def bridge(joints, fps):
    """Joints (n, 15, 2) with gaps (nan) of up to MAX_GAP filled, on straight lines."""
    joints = joints.copy()
    max_gap = int(MAX_GAP * fps)
    for track in np.moveaxis(joints, 0, 1):  # (n, 2), a view
        seen = np.flatnonzero(np.isfinite(track[:, 0]))
        for a, b in zip(seen, seen[1:]):
            if 1 < b - a <= max_gap + 1:
                shares = (np.arange(a + 1, b) - a)[:, np.newaxis] / float(b - a)
                track[a + 1:b] = track[a] + shares * (track[b] - track[a])
    return joints


def smooth(joints, fps):
    """Joints (n, 15, 2), nan where missing, without jitter: the mean of a One Euro filter forwards and one backwards.

    One alone would lag behind; the two lag in opposite directions.
    """
    lengths = [torso_length(pose) for pose in joints if np.isfinite(pose[TORSO_NUMBERS]).all()]
    scale = max(1.0, float(np.median(lengths))) if lengths else 1.0
    values = joints / scale
    return scale * 0.5 * (one_euro(values, fps) + one_euro(values[::-1], fps)[::-1])


def one_euro(values, fps):
    """Values (n, k, 2) after a One Euro filter; nan stays nan, and the filter starts anew behind it."""
    def weight(cutoff):
        return 1 / (1 + fps / (2 * np.pi * cutoff))

    filtered = np.empty_like(values)
    state, speed = np.full_like(values[0], np.nan), np.zeros_like(values[0])
    for i, value in enumerate(values):
        starts = np.isnan(state)
        state = np.where(starts, value, state)
        speed = np.where(starts, 0, speed + weight(SPEED_CUTOFF) * ((value - state) * fps - speed))
        cutoff = MIN_CUTOFF + SPEED_COEFFICIENT * np.linalg.norm(speed, axis=-1, keepdims=True)
        state = state + weight(cutoff) * (value - state)
        filtered[i] = state
    return filtered
