"""Pictures from a trained network: the modes transfer, test and animate."""
import contextlib
import os

import numpy as np
import tensorflow.compat.v1 as tf
from PIL import Image

from batches import BatchOrder, make_loader
from common.console import progress_bar
from common.errors import UserError, shown
from common.machine import make_session
from dataset.index import MAX_PIXELS, is_visible, open_index
from dataset.selection import Finder, Poses, Selection, from_index
from dataset.videos import is_video
from inference.mixing import read_mix
from inference.movies import write_gif, write_mp4
from training.checkpoints import CheckpointSaver
from training.graphs import Renderer, make_rendering_tensors
from training.runs import Run, tile, to_uint8, transfer_grid

DEFAULT_BATCHES = 10
DEFAULT_FPS = 25
DEFAULT_SECONDS_PER_POSE = 0.5
MAX_FRAMES = 100000
MAX_GIF_FPS = 50.0  # browsers slow down frames of less than 20 ms


@contextlib.contextmanager
def restored(network, config):
    """A Renderer with the weights of a Network."""
    checkpoint = network.checkpoint()
    with tf.Graph().as_default():
        shapes = make_loader(None, config).shapes()
        tensors = make_rendering_tensors(config, shapes)
        saver = CheckpointSaver(tf.trainable_variables())
        tf.get_default_graph().finalize()
        with make_session(dict(config, xla=False)) as session:  # XLA would compile anew for each number of pictures
            saver.restore(session, checkpoint)
            yield Renderer(tensors, session)


class LateRun:
    """A Run that is made when the first picture is there, so that bad input leaves no folder behind.

    with LateRun(options, config, "transfer") as late:
        late.run().picture(...)

    notes: lines that it says first.
    """

    def __init__(self, options, config, what, notes=()):
        self._options, self._config, self._what, self._notes = options, config, what, notes
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
            self._run.log(f"{self._what} from {shown(self._options.network.name, 1000)}")
            for note in self._notes:
                self._run.say(note)
        return self._run


def first_batches(index, config, n):
    """The first n batches of the test split, as Selections."""
    order = BatchOrder(index.usable("test"), config["batch_size"], config["seed"])
    return [Selection(from_index(index, order.batch(k))) for k in range(n)]


def open_finder(options, config):
    """The Finder of what the options name."""
    return Finder(config["data_index"], config["allow_outside_images"], person=options.person, shape=config["shape"],
                  appearance=config["appearance"], aspect=lambda: options.network.aspect(config),
                  draws_lines=options.network.draws_lines)


# ---------------------------------------------------------------------------------------------- transfer

def transfer(options, config):
    """Saves grids of people in poses, and their cells: those that were chosen, or batches of the test split."""
    with open_finder(options, config) as finder:
        mix = read_mix(options.mix, finder, config)
        jobs = transfer_jobs(options, config, finder)
    shape = output_shape(options, config, [selection for job in jobs for selection in job])
    n_pictures = sum(len(people) * len(poses) for people, poses in jobs)
    with restored(options.network, config) as renderer, LateRun(options, config, "transfer", finder.notes) as late, \
            progress_bar(total=n_pictures, unit="picture") as bar:
        try:
            for i, (people, poses) in enumerate(jobs):
                save_transfers(late, f"transfer_{i}", encoded(renderer, people, config), make_loader(poses, config),
                               mix=mix, n_people=len(people), renderer=renderer, bar=bar, shape=shape)
        except UserError as error:
            if not late.is_made:
                raise
            raise UserError(f"{error}; the pictures before it are in {late.run().folder}")
        late.run().say(f"the pictures are in {late.run().folder}")


def save_transfers(late, name, people, poses, *, mix, n_people, renderer, bar, shape):
    """Saves cells as <name>/<person>_in_pose_of_<pose>.png and, where it would not be huge, <name>.png, the grid.

    late: a LateRun. people: as from `encoded`, n_people of them; there may be thousands: without the grid only a batch
    of pictures is held. poses: a Loader of a Selection. shape: (width, height) of the cells; the grid's are square.
    """
    n_poses = len(poses.index)
    has_grid = (n_people + 1) * (n_poses + 1) * renderer.size**2 <= MAX_PIXELS
    images, rows = [], []
    for label, image, latents in people:
        cells = []
        for pose, (_, cell) in zip(poses.index.labels, render_poses(renderer, latents, poses, mix)):
            late.run().picture(f"{name}/{label}_in_pose_of_{pose}", resized(cell, shape))
            bar.update()
            if has_grid:
                cells.append(cell)
        if has_grid:
            images.append(image)
            rows.append(cells)
    if has_grid:
        shapes = poses.shape_images(np.arange(n_poses))
        late.run().picture(name, transfer_grid(shapes, np.stack(images), np.array(rows)))
    else:
        late.run().say(f"{name}.png is left out: it would have more than {MAX_PIXELS} pixels")


def transfer_jobs(options, config, finder):
    """[(people, poses)] as Selections."""
    if options.appearance is None and options.pose is None:
        index = open_index(config)
        return [(batch, batch) for batch in first_batches(index, config, options.batches or DEFAULT_BATCHES)]
    people = finder.select(options.appearance, "--appearance", pictures=True) if options.appearance else None
    poses = finder.select(options.pose, "--pose") if options.pose else None
    if people is None or poses is None:
        batch = first_batches(open_index(config), config, 1)[0]
        return [(people or batch, poses or batch)]
    return [(people, poses)]


def output_shape(options, config, selections):
    """(width, height) of the pictures that are saved: square, or in the aspect of the network's pictures.

    The latter is the default where any of the selections is the user's own.
    """
    size = config["spatial_size"]
    if options.aspect == "square" or (options.aspect is None and not any(one.is_own for one in selections)):
        return size, size
    return aspect_shape(size, options.network.aspect(config))


def aspect_shape(size, aspect):
    """(width, height) of this aspect whose longer side is `size`."""
    return max(1, int(round(size * min(1, aspect)))), max(1, int(round(size / max(1, aspect))))


def resized(picture, shape):
    """A picture (S, S, 3) uint8 at this (width, height)."""
    if picture.shape[1::-1] == tuple(shape):
        return picture
    return np.asarray(Image.fromarray(picture).resize(shape, Image.BILINEAR))


def encoded(renderer, people, config):
    """For each of a Selection its label, image (S, S, 3) uint8 and latents, arrays (1, h, w, c)."""
    load = make_loader(people, config, with_shapes=False)
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


def render_poses(renderer, latents, poses, mix=None):
    """For each of n poses its shape image and the picture of an appearance in it, (S, S, 3) uint8 both.

    latents: of one appearance, arrays (1, h, w, c), or a function that gives those of a batch, (b, h, w, c), for an
    array of b numbers of poses. poses: a Loader of a Selection or of Poses. mix: a Mix, the parts of others. Pictures
    are made a batch at a time.
    """
    n = len(poses.index)
    for start in range(0, n, renderer.batch_size):
        numbers = np.arange(start, min(start + renderer.batch_size, n))
        shapes = poses.shape_images(numbers)
        of_batch = latents(numbers) if callable(latents) else latents
        pictures = renderer.render(of_batch, shapes)
        if mix:
            pictures = mix.composite(renderer, pictures, poses.index.joints[numbers], shapes)
        yield from zip(shapes, finite_uint8(pictures))


# ---------------------------------------------------------------------------------------------- test

def sample(options, config):
    """Saves grids of poses of the test split, each with somebody from the prior beside it."""
    batches = first_batches(open_index(config), config, options.batches or DEFAULT_BATCHES)
    with restored(options.network, config) as renderer, LateRun(options, config, "test") as late:
        for i, poses in enumerate(progress_bar(batches, unit="batch")):
            shapes = make_loader(poses, config).shape_images(np.arange(len(poses)))
            pictures = finite_uint8(renderer.sample(shapes, i))
            late.run().picture(f"test_sample_{i}", tile(np.concatenate([shapes, pictures], axis=2)))
        late.run().say(f"the pictures are in {late.run().folder}")


# ---------------------------------------------------------------------------------------------- animate

def animate(options, config):
    """Saves people in a sequence of poses as animation.gif and animation.mp4: source, shape, result."""
    if any(os.path.isfile(item) and is_video(item) for item in options.pose):  # before it is looked through
        refuse_pace(options, "fps", "seconds_per_pose")
    size = config["spatial_size"]
    with open_finder(options, config) as finder:
        people = finder.select(options.appearance, "--appearance", pictures=True)
        mix = read_mix(options.mix, finder, config)
        poses = finder.select(options.pose, "--pose")
    motion, fps = poses_in_motion(options, poses, moves=config["shape"] == "joints")
    n_frames = len(motion)
    width, height = shape = output_shape(options, config, [people, poses])
    has_gif = n_frames * 3 * size**2 <= MAX_PIXELS  # all of a GIF is held
    with restored(options.network, config) as renderer, LateRun(options, config, "animation", finder.notes) as late:
        change = Change(list(encoded(renderer, people, config)), n_frames)
        run, of_gif = late.run(), []

        def frames():
            in_poses = render_poses(renderer, change.latents, make_loader(motion, config), mix)
            for i, parts in enumerate(progress_bar(in_poses, total=n_frames, unit="frame", desc="pictures")):
                frame = np.concatenate([resized(part, shape) for part in (change.image(i),) + parts], axis=1)
                if has_gif:
                    of_gif.append(frame)
                yield frame
        write_mp4(run.path("animation.mp4"), frames(), fps, (3 * width, height))
        if has_gif:
            step = int(np.ceil(fps / MAX_GIF_FPS))
            write_gif(run.path("animation.gif"), of_gif[::step], fps / step)
        else:
            run.say(f"animation.gif is left out: of {n_frames} frames it would be too large")
        run.say(f"{n_frames} frames: {run.path('animation.mp4')}")


def poses_in_motion(options, poses, *, moves):
    """(Poses or Selection of all frames, frames per second) of an animation through poses, a Selection.

    moves: whether joints move from one pose to the next; shape images follow one another.
    """
    seconds = options.seconds_per_pose or DEFAULT_SECONDS_PER_POSE
    if poses.fps is not None:
        refuse_pace(options, "seconds_per_pose")
        return poses, options.fps or poses.fps  # a video allows no --fps; JSON files do not know theirs
    fps = options.fps or DEFAULT_FPS
    steps = max(1, int(round(fps * seconds)))
    n_frames = steps * max(1, len(poses) - 1) + (len(poses) > 1) if moves else steps * len(poses)
    if n_frames > MAX_FRAMES:
        raise UserError(f"--pose: expected an animation of at most {MAX_FRAMES} frames, found {n_frames}")
    if not moves or len(poses) == 1:  # it holds still
        return Selection(member for member in poses.members for _ in range(steps)), fps
    return Poses(interpolate(poses.joints, steps)), fps


def refuse_pace(options, *names):
    """Raises UserError where one of these options is given."""
    for name in names:
        if getattr(options, name):
            raise UserError(f"--{name}: expected none beside a video, whose pace is kept")


class Change:
    """One person who becomes another along n frames, through all of `people`, as from `encoded`, evenly."""

    def __init__(self, people, n):
        self._images = np.stack([image for _, image, _ in people])
        self._latents = [np.concatenate(arrays) for arrays in zip(*[latents for _, _, latents in people])]
        self._places = np.linspace(0, len(people) - 1, n)

    def latents(self, frames):
        """Latents (b, h, w, c) of an array of b frame numbers, on straight lines between those of two people."""
        return [self._between(z, self._places[frames]) for z in self._latents]

    def image(self, frame):
        """The picture (S, S, 3) uint8 of who is on the way, one fading into the other."""
        return np.round(self._between(self._images, self._places[[frame]])[0]).astype(np.uint8)

    @staticmethod
    def _between(values, places):
        before = np.floor(places).astype(int)
        after = np.minimum(before + 1, len(values) - 1)
        share = (places - before).reshape((-1,) + (1,) * (values.ndim - 1))
        return ((1 - share) * values[before] + share * values[after]).astype(np.float32)


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
