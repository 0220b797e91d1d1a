"""Stick figures, part crops, and the input pipeline that makes batches of them.

    index = Index("data/market/index.p")                                                 # dataset/index.py
    load = Loader(index, spatial_size=128, box_factor=1)                                 # or make_loader(index, config)
    dataset = pipeline(load, BatchOrder(index.usable("train"), batch_size=16, seed=0))   # tf.data, uint8
    examples = to_float(tf.data.make_initializable_iterator(dataset).get_next())         # float32, in [-1, 1]

Pictures and crops travel as uint8, a quarter of the bytes, and become float32 in the graph.
"""
import collections
import functools
import multiprocessing.pool
import sys

import cv2
import numpy as np

from common.console import quiet_stderr

with quiet_stderr():  # TensorFlow greets on stderr while it is imported
    import tensorflow.compat.v1 as tf

from common.errors import UserError
from common.machine import cpu_count
from dataset.index import TORSO, J, is_visible

LIMBS = (("ankle", "knee"), ("knee", "hip"), ("hip", "shoulder"), ("shoulder", "elbow"), ("elbow", "wrist"))
RIGHT_LIMBS, LEFT_LIMBS = ([(J[side + a], J[side + b]) for a, b in LIMBS] for side in "rl")
# The crops, in the order of their channels.
PARTS = ("torso", "head", "left upper arm", "left lower arm", "right upper arm", "right lower arm", "left thigh",
         "right thigh")
# Where the limbs among them begin and end: numbers of joints.
LIMB_PARTS = ([J[name] for name in ("lshoulder", "lelbow", "rshoulder", "relbow", "lhip", "rhip")],
              [J[name] for name in ("lelbow", "lwrist", "relbow", "rwrist", "lknee", "rknee")])

Examples = collections.namedtuple("Examples", "image shape_image appearance has_part")
Examples.__doc__ = """What the networks see of one person or thing, or of a batch (then with N in front).

image (S, S, 3); shape_image, the stick figure or another shape (S, S, 3); appearance (s, s, 3 k), k crops or the whole
picture (k = 1) or nothing (k = 0), s = S / 2^box_factor, as uint8 or, from `to_float`, as float32 in [-1, 1]; has_part
(k,) uint8, 0 for a part that cannot be cut out.
"""


# ------------------------------------------------------------------------------- stick figures and part crops

def stick_figure(joints, size):
    """The pose as a picture (size, size, 3) uint8: right limbs, left limbs and torso in channels 0, 1 and 2.

    joints: (15, 2) in the order of JOINTS, in [0, 1], negative where occluded.
    """
    points = [tuple(xy) for xy in (joints * size).astype(np.int32).tolist()]  # truncated
    visible = is_visible(joints).tolist()
    thickness = max(1, 3 * size // 128)
    right, left, torso = canvas = np.zeros((3, size, size), np.uint8)

    if all(visible[J[name]] for name in TORSO):
        cv2.fillPoly(torso, [np.array([points[J[name]] for name in TORSO])], 255)
    for channel, limbs in ((right, RIGHT_LIMBS), (left, LEFT_LIMBS)):
        for a, b in limbs:
            if visible[a] and visible[b]:
                cv2.line(channel, points[a], points[b], 255, thickness)
    nose, shoulders = J["cnose"], (J["lshoulder"], J["rshoulder"])
    if visible[nose] and visible[shoulders[0]] and visible[shoulders[1]]:
        neck = tuple((0.5 * (joints[shoulders[0]] + joints[shoulders[1]]) * size).astype(np.int32).tolist())
        cv2.line(right, neck, points[nose], 127, thickness)
        cv2.line(left, neck, points[nose], 127, thickness)
    if visible[nose] and visible[J["reye"]] and visible[J["leye"]]:
        cv2.line(right, points[nose], points[J["reye"]], 255, thickness)
        cv2.line(left, points[nose], points[J["leye"]], 255, thickness)
    return cv2.merge(canvas)


def part_crops(images, joints, s):
    """The appearance without the pose: crops of eight body parts, each turned to lie the same way.

    images: (n, S, S, 3) uint8. joints: (n, 15, 2), each as in stick_figure. Returns crops (n, s, s, 24) uint8, three
    channels per part of PARTS, and has_part (n, 8) uint8: 0 for parts with a missing joint, whose crops are black.
    """
    corners, has_part = part_corners(joints, images.shape[1])
    of_images = zip(images, part_transforms(corners, s), has_part)
    return np.stack([cut_parts(image, transforms, there, s) for image, transforms, there in of_images]), has_part


def part_corners(joints, size):
    """Quadrilaterals of PARTS in pixels of pictures of this size.

    joints: (..., 15, 2). Returns corners (..., 8, 4, 2), and has_part (..., 8) uint8: 0, and corners of no meaning,
    where joints are missing or where no perspective maps the corners to a square.
    """
    points = np.where(is_visible(joints)[..., np.newaxis], joints.astype(np.float64) * size, np.nan)

    def corners_of(*corners):
        return np.stack(corners, axis=-2)

    left, right, nose = (points[..., J[name], :] for name in ("lshoulder", "rshoulder", "cnose"))
    torso = corners_of(left, points[..., J["lhip"], :], points[..., J["rhip"], :], right)

    neck = 0.5 * (left + right)
    top = neck + 2 * (nose - neck)
    n = _normal(neck - top) / 2
    head = corners_of(top - n, neck - n, neck + n, top + n)
    n = _normal(right - left)
    n = np.where(n[..., 1:] > 0, -n, n)
    on_shoulders = corners_of(left + n, left, right, right + n)  # a square, where the nose is missing
    head = np.where(np.isnan(nose)[..., np.newaxis, :], on_shoulders, head)

    a, b = points[..., LIMB_PARTS[0], :], points[..., LIMB_PARTS[1], :]  # (..., 6, 2)
    # A thigh without its knee goes straight down to the edge.
    down = np.stack([a[..., -2:, 0], np.full_like(a[..., -2:, 0], size - 1.0)], axis=-1)
    b[..., -2:, :] = np.where(np.isnan(b[..., -2:, :]), down, b[..., -2:, :])
    n = _normal(b - a) / 4
    limbs = corners_of(a + n, a - n, b - n, b + n)
    corners = np.concatenate([torso[..., np.newaxis, :, :], head[..., np.newaxis, :, :], limbs], axis=-3)
    return corners, (~is_degenerate(corners)).astype(np.uint8)


def _normal(d):
    return np.stack([-d[..., 1], d[..., 0]], axis=-1)


def is_degenerate(corners):
    """Whether three of the corners (..., 4, 2) lie on one line (two at one point included), or some are nan."""
    a, b, c = (corners[..., list(numbers), :] for numbers in ((1, 0, 0, 0), (2, 2, 1, 1), (3, 3, 3, 2)))
    area = np.abs((b - a)[..., 0] * (c - a)[..., 1] - (b - a)[..., 1] * (c - a)[..., 0])  # (..., 4), square pixels
    with np.errstate(invalid="ignore"):
        return ~(area >= 1e-3).all(axis=-1)


def part_transforms(corners, s):
    """Perspectives (..., 3, 3) that map crops of s pixels to quadrilaterals (..., 4, 2), whose corners are, in this
    order, those of the crop at (0, 0), (0, s), (s, s) and (s, 0) (Heckbert 1989, section 2.2.3).
    """
    p, q, r, t = (corners[..., i, :] for i in (0, 3, 2, 1))
    u, v, w = q - r, t - r, p - q + r - t
    with np.errstate(divide="ignore", invalid="ignore"):  # degenerate ones
        g = (w[..., 0] * v[..., 1] - v[..., 0] * w[..., 1]) / (u[..., 0] * v[..., 1] - v[..., 0] * u[..., 1])
        h = (u[..., 0] * w[..., 1] - w[..., 0] * u[..., 1]) / (u[..., 0] * v[..., 1] - v[..., 0] * u[..., 1])
        along = (q - p + g[..., np.newaxis] * q) / s
        down = (t - p + h[..., np.newaxis] * t) / s
    transforms = np.empty(corners.shape[:-2] + (3, 3))
    transforms[..., :2, :] = np.stack([along, down, p], axis=-1)
    transforms[..., 2, :] = np.stack([g / s, h / s, np.ones_like(g)], axis=-1)
    return transforms


def cut_parts(image, transforms, has_part, s):
    """Crops (s, s, 24) of one image: one (3, 3) transform for each of PARTS; black where has_part is 0."""
    how = {"flags": cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP, "borderMode": cv2.BORDER_REPLICATE}
    nothing = np.zeros((s, s, 3), np.uint8)
    crops = [cv2.warpPerspective(image, transform, (s, s), **how) if there else nothing
             for transform, there in zip(transforms, has_part.tolist())]
    return cv2.merge(crops)


def jittered(images, jitter, random):
    """Pictures (n, S, S, 3) uint8 whose edges are moved in or out at random, half of them mirrored.

    An edge moves by up to `jitter` of S. Where it moves in, the outermost pixels fill the gap. So an encoder cannot
    tell where exactly the outline runs (Lorenz et al., CVPR 2019, transform pictures to the same end).
    """
    n, size = images.shape[:2]
    edges = random.uniform(-jitter, jitter, (n, 2, 2)) + [0.0, 1.0]  # (n, x and y, first and last)
    is_mirrored = random.rand(n) < 0.5
    edges[is_mirrored, 0] = edges[is_mirrored, 0, ::-1]
    scales = edges[..., 1] - edges[..., 0]
    # OpenCV's coordinates are of the centres of pixels.
    shifts = edges[..., 0] * size + 0.5 * scales - 0.5
    transforms = [np.array([[sx, 0, x], [0, sy, y]]) for (sx, sy), (x, y) in zip(scales, shifts)]
    return np.stack([cv2.warpAffine(image, transform, (size, size), flags=cv2.INTER_LINEAR,
                                    borderMode=cv2.BORDER_REPLICATE) for image, transform in zip(images, transforms)])


# ---------------------------------------------------------------------------------------------- the pipeline

class Loader:
    """load(numbers) -> Examples (uint8, stacked) of these images of the index; called from many threads.

    index: an Index, or a Selection. shape: "joints", stick figures; "picture", the index's shape images; or None:
    shapes have no channels. appearance: "parts", "picture" or "none", as in Examples. jitter: how far `jittered` may
    move edges, where load is given a seed. failure: the UserError of an image that could not be read, None
    before; TensorFlow passes on only its text.
    """

    def __init__(self, index, spatial_size, box_factor, *, shape="joints", appearance="parts", jitter=0.0):
        self.index = index
        self.size = spatial_size
        self.part_size = spatial_size // 2**box_factor
        self.shape, self.appearance, self.jitter = shape, appearance, jitter
        self.failure = None

    def __call__(self, numbers, seed=None):
        try:
            images = np.stack([self.index.image(number, self.size) for number in numbers])
            shape_images = self.shape_images(numbers)
        except UserError as error:
            self.failure = error
            raise
        is_jittered = self.jitter and seed is not None
        sources = jittered(images, self.jitter, np.random.RandomState(seed)) if is_jittered else images
        return Examples(images, shape_images, *self._appearances(sources, numbers))

    def shape_images(self, numbers):
        """Shapes (n, S, S, 3) uint8. Raises UserError where an image cannot be read."""
        if self.shape is None:
            return np.zeros((len(numbers), self.size, self.size, 0), np.uint8)
        if self.shape == "picture":
            return np.stack([self.index.shape_image(number, self.size) for number in numbers])
        return np.stack([stick_figure(joints, self.size) for joints in self.index.joints[numbers]])

    def _appearances(self, images, numbers):
        """(n, s, s, 3 k) and (n, k) uint8: what the encoder sees of these images, and which parts are there."""
        n, s = len(images), self.part_size
        if self.appearance == "none":
            return np.zeros((n, s, s, 0), np.uint8), np.zeros((n, 0), np.uint8)
        if self.appearance == "picture":
            return np.stack([cv2.resize(image, (s, s), interpolation=cv2.INTER_AREA) for image in images]), np.ones(
                (n, 1), np.uint8)
        return part_crops(images, self.index.joints[numbers], s)

    def batch(self, numbers):
        """load(numbers) in parallel, for batches that are needed once, outside of the pipeline."""
        n_chunks = min(cpu_count(), len(numbers))
        with multiprocessing.pool.ThreadPool(n_chunks) as pool:
            chunks = pool.map(self, np.array_split(np.asarray(numbers), n_chunks))
        return Examples(*[np.concatenate(arrays) for arrays in zip(*chunks)])

    def shapes(self):
        """The shapes of Examples of one image."""
        size, s, k = self.size, self.part_size, {"parts": len(PARTS), "picture": 1, "none": 0}[self.appearance]
        return Examples((size, size, 3), (size, size, 3), (s, s, 3 * k), (k,))


def make_loader(index, config, with_shapes=True):
    """The Loader of a config; without shapes it serves to encode appearances."""
    return Loader(index, config["spatial_size"], config["box_factor"], shape=config["shape"] if with_shapes else None,
                  appearance=config["appearance"], jitter=config["appearance_jitter"])


class BatchOrder:
    """Which images make up which batch: a pure function of (seed, number of the batch).

    Every epoch goes over `numbers` in a new order; its last batch is filled up from the epoch's front. Sets smaller
    than a batch are repeated. worker, n_workers: each of so many workers takes its own batches out of every epoch.
    """

    def __init__(self, numbers, batch_size, seed, *, worker=0, n_workers=1):
        self.numbers = np.asarray(numbers, np.int64)
        self.batch_size = batch_size
        self.seed = seed
        self.worker, self.n_workers = worker, n_workers
        self.epoch_order = functools.lru_cache(maxsize=2)(self.epoch_order)

    def epoch_order(self, epoch):
        """All numbers in the order of this epoch."""
        return np.random.RandomState([self.seed, epoch]).permutation(self.numbers)

    def batch(self, k):
        """The image numbers of batch k, counted from the start of training: (batch_size,) int64."""
        epoch, k = divmod(int(k), -(-len(self.numbers) // (self.batch_size * self.n_workers)))
        return self.front(self.batch_size, epoch, (k * self.n_workers + self.worker) * self.batch_size)

    def batch_seed(self, k):
        """The seed, for a RandomState, of what is random in batch k: another one for every batch of every worker."""
        return [self.seed, 1, self.worker, int(k)]

    def front(self, n, epoch=0, start=0):
        """n numbers of an epoch, starting at a place in it."""
        return np.take(self.epoch_order(epoch), np.arange(start, start + n), mode="wrap")


def pipeline(load, order, first_batch=0, *, n_batches=None, n_threads=None):
    """A tf.data.Dataset of batches (Examples of uint8 tensors) to train on, made ahead in parallel threads."""
    end = np.iinfo(np.int64).max if n_batches is None else first_batch + n_batches

    @tf.autograph.experimental.do_not_convert  # TensorFlow 1.15 would compile all of Python's part anew in every call
    def load_batch(k):
        tensors = tf.numpy_function(lambda k: load(order.batch(k), order.batch_seed(k)), [k], [tf.uint8] * 4)
        for tensor, shape in zip(tensors, load.shapes()):
            tensor.set_shape((order.batch_size,) + shape)
        return Examples(*tensors)

    # Whole batches per call, so that the GIL is rarely held.
    numbers = tf.data.Dataset.range(first_batch, end)
    return numbers.map(load_batch, num_parallel_calls=n_threads or cpu_count()).prefetch(2)


def to_float(examples):
    """Examples as uint8 tensors -> the networks' inputs: float32 in [-1, 1]; parts that are missing are 0."""
    image, shape_image, appearance = [tf.cast(x, tf.float32) / 127.5 - 1 for x in examples[:3]]
    has_part = tf.repeat(tf.cast(examples.has_part, tf.float32), 3, axis=-1)  # (N, 3 k)
    return Examples(image, shape_image, appearance * has_part[:, tf.newaxis, tf.newaxis], examples.has_part)


if __name__ == "__main__":
    print("error: an index is checked by python tools/check_index.py INDEX", file=sys.stderr)
    sys.exit(2)
