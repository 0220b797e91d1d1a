"""The people and poses that a user chooses from data sets, by name, number, range or folder.

    people = select(index, ["17", "0004_1"], "--appearance")
    poses = select(index, ["data/dance"], "--pose")
    batch = Loader(poses, 128, 1).batch(range(len(poses)))
"""
import collections
import difflib
import os
import re

import numpy as np

from common.errors import UserError, shown
from common.names import numbered
from dataset.index import Index

MAX_CHOSEN = 100000
MAX_DIGITS = 12  # of a number


class Selection:
    """Some images of data sets, in order. A Loader takes it as an index, with numbers from 0.

    members: [(Index, number)]. joints: (n, 15, 2) as in Index. labels: n different names for files.
    """

    def __init__(self, members):
        self._members = list(members)
        self.joints = np.stack([index.joints[number] for index, number in self._members])
        self.labels = unique_labels(index.images[number] for index, number in self._members)

    def __len__(self):
        return len(self._members)

    def image_path(self, i):
        """Path of an image, usable from the working directory."""
        index, number = self._members[i]
        return index.image_path(number)


def select(index, items, option):
    """The Selection that a user's items mean. option: the option that they were given with.

    An item is one of these, tried in this order:
    - digits: the number of an image, or FROM-TO, a range of numbers with both ends;
    - an image of the index: its path there, its file name, or its file name without extension;
    - the folder of another data set, which has an index.p;
    - a folder with images of the index.
    So a name made of digits needs its extension. Raises UserError for an item that is none of these, and for a single
    image that does not show both hips and both shoulders. Ranges and folders leave such images out.
    """
    finder = _Finder(index, option)
    members = [member for item in items for member in finder.find(item)]
    if len(members) > MAX_CHOSEN:
        raise UserError(f"{option}: expected at most {MAX_CHOSEN} images, found {len(members)}")
    return Selection(members)


class _Finder:

    def __init__(self, index, option):
        self.index, self.option = index, option
        self.has_torso = index.has_torso()
        self.by_path = {}
        self.by_name, self.by_stem = collections.defaultdict(list), collections.defaultdict(list)
        for number, image in enumerate(index.images):
            name = os.path.basename(image)
            self.by_path.setdefault(image, [number])
            self.by_name[name].append(number)
            for stem in {os.path.splitext(image)[0], os.path.splitext(name)[0]}:
                self.by_stem[stem].append(number)

    def find(self, item):
        """The images of an item, [(Index, number)]. Raises UserError."""
        digits = re.fullmatch(r"(\d+)(?:-(\d+))?", item, re.ASCII)
        if digits and digits.group(2) is None:
            return self._one(item, [self._number(item, item)])
        if digits:
            return self._range(item, *digits.groups())
        for known in (self.by_path, self.by_name, self.by_stem):
            if item in known:
                return self._one(item, known[item])
        if os.path.isfile(os.path.join(item, "index.p")):
            other = Index(os.path.join(item, "index.p"), self.index.allow_outside)
            return self._usable(item, other, range(len(other.images)), other.has_torso())
        numbers = self._below(item) if item else []
        if numbers:
            return self._usable(item, self.index, numbers, self.has_torso)
        raise self._refusal(item, f"expected an image of {self.index.path} or a folder with an index.p"
                                  + self._hint(item))

    def _number(self, item, digits):
        n = len(self.index.images)
        if len(digits) > MAX_DIGITS or int(digits) >= n:
            raise self._refusal(item, f"expected numbers from 0 to {n - 1}, as {self.index.path} has them, "
                                      "or a name with its extension")
        return int(digits)

    def _range(self, item, begin, end):
        begin, end = self._number(item, begin), self._number(item, end)
        numbers = range(begin, end + 1) if begin <= end else range(begin, end - 1, -1)
        return self._usable(item, self.index, numbers, self.has_torso)

    def _one(self, item, numbers):
        number = numbers[0]
        if len(numbers) > 1:
            raise self._refusal(item, f"{len(numbers)} images of {self.index.path} have this name; "
                                      f"expected a path such as {shown(self.index.images[number])}")
        if not self.has_torso[number]:
            raise self._refusal(item, "expected an image that shows both hips and both shoulders")
        return [(self.index, number)]

    def _below(self, folder):
        """Numbers of the index's images in a folder and below; its path starts at the index's or the working one."""
        wanted = {os.path.normpath(os.path.join(base, folder)) for base in (self.index.folder, os.getcwd())}
        numbers = []
        for number, image in enumerate(self.index.images):
            found = os.path.dirname(os.path.normpath(os.path.join(self.index.folder, image)))
            if any(found == folder or found.startswith(os.path.join(folder, "")) for folder in wanted):
                numbers.append(number)
        return numbers

    def _usable(self, item, index, numbers, has_torso):
        usable = [number for number in numbers if has_torso[number]]
        if not usable:
            raise self._refusal(item, "expected images that show both hips and both shoulders, found none")
        return [(index, number) for number in usable]

    def _hint(self, item):
        """The end of a message: the name that is most like the item, if there is one."""
        if len(item) > 200:
            return ""
        close = difflib.get_close_matches(item, list(self.by_path) + list(self.by_name), n=1)
        return f"; did you mean {shown(close[0])}?" if close else ""

    def _refusal(self, item, what):
        return UserError(f"{self.option}: {shown(item)}: {what}")


def unique_labels(images):
    """A label for each of these paths: the stem of its file, made fit for a file name, with a number if it is taken."""
    labels, taken, candidates = [], set(), {}
    for image in images:
        stem = re.sub(r"[^\w.-]+", "_", os.path.splitext(os.path.basename(image))[0], flags=re.ASCII)[:80]
        candidates.setdefault(stem, numbered(stem))  # goes on where it stopped: thousands may have the same stem
        label = next(name for name in candidates[stem] if name not in taken)
        taken.add(label)
        labels.append(label)
    return labels
