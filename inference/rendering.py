"""Pictures from a trained network: the modes transfer, test and animate."""
import contextlib

import numpy as np
import tensorflow.compat.v1 as tf

from batches import BatchOrder, Loader, stick_figure
from common.console import progress_bar
from common.errors import UserError
from common.machine import make_session
from dataset.index import MAX_PIXELS, Index, is_visible
from dataset.selection import Selection, select
from inference.movies import write_gif, write_mp4
from training.checkpoints import Checkpoint, CheckpointSaver
from training.graphs import Renderer, make_rendering_tensors
from training.runs import Run, tile, to_uint8, transfer_grid

DEFAULT_BATCHES = 10
DEFAULT_FPS = 25
DEFAULT_SECONDS_PER_POSE = 0.5
MAX_FRAMES = 100000


@contextlib.contextmanager
def restored(options, config):
    """A Renderer with the weights of the checkpoint that the options name."""
    checkpoint = Checkpoint(options.checkpoint)
    with tf.Graph().as_default():
        shapes = Loader(None, config["spatial_size"], config["box_factor"]).shapes()
        tensors = make_rendering_tensors(config, shapes)
        saver = CheckpointSaver(tf.trainable_variables())
        tf.get_default_graph().finalize()
        with make_session(config) as session:
            saver.restore(session, checkpoint)
            yield Renderer(tensors, session)


def open_index(config):
    """The config's Index."""
    return Index(config["data_index"], config["allow_outside_images"])


class LateRun:
    """A Run that is made when the first picture is there, so that bad input leaves no folder behind.

    with LateRun(options, config, "transfer") as late:
        late.run().picture(...)
    """

    def __init__(self, options, config, what):
        self._options, self._config, self._what = options, config, what
        self._run = None

    def __enter__(self):
        return self

    def __exit__(self, *error):
        if self._run is not None:
            self._run.__exit__(*error)

    @property
    def is_made(self):
        return self._run is not None

    def run(self):
        """The Run; its log says which checkpoint its pictures are from."""
        if self._run is None:
            self._run = Run(self._options.log_dir, self._config)
            self._run.log(f"{self._what} from {self._options.checkpoint}")
        return self._run


def first_batches(index, config, n):
    """The first n batches of the test split, as Selections."""
    order = BatchOrder(index.usable("test"), config["batch_size"], config["seed"])
    return [Selection((index, number) for number in order.batch(k)) for k in range(n)]


# ---------------------------------------------------------------------------------------------- transfer

def transfer(options, config):
    """Saves grids of people in poses, and their cells: those that were chosen, or batches of the test split."""
    jobs = transfer_jobs(options, config)
    n_pictures = sum(len(people) * len(poses) for people, poses in jobs)
    with restored(options, config) as renderer, LateRun(options, config, "transfer") as late, \
            progress_bar(total=n_pictures, unit="picture") as bar:
        try:
            for i, (people, poses) in enumerate(jobs):
                save_transfers(late, f"transfer_{i}", people, poses, renderer=renderer, bar=bar, config=config)
        except UserError as error:
            if not late.is_made:
                raise
            raise UserError(f"{error}; the pictures before it are in {late.run().folder}")
        late.run().say(f"the pictures are in {late.run().folder}")


def save_transfers(late, name, people, poses, *, renderer, bar, config):
    """Saves cells as <name>/<person>_in_pose_of_<pose>.png and, where it would not be huge, <name>.png, the grid.

    late: a LateRun. people, poses: Selections. There may be thousands of either: without the grid only a batch of
    pictures is held.
    """
    has_grid = (len(people) + 1) * (len(poses) + 1) * renderer.size**2 <= MAX_PIXELS
    images, rows = [], []
    for label, image, latents in encoded(renderer, people, config):
        cells = []
        for pose, (_, cell) in zip(poses.labels, render_poses(renderer, latents, poses.joints)):
            late.run().picture(f"{name}/{label}_in_pose_of_{pose}", cell)
            bar.update()
            if has_grid:
                cells.append(cell)
        if has_grid:
            images.append(image)
            rows.append(cells)
    if has_grid:
        sticks = stick_figures(poses.joints, renderer.size)
        late.run().picture(name, transfer_grid(sticks, np.stack(images), np.array(rows)))
    else:
        late.run().say(f"{name}.png is left out: it would have more than {MAX_PIXELS} pixels")


def transfer_jobs(options, config):
    """[(people, poses)] as Selections."""
    index = open_index(config)
    if options.appearance is None and options.pose is None:
        return [(batch, batch) for batch in first_batches(index, config, options.batches or DEFAULT_BATCHES)]
    chosen = [select(index, items, option) if items else first_batches(index, config, 1)[0]
              for items, option in ((options.appearance, "--appearance"), (options.pose, "--pose"))]
    return [tuple(chosen)]


def encoded(renderer, people, config):
    """For each of a Selection its label, image (S, S, 3) uint8 and latents, arrays (1, h, w, c)."""
    load = Loader(people, config["spatial_size"], config["box_factor"])
    for start in range(0, len(people), renderer.batch_size):
        numbers = np.arange(start, min(start + renderer.batch_size, len(people)))
        batch = load.batch(numbers)
        latents = renderer.encode(batch)
        for i, number in enumerate(numbers):
            yield people.labels[number], batch.image[i], [z[i:i + 1] for z in latents]


def finite_uint8(pictures):
    """Pictures in [-1, 1] as uint8. Raises UserError for pictures that are not finite, as damaged weights make them."""
    if not np.isfinite(pictures).all():
        raise UserError("the network's pictures are not finite numbers; expected a checkpoint of a training that went "
                        "well")
    return to_uint8(pictures)


def render_poses(renderer, latents, joints):
    """For each of n poses (n, 15, 2) its stick figure and the picture of one appearance, latents (1, h, w, c), in it.

    (S, S, 3) uint8 both; made a batch at a time.
    """
    for start in range(0, len(joints), renderer.batch_size):
        sticks = stick_figures(joints[start:start + renderer.batch_size], renderer.size)
        yield from zip(sticks, finite_uint8(renderer.render(latents, sticks)))


def stick_figures(joints, size):
    """(n, size, size, 3) uint8 of n poses (n, 15, 2)."""
    return np.stack([stick_figure(points, size) for points in joints])


# ---------------------------------------------------------------------------------------------- test

def sample(options, config):
    """Saves grids of poses of the test split, each with somebody from the prior beside it."""
    batches = first_batches(open_index(config), config, options.batches or DEFAULT_BATCHES)
    with restored(options, config) as renderer, LateRun(options, config, "test") as late:
        for i, poses in enumerate(progress_bar(batches, unit="batch")):
            sticks = stick_figures(poses.joints, renderer.size)
            pictures = finite_uint8(renderer.sample(sticks, i))
            late.run().picture(f"test_sample_{i}", tile(np.concatenate([sticks, pictures], axis=2)))
        late.run().say(f"the pictures are in {late.run().folder}")


# ---------------------------------------------------------------------------------------------- animate

def animate(options, config):
    """Saves somebody in a sequence of poses as animation.gif and animation.mp4: source, stick figure, result."""
    index, size = open_index(config), config["spatial_size"]
    people = select(index, options.appearance, "--appearance")
    if len(people) != 1:
        raise UserError(f"--appearance: expected one image, found {len(people)}")
    keys = select(index, options.pose, "--pose").joints
    if len(keys) < 2:
        raise UserError(f"--pose: expected two poses or more to move between, found {len(keys)}")
    fps = options.fps or DEFAULT_FPS
    steps = max(1, int(round(fps * (options.seconds_per_pose or DEFAULT_SECONDS_PER_POSE))))
    n_frames = steps * (len(keys) - 1) + 1
    if n_frames > MAX_FRAMES:
        raise UserError(f"--pose: expected an animation of at most {MAX_FRAMES} frames, found {n_frames}")
    has_gif = n_frames * 3 * size**2 <= MAX_PIXELS  # all of a GIF is held
    with restored(options, config) as renderer, LateRun(options, config, "animation") as late:
        (_, image, latents), = encoded(renderer, people, config)
        run, of_gif = late.run(), []

        def frames():
            in_poses = render_poses(renderer, latents, interpolate(keys, steps))
            for stick, picture in progress_bar(in_poses, total=n_frames, unit="frame"):
                frame = np.concatenate([image, stick, picture], axis=1)
                if has_gif:
                    of_gif.append(frame)
                yield frame
        write_mp4(run.path("animation.mp4"), frames(), fps, (3 * size, size))
        if has_gif:
            write_gif(run.path("animation.gif"), of_gif, fps)
        else:
            run.say(f"animation.gif is left out: of {n_frames} frames it would be too large")
        run.say(f"{n_frames} frames: {run.path('animation.mp4')}")


def interpolate(keys, steps):
    """Joints (n, 15, 2) of key poses (k, 15, 2), and of steps - 1 poses between every two: n = steps (k - 1) + 1.

    On the way a joint is where both key poses show it, on the straight line from one to the other; else it is missing.
    """
    visible = is_visible(keys)
    poses = []
    for a, b, both in zip(keys, keys[1:], visible[:-1] & visible[1:]):
        poses.append(a)
        for share in np.arange(1, steps) / float(steps):
            poses.append(np.where(both[:, np.newaxis], a + share * (b - a), -1))
    return np.stack(poses + [keys[-1]]).astype(np.float32)
