"""Checks a data index and shows it.

    python tools/check_index.py data/market/index.p

Prints what is in the index and what looks suspicious; lists every fault on stderr, one line each; writes preview.png, of
some people their image, stick figure and part crops. Exit code 0 when training can start, 2 when not.
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
    Index,
    J,
    index_faults,
    is_file_name,
    is_list,
    is_visible,
    leaves_folder,
    read_image,
    read_index,
)

PREVIEW = "preview.png"
PREVIEW_SIZE = 128
PREVIEW_PEOPLE = 8
LARGEST_IMAGE_FILE = 10**8  # bytes that are compared
MOST_LINES = 20  # of one kind of suspicion
FEWEST_TO_JUDGE = 5  # people from whom on "most of them" means something


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
    parser = Parser(
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=f"Checks a data index: its rules, its images, what looks suspicious. Writes {PREVIEW}. Exit code 0 when\n"
                    "training can start, 2 when not.")
    parser.add_argument("index", metavar="INDEX", help="such as data/market/index.p")
    parser.add_argument("--allow-outside-images", action="store_true",
                        help="as the config key: paths in the index may leave its folder")
    return parser.parse_args(argv)


def check(path, allow_outside):
    """Prints what is to be known of the index at `path` and writes the preview; returns its faults, a list of lines."""
    data = read_index(path)
    faults = [f"{path}: {fault}" for fault in index_faults(data, allow_outside)]
    sizes, digests, image_faults = check_images(os.path.dirname(os.path.abspath(path)), image_names(data, allow_outside))
    print_sizes(sizes)
    if faults:
        return faults + image_faults
    index, faults = Index(path, data=data), image_faults
    for split in ("train", "test"):
        try:
            usable = len(index.usable(split))
        except UserError as error:
            usable = 0
            faults.append(str(error))
        print("{}: {} images, {} of them usable (both hips and both shoulders are visible)".format(split, np.sum(index.train == (split == "train")), usable))
    visible = is_visible(index.joints).mean(axis=0)
    print("visible: " + ", ".join(f"{name} {100 * visible[J[name]]:.0f} %" for name in JOINTS))
    for suspicion in suspicions(index.joints) + shared_images(index, digests):
        print("suspicious: " + suspicion)
    write_preview(index, digests)
    return faults


# ---------------------------------------------------------------------------------------------- the images

def image_names(data, allow_outside):
    """The image paths in the dict of an index, of which the rest may have any fault."""
    images = data["imgs"] if "imgs" in data and is_list(data["imgs"]) else ()
    return sorted({str(name) for name in images if is_file_name(name) and (allow_outside or not leaves_folder(name))})


def check_images(folder, names):
    """Decodes the image files, in parallel: (how often each (width, height) occurs, digests by name, faults)."""
    def look(name):
        path = os.path.join(folder, name)
        try:
            size = read_image(path).size
            with open(path, "rb") as file:
                return name, size, hashlib.md5(file.read(LARGEST_IMAGE_FILE)).digest(), None
        except UserError as error:
            return name, None, None, str(error)

    sizes, digests, faults = collections.Counter(), {}, []
    with multiprocessing.pool.ThreadPool(cpu_count()) as pool:
        looked_at = pool.imap_unordered(look, names, chunksize=16)
        for name, size, digest, fault in with_progress(looked_at, len(names)):
            if fault is None:
                sizes[size] += 1
                digests[name] = digest
            else:
                faults.append(fault)
    return sizes, digests, sorted(faults)


def print_sizes(sizes):
    if sizes:
        most = sizes.most_common(3)
        more = ", and %s other sizes" % (len(sizes) - 3) if len(sizes) > 3 else ""
        print("sizes: {} image files; {}{}".format(sum(sizes.values()), ", ".join(f"{w} x {h}: {n}" for (w, h), n in most), more))


# ---------------------------------------------------------------------------------------------- suspicions

def suspicions(joints):
    """What is allowed and yet looks wrong in joints (N, 15, 2), a list of lines."""
    visible = is_visible(joints)
    found = []

    def report_if_most(wrong, of, line):
        """Where most of enough people are wrong."""
        if of.sum() >= FEWEST_TO_JUDGE and wrong[of].mean() > 0.5:
            found.append(line % (100 * wrong[of].mean(), of.sum()))

    # Whoever shows the face faces the camera: the right shoulder is on the image's left.
    right_of = {pair: joints[:, J["r" + pair], 0] > joints[:, J["l" + pair], 0] for pair in ("shoulder", "hip", "eye")}
    both = {pair: visible[:, J["r" + pair]] & visible[:, J["l" + pair]] for pair in right_of}
    face = visible[:, J["cnose"]] & both["eye"]
    for pair in ("shoulder", "hip"):
        report_if_most(right_of[pair], face & both[pair], "left and right seem swapped: with %.0f %% of the %d people "
                       f"whose face is seen, the right {pair} is on the image's right")
    facing = both["shoulder"] & ~right_of["shoulder"]
    report_if_most(right_of["eye"], face & facing, "the eyes seem swapped: with %.0f %% of the %d people who face the "
                   "camera, the right eye is on the image's right")

    largest = np.where(visible, joints.max(axis=-1), 0).max(axis=1)
    for number in np.flatnonzero(largest > 1.5)[:MOST_LINES]:
        found.append(f"joints[{number}]: a visible joint is at {largest[number]:g}, far outside of its image")
    if visible.any():
        seen = joints[visible]
        outside = (seen > 1).any(axis=1).mean()
        if outside > 0.02:
            found.append("%.0f %% of the visible joints lie outside of their image: are they shares of its width and "
                         "height?" % (100 * outside))
        for axis, name, side in ((0, "right", "width"), (1, "lower", "height")):
            if len(seen) >= 50 and seen[:, axis].max() <= 0.51:
                found.append(f"no joint is in the {name} half of its image: are they shares of its {side}?")
        corner = (seen == 0).all(axis=1).mean()
        if corner > 0.01:
            found.append("%.0f %% of the visible joints are at (0, 0): are those missing ones? They must be negative"
                         % (100 * corner))
    return found


def shared_images(index, digests):
    """Of images that appear in both splits, by name or by content, a list of one line or none."""
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
    return ["{} images appear in both splits, for example {}".format(len(shared), " and ".join(examples))]


# ---------------------------------------------------------------------------------------------- the preview

def write_preview(index, decodable):
    """Saves a row for each of some people of both splits: image, stick figure, part crops."""
    usable = [i for i in np.flatnonzero(index.has_torso()) if index.images[i] in decodable]
    if not usable:
        return
    load = Loader(index, PREVIEW_SIZE, 0)
    rows = []
    for number in np.unique(np.linspace(0, len(usable) - 1, PREVIEW_PEOPLE).astype(int)):
        example = Examples(*[array[0] for array in load([usable[number]])])
        parts = np.where(np.repeat(example.has_part, 3), example.parts, 127).astype(np.uint8)  # grey, as networks see it
        rows.append(np.concatenate([example.image, example.stick] + np.split(parts, len(PARTS), axis=-1), axis=1))
    try:
        Image.fromarray(np.concatenate(rows)).save(PREVIEW)
    except OSError as error:  # a pity, and no fault of the index
        print(f"warning: {PREVIEW} cannot be written: {reason(error)}", file=sys.stderr)
        return
    print(f"{PREVIEW}: of {len(rows)} people the image, the stick figure (right limbs red, left limbs green) and the part crops")


if __name__ == "__main__":
    sys.exit(run(main))
