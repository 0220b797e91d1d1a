"""People of the published annotation CSVs for Market-1501 and DeepFashion: an image each, with joints by OpenPose."""
import collections
import json
import os
import re

import numpy as np

from common.errors import UserError, reason, shown
from dataset.builder import files_below, in_parallel, is_pixel
from dataset.index import read_image

# OpenPose's order. The label lists published with the files swap left and right of eyes and ears, but the photos show
# that this order is right.
JOINTS = ("cnose", "cneck", "rshoulder", "relbow", "rwrist", "lshoulder", "lelbow", "lwrist", "rhip", "rknee", "rankle",
          "lhip", "lknee", "lankle", "reye", "leye", "rear", "lear")
HEADER = "name:keypoints_y:keypoints_x"
# Sizes of the images of Market-1501 and of DeepFashion. NARROW is WIDE with 40 pixels cut off on either side.
MARKET, WIDE, NARROW = (64, 128), (256, 256), (176, 256)
MIN_ROWS = 20  # for the extremes and the mean of a CSV to say something

Row = collections.namedtuple("Row", "name joints train")
Row.__doc__ = """A line of a CSV. joints: (18, 2) xy in pixels, -1 where missing; train: whether for training."""


def add_people(builder, options):
    """Adds the people of the options' annotations; returns further keys for the index.

    They are `person`, if file names say who is who, and `pairs`, if these are given.
    """
    csvs = {True: options.annotations, False: options.test_annotations}
    rows = [row for train, csv in csvs.items() for row in read_rows(csv, train)]
    pairs = read_pairs(options.pairs) if options.pairs else None
    paths = find_images(options.images, builder)
    matched = match(rows, paths, builder)
    used = {path for _, path in matched}
    for path in paths:
        if path not in used:
            builder.leave_out(os.path.relpath(path, options.images), "images without row")
    numbers = add_matched(builder, csvs, rows, matched)
    extra = {}
    groups = [entry.group for entry in builder.entries]
    if len(set(groups)) < len(groups):
        extra["person"] = np.unique(groups, return_inverse=True)[1]
    if pairs is not None:
        known = {key for row in rows for key in _keys(row.name)}
        extra["pairs"] = number_pairs(pairs, numbers, known)
    return extra


def add_matched(builder, csvs, rows, matched):
    """Adds the rows that have an image, [(row, path)]; returns the numbers of the images in the index, by _keys.

    csvs: {train: path}. rows: all rows of both files.
    """
    sizes = list(in_parallel(lambda pair: image_size(pair[1]), matched))
    frames = {}
    for train, csv in csvs.items():
        sizes_here = [size for (row, _), size in zip(matched, sizes) if row.train == train]
        frames[train] = choose_frame(csv, [row for row in rows if row.train == train], sizes_here)
    numbers = {}
    for (row, path), size in zip(matched, sizes):
        joints, why = to_shares(row.joints, frames[row.train], size)
        if why:
            builder.leave_out(row.name, why)
        elif builder.add(row.name, joints, train=row.train, source=path, group=same_person(row.name)):
            for key in _keys(row.name):
                numbers.setdefault(key, len(builder.entries) - 1)
    return numbers


# ---------------------------------------------------------------------------------------------- the CSVs

def read_rows(path, train):
    """The rows of an annotation CSV. Raises UserError."""
    lines = _read_lines(path)
    if not lines or lines[0].strip() != HEADER:
        found = shown(lines[0]) if lines else "nothing"
        raise UserError(f"{path}: line 1: expected {HEADER}, found {found}")
    return [_parse(line, f"{path}: line {i}", train) for i, line in enumerate(lines[1:], 2) if line.strip()]


def _parse(line, where, train):
    """The Row of a line."""
    fields = line.split(":")
    if len(fields) != 3 or not fields[0].strip():
        raise UserError(f"{where}: expected name: [18 y]: [18 x], found {shown(line)}")
    columns = []
    for field in fields[1:]:
        try:
            values = json.loads(field)
        except (ValueError, RecursionError):
            values = None
        if not isinstance(values, list) or len(values) != len(JOINTS) or not all(is_pixel(value) for value in values):
            raise UserError(f"{where}: expected a list of {len(JOINTS)} numbers, found {shown(field)}")
        columns.append(values)
    y, x = columns
    joints = np.stack([x, y], axis=1).astype(np.float64)
    joints[(joints < 0).any(axis=1)] = -1
    return Row(fields[0].strip(), joints, train)


def read_pairs(path):
    """The image names of a pair list, [(from, to)]. Raises UserError."""
    lines = _read_lines(path)
    if not lines or lines[0].strip() != "from,to":
        found = shown(lines[0]) if lines else "nothing"
        raise UserError(f"{path}: line 1: expected from,to, found {found}")
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
    """The pairs as numbers of images, (P, 2) int64; prints what became of the other pairs.

    numbers: of the images in the index, by _keys. known: the keys of all rows.
    """
    kept, unknown = [], 0
    for pair in pairs:
        found = [next((numbers[key] for key in _keys(name) if key in numbers), None) for name in pair]
        if None not in found:
            kept.append(found)
        elif not all(any(key in known for key in _keys(name)) for name in pair):
            unknown += 1
    print(f"pairs: {len(kept)} of {len(pairs)} kept; {unknown} have an image that no row names, "
          f"{len(pairs) - len(kept) - unknown} one that was left out")
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

def find_images(folder, builder):
    """Sorted paths of the images in a folder and below. Raises UserError if there is no such folder."""
    if not os.path.isdir(folder):
        raise UserError(f"--images: there is no folder {shown(folder, 1000)}")
    paths = files_below(os.path.abspath(folder), (".jpg", ".jpeg", ".png"), builder)
    builder.images_seen = len(paths)
    return paths


def match(rows, paths, builder):
    """[(row, path)] of the rows that have an image; notes the others.

    An image is found by its name; failing that, by its name without extension, or by DeepFashion's spellings of a path.
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
    # Market-1501 has images of equal names in several folders. The folder that most rows of the split are in is meant.
    hits = collections.Counter((row.train, os.path.dirname(path)) for row, found in candidates for path in found)
    return [(row, max(found, key=lambda path: hits[row.train, os.path.dirname(path)])) for row, found in candidates]


def _keys(path):
    """What an image is found by, best first: name; name without extension; DeepFashion's path as letters and digits."""
    name = os.path.basename(path)
    keys = [("name", name), ("stem", os.path.splitext(name)[0])]
    # fashion/WOMEN/Dresses/id_00005537/05_4_full.jpg is also spelt fasionWOMENDressesid0000553705_4full.jpg.
    stem = os.path.splitext(path)[0].replace(os.sep, "/")
    spelling = re.search(r"(?:^|/|fasion|fashion)((?:WO)?MEN/?[A-Z].*id_?\d{8}.*)", stem)
    if spelling:
        keys.append(("deepfashion", re.sub(r"[/_]", "", spelling.group(1))))
    return keys


def same_person(name):
    """What the names of all images of somebody in the same clothes share, or None where a name does not tell.

    Market-1501: 0012 of 0012_c1s1_000451_03.jpg; 0000 and -1 are anybody. DeepFashion: all up to the item's number and
    the two digits of its colour, WOMENDressesid0000553705 of the names in _keys.
    """
    market = re.match(r"(?!0000)(\d{4})_c\d", os.path.basename(name))
    if market:
        return market.group(1)
    spelling = dict(_keys(name)).get("deepfashion", "")
    item = re.match(r".*?id\d{8}\d{2}", spelling)
    return item and item.group(0)


def image_size(path):
    """(width, height), or None if the file is not a whole image."""
    try:
        return read_image(path).size
    except UserError:
        return None


def choose_frame(csv, rows, sizes):
    """The size of the images whose pixels a CSV counts in: MARKET, WIDE or NARROW.

    csv: its path. rows: all of its rows. sizes: of their images, None for those that cannot be read. One answer serves
    the whole CSV, as single people can stand anywhere. DeepFashion's images can be narrow while the coordinates are for
    wide ones, and the reverse. Raises UserError if coordinates and images do not go together.
    """
    joints = np.concatenate([row.joints for row in rows] or [np.zeros((0, 2))])
    joints = joints[joints[:, 0] >= 0]
    common = collections.Counter(size for size in sizes if size is not None).most_common(1)
    if not common or not len(joints):
        return MARKET  # nobody to place
    size = common[0][0]
    if size not in (MARKET, WIDE, NARROW):
        raise UserError(f"{csv}: its images are {size[0]} x {size[1]}; expected 64 x 128, 256 x 256 or 176 x 256, as "
                        "in the data sets that these files belong to")
    has_enough_rows = len(rows) >= MIN_ROWS
    largest = joints.max(axis=0)
    between = (NARROW[0] + WIDE[0]) / 4.0  # halfway from the middle of a narrow image to that of a wide one
    exceeds_narrow = largest[0] >= NARROW[0] or joints[:, 0].mean() > between
    frame = size
    if size == NARROW and exceeds_narrow:
        frame = WIDE
    elif size == WIDE and has_enough_rows and not exceeds_narrow:
        frame = NARROW
    too_large = (joints >= frame).any(axis=1).mean() > 0.1
    too_small = has_enough_rows and (largest < np.array(frame) / 2.0).any()
    if too_large or too_small:
        raise UserError(f"{csv}: its joints reach to ({largest[0]:.0f}, {largest[1]:.0f}), and its images are "
                        f"{size[0]} x {size[1]}: expected coordinates in pixels of such images")
    return frame


def to_shares(joints, frame, size):
    """(joints (18, 2) in shares of an image of this size, None), or (None, why they cannot be used)."""
    if size is None:
        return None, "images that cannot be read"
    if size != frame and {size, frame} != {WIDE, NARROW}:
        return None, "images of another size than most"
    if (joints >= frame).any():
        return None, "rows with joints outside of the image"
    left = (frame[0] - size[0]) / 2.0
    return np.where(joints < 0, -1, (joints - (left, 0)) / size), None
