"""People of the field's annotation CSVs for Market-1501 and DeepFashion: one image each, joints by OpenPose."""
import collections
import json
import os
import re

import numpy as np

from common.errors import UserError, reason, shown
from dataset.builder import files_below, in_parallel
from dataset.index import read_image

# OpenPose's order. The label lists published with the files have eyes and ears the other way round; photos matched to
# their rows show this one.
JOINTS = ("cnose", "cneck", "rshoulder", "relbow", "rwrist", "lshoulder", "lelbow", "lwrist", "rhip", "rknee", "rankle",
          "lhip", "lknee", "lankle", "reye", "leye", "rear", "lear")
HEADER = "name:keypoints_y:keypoints_x"
# Sizes of Market-1501's images and of DeepFashion's, which are 256 wide or, with 40 pixels cut off on either side, 176.
MARKET, WIDE, NARROW = (64, 128), (256, 256), (176, 256)
ENOUGH_ROWS = 20  # from which on extremes and means say something

Row = collections.namedtuple("Row", "name joints train")
Row.__doc__ = """joints: (18, 2) xy in pixels, -1 where missing."""


def add_people(builder, options):
    """Takes in the rows of options.annotations and options.test_annotations; returns what else the index keeps."""
    csvs = {True: options.annotations, False: options.test_annotations}
    rows = [row for train in (True, False) for row in read_rows(csvs[train], train)]
    pairs = read_pairs(options.pairs) if options.pairs else None
    if not os.path.isdir(options.images):
        raise UserError(f"--images: there is no folder {shown(options.images, 1000)}")
    paths = files_below(os.path.abspath(options.images), (".jpg", ".jpeg", ".png"), builder)
    builder.images_seen = len(paths)
    matched = match(rows, paths, builder)
    used = {path for _, path in matched}
    for path in paths:
        if path not in used:
            builder.leave_out(os.path.relpath(path, options.images), "images without row")

    sizes = list(in_parallel(lambda pair: image_size(pair[1]), matched))
    frames = {train: choose_frame(csv, [row for row in rows if row.train == train],
                                  [size for (row, _), size in zip(matched, sizes) if row.train == train])
              for train, csv in csvs.items()}
    numbers = {}
    for (row, path), size in zip(matched, sizes):
        joints, why = to_shares(row.joints, frames[row.train], size)
        if why:
            builder.leave_out(row.name, why)
        elif builder.add(row.name, joints, row.train, source=path):
            for key in _keys(row.name):
                numbers.setdefault(key, len(builder.people) - 1)
    return {} if pairs is None else {"pairs": number_pairs(pairs, numbers, {key for row in rows for key in _keys(row.name)})}


# ---------------------------------------------------------------------------------------------- the CSVs

def read_rows(path, train):
    """The rows of an annotation CSV. Raises UserError."""
    lines = _read_lines(path)
    if not lines or lines[0].strip() != HEADER:
        raise UserError("{}: line 1: expected {}, found {}".format(path, HEADER, shown(lines[0] if lines else "nothing")))
    return [_parse(line, f"{path}: line {i}", train) for i, line in enumerate(lines[1:], 2) if line.strip()]


def _parse(line, where, train):
    fields = line.split(":")
    if len(fields) != 3 or not fields[0].strip():
        raise UserError(f"{where}: expected name: [18 y]: [18 x], found {shown(line)}")
    columns = []
    for field in fields[1:]:
        try:
            values = json.loads(field)
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, list) or len(values) != len(JOINTS) or not all(
                isinstance(v, (int, float)) and not isinstance(v, bool) and abs(v) < 1e6 for v in values):
            raise UserError(f"{where}: expected a list of {len(JOINTS)} numbers, found {shown(field)}")
        columns.append(values)
    y, x = columns
    joints = np.stack([x, y], axis=1).astype(np.float64)
    joints[(joints < 0).any(axis=1)] = -1
    return Row(fields[0].strip(), joints, train)


def read_pairs(path):
    """[(from, to)]: the image names of a pair list. Raises UserError."""
    lines = _read_lines(path)
    if not lines or lines[0].strip() != "from,to":
        raise UserError("{}: line 1: expected from,to, found {}".format(path, shown(lines[0] if lines else "nothing")))
    pairs = []
    for i, line in enumerate(lines[1:], 2):
        names = [name.strip() for name in line.split(",")]
        if names == [""]:
            continue
        if len(names) != 2 or not all(names):
            raise UserError(f"{path}: line {i}: expected two image names, found {shown(line)}")
        pairs.append(tuple(names))
    return pairs


def number_pairs(pairs, numbers, known):
    """(P, 2) int64: the pairs as numbers of images.

    numbers: of the images in the index, by _keys; known: the keys of all rows. Says what became of the other pairs.
    """
    kept, unknown = [], 0
    for pair in pairs:
        found = [next((numbers[key] for key in _keys(name) if key in numbers), None) for name in pair]
        if None not in found:
            kept.append(found)
        else:
            unknown += not all(any(key in known for key in _keys(name)) for name in pair)
    print(f"pairs: {len(kept)} of {len(pairs)} kept; {unknown} have an image that no row names, {len(pairs) - len(kept) - unknown} one that was left out")
    return np.array(kept, np.int64).reshape(-1, 2)


def _read_lines(path):
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read().splitlines()
    except OSError as error:
        raise UserError(f"{shown(path, 1000)}: cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not text: {reason(error)}")


# ---------------------------------------------------------------------------------------------- the images

def match(rows, paths, builder):
    """[(row, path)] of the rows that have an image; notes the others.

    An image's own name goes first, then that name without extension, then the spellings of DeepFashion's.
    """
    by_key = collections.defaultdict(list)
    for path in paths:
        for key in _keys(path):
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
    stem = os.path.splitext(path)[0].replace(os.sep, "/")
    spelling = re.search(r"(?:^|/|fasion|fashion)((?:WO)?MEN/?[A-Z].*id_?\d{8}.*)", stem)
    if spelling:
        keys.append(("deepfashion", re.sub(r"[/_]", "", spelling.group(1))))
    return keys


def image_size(path):
    """(width, height), or None where the file is no whole image."""
    try:
        return read_image(path).size
    except UserError:
        return None


def choose_frame(csv, rows, sizes):
    """The size of the images in whose pixels a CSV counts: one of MARKET, WIDE and NARROW.

    rows: all of the CSV; sizes: of their images, None for those that cannot be read. Once for the whole CSV, as single
    people can stand anywhere: DeepFashion's narrow images go with coordinates for the wide ones too, and the other way
    round. Raises UserError where coordinates and images do not go together.
    """
    joints = np.concatenate([row.joints for row in rows] or [np.zeros((0, 2))])
    joints = joints[joints[:, 0] >= 0]
    common = collections.Counter(size for size in sizes if size is not None).most_common(1)
    if not common or not len(joints):
        return MARKET  # nobody to place
    size = common[0][0]
    if size not in (MARKET, WIDE, NARROW):
        raise UserError("%s: its images are %d x %d; expected 64 x 128, 256 x 256 or 176 x 256, as in the data sets that "
                        "these files belong to" % ((csv,) + size))
    frame, largest, mean = size, joints.max(axis=0), joints[:, 0].mean()
    if size == NARROW and (largest[0] >= NARROW[0] or mean > (NARROW[0] + WIDE[0]) / 4.0):
        frame = WIDE
    elif size == WIDE and len(rows) >= ENOUGH_ROWS and largest[0] < NARROW[0] and mean < (NARROW[0] + WIDE[0]) / 4.0:
        frame = NARROW
    outside = (joints >= frame).any(axis=1).mean()
    if outside > 0.1 or len(rows) >= ENOUGH_ROWS and (largest < np.array(frame) / 2.0).any():
        raise UserError("%s: its joints reach to (%d, %d), and its images are %d x %d: expected coordinates in pixels of "
                        "such images" % ((csv,) + tuple(largest) + size))
    return frame


def to_shares(joints, frame, size):
    """(joints (18, 2) in shares of an image of this size, None), or (None, why not)."""
    if size is None:
        return None, "images that cannot be read"
    if size != frame and {size, frame} != {WIDE, NARROW}:
        return None, "images of another size than most"
    if (joints >= frame).any():
        return None, "rows with joints outside of the image"
    left = (frame[0] - size[0]) / 2.0
    return np.where(joints < 0, -1, (joints - (left, 0)) / size), None
