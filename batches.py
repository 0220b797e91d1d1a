"""From a data index to batches: stick figures and part crops, the input pipeline.

    index = Index("data/market/index.p")                                                 # data_index.py
    load = Loader(index, spatial_size=128, box_factor=1)
    dataset = pipeline(load, BatchOrder(index.usable("train"), batch_size=16, seed=0))   # tf.data, uint8
    examples = to_float(tf.data.make_initializable_iterator(dataset).get_next())         # float32, in [-1, 1]

    python batches.py data/market/index.p      checks an index, lists its faults and draws preview.png

Pictures and crops travel as uint8, a quarter of the bytes, and become float32 in the graph.
"""
import collections
import functools
import multiprocessing.pool
import os
import sys

import cv2
import numpy as np

from quiet import quiet_stderr

with quiet_stderr():  # TensorFlow greets on stderr while it is imported
    import tensorflow.compat.v1 as tf

from data_index import J, TORSO, is_visible, load_image
from errors import UserError

LIMBS = (("ankle", "knee"), ("knee", "hip"), ("hip", "shoulder"), ("shoulder", "elbow"), ("elbow", "wrist"))
# The crops, in the order of their channels.
PARTS = ("torso", "head", "left upper arm", "left lower arm", "right upper arm", "right lower arm", "left thigh",
         "right thigh")
LIMB_PARTS = (("lshoulder", "lelbow"), ("lelbow", "lwrist"), ("rshoulder", "relbow"), ("relbow", "rwrist"),
              ("lhip", "lknee"), ("rhip", "rknee"))

Examples = collections.namedtuple("Examples", "image stick parts has_part")
Examples.__doc__ = """What the networks see of one person, or of a batch (then with N in front).

image (S, S, 3); stick, the stick figure (S, S, 3); parts, the crops (s, s, 24), s = S / 2^box_factor, as uint8 or, from
`to_float`, as float32 in [-1, 1]; has_part (8,) uint8, 0 for a part that cannot be cut out.
"""


# ------------------------------------------------------------------------------- stick figures and part crops

def stick_figure(joints, size):
    """The pose as a picture (size, size, 3) uint8: right limbs, left limbs and torso in channels 0, 1 and 2.

    joints: (15, 2) in the order of JOINTS, in [0, 1], negative where occluded.
    """
    points = (joints * size).astype(np.int32)  # truncated
    visible = is_visible(joints)
    thickness = max(1, 3 * size // 128)
    right, left, torso = canvas = np.zeros((3, size, size), np.uint8)

    corners = [J[name] for name in TORSO]
    if visible[corners].all():
        cv2.fillPoly(torso, [points[corners]], 255)
    for channel, side in ((right, "r"), (left, "l")):
        for a, b in LIMBS:
            a, b = J[side + a], J[side + b]
            if visible[a] and visible[b]:
                _line(channel, points[a], points[b], 255, thickness)
    nose = J["cnose"]
    if visible[[nose, J["lshoulder"], J["rshoulder"]]].all():
        neck = (0.5 * (joints[J["lshoulder"]] + joints[J["rshoulder"]]) * size).astype(np.int32)
        _line(right, neck, points[nose], 127, thickness)
        _line(left, neck, points[nose], 127, thickness)
    if visible[[nose, J["reye"], J["leye"]]].all():
        _line(right, points[nose], points[J["reye"]], 255, thickness)
        _line(left, points[nose], points[J["leye"]], 255, thickness)
    return np.ascontiguousarray(canvas.transpose(1, 2, 0))


def _line(channel, a, b, value, thickness):
    cv2.line(channel, (int(a[0]), int(a[1])), (int(b[0]), int(b[1])), value, thickness)


def part_crops(image, joints, box_factor):
    """The appearance without the pose: crops of eight body parts, each turned to lie the same way.

    image: (S, S, 3) uint8. joints as in stick_figure. Returns crops (s, s, 24) uint8, s = S / 2^box_factor, three
    channels per part of PARTS, and has_part (8,) uint8: 0 for parts with a missing joint, whose crops are black.
    """
    size = image.shape[0]
    s = size // 2**box_factor
    target = np.array([(0, 0), (0, s), (s, s), (s, 0)], np.float32)
    crops = np.zeros((s, s, 3 * len(PARTS)), np.uint8)
    has_part = np.zeros(len(PARTS), np.uint8)
    for i, corners in enumerate(part_corners(joints, size)):
        if corners is None or is_degenerate(corners):
            continue
        transform = cv2.getPerspectiveTransform(corners.astype(np.float32), target)
        crops[..., 3 * i:3 * i + 3] = cv2.warpPerspective(image, transform, (s, s), flags=cv2.INTER_LINEAR,
                                                          borderMode=cv2.BORDER_REPLICATE)
        has_part[i] = 1
    return crops, has_part


def part_corners(joints, size):
    """Quadrilaterals of PARTS in pixels of a picture of this size: (4, 2) arrays, None where a joint is missing."""
    visible = is_visible(joints)
    points = {name: joints[i].astype(np.float64) * size if visible[i] else None for name, i in J.items()}
    corners = [_corners(points, "lshoulder", "lhip", "rhip", "rshoulder"), _head_corners(points)]
    for a, b in LIMB_PARTS:
        a, b, is_thigh = points[a], points[b], b.endswith("knee")
        if is_thigh and a is not None and b is None:
            b = np.array([a[0], size - 1.0])  # straight down to the edge
        corners.append(None if a is None or b is None else _limb_corners(a, b))
    return corners


def _corners(points, *names):
    corners = [points[name] for name in names]
    return None if any(corner is None for corner in corners) else np.stack(corners)


def _limb_corners(a, b):
    n = _normal(b - a) / 4
    return np.stack([a + n, a - n, b - n, b + n])


def _head_corners(points):
    left, right, nose = points["lshoulder"], points["rshoulder"], points["cnose"]
    if left is None or right is None:
        return None
    if nose is None:  # a square on the shoulders
        n = _normal(right - left)
        n = -n if n[1] > 0 else n
        return np.stack([left + n, left, right, right + n])
    neck = 0.5 * (left + right)
    top = neck + 2 * (nose - neck)
    n = _normal(neck - top) / 2
    return np.stack([top - n, neck - n, neck + n, top + n])


def _normal(d):
    return np.array([-d[1], d[0]])


def is_degenerate(corners):
    """Whether three corners (4, 2) lie on one line (two at one point included): no perspective maps them to a square."""
    for i in range(4):
        a, b, c = np.delete(corners, i, axis=0)
        if abs((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])) < 1e-3:  # square pixels
            return True
    return False


# ---------------------------------------------------------------------------------------------- the pipeline

class Loader(object):
    """load(number) -> Examples (uint8) of one image of the index; called from many threads.

    failure: the UserError of an image that could not be read, None before; TensorFlow passes on only its text.
    """

    def __init__(self, index, spatial_size, box_factor):
        self.index = index
        self.size = spatial_size
        self.box_factor = box_factor
        self.failure = None

    def __call__(self, number):
        try:
            image = load_image(self.index.image_path(number), self.size)
        except UserError as error:
            self.failure = error
            raise
        joints = self.index.joints[number]
        return Examples(image, stick_figure(joints, self.size), *part_crops(image, joints, self.box_factor))

    def batch(self, numbers):
        """Examples of these images, stacked: for the batches that are needed once, outside of the pipeline."""
        with multiprocessing.pool.ThreadPool(cpu_count()) as pool:
            return Examples(*[np.stack(arrays) for arrays in zip(*pool.map(self, numbers))])

    def shapes(self):
        """The shapes of Examples of one image."""
        s = self.size // 2**self.box_factor
        return Examples((self.size, self.size, 3), (self.size, self.size, 3), (s, s, 3 * len(PARTS)), (len(PARTS),))


class BatchOrder(object):
    """Which images make up which batch: a pure function of (seed, number of the batch).

    Every pass goes over `numbers` in a new order; its last batch is filled up from the pass's front. Sets smaller than
    a batch go round.
    """

    def __init__(self, numbers, batch_size, seed):
        self.numbers = np.asarray(numbers, np.int64)
        self.batch_size = batch_size
        self.seed = seed
        self.epoch_order = functools.lru_cache(maxsize=2)(self.epoch_order)

    def epoch_order(self, epoch):
        """All numbers in the order of this pass."""
        return np.random.RandomState([self.seed, epoch]).permutation(self.numbers)

    def batch(self, k):
        """The image numbers of batch k, counted from the start of training: (batch_size,) int64."""
        epoch, k = divmod(int(k), -(-len(self.numbers) // self.batch_size))
        return self.front(self.batch_size, epoch, k * self.batch_size)

    def front(self, n, epoch=0, start=0):
        """n numbers from a place in a pass on."""
        return np.take(self.epoch_order(epoch), np.arange(start, start + n), mode="wrap")


def pipeline(load, order, first_batch=0, n_batches=None):
    """A tf.data.Dataset of batches (Examples of uint8 tensors), made ahead in parallel threads."""
    end = np.iinfo(np.int64).max if n_batches is None else first_batch + n_batches

    def numbers_of_batch(k):
        numbers = tf.numpy_function(order.batch, [k], tf.int64)
        numbers.set_shape((order.batch_size,))
        return tf.data.Dataset.from_tensor_slices(numbers)

    def load_example(number):
        tensors = tf.numpy_function(load, [number], [tf.uint8] * 4)
        for tensor, shape in zip(tensors, load.shapes()):
            tensor.set_shape(shape)
        return Examples(*tensors)

    dataset = tf.data.Dataset.range(first_batch, end).flat_map(numbers_of_batch)
    dataset = dataset.map(load_example, num_parallel_calls=cpu_count())
    return dataset.batch(order.batch_size, drop_remainder=True).prefetch(2)


def to_float(examples):
    """Examples as uint8 tensors -> the networks' inputs: float32 in [-1, 1]; parts that are missing are 0."""
    image, stick, parts = [tf.cast(x, tf.float32) / 127.5 - 1 for x in examples[:3]]
    has_part = tf.repeat(tf.cast(examples.has_part, tf.float32), 3, axis=-1)  # (N, 24)
    return Examples(image, stick, parts * has_part[:, tf.newaxis, tf.newaxis], examples.has_part)


def cpu_count():
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


if __name__ == "__main__":
    from tools import check_index
    sys.exit(check_index.main())
