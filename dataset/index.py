"""The data index: images with joints or shape images, the rules it obeys, and its files. No TensorFlow in here.

    index = Index("data/market/index.p")
    numbers = index.usable("train")
    image = index.image(numbers[0], 128)

An index may come from strangers: neither its pickle nor its paths nor its image files are trusted.
"""
import contextlib
import numbers
import os
import warnings

import cv2
import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from common.errors import UserError, reason, shown
from dataset.pickles import load_plain

JOINTS = ("rankle", "rknee", "rhip", "rshoulder", "relbow", "rwrist", "reye",
          "lankle", "lknee", "lhip", "lshoulder", "lelbow", "lwrist", "leye", "cnose")
J = {name: i for i, name in enumerate(JOINTS)}
TORSO = ("lhip", "lshoulder", "rshoulder", "rhip")
# Where the joints of somebody standing upright are, in shares of width and height.
STANDING = dict(zip(JOINTS, [
    (.4, .95), (.4, .75), (.42, .55), (.4, .3), (.3, .4), (.25, .5), (.48, .1),
    (.6, .95), (.6, .75), (.58, .55), (.6, .3), (.7, .4), (.75, .5), (.52, .1), (.5, .14)]))

LISTS = ("imgs", "train", "joints", "shapes")  # an entry for each image
KEYS = LISTS + ("joint_order", "black_on_white")
MAX_JOINTS = 200  # names in joint_order
MAX_COORDINATE = 100.0  # in shares of the picture; a larger one is an error
# Pillow reads more formats. For EPS it starts a program, and its TIFF library prints on stderr when a file is damaged.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "PPM")
ORIENTATION = 0x0112  # EXIF's tag
LYING = (5, 6, 7, 8)  # its values where width and height are exchanged
ASPECT_IMAGES, SHAPES = 1000, 100
MAX_CHROMA = 24  # between the channels of a grey pixel, after JPEG
MAX_COLOURED = 0.001  # share of pixels with more in a grey image
MAX_PIXELS = Image.MAX_IMAGE_PIXELS
WHITE = (255, 255, 255, 255)
# Pillow warns of damaged metadata, which is not used here, and of large images, which read_image refuses.
warnings.filterwarnings("ignore", module=r"PIL\.")


# ---------------------------------------------------------------------------------------------- the index

class Index:
    """A data index, checked: images with their joints, their shape images or both.

    path: a pickled dict beside its images (docs/data.md, "The index"). allow_outside: whether the paths in it may leave
    its folder. data: the dict of the file, if the caller has read it and found no faults. needs: which of "joints" and
    "shapes" are used; by default what the index has. Raises UserError.

    images: N paths, as in the index. joints: (N, 15, 2) float32 in the order of JOINTS, x and y in shares of width and
    height, -1 where occluded; or None. shapes: N paths, or None; black_on_white: whether grey ones have dark lines.
    train: (N,) bool. extra: the other keys of the dict.
    """

    def __init__(self, path, allow_outside=False, data=None, needs=None):
        if data is None:
            data = read_index(path)
            faults = index_faults(data, allow_outside)
            if len(faults) > 1:
                raise UserError(f"{path}: {faults[0]} (and {len(faults) - 1} more: "
                                f"python tools/check_index.py {path} lists them)")
            if faults:
                raise UserError(f"{path}: {faults[0]}")
        self.path, self.allow_outside = path, allow_outside
        self.folder = os.path.dirname(os.path.abspath(path))
        self.images = [str(image) for image in data["imgs"]]
        self.train = np.asarray(data["train"], bool)
        self.joints = _joints_of(data) if "joints" in data else None
        self.shapes = [str(shape) for shape in data["shapes"]] if "shapes" in data else None
        self.extra = {key: data[key] for key in data if key not in KEYS}
        for key in needs or ():
            if getattr(self, key) is None:
                raise UserError(f"{path}: there is no key {key!r}, which the config's shape and appearance need")
        self.uses_joints = self.joints is not None and (needs is None or "joints" in needs)
        self.black_on_white = bool(data.get("black_on_white", False))

    def is_usable(self):
        """(N,) bool: who shows both hips and both shoulders, where joints are used. Nobody else is ever used."""
        if not self.uses_joints:
            return np.ones(len(self.images), bool)
        return is_visible(self.joints[:, [J[name] for name in TORSO]]).all(axis=1)

    def usable(self, split):
        """Numbers of the usable images of a split, "train" or "test". Raises UserError if there is none."""
        in_split = self.train if split == "train" else ~self.train
        usable = np.flatnonzero(in_split & self.is_usable())
        if not len(usable):
            name = "training" if split == "train" else "test"
            why = ", and none of those shows both hips and both shoulders" if in_split.any() else ""
            raise UserError(f"{self.path}: no usable {name} image: {np.sum(in_split)} of {len(in_split)} images are "
                            f"for {split}{why}")
        return usable

    def image_path(self, number):
        """Path of an image, usable from the working directory."""
        return os.path.join(self.folder, self.images[number])

    def image(self, number, size):
        """An image as (size, size, 3) uint8, whatever its aspect. Raises UserError where it cannot be read."""
        return load_image(self.image_path(number), size)

    def shape_image(self, number, size):
        """A shape image as (size, size, 3) uint8, lines white on black. Raises UserError where it cannot be read."""
        return load_shape(os.path.join(self.folder, self.shapes[number]), size, self.black_on_white)

    def has_line_drawings(self):
        """Whether most of about SHAPES shape images are grey; True where none can be read."""
        found = []
        for shape in self.shapes[::max(1, len(self.shapes) // SHAPES)]:
            with contextlib.suppress(UserError):
                found.append(is_grey(np.asarray(read_image(os.path.join(self.folder, shape), ground=WHITE))))
        return not found or bool(np.mean(found) > 0.5)

    def aspect(self):
        """The median width / height of about ASPECT_IMAGES usable training images; 1 where none can be read."""
        numbers = np.flatnonzero(self.train & self.is_usable())
        numbers = numbers[::max(1, len(numbers) // ASPECT_IMAGES)]
        sizes = [upright_size(self.image_path(number)) for number in numbers]
        return float(np.median([width / height for width, height in filter(None, sizes)] or [1.0]))


def open_index(config):
    """The Index of a config, with what its shape and appearance need. Raises UserError."""
    needs = ["shapes"] if config["shape"] == "picture" else ["joints"]
    if config["appearance"] == "parts" and "joints" not in needs:
        needs.append("joints")
    return Index(config["data_index"], config["allow_outside_images"], needs=needs)


def _joints_of(data):
    """(N, 15, 2) float32 in the order of JOINTS, -1 where occluded."""
    columns, joints = [list(data["joint_order"]).index(name) for name in JOINTS], data["joints"]
    if _is_one_array(joints):
        joints = joints[:, columns].astype(np.float32)
    else:
        joints = np.stack([np.asarray(points, np.float32)[columns] for points in joints])
    joints[~is_visible(joints)] = -1
    return joints


def is_visible(joints):
    """joints (..., 2) -> (...) bool: a negative coordinate marks an occluded joint."""
    return np.min(joints, axis=-1) >= 0


def read_index(path):
    """The dict of an index file, with its rules not checked. Raises UserError."""
    if not os.path.isfile(path):
        raise UserError(f"data_index: there is no file {path}; ./download_data.sh fetches the data sets of the paper, "
                        "python tools/make_toy.py draws one, and docs/data.md says how to make your own")
    data = load_plain(path)
    if not isinstance(data, dict):
        raise UserError(f"{path}: expected a pickled dict with joint_order, imgs, train and joints or shapes, "
                        f"found {type(data).__name__}")
    return data


# ---------------------------------------------------------------------------------------------- its rules

def index_faults(data, allow_outside=False):
    """Everything that is wrong with the dict of an index, a list of lines; empty when it obeys the rules."""
    expected = ["imgs", "train"]
    if "shapes" not in data or "joints" in data or "joint_order" in data:
        expected = ["joint_order"] + expected + ["joints"]
    faults = [f"there is no key {key!r}" for key in expected if key not in data]
    order_faults = _joint_order_faults(data["joint_order"]) if "joint_order" in data else []
    faults += order_faults
    lists = {}
    for key in LISTS:
        if key in data and is_list(data[key]):
            lists[key] = data[key]
        elif key in data:
            faults.append(f"{key}: expected a list, found {type(data[key]).__name__}")
    if len({len(values) for values in lists.values()}) > 1:
        lengths = ", ".join(f"{key} has {len(values)}" for key, values in sorted(lists.items()))
        faults.append(f"lists of unequal length: {lengths}")
    for key in ("imgs", "shapes"):
        faults += _image_faults(key, lists[key], allow_outside) if key in lists else []
    train = lists.get("train", ())
    if not (isinstance(train, np.ndarray) and train.dtype.kind == "b" and train.ndim == 1):
        faults += [f"train[{i}]: expected true or false, found {shown(flag)}"
                   for i, flag in enumerate(train) if not _is_flag(flag)]
    if not _is_flag(data.get("black_on_white", False)):
        faults.append(f"black_on_white: expected true or false, found {shown(data['black_on_white'])}")
    n_joints = len(data["joint_order"]) if "joint_order" in data and not order_faults else None
    return faults + _joints_faults(lists.get("joints", ()), n_joints)


def is_file_name(name):
    """Whether a value can be a path."""
    if not isinstance(name, str) or not 0 < len(name) < 4096 or "\0" in name:
        return False
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:  # half a character
        return False
    return True


def leaves_folder(path):
    """Whether a path leads out of the folder that it starts from; every absolute path does."""
    if ".." not in path and not os.path.isabs(path):  # there may be a million
        return False
    path = os.path.normpath(path)
    return os.path.isabs(path) or path.split(os.sep)[0] == os.pardir


def is_list(value):
    """Whether a value is a list, a tuple or an array that has a length."""
    is_array = isinstance(value, np.ndarray) and value.ndim > 0
    return is_array or isinstance(value, (list, tuple))


def _joint_order_faults(joint_order):
    if not is_list(joint_order):
        return [f"joint_order: expected a list of names, found {type(joint_order).__name__}"]
    if len(joint_order) > MAX_JOINTS:
        return [f"joint_order: expected at most {MAX_JOINTS} names, found {len(joint_order)}"]
    faults = [f"joint_order[{i}]: expected a name, found {shown(name)}"
              for i, name in enumerate(joint_order) if not isinstance(name, str)]
    names = [name for name in joint_order if isinstance(name, str)]
    faults += [f"joint_order: there is no joint {name!r}" for name in JOINTS if name not in names]
    faults += [f"joint_order: {name!r} occurs {names.count(name)} times" for name in JOINTS if names.count(name) > 1]
    return faults


def _image_faults(key, images, allow_outside):
    faults = [] if len(images) else [f"{key}: the list is empty"]
    for i, image in enumerate(images):
        if not is_file_name(image):
            faults.append(f"{key}[{i}]: expected a path, found {shown(image)}")
        elif not allow_outside and leaves_folder(image):
            faults.append(f"{key}[{i}]: {shown(image)} leaves the folder of the index; "
                          "allow_outside_images: true allows it")
    return faults


def _is_flag(value):
    return isinstance(value, (bool, np.bool_, int, np.integer)) and value in (0, 1)


def _joints_faults(joints, n_joints):
    """n_joints: how many joint_order names, or None if that is not known."""
    if _is_one_array(joints) and n_joints in (None, joints.shape[1]) and np.isfinite(joints).all():
        largest = joints.reshape(len(joints), -1).max(axis=1)
        return _size_faults(largest, enumerate(largest)) if largest.max() > 2 else []
    joints = list(joints)  # the rows of an array would come and go, and later ones have the ids of earlier ones
    # One list may occur many times, so that a small file holds millions of people: each is checked once, by its id.
    distinct = {id(person): person for person in joints}
    points = {key: _as_points(person) for key, person in distinct.items()}
    wrong = {key: _points_fault(array, n_joints) for key, array in points.items()}
    largest = {key: array.max() for key, array in points.items() if wrong[key] is None}
    keys = [id(person) for person in joints]
    faults = [f"joints[{i}]: {wrong[key]}" for i, key in enumerate(keys) if wrong[key] is not None]
    known = [(i, largest[key]) for i, key in enumerate(keys) if key in largest]
    return faults + _size_faults([value for _, value in known] or [0], known)


def _size_faults(largest, by_number):
    """largest: the largest coordinate of each person. by_number: (number, largest coordinate) of them."""
    # Single joints a little outside of the picture are common. If most people have one far outside, the unit is wrong.
    typical = np.median(largest)
    if typical > 2:
        return [f"joints: expected shares of width and height, 0 to 1, found numbers around {typical:.0f}, as of "
                "pixels"]
    return [f"joints[{i}]: expected shares of width and height, 0 to 1, found {value:g}"
            for i, value in by_number if value > MAX_COORDINATE]


def _is_one_array(joints):
    """Whether joints are an array (N, J, 2) of numbers, which is checked at once: there may be a million people."""
    is_array = isinstance(joints, np.ndarray) and joints.dtype.kind in "iuf"
    return is_array and joints.ndim == 3 and joints.shape[2] == 2 and joints.size > 0


def _as_points(person):
    """The joints of a person as (n, 2) float64, n > 0, or None if they are no such thing.

    Checked before numpy sees them: lists that hold one another many times over would fill the memory.
    """
    is_numeric = isinstance(person, np.ndarray) and person.dtype.kind in "iuf"
    if not is_numeric and not _is_list_of_pairs(person):
        return None
    try:
        with np.errstate(invalid="ignore"):  # a signalling nan, which _points_fault reports
            points = np.asarray(person, np.float64)
    except OverflowError:  # a whole number that no float holds
        return None
    return points if points.ndim == 2 and points.shape[1] == 2 and len(points) else None


def _is_list_of_pairs(person):
    if not is_list(person) or len(person) > MAX_JOINTS:
        return False
    return all(is_list(point) and len(point) == 2 and all(isinstance(value, numbers.Real) for value in point)
               for point in person)


def _points_fault(points, n_joints):
    """What is wrong with the points of _as_points, or None."""
    if points is None:
        return f"expected {n_joints} pairs of numbers" if n_joints else "expected pairs of numbers"
    if n_joints and len(points) != n_joints:
        return f"expected shape ({n_joints}, 2), found {points.shape}"
    if not np.isfinite(points).all():
        return f"expected finite numbers, found {points[~np.isfinite(points)][0]}"
    return None


# ---------------------------------------------------------------------------------------------- its images

def load_image(path, size):
    """The image file as (size, size, 3) uint8 RGB, whatever its aspect.

    Resized bilinearly, and averaged over areas if it shrinks. Raises UserError if the file is not a whole image.
    """
    image = read_image(path, size)
    return np.asarray(image if image.size == (size, size) else image.resize((size, size), Image.BILINEAR))


def load_shape(path, size, black_on_white=None, lines=None):
    """The shape image file as (size, size, 3) uint8, as from as_shape; what is transparent is white.

    Raises UserError if the file is not a whole image.
    """
    return as_shape(read_image(path, ground=WHITE), size, black_on_white, lines)


def as_shape(image, size, black_on_white=None, lines=None):
    """A shape image, RGB as PIL has it, as (size, size, 3) uint8, whatever its aspect.

    lines: whether it is a line drawing; None: grey ones are. Line drawings are returned white on black. Lines survive
    shrinking: a pixel is as bright as the brightest that it covers. black_on_white: whether the lines are dark; None:
    they are, if most of the image is bright. Other images are resized as pictures are.
    """
    pixels = np.asarray(image)
    if not (is_grey(pixels) if lines is None else lines):
        return np.asarray(image.resize((size, size), Image.BILINEAR))
    drawing = np.asarray(image.convert("L"))
    if black_on_white or (black_on_white is None and is_bright(drawing)):
        drawing = 255 - drawing
    return np.repeat(_resized_lines(drawing, size)[..., np.newaxis], 3, axis=2)


def is_grey(pixels):
    """Whether pixels (h, w, 3) uint8 have no colour but for what JPEG makes of grey."""
    # Along a last axis of three NumPy takes 25 times as long.
    channels = np.ascontiguousarray(np.moveaxis(pixels, 2, 0))
    chroma = channels.max(axis=0) - channels.min(axis=0)
    return bool((chroma > MAX_CHROMA).mean() < MAX_COLOURED)


def is_bright(lines):
    """Whether a drawing (h, w) has dark lines on bright ground."""
    return bool(lines.mean() > 127)


def _resized_lines(lines, size):
    """Lines (h, w) uint8, bright on dark, as (size, size) uint8: maxima over areas where they shrink."""
    height, width = lines.shape
    kernel = np.ones((max(1, -(-height // size)), max(1, -(-width // size))), np.uint8)
    # With the anchor in its corner the kernel covers what lies right of a pixel and below: the area of a new one.
    lines = cv2.dilate(np.ascontiguousarray(lines), kernel, anchor=(0, 0))
    rows, columns = (np.arange(min(n, size)) * n // min(n, size) for n in (height, width))
    return cv2.resize(lines[np.ix_(rows, columns)], (size, size), interpolation=cv2.INTER_LINEAR)


def read_image(path, size=None, ground=None):
    """The image file as a PIL image: RGB, upright. ground: what shows through transparency, which else is ignored.

    Given a size, a large JPEG comes at a half, a quarter or an eighth of its own, but at no less than twice that size.
    Raises UserError if the file is not a whole image of at most MAX_PIXELS pixels.
    """
    if not os.path.isfile(path):  # opening a pipe would wait for its writer
        raise UserError(f"{shown(path, 1000)}: there is no such image")
    return decode_image(path, shown(path, 1000), size, ground)


def decode_image(file, name, size=None, ground=None, *, max_side=MAX_PIXELS):
    """read_image of a path or an open file, which messages call `name`; refuses a longer side than max_side too."""
    try:
        with Image.open(file, formats=IMAGE_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"expected at most {MAX_PIXELS} pixels, found {image.width} x {image.height}")
            if max(image.size) > max_side:
                raise ValueError(f"expected sides of at most {max_side} pixels, found {image.width} x {image.height}")
            if size is not None:
                image.draft(None, (2 * size, 2 * size))
            image.load()
            return _to_rgb(image, ground)
    except UnidentifiedImageError:
        raise UserError(f"{name}: cannot be read as an image: expected one of {', '.join(IMAGE_FORMATS)}")
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise UserError(f"{name}: cannot be read as an image: {reason(error)}")


def upright_size(path):
    """(width, height) of an image file, upright; None where it is no image. Reads only the start of the file."""
    if not os.path.isfile(path):
        return None
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            width, height = image.size
            lies = image.getexif().get(ORIENTATION, 1) in LYING
    except Exception:  # as in read_image
        return None
    return (height, width) if lies else (width, height)


def _to_rgb(image, ground):
    if image.getexif().get(ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16-bit grey, which Pillow would clip instead of scaling it
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
    if ground is not None and (image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info):
        image = Image.alpha_composite(Image.new("RGBA", image.size, ground), image.convert("RGBA"))
    return image if image.mode == "RGB" else image.convert("RGB")
