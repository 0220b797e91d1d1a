"""What every source of people shares: square crops, and a data set that appears whole or not at all."""
import collections
import fcntl
import io
import multiprocessing.pool
import os
import pickle
import shutil

import numpy as np
from PIL import Image

from common.console import progress_bar
from common.errors import UserError, reason, shown
from dataset.index import TORSO, is_visible

MARGIN = 0.15  # of the longer side of a person's box, on each side
# All that a data set of this tool consists of; a folder that holds anything else is never replaced.
CONTENT = {"images", "index.p", "left_out.txt"}

Person = collections.namedtuple("Person", "image joints train group")


class IndexBuilder:
    """A data set in the making: images/, index.p and left_out.txt in the folder `out`.

    with IndexBuilder("data/mine", names) as builder:
        builder.add("one.jpg", joints, jpeg=crop)
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
        try:
            self._check(overwrite)
        except OSError as error:
            raise UserError(f"--out: {out}: {error.strerror}")

    def _check(self, overwrite):
        """Refuses places where something would be lost."""
        if not self.name or os.path.isfile(self.out):
            raise UserError("--out: {}: expected a folder, found {}".format(self.name, "a file" if self.name else "nothing"))
        if os.path.isdir(self.out) and os.listdir(self.out) and not (overwrite and _is_data_set(self.out)):
            raise UserError("--out: {}: expected a new or empty folder{}, found one with {} in it".format(
                self.name, " or, with --overwrite, a data set of this tool" if overwrite or _is_data_set(self.out) else "",
                ", ".join(sorted(os.listdir(self.out))[:3])))
        if os.path.ismount(self.out):
            raise UserError(f"--out: {self.name}: expected a folder that can be renamed, found a mount point; take one in it")
        for path in (self.partial, self.old):
            if os.path.exists(path) and not _is_data_set(path):
                raise UserError(f"--out: {path} is in the way: expected what an interrupted run left there, or nothing")

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

    def add(self, name, joints, train=None, group=None, jpeg=None, source=None):
        """Takes a person in, or leaves out one without both hips and both shoulders; returns whether it did.

        name: of the image; joints: (J, 2) in shares of width and height, negative where missing, and what lies outside
        of the image becomes missing. train: whether for training, or None, to be chosen for all images of a `group` at
        once. The image is either `jpeg`, the bytes of its file, or the file `source`, copied.
        """
        joints = np.array(joints, np.float32)
        joints[~is_visible(joints) | (joints >= 1).any(axis=1)] = -1
        if not self.has_torso(joints):
            self.leave_out(name, "hips or shoulders not seen")
            return False
        # A file name that is no text, of an old disk, say, is no name for an index.
        stem = os.path.splitext(name.replace(os.sep, "_"))[0].encode("utf-8", "replace").decode()
        extension = ".jpg" if jpeg is not None else os.path.splitext(source)[1]
        number, image = 1, stem + extension
        while image in self.names:
            number, image = number + 1, f"{stem}_{number}{extension}"
        self.names.add(image)
        path = os.path.join(self.partial, "images", image)
        try:
            if jpeg is not None:
                with open(path, "wb") as file:
                    file.write(jpeg)
            else:
                shutil.copyfile(source, path)
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {reason(error)}")
        self.people.append(Person("images/" + image, joints, train, group or name))
        return True

    def leave_out(self, name, why, details=None):
        """Notes somebody who is not taken in, and why: the reason to count by, and perhaps more to print."""
        self.left_out.append((name, why, details or why))

    def left_out_lines(self):
        """A line for everybody who was left out."""
        return [f"{shown(name, 1000)}: {details}" for name, _, details in self.left_out]

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
                file.writelines(line + "\n" for line in self.left_out_lines())
            with open(os.path.join(self.partial, "index.p"), "wb") as file:
                pickle.dump(index, file, protocol=2)
            if os.path.isdir(self.out):
                shutil.rmtree(self.old, ignore_errors=True)
                os.rename(self.out, self.old)
            os.rename(self.partial, self.out)
            shutil.rmtree(self.old, ignore_errors=True)
        except OSError as error:
            raise UserError(f"--out: {self.name}: cannot be written: {error.strerror}")
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
        print(f"{self.name}: {self.images_seen} images seen, {len(self.people)} people kept: {n_train} for training, {len(self.people) - n_train} for tests")
        if self.left_out:
            print(f"left out: {self._reasons()}; left_out.txt names them")
        print("visible: " + ", ".join(f"{name} {100 * share:.0f} %"
                                      for name, share in zip(self.joint_order, visible)))
        for split, there in (("training", n_train), ("test", len(self.people) - n_train)):
            if not there:
                print(f"there is no {split} image, and training needs some of either split")
        print("to check it and see it: python tools/check_index.py {}".format(os.path.join(self.name, "index.p")))

    def _reasons(self):
        return ", ".join(f"{n} {why}" for why, n in collections.Counter(why for _, why, _ in self.left_out).most_common())


def _is_data_set(folder):
    return os.path.isdir(folder) and set(os.listdir(folder)) <= CONTENT


def with_progress(items, total=None):
    """The items, images mostly, under a progress bar; total: how many, where items do not know."""
    return progress_bar(items, total=total, unit="image")


def in_parallel(function, items, chunk=16):
    """function(item) of each item, in order, made ahead in threads, a chunk at a time; under a progress bar."""
    bar = iter(with_progress(items))
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
    """The square (x, y, side) of a PIL image as the bytes of a JPEG of size x size; the photo's edges replicated around it."""
    x, y, side = square
    scale = size / float(side)
    box = max(x, 0), max(y, 0), min(x + side, image.width), min(y + side, image.height)
    left, top, right, bottom = (int(round(v)) for v in ((box[0] - x) * scale, (box[1] - y) * scale,
                                                        (box[2] - x) * scale, (box[3] - y) * scale))
    # Shrunk before it is filled up: a square around somebody across a panorama is mostly filling.
    left, top = min(left, size - 1), min(top, size - 1)
    inside = image.resize((max(1, right - left), max(1, bottom - top)), Image.BILINEAR, box=box)
    pixels = np.pad(np.asarray(inside), ((top, size - top - inside.height), (left, size - left - inside.width), (0, 0)),
                    mode="edge")
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()


def files_below(folder, extensions, builder):
    """Sorted paths of the files with these extensions in a folder and below; links are followed, each folder once, and
    what the builder makes or made is left alone.
    """
    seen, found = {builder.out, builder.partial, builder.old}, []
    for base, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(base)
        if real in seen:
            folders[:] = []
            continue
        seen.add(real)
        found += [os.path.join(base, name) for name in names
                  if name.lower().endswith(extensions) and not name.startswith(".")]
    return sorted(found)
