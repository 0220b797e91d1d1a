"""Pictures from a trained network: the modes transfer, test and animate."""
import contextlib
import itertools

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
from training.graphs import make_renderer
from training.runs import Run, tile, to_uint8, transfer_grid

DEFAULT_BATCHES = 10
DEFAULT_FPS = 25
DEFAULT_SECONDS_PER_POSE = 0.5
MOST_FRAMES = 100000


@contextlib.contextmanager
def restored(options, config):
    """(session, Renderer) with the weights of the checkpoint that the options name."""
    checkpoint = Checkpoint(options.checkpoint)
    with tf.Graph().as_default():
        renderer = make_renderer(config, Loader(None, config["spatial_size"], config["box_factor"]).shapes())
        saver = CheckpointSaver(tf.trainable_variables())
        tf.get_default_graph().finalize()
        with make_session(config) as session:
            saver.restore(session, checkpoint)
            yield session, renderer


def open_index(config):
    """The config's Index."""
    return Index(config["data_index"], config["allow_outside_images"])


def start_run(options, config, what):
    """A Run that says which checkpoint its pictures are from."""
    run = Run(options.log_dir, config)
    run.log(f"{what} from {options.checkpoint}")
    return run


def first_batches(index, config, n):
    """The first n batches of the test split, as Selections."""
    order = BatchOrder(index.usable("test"), config["batch_size"], config["seed"])
    return [Selection((index, number) for number in order.batch(k)) for k in range(n)]


# ---------------------------------------------------------------------------------------------- transfer

def transfer(options, config):
    """Saves grids of people in poses, and their cells: those that were chosen, or batches of the test split."""
    jobs = transfer_jobs(options, config)
    run = None
    with restored(options, config) as (session, renderer):
        with progress_bar(total=sum(len(people) * len(poses) for people, poses in jobs), unit="picture") as bar:
            try:
                for i, (people, poses) in enumerate(jobs):
                    has_grid = (len(people) + 1) * (len(poses) + 1) * renderer.size**2 <= MAX_PIXELS
                    people = encoded(session, renderer, people, config)
                    first = next(people)  # a broken image is met before there is a run folder
                    run = run or start_run(options, config, "transfer")
                    save_transfers(run, f"transfer_{i}", session, renderer, itertools.chain([first], people), poses,
                                   has_grid, bar)
            except UserError as error:
                raise error if run is None else UserError(f"{error}; the pictures before it are in {run.folder}")
    run.say(f"the pictures are in {run.folder}")
    run.close()


def save_transfers(run, name, session, renderer, people, poses, has_grid, bar):
    """Saves cells as <name>/<person>_in_pose_of_<pose>.png and, where it would not be huge, <name>.png, the grid.

    people: as from `encoded`; poses: a Selection. There may be thousands of either: without the grid only a batch of
    pictures is held.
    """
    images, rows = [], []
    for label, image, latents in people:
        row = []
        for pose, (_, cell) in zip(poses.labels, render_poses(session, renderer, latents, poses.joints)):
            run.picture(f"{name}/{label}_in_pose_of_{pose}", cell)
            bar.update()
            if has_grid:
                row.append(cell)
        if has_grid:
            images.append(image)
            rows.append(row)
    if has_grid:
        run.picture(name, transfer_grid(stick_figures(poses.joints, renderer.size), np.stack(images), np.array(rows)))
    else:
        run.say(f"{name}.png is left out: it would have more than {MAX_PIXELS} pixels")


def transfer_jobs(options, config):
    """[(people, poses)] as Selections."""
    index = open_index(config)
    if options.appearance is None and options.pose is None:
        return [(batch, batch) for batch in first_batches(index, config, options.batches or DEFAULT_BATCHES)]
    chosen = [select(index, items, option) if items else first_batches(index, config, 1)[0]
              for items, option in ((options.appearance, "--appearance"), (options.pose, "--pose"))]
    return [tuple(chosen)]


def encoded(session, renderer, people, config):
    """For each of a Selection its label, image (S, S, 3) uint8 and latents, arrays (1, h, w, c)."""
    load = Loader(people, config["spatial_size"], config["box_factor"])
    for start in range(0, len(people), config["batch_size"]):
        numbers = np.arange(start, min(start + config["batch_size"], len(people)))
        batch = load.batch(numbers)
        latents = renderer.encode(session, batch.parts, batch.has_part)
        for i, number in enumerate(numbers):
            yield people.labels[number], batch.image[i], [z[i:i + 1] for z in latents]


def finite_uint8(pictures):
    """to_uint8 of what weights may have made that are none. Raises UserError for pictures that are not finite."""
    if not np.isfinite(pictures).all():
        raise UserError("the network's pictures are not finite numbers; expected a checkpoint of a training that went well")
    return to_uint8(pictures)


def render_poses(session, renderer, latents, joints):
    """For each of n poses (n, 15, 2) its stick figure and the picture of one appearance, latents (1, h, w, c), in it.

    (S, S, 3) uint8 both; made a batch at a time.
    """
    for start in range(0, len(joints), renderer.batch_size):
        sticks = stick_figures(joints[start:start + renderer.batch_size], renderer.size)
        yield from zip(sticks, finite_uint8(renderer.render_one(session, latents, sticks)))


def stick_figures(joints, size):
    """(n, size, size, 3) uint8 of n poses (n, 15, 2)."""
    return np.stack([stick_figure(points, size) for points in joints])


# ---------------------------------------------------------------------------------------------- test

def sample(options, config):
    """Saves grids of poses of the test split, each with somebody from the prior beside it."""
    batches = first_batches(open_index(config), config, options.batches or DEFAULT_BATCHES)
    run = None
    with restored(options, config) as (session, renderer):
        for i, poses in enumerate(progress_bar(batches, unit="batch")):
            sticks = stick_figures(poses.joints, config["spatial_size"])
            pictures = finite_uint8(renderer.sample(session, sticks, i))
            run = run or start_run(options, config, "test")
            run.picture(f"test_sample_{i}", tile(np.concatenate([sticks, pictures], axis=2)))
    run.say(f"the pictures are in {run.folder}")
    run.close()


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
    if n_frames > MOST_FRAMES:
        raise UserError(f"--pose: expected an animation of at most {MOST_FRAMES} frames, found {n_frames}")
    with restored(options, config) as (session, renderer):
        (_, image, latents), = encoded(session, renderer, people, config)
        run = start_run(options, config, "animation")
        shown, has_gif = [], n_frames * 3 * size**2 <= MAX_PIXELS  # all of a GIF is held

        def frames():
            in_poses = render_poses(session, renderer, latents, interpolate(keys, steps))
            for stick, picture in progress_bar(in_poses, total=n_frames, unit="frame"):
                frame = np.concatenate([image, stick, picture], axis=1)
                if has_gif:
                    shown.append(frame)
                yield frame
        write_mp4(run.path("animation.mp4"), frames(), fps, (3 * size, size))
    if has_gif:
        write_gif(run.path("animation.gif"), shown, fps)
    else:
        run.say(f"animation.gif is left out: of {n_frames} frames it would be too large")
    run.say("{} frames: {}".format(n_frames, run.path("animation.mp4")))
    run.close()


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
