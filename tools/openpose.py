"""People of the field's annotation CSVs for Market-1501 and DeepFashion: one image each, joints by OpenPose."""
import collections
import json
import os
import re

import numpy as np
from PIL import Image

from data_index import IMAGE_FORMATS
from errors import UserError, reason, shown
from tools.index_builder import in_parallel

# OpenPose's order. The label lists published with the files have eyes and ears the other way round; photos matched to
# their rows show this one.
JOINTS = ("cnose", "cneck", "rshoulder", "relbow", "rwrist", "lshoulder", "lelbow", "lwrist", "rhip", "rknee", "rankle",
          "lhip", "lknee", "lankle", "reye", "leye", "rear", "lear")
HEADER = "name:keypoints_y:keypoints_x"
# DeepFashion's images are 256 wide or, with 40 pixels cut off on the left and on the right, 176.
WIDE, NARROW, CUT_OFF = (256, 256), (176, 256), 40

Row = collections.namedtuple("Row", "name joints train")
Row.__doc__ = """joints: (18, 2) xy in pixels, -1 where missing."""


def add_people(builder, options):
    """Takes in the rows of options.annotations and options.test_annotations; returns what else the index keeps."""
    rows = read_rows(options.annotations, True) + read_rows(options.test_annotations, False)
    pairs = read_pairs(options.pairs) if options.pairs else None
    paths = find_images(options.images)
    builder.images_seen = len(paths)
    matched = match(rows, paths, options.images, builder)
    used = {path for _, path in matched}
    for path in paths:
        if path not in used:
            builder.leave_out(os.path.relpath(path, options.images), "images without row")

    sizes = list(in_parallel(lambda pair: image_size(pair[1]), matched))
    frames = {}
    for train, csv in ((True, options.annotations), (False, options.test_annotations)):
        of_csv = [(row, size) for (row, _), size in zip(matched, sizes) if row.train == train and size]
        frames[train] = choose_frames(csv, of_csv)
    numbers = {}
    for (row, path), size in zip(matched, sizes):
        if size is None:
            builder.leave_out(row.name, "images that cannot be read")
            continue
        left, width, height = frames[row.train][size]
        joints = np.where(row.joints < 0, -1, (row.joints - (left, 0)) / (width, height))
        if builder.add(row.name, joints, row.train, source=path):
            numbers.setdefault(row.name, len(builder.people) - 1)
    return {} if pairs is None else {"pairs": number_pairs(pairs, numbers)}


# ---------------------------------------------------------------------------------------------- the CSVs

def read_rows(path, train):
    """The rows of an annotation CSV. Raises UserError."""
    lines = _read_lines(path)
    if not lines or lines[0].strip() != HEADER:
        raise UserError("%s: line 1: expected %s, found %s" % (path, HEADER, shown(lines[0] if lines else "nothing")))
    return [_parse(line, "%s: line %d" % (path, i), train) for i, line in enumerate(lines[1:], 2) if line.strip()]


def _parse(line, where, train):
    fields = line.split(":")
    if len(fields) != 3 or not fields[0].strip():
        raise UserError("%s: expected name: [18 y]: [18 x], found %s" % (where, shown(line)))
    columns = []
    for field in fields[1:]:
        try:
            values = json.loads(field)
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, list) or len(values) != len(JOINTS) or not all(
                isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < 1e6 for v in values):
            raise UserError("%s: expected a list of %d numbers, found %s" % (where, len(JOINTS), shown(field)))
        columns.append(values)
    y, x = columns
    joints = np.stack([x, y], axis=1).astype(np.float64)
    joints[(joints < 0).any(axis=1)] = -1
    return Row(fields[0].strip(), joints, train)


def read_pairs(path):
    """[(from, to)]: the image names of a pair list. Raises UserError."""
    lines = _read_lines(path)
    if not lines or lines[0].strip() != "from,to":
        raise UserError("%s: line 1: expected from,to, found %s" % (path, shown(lines[0] if lines else "nothing")))
    pairs = []
    for i, line in enumerate(lines[1:], 2):
        names = [name.strip() for name in line.split(",")]
        if names == [""]:
            continue
        if len(names) != 2 or not all(names):
            raise UserError("%s: line %d: expected two image names, found %s" % (path, i, shown(line)))
        pairs.append(tuple(names))
    return pairs


def number_pairs(pairs, numbers):
    """(P, 2) int64: the pairs as numbers of images; says how many have an image that was left out."""
    kept = [(numbers[a], numbers[b]) for a, b in pairs if a in numbers and b in numbers]
    print("pairs: %d of %d kept; of the others an image was left out" % (len(kept), len(pairs)))
    return np.array(kept, np.int64).reshape(-1, 2)


def _read_lines(path):
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read().splitlines()
    except OSError as error:
        raise UserError("%s: %s" % (path, error.strerror))
    except UnicodeDecodeError as error:
        raise UserError("%s: is not text: %s" % (path, reason(error)))


# ---------------------------------------------------------------------------------------------- the images

def find_images(folder):
    """Sorted paths of all image files in the folder and below. Raises UserError where it is none."""
    if not os.path.isdir(folder):
        raise UserError("--images: there is no folder %s" % folder)
    return sorted(os.path.join(base, name) for base, _, names in os.walk(folder, followlinks=True) for name in names
                  if name.lower().endswith((".jpg", ".jpeg", ".png")))


def match(rows, paths, folder, builder):
    """[(row, path)] of the rows that have an image; notes the others.

    An image's own name goes first, then that name without extension, then the spellings of DeepFashion's.
    """
    by_key = collections.defaultdict(list)
    for path in paths:
        for key in _keys(os.path.relpath(path, folder)):
            by_key[key].append(path)
    candidates, seen = [], set()
    for row in rows:
        if row.name in seen:
            builder.leave_out(row.name, "rows of an image that had one")
            continue
        seen.add(row.name)
        found = next((by_key[key] for key in _keys(row.name) if key in by_key), None)
        if found is None:
            builder.leave_out(row.name, "rows without image")
        else:
            candidates.append((row, found))
    # Market-1501 has images of equal names in several folders: the one where most of this split's rows are is meant.
    hits = collections.Counter((row.train, os.path.dirname(path)) for row, found in candidates for path in found)
    return [(row, max(found, key=lambda path: hits[row.train, os.path.dirname(path)])) for row, found in candidates]


def _keys(path):
    """By what an image is found, best first: name; name without extension; DeepFashion's path as letters and digits."""
    name = os.path.basename(path)
    keys = [("name", name), ("stem", os.path.splitext(name)[0])]
    # fashion/WOMEN/Dresses/id_00005537/05_4_full.jpg is also fasionWOMENDressesid0000553705_4full.jpg
    spelling = re.search(r"(?:^|/|fasion|fashion)((?:WO)?MEN/?[A-Z].*id_?\d{8}.*)", os.path.splitext(path)[0].replace(os.sep, "/"))
    if spelling:
        keys.append(("deepfashion", re.sub(r"[/_]", "", spelling.group(1))))
    return keys


def image_size(path):
    """(width, height), or None where the file is no whole image."""
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            image.load()
            return image.size
    except Exception:  # Pillow's decoders raise nearly anything on damaged files
        return None


def choose_frames(csv, rows):
    """What the coordinates of a CSV count from: {size of image: (left, width, height)}, an offset and a scale.

    rows: [(Row, size of its image)]. Joints lie within the images they were found in, so they are counted in pixels of
    images of that size; only DeepFashion's narrow images also go with coordinates for the wide ones. Raises UserError
    where joints lie outside.
    """
    frames = {}
    for size in {size for _, size in rows}:
        joints = np.concatenate([row.joints for row, image_size in rows if image_size == size])
        joints = joints[joints[:, 0] >= 0]
        if not len(joints):
            joints = np.zeros((1, 2))
        left, frame = 0, size
        if size == NARROW and (joints[:, 0].max() >= NARROW[0] or joints[:, 0].mean() > (NARROW[0] + WIDE[0]) / 4.0):
            left, frame = CUT_OFF, WIDE
        largest = joints.max(axis=0)
        if (largest >= frame).any():
            raise UserError("%s: joints up to (%d, %d) do not fit its images of %d x %d: expected coordinates in pixels of "
                            "the images" % ((csv,) + tuple(largest) + size))
        if len(rows) >= 20 and (largest < np.array(frame) / 2.0).all():
            raise UserError("%s: joints up to (%d, %d) only, in images of %d x %d: expected coordinates in pixels of the "
                            "images, not of smaller ones" % ((csv,) + tuple(largest) + size))
        frames[size] = (left,) + size
    return frames
