"""People and poses that a user chooses out of data sets, by name, number, range or folder.

    people = select(index, ["17", "0004_1"], "--appearance")
    poses = select(index, ["data/dance"], "--pose")
    batch = Loader(poses, 128, 1).batch(range(len(poses)))
"""
import difflib
import os
import re

import numpy as np

from common.errors import UserError, shown
from dataset.index import Index

MOST_CHOSEN = 100000


class Selection:
    """Some images of data sets, in order; to a Loader it is an index, with numbers from 0 on.

    members: [(Index, number)]. joints: (n, 15, 2) as in Index. labels: n names for files, no two equal.
    """

    def __init__(self, members):
        self._members = list(members)
        self.joints = np.stack([index.joints[number] for index, number in self._members])
        self.labels = unique_labels(index.images[number] for index, number in self._members)

    def __len__(self):
        return len(self._members)

    def image_path(self, i):
        """Path of an image, from the working directory."""
        index, number = self._members[i]
        return index.image_path(number)


def select(index, items, option):
    """The Selection that a user's items mean.

    An item is an image of the index, as its path there, as the name of its file or, without extension, its stem; its
    number; a range of numbers, FROM-TO, both included; a folder of the index's images; or the folder of another data
    set, which has an index.p. option: what the items were given with. Raises UserError for an item that is none of
    these, and for an image that does not show both hips and both shoulders; of ranges and folders those are left out.
    """
    finder = _Finder(index, option)
    members = [member for item in items for member in finder.find(item)]
    if len(members) > MOST_CHOSEN:
        raise UserError(f"{option}: expected at most {MOST_CHOSEN} images, found {len(members)}")
    return Selection(members)


class _Finder:

    def __init__(self, index, option):
        self.index, self.option = index, option
        self.has_torso = index.has_torso()
        self.by_path, self.by_name, self.by_stem = {}, {}, {}
        for number, image in enumerate(index.images):
            self.by_path.setdefault(image, number)
            self.by_name.setdefault(os.path.basename(image), set()).add(number)
            for stem in {os.path.splitext(name)[0] for name in (image, os.path.basename(image))}:
                self.by_stem.setdefault(stem, set()).add(number)

    def find(self, item):
        """[(Index, number)] of an item."""
        if item in self.by_path:
            return self._one(item, {self.by_path[item]})
        if item in self.by_name:
            return self._one(item, self.by_name[item])
        in_range = re.match(r"(\d{1,12})(?:-(\d{1,12}))?$", item, re.ASCII)
        if in_range and not (item in self.by_stem and self._is_only_a_name(item)):
            numbers = self._range(item, *in_range.groups())
            named = self.by_stem.get(item)
            if named and named != set(numbers):
                raise self._refusal(item, f"means the image {shown(self.index.images[min(named)])} and others by number; expected the name with its extension or "
                                    f"numbers such as {numbers[0]}-{numbers[0]}")
            return self._one(item, numbers) if len(numbers) == 1 else self._usable(item, self.index, numbers, self.has_torso)
        if item in self.by_stem:
            return self._one(item, self.by_stem[item])
        if os.path.isfile(os.path.join(item, "index.p")):
            other = Index(os.path.join(item, "index.p"), self.index.allow_outside)
            return self._usable(item, other, range(len(other.images)), other.has_torso())
        numbers = self._below(item) if item else []
        if not numbers:
            close = difflib.get_close_matches(item, list(self.by_path) + list(self.by_name), n=1) if len(item) < 200 else ()
            raise self._refusal(item, "expected an image of {} or a folder with an index.p{}".format(
                self.index.path, f"; did you mean {shown(close[0])}?" if close else ""))
        return self._usable(item, self.index, numbers, self.has_torso)

    def _range(self, item, begin, end):
        begin, end = (self._number(item, text) for text in (begin, end or begin))
        return range(begin, end + 1) if begin <= end else range(begin, end - 1, -1)

    def _is_only_a_name(self, item):
        """Whether digits such as 0002 cannot be meant as the number of an image."""
        return item.isdigit() and (str(int(item)) != item or int(item) >= len(self.index.images))

    def _number(self, item, text):
        if int(text) >= len(self.index.images):
            raise self._refusal(item, f"expected numbers from 0 to {len(self.index.images) - 1}, as {self.index.path} has them")
        return int(text)

    def _one(self, item, numbers):
        number = min(numbers)
        if len(numbers) > 1:
            raise self._refusal(item, f"{len(numbers)} images of {self.index.path} have this name; expected a path such as {shown(self.index.images[number])}")
        if not self.has_torso[number]:
            raise self._refusal(item, "expected an image that shows both hips and both shoulders")
        return [(self.index, number)]

    def _below(self, folder):
        """Numbers of the images in a folder, given from that of the index or from the working directory."""
        wanted = {os.path.normpath(os.path.join(base, folder)) for base in (self.index.folder, os.getcwd())}
        folders = (os.path.dirname(os.path.normpath(os.path.join(self.index.folder, image))) for image in self.index.images)
        return [number for number, found in enumerate(folders)
                if any(found == folder or found.startswith(os.path.join(folder, "")) for folder in wanted)]

    def _usable(self, item, index, numbers, has_torso):
        usable = [number for number in numbers if has_torso[number]]
        if not usable:
            raise self._refusal(item, "expected images that show both hips and both shoulders, found none")
        return [(index, number) for number in usable]

    def _refusal(self, item, what):
        return UserError(f"{self.option}: {shown(item)}: {what}")


def unique_labels(images):
    """For each of these paths the stem of its file, made fit for a file name, and different from those before."""
    labels, taken, last = [], set(), {}
    for image in images:
        stem = re.sub(r"[^\w.-]+", "_", os.path.splitext(os.path.basename(image))[0], flags=re.ASCII)[:80]
        label, number = stem, last.get(stem, 1)
        while label in taken:
            number += 1
            label = f"{stem}_{number}"
        taken.add(label)
        last[stem] = number
        labels.append(label)
    return labels
