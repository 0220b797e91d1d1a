"""Checks a data index and shows it.

    python tools/check_index.py data/market/index.p

Prints what is in the index and what looks suspicious. Lists every fault on stderr, one line each. Writes preview.png:
some images with their stick figures and part crops, or with their shape images. The exit code is 0 if training can
start, 2 if not.
"""
import argparse
import collections
import hashlib
import multiprocessing.pool
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np
from PIL import Image

from batches import PARTS, Examples, Loader
from common.errors import Parser, UserError, reason, run, shown
from common.machine import cpu_count
from dataset.builder import with_progress
from dataset.index import (
    JOINTS,
    WHITE,
    Index,
    J,
    index_faults,
    is_bright,
    is_file_name,
    is_grey,
    is_list,
    is_visible,
    leaves_folder,
    read_image,
    read_index,
)
from inference.items import find_pairs

PREVIEW = "preview.png"
PREVIEW_SIZE = 128
PREVIEW_PEOPLE = 8
MAX_COMPARED = 10**8  # bytes of an image file
MAX_LINES = 20  # of one kind of suspicion
MIN_PEOPLE = 5  # for a majority verdict
MAX_SHAPES = 50  # that are looked at
MAX_ASPECTS = 1.1  # ratio of a shape's aspect to its image's, and the other way
MIN_JOINTS = 50  # to judge where they lie


def main(argv=None):
    options = parse_options(argv)
    faults = check(options.index, options.allow_outside_images)
    for fault in faults:
        print(f"error: {fault}", file=sys.stderr)
    if faults:
        print(f"training cannot start: {len(faults)} {'fault' if len(faults) == 1 else 'faults'}")
        return 2
    print("training can start")
    return 0


def parse_options(argv):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", metavar="INDEX", help="such as data/market/index.p")
    parser.add_argument("--allow-outside-images", action="store_true",
                        help="as the config key of this name: paths in the index may leave its folder")
    return parser.parse_args(argv)


def check(path, allow_outside):
    """Prints a description of the index at `path` and writes the preview; returns its faults, a list of lines."""
    data = read_index(path)
    faults = [f"{path}: {fault}" for fault in index_faults(data, allow_outside)]
    names = image_names(data, allow_outside)
    sizes, digests, image_faults = check_images(os.path.dirname(os.path.abspath(path)), names)
    print_sizes(collections.Counter(sizes.values()))
    if faults:
        return faults + image_faults
    index = Index(path, data=data)
    split_faults = check_splits(index)
    found = []
    if index.joints is not None:
        visible = is_visible(index.joints).mean(axis=0)
        print("visible: " + ", ".join(f"{name} {100 * visible[J[name]]:.0f} %" for name in JOINTS))
        found += suspicions(index.joints)
    if index.shapes is not None:
        found += bright_shapes(index, digests) + other_aspects(index, sizes)
    for suspicion in found + shared_images(index, digests):
        print("suspicious: " + suspicion)
    write_preview(index, digests)
    return image_faults + split_faults


def check_splits(index):
    """Prints how many images of each split are usable; returns the faults."""
    faults = []
    for split, in_split in (("train", index.train), ("test", ~index.train)):
        try:
            n_usable = len(index.usable(split))
        except UserError as error:
            n_usable = 0
            faults.append(str(error))
        why = " (both hips and both shoulders are visible)" if index.uses_joints else ""
        print(f"{split}: {np.sum(in_split)} images, {n_usable} of them usable{why}")
    if not faults:
        try:
            find_pairs(index)
        except UserError as error:
            faults.append(str(error))
    return faults


# ---------------------------------------------------------------------------------------------- the images

def image_names(data, allow_outside):
    """The paths in the dict of an index that may be read; anything else in it may be faulty."""
    names = [name for key in ("imgs", "shapes") if key in data and is_list(data[key]) for name in data[key]]
    return sorted({str(name) for name in names if is_file_name(name) and (allow_outside or not leaves_folder(name))})


def check_images(folder, names):
    """Decodes the image files in threads: ((width, height) by name, digests by name, faults)."""
    def look(name):
        path = os.path.join(folder, name)
        try:
            size = read_image(path).size
            with open(path, "rb") as file:
                return name, size, hashlib.md5(file.read(MAX_COMPARED)).digest(), None
        except UserError as error:
            return name, None, None, str(error)

    sizes, digests, faults = {}, {}, []
    with multiprocessing.pool.ThreadPool(cpu_count()) as pool:
        looked_at = pool.imap_unordered(look, names, chunksize=16)
        for name, size, digest, fault in with_progress(looked_at, len(names)):
            if fault is None:
                sizes[name] = size
                digests[name] = digest
            else:
                faults.append(fault)
    return sizes, digests, sorted(faults)


def print_sizes(sizes):
    """Prints the most frequent sizes of images."""
    if not sizes:
        return
    most = ", ".join(f"{width} x {height}: {n}" for (width, height), n in sizes.most_common(3))
    more = f", and {len(sizes) - 3} other sizes" if len(sizes) > 3 else ""
    print(f"sizes: {sum(sizes.values())} image files; {most}{more}")


# ---------------------------------------------------------------------------------------------- suspicions

def suspicions(joints):
    """What the rules allow and yet looks wrong in joints (N, 15, 2), a list of lines."""
    visible = is_visible(joints)
    return swapped_sides(joints, visible) + far_joints(joints, visible) + misplaced_joints(joints[visible])


def swapped_sides(joints, visible):
    """Lines about left and right. With people who face the camera, the right shoulder is on the image's left."""
    right_of = {pair: joints[:, J["r" + pair], 0] > joints[:, J["l" + pair], 0] for pair in ("shoulder", "hip", "eye")}
    both = {pair: visible[:, J["r" + pair]] & visible[:, J["l" + pair]] for pair in right_of}
    face = visible[:, J["cnose"]] & both["eye"]
    found = []
    for pair in ("shoulder", "hip"):
        judged = face & both[pair]
        wrong = right_of[pair][judged]
        if is_most(wrong):
            found.append(f"left and right seem swapped: with {percent(wrong)} of the {len(wrong)} people whose face is "
                         f"seen, the right {pair} is on the image's right")
    facing = both["shoulder"] & ~right_of["shoulder"]
    wrong = right_of["eye"][face & facing]
    if is_most(wrong):
        found.append(f"the eyes seem swapped: with {percent(wrong)} of the {len(wrong)} people who face the camera, "
                     "the right eye is on the image's right")
    return found


def is_most(wrong):
    """Whether most of enough people, a bool for each, are wrong."""
    return len(wrong) >= MIN_PEOPLE and wrong.mean() > 0.5


def percent(wrong):
    return f"{100 * np.mean(wrong):.0f} %"


def far_joints(joints, visible):
    """Lines about single joints that are far outside of their image."""
    largest = np.where(visible, joints.max(axis=-1), 0).max(axis=1)
    return [f"joints[{number}]: a visible joint is at {largest[number]:g}, far outside of its image"
            for number in np.flatnonzero(largest > 1.5)[:MAX_LINES]]


def misplaced_joints(seen):
    """Lines about where all visible joints (n, 2) lie."""
    if not len(seen):
        return []
    found = []
    outside = (seen > 1).any(axis=1)
    if outside.mean() > 0.02:
        found.append(f"{percent(outside)} of the visible joints lie outside of their image: are they shares of its "
                     "width and height?")
    for axis, half, side in ((0, "right", "width"), (1, "lower", "height")):
        if len(seen) >= MIN_JOINTS and seen[:, axis].max() <= 0.51:
            found.append(f"no joint is in the {half} half of its image: are they shares of its {side}?")
    corner = (seen == 0).all(axis=1)
    if corner.mean() > 0.01:
        found.append(f"{percent(corner)} of the visible joints are at (0, 0): are those missing ones? They must be "
                     "negative")
    return found


def bright_shapes(index, decodable):
    """A line about line drawings that are bright as the program sees them, and black_on_white; a list of one or none.

    decodable: the names of the images that can be read.
    """
    names = [shape for shape in index.shapes if shape in decodable]
    names = names[::max(1, len(names) // MAX_SHAPES)]
    shapes = [np.asarray(read_image(os.path.join(index.folder, name), ground=WHITE)) for name in names]
    wrong = np.array([is_bright(shape[..., 1]) != index.black_on_white for shape in shapes if is_grey(shape)])
    if not is_most(wrong):
        return []
    found = "true" if index.black_on_white else "false"
    return [f"{percent(wrong)} of {len(wrong)} grey shape images are mostly bright, where lines should be white on "
            f"black: is the index's black_on_white, {found}, right?"]


def other_aspects(index, sizes):
    """Lines about shape images whose aspect is not that of their image. sizes: (width, height) by name."""
    found = []
    for image, shape in zip(index.images, index.shapes):
        if image in sizes and shape in sizes and len(found) < MAX_LINES:
            aspects = [width / height for width, height in (sizes[image], sizes[shape])]
            if max(aspects) > MAX_ASPECTS * min(aspects):
                found.append(f"{shown(shape, 1000)} has another aspect than its image {shown(image, 1000)}")
    return found


def shared_images(index, digests):
    """A line about images that are in both splits, by name or by content; a list of one or none."""
    splits = collections.defaultdict(set)
    names = {}
    for name, train in zip(index.images, index.train):
        digest = digests.get(name, name)
        splits[digest].add(bool(train))
        names.setdefault(digest, []).append(name)
    shared = [digest for digest in splits if len(splits[digest]) == 2]
    if not shared:
        return []
    examples = [shown(name, 1000) for name in sorted(set(names[shared[0]]))[:2]]
    return [f"images in both splits: {len(shared)}, for example {' and '.join(examples)}"]


# ---------------------------------------------------------------------------------------------- the preview

def write_preview(index, decodable):
    """Saves a picture with a row for each of some people: image, stick figure, part crops; or image and shape image.

    decodable: the names of the images that can be read.
    """
    usable = [i for i in np.flatnonzero(index.is_usable()) if index.images[i] in decodable
              and (index.shapes is None or index.shapes[i] in decodable)]
    if not usable:
        return
    has_shapes, has_joints = index.shapes is not None, index.joints is not None
    load = Loader(index, PREVIEW_SIZE, 0, shape="picture" if has_shapes else "joints",
                  appearance="parts" if has_joints else "none")
    rows = []
    for number in np.unique(np.linspace(0, len(usable) - 1, PREVIEW_PEOPLE).astype(int)):
        example = Examples(*[array[0] for array in load([usable[number]])])
        # A part that is missing is grey, as the network sees it.
        parts = np.where(np.repeat(example.has_part, 3), example.appearance, 127).astype(np.uint8)
        crops = np.split(parts, len(PARTS), axis=-1) if has_joints else []
        rows.append(np.concatenate([example.image, example.shape_image] + crops, axis=1))
    try:
        Image.fromarray(np.concatenate(rows)).save(PREVIEW)
    except OSError as error:  # which is no fault of the index
        print(f"warning: {PREVIEW} cannot be written: {reason(error)}", file=sys.stderr)
        return
    columns = ["image", "shape image" if has_shapes else "stick figure (right limbs red, left limbs green)"]
    columns += ["part crops"] if has_joints else []
    print(f"{PREVIEW} shows {len(rows)} {'people' if has_joints else 'things'}: {', '.join(columns)}")


if __name__ == "__main__":
    sys.exit(run(main))
