"""What every source of people shares: square crops, and a data set that appears whole or not at all."""
import collections
import multiprocessing.pool
import os
import pickle
import shutil
import sys

import numpy as np
from PIL import Image
from tqdm import tqdm

from data_index import TORSO, is_visible
from errors import UserError, reason

MARGIN = 0.15  # of the longer side of a person's box, on each side
# All that a data set of this tool consists of; a folder that holds anything else is never replaced.
CONTENT = {"images", "index.p", "left_out.txt"}

Person = collections.namedtuple("Person", "image joints train group")


class IndexBuilder(object):
    """A data set in the making: images/, index.p and left_out.txt in the folder `out`.

    with IndexBuilder("data/mine", names) as builder:
        builder.add("one.jpg", joints, pixels=crop)
        builder.leave_out("two.jpg", "no person found")
        builder.finish()

    It is made in <out>.partial, which `finish` renames; a run that ends before takes it away, and what a killed run left
    the next one clears. Raises UserError where `out` holds something (`overwrite` replaces an earlier data set).
    """

    def __init__(self, out, joint_order, overwrite=False):
        self.name, self.out = out, os.path.realpath(out)  # a link to a folder elsewhere is kept
        self.partial, self.old = self.out + ".partial", self.out + ".old"
        self.joint_order = list(joint_order)
        self.people, self.left_out, self.names = [], [], set()
        self.images_seen = 0
        if os.path.isfile(self.out):
            raise UserError("--out: %s: expected a folder, found a file" % out)
        if os.path.isdir(self.out) and os.listdir(self.out) and not (overwrite and _is_data_set(self.out)):
            raise UserError("--out: %s: expected a new or empty folder%s, found one with %s in it" % (
                out, " or, with --overwrite, a data set of this tool" if overwrite or _is_data_set(self.out) else "",
                ", ".join(sorted(os.listdir(self.out))[:3])))
        if os.path.ismount(self.out):
            raise UserError("--out: %s: expected a folder that can be renamed, found a mount point; take one in it" % out)
        for path in (self.partial, self.old):
            if os.path.exists(path) and not _is_data_set(path):
                raise UserError("--out: %s is in the way: expected what an interrupted run left there, or nothing" % path)

    def __enter__(self):
        try:
            shutil.rmtree(self.partial, ignore_errors=True)
            os.makedirs(os.path.join(self.partial, "images"))
        except OSError as error:
            raise UserError("--out: cannot make the folder %s: %s" % (self.partial, error.strerror))
        return self

    def __exit__(self, *unused):
        shutil.rmtree(self.partial, ignore_errors=True)

    def add(self, name, joints, train=None, group=None, pixels=None, source=None):
        """Takes a person in, or leaves out one without both hips and both shoulders; returns whether it did.

        name: of the image; joints: (J, 2) in shares of width and height, negative where missing, and what lies outside
        of the image becomes missing. train: whether for training, or None, to be chosen for all images of a `group` at
        once. The image is either `pixels`, (h, w, 3) uint8, saved as JPEG, or the file `source`, copied.
        """
        joints = np.array(joints, np.float32)
        joints[~is_visible(joints) | (joints >= 1).any(axis=1)] = -1
        if not self.has_torso(joints):
            self.leave_out(name, "hips or shoulders not seen")
            return False
        stem = os.path.splitext(name.replace(os.sep, "_"))[0]
        extension = ".jpg" if pixels is not None else os.path.splitext(source)[1]
        number, image = 1, stem + extension
        while image in self.names:
            number, image = number + 1, "%s_%d%s" % (stem, number, extension)
        self.names.add(image)
        path = os.path.join(self.partial, "images", image)
        try:
            if pixels is not None:
                Image.fromarray(pixels).save(path, "JPEG", quality=95, subsampling=0)
            else:
                shutil.copyfile(source, path)
        except OSError as error:
            raise UserError("%s: cannot be written: %s" % (path, reason(error)))
        self.people.append(Person("images/" + image, joints, train, group or name))
        return True

    def leave_out(self, name, why):
        """Notes somebody who is not taken in."""
        self.left_out.append((name, why))

    def has_torso(self, joints):
        """Whether both hips and both shoulders are among joints (J, 2)."""
        return is_visible(joints[[self.joint_order.index(name) for name in TORSO]]).all()

    def finish(self, test_share=0.1, **extra):
        """Splits who is not split yet, writes the index with further keys, and puts the data set in its place."""
        if not self.people:
            raise UserError("no person could be used: %s" % (self._reasons() or "there is no image"))
        train = self._split(test_share)
        index = dict(joint_order=self.joint_order, imgs=[person.image for person in self.people], train=train,
                     joints=np.stack([person.joints for person in self.people]), **extra)
        try:
            with open(os.path.join(self.partial, "left_out.txt"), "w", encoding="utf-8", errors="replace") as file:
                file.writelines("%s: %s\n" % item for item in self.left_out)
            with open(os.path.join(self.partial, "index.p"), "wb") as file:
                pickle.dump(index, file, protocol=2)
            if os.path.isdir(self.out):
                shutil.rmtree(self.old, ignore_errors=True)
                os.rename(self.out, self.old)
            os.rename(self.partial, self.out)
            shutil.rmtree(self.old, ignore_errors=True)
        except OSError as error:
            raise UserError("--out: %s: cannot be written: %s" % (self.name, error.strerror))
        self._summarise(index)

    def _split(self, test_share):
        """[bool]: the train flags; of the groups not split yet a share, one at least, goes to the test split."""
        groups = sorted({person.group for person in self.people if person.train is None})
        n_test = min(max(1, int(round(test_share * len(groups)))), len(groups) - 1)
        test = {groups[i] for i in np.random.RandomState(0).permutation(len(groups))[:max(0, n_test)]}
        return [person.group not in test if person.train is None else person.train for person in self.people]

    def _summarise(self, index):
        visible = is_visible(index["joints"]).mean(axis=0)
        n_train = sum(index["train"])
        print("%s: %d images seen, %d people kept: %d for training, %d for tests" % (
            self.name, self.images_seen, len(self.people), n_train, len(self.people) - n_train))
        if self.left_out:
            print("left out: %s; left_out.txt names them" % self._reasons())
        print("visible: " + ", ".join("%s %.0f %%" % (name, 100 * share)
                                      for name, share in zip(self.joint_order, visible)))
        for split, there in (("training", n_train), ("test", len(self.people) - n_train)):
            if not there:
                print("there is no %s image, and training needs some of either split" % split)
        print("to check it and see it: python batches.py %s" % os.path.join(self.name, "index.p"))

    def _reasons(self):
        return ", ".join("%d %s" % (n, why) for why, n in collections.Counter(why for _, why in self.left_out).most_common())


def _is_data_set(folder):
    return os.path.isdir(folder) and set(os.listdir(folder)) <= CONTENT


def in_order(items):
    """The items, under a progress bar."""
    return tqdm(items, unit="image", mininterval=0.2 if sys.stderr.isatty() else 10)


def in_parallel(function, items, chunk=64):
    """function(item) of each item, in order, made ahead in threads, a chunk at a time; under a progress bar."""
    bar = iter(in_order(items))
    with multiprocessing.pool.ThreadPool() as pool:
        for start in range(0, len(items), chunk):
            for result in pool.map(function, items[start:start + chunk]):
                next(bar)
                yield result
    list(bar)  # so that it closes


def square_around(points, width, height):
    """The square (x, y, side) in whole pixels around points (n, 2) with a margin, shifted into the photo where possible."""
    low, high = np.min(points, axis=0), np.max(points, axis=0)
    side = max(1, int(round((1 + 2 * MARGIN) * (high - low).max())))
    corner = np.round((low + high - side) / 2).astype(int)
    room = np.array([width, height]) - side  # negative where the square is larger than the photo
    x, y = np.clip(corner, np.minimum(room, 0), np.maximum(room, 0))
    return int(x), int(y), side


def cut_square(image, square, size):
    """The square (x, y, side) of a PIL image as (size, size, 3) uint8; the photo's edges replicated around it."""
    x, y, side = square
    inside = image.crop((max(x, 0), max(y, 0), min(x + side, image.width), min(y + side, image.height)))
    pixels = np.asarray(inside)
    around = ((max(-y, 0), max(y + side - image.height, 0)), (max(-x, 0), max(x + side - image.width, 0)), (0, 0))
    if np.any(around):
        pixels = np.pad(pixels, around, mode="edge")
    return np.asarray(Image.fromarray(pixels).resize((size, size), Image.BILINEAR))
