"""What all sources of people share: a data set that appears whole or not at all."""
import collections
import fcntl
import itertools
import os
import shutil

import numpy as np

from common.console import progress_bar
from common.errors import UserError, reason, shown
from common.names import numbered
from common.threads import read_ahead
from dataset.index import TORSO, is_visible
from dataset.pickles import dump_index

MAX_COORDINATE = 1e6  # in pixels; a larger one in annotations is an error
MAX_STEM = 200  # bytes of an image's name, as file systems have 255 for it, its number and extensions
# Everything in a data set of this tool. A folder that holds anything else is never replaced.
CONTENT = {"images", "shapes", "index.p", "left_out.txt"}

Entry = collections.namedtuple("Entry", "image joints shape train group")


class IndexBuilder:
    """A data set in the making: images/, perhaps shapes/, index.p and left_out.txt in the folder `out`.

    joint_order: of the joints, or None for a data set of shape images. silent: whether nothing is printed.

    with IndexBuilder("data/mine", names) as builder:
        builder.add("one.jpg", joints, jpeg=crop)
        builder.leave_out("two.jpg", "no person found")
        builder.finish()

    It is made in <out>.partial, which `finish` renames. A run that ends earlier removes that folder, and the next run
    clears what a killed one left. Raises UserError if `out` holds something; `overwrite` replaces an earlier data set.
    """

    def __init__(self, out, joint_order, overwrite=False, silent=False):
        self.name, self.out = out, os.path.realpath(out)  # so that a link to a folder elsewhere stays
        self.partial, self.old = self.out + ".partial", self.out + ".old"
        self.joint_order = None if joint_order is None else list(joint_order)
        self.silent = silent
        self.entries, self.left_out, self.names = [], [], set()
        self.images_seen = 0
        try:
            self._check(overwrite)
        except OSError as error:
            raise UserError(f"--out: {out}: {error.strerror}")

    def _check(self, overwrite):
        """Refuses places where something would be lost."""
        if not self.name or os.path.isfile(self.out):
            found = "a file" if self.name else "nothing"
            raise UserError(f"--out: {self.name}: expected a folder, found {found}")
        may_replace = _is_data_set(self.out)
        content = sorted(os.listdir(self.out)) if os.path.isdir(self.out) else []
        if content and not (overwrite and may_replace):
            choice = " or, with --overwrite, a data set of this tool" if overwrite or may_replace else ""
            raise UserError(f"--out: {self.name}: expected a new or empty folder{choice}, found one with "
                            f"{', '.join(content[:3])} in it")
        if os.path.ismount(self.out):
            raise UserError(f"--out: {self.name}: expected a folder that can be renamed, found a mount point; "
                            "name a folder in it")
        for path in (self.partial, self.old):
            if os.path.exists(path) and not _is_data_set(path):
                raise UserError(f"--out: {path} is in the way: expected nothing there, or what an interrupted run left")

    def __enter__(self):
        try:
            os.makedirs(self.partial, exist_ok=True)
            self._lock = os.open(self.partial, os.O_RDONLY)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for name in os.listdir(self.partial):
                path = os.path.join(self.partial, name)
                if os.path.isdir(path):
                    shutil.rmtree(path)
                else:
                    os.remove(path)
            os.makedirs(os.path.join(self.partial, "images"))
        except BlockingIOError:
            raise UserError(f"--out: another run is making {self.name}")
        except OSError as error:
            raise UserError(f"--out: cannot make the folder {self.partial}: {error.strerror}")
        return self

    def __exit__(self, *unused):
        shutil.rmtree(self.partial, ignore_errors=True)
        os.close(self._lock)

    def add(self, name, joints, *, train=None, group=None, jpeg=None, source=None):
        """Adds a person and returns True; leaves out somebody without both hips and both shoulders and returns False.

        name: of the image. joints: (J, 2) in shares of width and height, negative where missing; those outside of the
        image become missing. train: whether for training; None: `finish` chooses, for all images of a `group` together.
        The image is either `jpeg`, the bytes of a file, or a copy of the file `source`.
        """
        joints = np.array(joints, np.float32)
        joints[~is_visible(joints) | (joints >= 1).any(axis=1)] = -1
        if not self.has_torso(joints):
            self.leave_out(name, "hips or shoulders not seen")
            return False
        image = self._save_image(name, jpeg, source)
        self.entries.append(Entry(image, joints, None, train, group or name))
        return True

    def add_pair(self, name, shape, *, train=None, jpeg=None, source=None):
        """Adds an image, as in `add`, with its shape image, the bytes of a PNG."""
        image = self._save_image(name, jpeg, source)
        path = f"shapes/{os.path.basename(image)}.png"
        self._write(path, shape)
        self.entries.append(Entry(image, None, path, train, name))

    def _save_image(self, name, jpeg, source):
        """Writes an image into the data set; returns its path there."""
        image = "images/" + self._image_name(name, ".jpg" if jpeg is not None else os.path.splitext(source)[1])
        if jpeg is not None:
            self._write(image, jpeg)
            return image
        path = os.path.join(self.partial, image)
        try:
            shutil.copyfile(source, path)
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {reason(error)}")
        return image

    def _write(self, name, content):
        path = os.path.join(self.partial, name)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(content)
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {reason(error)}")

    def _image_name(self, name, extension):
        """A file name that no image has yet, made from a photo's path."""
        # A file name from an old disk may be no valid text, and an index holds only that.
        stem = os.path.splitext(name.replace(os.sep, "_"))[0].encode("utf-8", "replace")
        stem = stem[-MAX_STEM:].decode("utf-8", "ignore")
        image = next(free + extension for free in numbered(stem) if free + extension not in self.names)
        self.names.add(image)
        return image

    def leave_out(self, name, why, details=None):
        """Notes somebody who is not in the data set. why: the reason, for counting; details: what to print instead."""
        self.left_out.append((name, why, details or why))

    def left_out_lines(self):
        """A line for each person who was left out."""
        return [f"{shown(name, 1000)}: {details}" for name, _, details in self.left_out]

    def has_torso(self, joints):
        """Whether joints (J, 2) show both hips and both shoulders."""
        return is_visible(joints[[self.joint_order.index(name) for name in TORSO]]).all()

    def finish(self, test_share=0.1, **extra):
        """Splits the people, writes the index with the keys of `extra`, and moves the data set to `out`.

        test_share: the share of the groups for tests, among people who were added with train=None.
        """
        if not self.entries:
            what = "person" if self.joint_order else "image"
            raise UserError(f"no {what} could be used: {self._reasons() or 'there is no image'}")
        index = dict(imgs=[entry.image for entry in self.entries], train=self._split(test_share), **extra)
        if self.joint_order:
            index.update(joint_order=self.joint_order, joints=np.stack([entry.joints for entry in self.entries]))
        else:
            index.update(shapes=[entry.shape for entry in self.entries])
        try:
            with open(os.path.join(self.partial, "left_out.txt"), "w", encoding="utf-8", errors="replace") as file:
                file.writelines(line + "\n" for line in self.left_out_lines())
            dump_index(index, os.path.join(self.partial, "index.p"))
            if os.path.isdir(self.out):
                shutil.rmtree(self.old, ignore_errors=True)
                os.rename(self.out, self.old)
            os.rename(self.partial, self.out)
            shutil.rmtree(self.old, ignore_errors=True)
        except OSError as error:
            raise UserError(f"--out: {self.name}: cannot be written: {error.strerror}")
        if not self.silent:
            self._summarise(index)

    def _split(self, test_share):
        """The train flag of each person. Of the groups without one, a share, but at least one, is for tests."""
        groups = sorted({entry.group for entry in self.entries if entry.train is None})
        n_test = min(max(1, int(round(test_share * len(groups)))), len(groups) - 1)
        test = {groups[i] for i in np.random.RandomState(0).permutation(len(groups))[:max(0, n_test)]}
        return [entry.group not in test if entry.train is None else entry.train for entry in self.entries]

    def _summarise(self, index):
        n_train = sum(index["train"])
        n_test = len(self.entries) - n_train
        what = "people" if self.joint_order else "images with shapes"
        print(f"{self.name}: {self.images_seen} images seen, {len(self.entries)} {what} kept: {n_train} for training, "
              f"{n_test} for tests")
        if self.left_out:
            print(f"left out: {self._reasons()}; left_out.txt names them")
        if self.joint_order:
            visible = is_visible(index["joints"]).mean(axis=0)
            shares = [f"{name} {100 * share:.0f} %" for name, share in zip(self.joint_order, visible)]
            print("visible: " + ", ".join(shares))
        for split, n in (("training", n_train), ("test", n_test)):
            if not n:
                print(f"there is no {split} image; a training needs some in both splits")
        print(f"to check it and see it: python tools/check_index.py {os.path.join(self.name, 'index.p')}")

    def _reasons(self):
        """How many were left out for each reason, most frequent first."""
        counts = collections.Counter(why for _, why, _ in self.left_out)
        return ", ".join(f"{n} {why}" for why, n in counts.most_common())


def _is_data_set(folder):
    return os.path.isdir(folder) and set(os.listdir(folder)) <= CONTENT


def is_pixel(value):
    """Whether a value from a file can be a coordinate in pixels; nan cannot."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < MAX_COORDINATE


def with_progress(items, total=None):
    """The items, usually images, under a progress bar. total: how many, if the items have no length."""
    return progress_bar(items, total=total, unit="image")


def in_parallel(function, items, chunk=16):
    """Yields function(item) of each item, in order; threads compute a chunk ahead. Shows a progress bar."""
    chunks = (items[start:start + chunk] for start in range(0, len(items), chunk))
    results = itertools.chain.from_iterable(read_ahead(function, chunks))
    yield from with_progress(results, total=len(items))


def files_below(folder, extensions, builder):
    """Sorted paths of the files with these extensions in a folder and below.

    Follows links, but visits each folder once. Leaves out what the builder makes or made, and hidden files and folders.
    """
    seen, found = {builder.out, builder.partial, builder.old}, []
    for base, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(base)
        if real in seen:
            folders[:] = []
            continue
        seen.add(real)
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [os.path.join(base, name) for name in names
                  if name.lower().endswith(extensions) and not name.startswith(".")]
    return sorted(found)
