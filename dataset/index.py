"""The data index: people with their joints, the rules it obeys, and its image files. No TensorFlow in here.

    index = Index("data/market/index.p")
    numbers = index.usable("train")
    image = load_image(index.image_path(numbers[0]), 128)

An index may come from strangers: neither its pickle nor its paths nor its image files are trusted.
"""
import numbers
import os
import warnings

import numpy as np
from PIL import Image, ImageOps

from common.errors import UserError, reason, shown
from dataset.pickles import load_plain

JOINTS = ("rankle", "rknee", "rhip", "rshoulder", "relbow", "rwrist", "reye",
          "lankle", "lknee", "lhip", "lshoulder", "lelbow", "lwrist", "leye", "cnose")
J = {name: i for i, name in enumerate(JOINTS)}
TORSO = ("lhip", "lshoulder", "rshoulder", "rhip")
# Where the joints of somebody standing upright are, in shares of width and height.
STANDING = dict(zip(JOINTS, [(.4, .95), (.4, .75), (.42, .55), (.4, .3), (.3, .4), (.25, .5), (.48, .1), (.6, .95), (.6, .75),
                             (.58, .55), (.6, .3), (.7, .4), (.75, .5), (.52, .1), (.5, .14)]))

MOST_JOINTS = 200  # that joint_order may name
FARTHEST_JOINT = 100.0  # in pictures; what is farther away cannot be meant
# What is decoded. Pillow knows more: for EPS it starts a program, and of damaged TIFF its library prints on stderr.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM")
ORIENTATION = 0x0112  # of EXIF
MAX_PIXELS = Image.MAX_IMAGE_PIXELS
# Pillow warns of damaged metadata, which nobody here reads, and of large images, which read_image refuses.
warnings.filterwarnings("ignore", module=r"PIL\.")


# ---------------------------------------------------------------------------------------------- the index

class Index:
    """A data index, checked: images with their joints.

    path: of a pickled dict beside its images (README, "Your own data"). allow_outside: whether the paths in it may leave
    its folder. data: the dict, where it has been read and has no faults. Raises UserError.
    images: N paths, as in the index. joints: (N, 15, 2) float32 in the order of JOINTS, xy in [0, 1] of width and
    height, -1 where occluded. train: (N,) bool. extra: what else the dict holds, by key.
    """

    def __init__(self, path, allow_outside=False, data=None):
        if data is None:
            data = read_index(path)
            faults = index_faults(data, allow_outside)
            if faults:
                more = f" (and {len(faults) - 1} more faults: python tools/check_index.py {path} lists them)"
                raise UserError("{}: {}{}".format(path, faults[0], more if len(faults) > 1 else ""))
        self.path, self.allow_outside = path, allow_outside
        self.folder = os.path.dirname(os.path.abspath(path))
        self.images = [str(image) for image in data["imgs"]]
        self.train = np.asarray(data["train"], bool)
        columns = [list(data["joint_order"]).index(name) for name in JOINTS]
        self.joints = np.stack([np.asarray(points, np.float32)[columns] for points in data["joints"]])
        self.joints[~is_visible(self.joints)] = -1
        self.extra = {key: data[key] for key in data if key not in ("imgs", "train", "joints", "joint_order")}

    def has_torso(self):
        """(N,) bool: whose hips and shoulders are visible. The others are never used."""
        return is_visible(self.joints[:, [J[name] for name in TORSO]]).all(axis=1)

    def usable(self, split):
        """Numbers of the images of a split ("train" or "test") whose hips and shoulders are visible.

        Raises UserError where there is none.
        """
        usable = np.flatnonzero(self.has_torso() & (self.train if split == "train" else ~self.train))
        if not len(usable):
            raise UserError("{}: no usable {} image: of {} images {} are for {}, and none of those shows both hips and "
                            "both shoulders".format(self.path, {"train": "training"}.get(split, split), len(self.train),
                                                np.sum(self.train == (split == "train")), split))
        return usable

    def image_path(self, number):
        """Path of an image, from the working directory."""
        return os.path.join(self.folder, self.images[number])


def is_visible(joints):
    """joints (..., 2) -> (...) bool: a negative coordinate marks an occluded joint."""
    return np.min(joints, axis=-1) >= 0


def read_index(path):
    """The dict of an index file, nothing in it trusted. Raises UserError."""
    if not os.path.isfile(path):
        raise UserError(f"data_index: there is no file {path}; ./download_data.sh fetches the data sets of the paper, "
                        "python tools/make_toy.py draws one, and the README says how to make your own")
    data = load_plain(path)
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected a pickled dict with joint_order, imgs, train and joints, found {type(data).__name__}")
    return data


# ---------------------------------------------------------------------------------------------- its rules

def index_faults(data, allow_outside=False):
    """Everything that is wrong with the dict of an index, a list of lines; empty when it obeys the rules."""
    faults = [f"there is no key {key!r}" for key in ("joint_order", "imgs", "train", "joints") if key not in data]
    order_faults = _joint_order_faults(data["joint_order"]) if "joint_order" in data else []
    faults += order_faults
    lists = {}
    for key in ("imgs", "train", "joints"):
        if key in data:
            if is_list(data[key]):
                lists[key] = data[key]
            else:
                faults.append(f"{key}: expected a list, found {type(data[key]).__name__}")
    if len({len(values) for values in lists.values()}) > 1:
        faults.append("lists of unequal length: "
                      + ", ".join(f"{key} has {len(values)}" for key, values in sorted(lists.items())))
    if "imgs" in lists and not len(lists["imgs"]):
        faults.append("imgs: the list is empty")
    for i, image in enumerate(lists.get("imgs", ())):
        if not is_file_name(image):
            faults.append(f"imgs[{i}]: expected a path, found {shown(image)}")
        elif not allow_outside and leaves_folder(image):
            faults.append(f"imgs[{i}]: {shown(image)} leaves the folder of the index; allow_outside_images: true allows it")
    faults += [f"train[{i}]: expected true or false, found {shown(flag)}"
               for i, flag in enumerate(lists.get("train", ()))
               if not isinstance(flag, (bool, np.bool_, int, np.integer)) or flag not in (0, 1)]
    n_joints = len(data["joint_order"]) if "joint_order" in data and not order_faults else None
    return faults + _joints_faults(lists.get("joints", ()), n_joints)


def is_file_name(name):
    """Whether a value can be the path of a file."""
    if not isinstance(name, str) or not 0 < len(name) < 4096 or "\0" in name:
        return False
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:  # half a character
        return False
    return True


def leaves_folder(path):
    """Whether a relative path leads out of the folder it starts from; absolute ones do."""
    path = os.path.normpath(path)
    return os.path.isabs(path) or path.split(os.sep)[0] == os.pardir


def _joint_order_faults(joint_order):
    if not is_list(joint_order):
        return [f"joint_order: expected a list of names, found {type(joint_order).__name__}"]
    if len(joint_order) > MOST_JOINTS:
        return [f"joint_order: expected at most {MOST_JOINTS} names, found {len(joint_order)}"]
    strangers = [f"joint_order[{i}]: expected a name, found {shown(name)}"
                 for i, name in enumerate(joint_order) if not isinstance(name, str)]
    names = [name for name in joint_order if isinstance(name, str)]
    return (strangers + [f"joint_order: there is no joint {name!r}" for name in JOINTS if name not in names]
            + [f"joint_order: {name!r} stands there {names.count(name)} times" for name in JOINTS
               if names.count(name) > 1])


def _joints_faults(joints, n_joints):
    """n_joints: how many joint_order names, or None where that is not known."""
    faults, far, largest, seen = [], [], [], {}
    for i, given in enumerate(joints):
        # One list may stand there many times over: it is looked at once. (The list too, so that its id stays its own.)
        points, _ = seen[id(given)] = seen.get(id(given)) or (_as_points(given), given)
        if points is None:
            faults.append("joints[{}]: expected {} pairs of numbers".format(i, n_joints or "as many"))
        elif n_joints and len(points) != n_joints:
            faults.append(f"joints[{i}]: expected shape ({n_joints}, 2), found {points.shape}")
        elif not np.isfinite(points).all():
            faults.append(f"joints[{i}]: expected finite numbers, found {points[~np.isfinite(points)][0]}")
        else:
            largest.append(points.max())
            if largest[-1] > FARTHEST_JOINT:
                far.append("joints[%d]: expected shares of width and height, 0 to 1, found %g" % (i, largest[-1]))
    # Joints a little outside of their picture are common; where most are far outside, the unit is wrong.
    if largest and np.median(largest) > 2:
        far = ["joints: expected shares of width and height, 0 to 1, found numbers around %d, as of pixels"
               % np.median(largest)]
    return faults + far


def is_list(value):
    return isinstance(value, (list, tuple)) or isinstance(value, np.ndarray) and value.ndim > 0


def _as_points(points):
    """(n, 2) float64, n > 0, or None where that is not what it is.

    Looked at before numpy is asked: lists that hold one another many times over would fill the memory.
    """
    if not (isinstance(points, np.ndarray) and points.dtype.kind in "iuf"):
        if not is_list(points) or len(points) > MOST_JOINTS:
            return None
        for point in points:
            if not is_list(point) or len(point) != 2 or not all(isinstance(v, numbers.Real) for v in point):
                return None
    try:
        with np.errstate(invalid="ignore"):  # a signalling nan; it is found below
            points = np.asarray(points, np.float64)
    except OverflowError:  # a whole number beyond what a float holds
        return None
    return points if points.ndim == 2 and points.shape[1] == 2 and len(points) else None


# ---------------------------------------------------------------------------------------------- its images

def load_image(path, size):
    """The image file as (size, size, 3) uint8 RGB; aspect not kept.

    Bilinear, averaging over areas where it shrinks. Raises UserError where the file is not a whole image.
    """
    image = read_image(path, size)
    return np.asarray(image if image.size == (size, size) else image.resize((size, size), Image.BILINEAR))


def read_image(path, size=None):
    """The image file as a PIL image, RGB, turned upright, transparency ignored.

    With a size, JPEGs of more than twice as many pixels either way may come at half, a quarter or an eighth of theirs.
    Raises UserError where the file is not a whole image of at most MAX_PIXELS pixels.
    """
    if not os.path.isfile(path):  # a pipe would be waited for
        raise UserError(f"{shown(path, 1000)}: there is no such image")
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"expected at most {MAX_PIXELS} pixels, found {image.width} x {image.height}")
            if size is not None:
                image.draft(None, (2 * size, 2 * size))
            image.load()
            return _to_rgb(image)
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise UserError(f"{shown(path, 1000)}: cannot be read as an image: {reason(error)}")


def _to_rgb(image):
    if image.getexif().get(ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bit grey, which Pillow would clip rather than scale
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")
