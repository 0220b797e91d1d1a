"""From a data index to batches: the index and its rules, stick figures and part crops, the input pipeline.

    index = Index("data/market/index.p")
    load = Loader(index, spatial_size=128, box_factor=1)
    dataset = pipeline(load, BatchOrder(index.usable("train"), batch_size=16, seed=0))   # tf.data, uint8
    examples = to_float(tf.data.make_initializable_iterator(dataset).get_next())         # float32, in [-1, 1]

Pictures and crops travel as uint8, a quarter of the bytes, and become float32 in the graph.
"""
import collections
import functools
import multiprocessing.pool
import os

import cv2
import numpy as np
from PIL import Image, ImageOps
import tensorflow.compat.v1 as tf

from errors import UserError, reason, shown
from unpickling import load_plain

JOINTS = ("rankle", "rknee", "rhip", "rshoulder", "relbow", "rwrist", "reye",
          "lankle", "lknee", "lhip", "lshoulder", "lelbow", "lwrist", "leye", "cnose")
J = {name: i for i, name in enumerate(JOINTS)}
TORSO = ("lhip", "lshoulder", "rshoulder", "rhip")
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


# ---------------------------------------------------------------------------------------------- the index

class Index(object):
    """A data index, checked: images with their joints.

    path: of a pickled dict beside its images (README, "Your own data"). Raises UserError.
    images: N paths, as in the index. joints: (N, 15, 2) float32 in the order of JOINTS, xy in [0, 1] of width and
    height, negative where occluded. train: (N,) bool. extra: what else the dict holds, by key.
    """

    def __init__(self, path):
        data = read_index(path)
        faults = index_faults(data)
        if faults:
            more = " (and %d more faults)" % (len(faults) - 1) if len(faults) > 1 else ""
            raise UserError("%s: %s%s" % (path, faults[0], more))
        self.path = path
        self.folder = os.path.dirname(os.path.abspath(path))
        self.images = [str(image) for image in data["imgs"]]
        self.train = np.asarray(data["train"], bool)
        columns = [list(data["joint_order"]).index(name) for name in JOINTS]
        self.joints = np.stack([np.asarray(points, np.float32) for points in data["joints"]])[:, columns]
        self.extra = {key: data[key] for key in data if key not in ("imgs", "train", "joints", "joint_order")}

    def usable(self, split):
        """Numbers of the images of a split ("train" or "test") whose hips and shoulders are visible.

        Raises UserError where there is none.
        """
        visible = is_visible(self.joints[:, [J[name] for name in TORSO]]).all(axis=1)
        numbers = np.flatnonzero(visible & (self.train if split == "train" else ~self.train))
        if not len(numbers):
            raise UserError("%s: no usable %s image: of %d images %d are for %s, and none of those shows both hips and "
                            "both shoulders" % (self.path, {"train": "training"}.get(split, split), len(self.train),
                                                np.sum(self.train == (split == "train")), split))
        return numbers

    def image_path(self, number):
        """Path of an image, from the working directory."""
        return os.path.join(self.folder, self.images[number])


def read_index(path):
    """The dict of an index file, nothing in it trusted. Raises UserError."""
    if not os.path.isfile(path):
        raise UserError("data_index: there is no file %s; ./download_data.sh fetches the data sets of the paper, "
                        "python tools/make_toy.py draws one, and the README says how to make your own" % path)
    data = load_plain(path)
    if not isinstance(data, dict):
        raise UserError("%s: expected a pickled dict with joint_order, imgs, train and joints, found %s"
                        % (path, type(data).__name__))
    return data


def index_faults(data):
    """Everything that is wrong with the dict of an index, a list of lines; empty when it obeys the rules."""
    missing = [key for key in ("joint_order", "imgs", "train", "joints") if key not in data]
    if missing:
        return ["there is no key %r" % key for key in missing]
    faults = _joint_order_faults(data["joint_order"])
    lengths = {}
    for key in ("imgs", "train", "joints"):
        if isinstance(data[key], (list, tuple)) or isinstance(data[key], np.ndarray) and data[key].ndim:
            lengths[key] = len(data[key])
        else:
            faults.append("%s: expected a list, found %s" % (key, type(data[key]).__name__))
    if len(set(lengths.values())) > 1:
        faults.append("lists of unequal length: " + ", ".join("%s has %d" % item for item in sorted(lengths.items())))
    if "imgs" in lengths:
        faults += ["imgs[%d]: expected a path, found %s" % (i, shown(image)) for i, image in enumerate(data["imgs"])
                   if not isinstance(image, str) or not image or "\0" in image]
    if "train" in lengths:
        faults += ["train[%d]: expected true or false, found %s" % (i, shown(flag)) for i, flag
                   in enumerate(data["train"])
                   if not isinstance(flag, (bool, np.bool_, int, np.integer)) or flag not in (0, 1)]
    if "joints" in lengths and not faults:
        faults += _joints_faults(data["joints"], len(data["joint_order"]))
    if not faults and not len(data["imgs"]):
        faults.append("imgs: the list is empty")
    return faults


def _joint_order_faults(joint_order):
    if not isinstance(joint_order, (list, tuple, np.ndarray)) or not all(isinstance(j, str) for j in joint_order):
        return ["joint_order: expected a list of names, found %s" % type(joint_order).__name__]
    names = list(joint_order)
    return (["joint_order: there is no joint %r" % name for name in JOINTS if name not in names]
            + ["joint_order: %r stands there %d times" % (name, names.count(name)) for name in JOINTS
               if names.count(name) > 1])


def _joints_faults(joints, n_joints):
    faults, largest = [], []
    for i, points in enumerate(joints):
        try:
            points = np.asarray(points, np.float64)
        except (TypeError, ValueError):
            faults.append("joints[%d]: expected numbers" % i)
            continue
        if points.shape != (n_joints, 2):
            faults.append("joints[%d]: expected shape (%d, 2), found %s" % (i, n_joints, points.shape))
        elif not np.abs(points).max() < 1e9:
            faults.append("joints[%d]: expected finite numbers, found %s" % (i, np.abs(points).max()))
        else:
            largest.append(points.max())
    # Joints a little outside of their picture are common; where most are far outside, the unit is wrong.
    if largest and np.median(largest) > 2:
        faults.append("joints: expected shares of width and height, 0 to 1, found numbers around %d, as of pixels"
                      % np.median(largest))
    return faults


def is_visible(joints):
    """joints (..., 2) -> (...) bool: a negative coordinate marks an occluded joint."""
    return np.min(joints, axis=-1) >= 0


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

def load_image(path, size):
    """The image file as (size, size, 3) uint8 RGB: turned upright, transparency ignored, aspect not kept.

    Bilinear, averaging over areas where it shrinks. Raises UserError where the file is not a whole image.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return np.asarray(_to_rgb(image).resize((size, size), Image.BILINEAR))
    except FileNotFoundError:
        raise UserError("%s: there is no such image" % path)
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise UserError("%s: cannot be read as an image: %s" % (path, reason(error)))


def _to_rgb(image):
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bit grey, which Pillow would clip rather than scale
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
    return image.convert("RGB")


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
