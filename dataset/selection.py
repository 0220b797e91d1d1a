"""The people and poses that a user means: photos, videos, OpenPose's JSON files, and images of data sets.

    with Finder("data/market/index.p", aspect=lambda: 0.5) as finder:
        people = finder.select(["me.jpg", "17"], "--appearance")
        poses = finder.select(["dance.mp4"], "--pose")
    shapes = Loader(poses, 128, 1).shape_images(range(len(poses)))
"""
import collections
import difflib
import functools
import os
import re

import numpy as np

from common.console import progress_bar
from common.errors import UserError, shown
from common.names import numbered
from dataset.boxes import around_person, cut_box
from dataset.builder import in_parallel
from dataset.index import load_image, load_shape, open_index, read_image
from dataset.photos import EXTENSIONS, TO_CONVERT
from dataset.poses import Estimator, choose, openpose_beside, people_beside, read_openpose
from dataset.videos import DEFAULT_FPS, READERS, Video, find_in_video, is_video, poses_over_time

MAX_CHOSEN = 100000
MAX_COMPARED = 100000  # with more names a wrong one gets no hint: of a million, finding the most similar took 43 s
MAX_DIGITS = 12  # of a number
NUMBERS = re.compile(r"\d+(-\d+)?", re.ASCII)
CACHED_SHAPES = 128
# How OpenPose names the files of a video's frames.
OPENPOSE_FRAME = re.compile(r"(.*)_\d{12}_keypoints\.json", re.DOTALL)

Member = collections.namedtuple("Member", "name joints load is_own load_shape")
Member.__doc__ = """One picture or pose. name: a path to make a label of.

joints: (15, 2) in shares of the picture, or None. load(size): the picture as (size, size, 3) uint8; None for a pose
alone. is_own: whether it is the user's own, with the aspect of the network's pictures; a data set's pictures are taken
as they are. load_shape(size): its shape image, likewise, or None.
"""
Member.__new__.__defaults__ = (None,)


class Selection:
    """Some pictures or poses, in order. A Loader takes it as an index, with numbers from 0.

    members: [Member]. joints: (n, 15, 2) as in Index, or None. labels: n different names for files. fps: frames per
    second where these are the frames of one video, else None. is_own: whether any is the user's own.
    """

    def __init__(self, members, fps=None):
        self.members = list(members)
        self.fps = fps
        joints = [member.joints for member in self.members]
        self.joints = None if any(points is None for points in joints) else np.stack(joints)
        self.labels = unique_labels(member.name for member in self.members)
        self.is_own = any(member.is_own for member in self.members)
        # Each appearance is rendered in the same shapes, and frames of an animation repeat them.
        self._load_shape = functools.lru_cache(maxsize=CACHED_SHAPES)(lambda load, size: load(size))

    def __len__(self):
        return len(self.members)

    def image(self, i, size):
        """The picture (size, size, 3) uint8. Raises UserError where it cannot be read."""
        return self.members[i].load(size)

    def shape_image(self, i, size):
        """The shape image (size, size, 3) uint8. Raises UserError where it cannot be read."""
        return self._load_shape(self.members[i].load_shape, size)


class Poses:
    """Poses alone, for a Loader to draw. joints: (n, 15, 2)."""

    def __init__(self, joints):
        self.joints = joints

    def __len__(self):
        return len(self.joints)


def from_index(index, numbers):
    """The Members of these images of an Index."""
    return [Member(index.images[number], index.joints[number] if index.uses_joints else None,
                   functools.partial(index.image, number), False,
                   functools.partial(index.shape_image, number) if index.shapes else None) for number in numbers]


class Finder:
    """Finds what a user's items mean; docs/configuration.md, "Choosing images", says which items there are.

    index_path: of the data set whose images are meant by numbers and names; it is opened when it is needed. aspect():
    the width / height of the network's pictures, which photos and videos are cut to. person: number of the person to
    take in a photo or video, counted from the left; None takes the one with the largest torso. shape, appearance: of
    the config; shapes that are pictures, and appearances beside them that are whole, are taken from images as they are.
    draws_lines(): whether such shapes are line drawings. notes: lines to print.
    """

    def __init__(self, index_path, allow_outside=False, *, aspect=lambda: 1.0, person=None, shape="joints",
                 appearance="parts", draws_lines=lambda: True):
        self.index_path, self.allow_outside = index_path, allow_outside
        self.person, self.notes = person, []
        self._shape, self._appearance = shape, appearance
        self._draws_lines = functools.lru_cache(maxsize=None)(draws_lines)
        self._aspect = functools.lru_cache(maxsize=None)(aspect)
        self._data_sets = {}
        self._photo = functools.lru_cache(maxsize=None)(self._photo)  # one may be given as appearance and as pose
        self._estimator = Estimator()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._estimator.__exit__(*error)

    def select(self, items, option, *, pictures=False):
        """The Selection that items mean. option: the option they were given with.

        pictures: whether poses alone are refused. Raises UserError.
        """
        try:
            return self._select(items, pictures)
        except UserError as error:
            raise UserError(f"{option}: {error}")

    def _select(self, items, pictures):
        members, fps = [], None
        whole = self._shape == "picture" and not (pictures and self._appearance == "parts")
        for item in items:
            is_file = os.path.isfile(item) and not NUMBERS.fullmatch(item)
            if whole and is_file and not item.lower().endswith(EXTENSIONS):
                raise UserError(f"{shown(item)}: expected an image ({' '.join(EXTENSIONS)})")
            # Before a video is looked through, which may take minutes.
            if os.path.isfile(item) and (is_video(item) or item.lower().endswith(".json")):
                if pictures:
                    raise UserError(f"{shown(item)}: expected a picture, found poses alone, which have no appearance")
                if len(items) > 1 and is_video(item):
                    raise UserError(f"{shown(item)}: expected no other items beside a video")
            found, fps = self._find(item, whole)
            if pictures and not all(member.load for member in found):
                raise UserError(f"{shown(item)}: expected pictures, found poses alone, which have no appearance")
            if fps is not None and len(items) > 1:
                raise UserError(f"{shown(item)}: expected no other items beside the frames of a video")
            members += found
        if len(members) > MAX_CHOSEN:
            raise UserError(f"expected at most {MAX_CHOSEN} images, found {len(members)}")
        return Selection(members, fps)

    def _find(self, item, whole):
        """([Member], frames per second of a video or None) of an item. whole: whether images are taken as they are."""
        if item and not NUMBERS.fullmatch(item) and os.path.exists(item):
            return self._find_path(item, whole)
        folder, _, rest = item.rpartition(":")
        if folder and os.path.isfile(os.path.join(folder, "index.p")):
            return self._data_set(os.path.join(folder, "index.p")).find(rest), None
        if not os.path.isfile(self.index_path):
            raise UserError(f"{shown(item)}: expected a file or folder, or an image of {self.index_path}, which is not "
                            "there")
        return self._data_set(self.index_path).find(item), None

    def _find_path(self, path, whole):
        """A file or folder that is there."""
        if os.path.isfile(os.path.join(path, "index.p")):
            return self._data_set(os.path.join(path, "index.p")).all(path), None
        if os.path.isfile(self.index_path) and _is_below(path, os.path.dirname(os.path.abspath(self.index_path))):
            found = self._data_set(self.index_path).find_path(path)
            if found:  # the joints of these are known
                return found, None
        if os.path.isdir(path):
            return self._folder(path, whole)
        if not os.path.isfile(path):
            raise UserError(f"{shown(path, 1000)}: expected a file or folder, found a device or a pipe")
        if is_video(path):
            return self._video(path)
        if path.lower().endswith(".json"):
            return self._json_files([path])
        photo, why = self._take(path, whole)
        if why:
            raise UserError(f"{shown(path, 1000)}: {why}")
        return [photo], None

    def _data_set(self, path):
        if path not in self._data_sets:
            index = open_index({"data_index": path, "allow_outside_images": self.allow_outside, "shape": self._shape,
                                "appearance": self._appearance})
            self._data_sets[path] = _DataSet(index)
        return self._data_sets[path]

    # ------------------------------------------------------------------------------------------ the user's own

    def _take(self, path, whole):
        return self._whole(path) if whole else self._photo(path)

    def _whole(self, path):
        """(Member, None) of an image file as it is, or (None, why it cannot be used)."""
        try:
            read_image(path)
        except UserError as error:
            return None, _without_path(error, path)
        load = functools.partial(load_shape, path, lines=self._draws_lines() or None)
        return Member(path, None, functools.partial(load_image, path), True, load), None

    def _photo(self, path):
        """(Member, None), or (None, why the photo cannot be used). Raises UserError where nothing finds joints."""
        try:
            image = read_image(path)
            people = people_beside(path, image.size)
        except UserError as error:
            known = EXTENSIONS + tuple(sorted(READERS)) + (".json",)
            hint = "" if path.lower().endswith(known) else f" (known are {' '.join(known)})"
            return None, _without_path(error, path) + hint
        if people is None:
            people = self._estimator(image)
        else:
            self._note(path, f"joints of {openpose_beside(path)}")
        joints, why = choose(people, self.person)
        if why:
            return None, why
        self._note_several(path, people)
        box, shares = around_person(joints, *image.size, aspect=self._aspect())
        return Member(path, shares, functools.partial(_load_box, path, box), True), None

    def _note(self, path, what):
        self.notes.append(f"{shown(path, 1000)}: {shown(what, 1000)}")

    def _note_several(self, path, people):
        if len(people) > 1 and self.person is None:
            self._note(path, f"{len(people)} people; the one with the largest torso is taken, --person chooses another")

    def _folder(self, folder, whole):
        """The photos of a folder or, where there are none, its JSON files."""
        try:
            names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
        except OSError as error:
            raise UserError(f"{shown(folder, 1000)}: cannot be read: {error.strerror}")
        paths = [path for path in (os.path.join(folder, name) for name in names) if os.path.isfile(path)]
        for path in paths:
            if path.lower().endswith(TO_CONVERT):
                self._note(path, "left out: of another kind than JPEG and PNG; convert it")
        photos = [path for path in paths if path.lower().endswith(EXTENSIONS)]
        if photos:
            return self._photos(folder, photos, whole), None
        if whole:
            raise UserError(f"{shown(folder, 1000)}: expected a folder with images ({' '.join(EXTENSIONS)})")
        files = [path for path in paths if path.lower().endswith(".json")]
        if not files:
            raise UserError(f"{shown(folder, 1000)}: expected a folder with photos ({' '.join(EXTENSIONS)}), "
                            "OpenPose's JSON files or an index.p")
        return self._json_files(files)

    def _photos(self, folder, paths, whole):
        """The Members of a folder's photos, but for those that cannot be used, which are noted."""
        found = list(zip(paths, in_parallel(lambda path: self._take(path, whole), paths)))
        for path, (_, why) in found:
            if why:
                self._note(path, f"left out: {why}")
        members = [photo for _, (photo, _) in found if photo]
        if not members:
            path, (_, why) = found[0]
            raise UserError(f"{shown(folder, 1000)}: no photo in it can be used: {shown(path, 1000)}: {why}")
        return members

    def _json_files(self, paths):
        """A pose of each JSON file, or the frames of a video that OpenPose wrote down in one file or in a file each."""
        of_files = [read_openpose(path) for path in paths]
        stems = {match and match.group(1) for match in map(OPENPOSE_FRAME.fullmatch, paths)}
        is_one_video = len(paths) > 1 and len(stems) == 1 and None not in stems
        if is_one_video or (len(paths) == 1 and len(of_files[0]) > 1):
            frames = [people for frames in of_files for people in frames]
            return self._over_time(stems.pop() or paths[0], frames, DEFAULT_FPS)
        members = []
        for path, frames in zip(paths, of_files):
            for people in frames:
                joints, why = choose(people, self.person)
                if why and len(paths) == 1:
                    raise UserError(f"{shown(path, 1000)}: {why}")
                if why:
                    self._note(path, f"left out: {why}")
                    continue
                self._note_several(path, people)
                members.append(Member(path, around_person(joints, aspect=self._aspect())[1], None, True))
        if not members:
            raise UserError(f"{shown(os.path.dirname(paths[0]), 1000)}: expected people with both hips and both "
                            "shoulders, found none")
        return members, None

    def _video(self, path):
        video = Video(path)
        with progress_bar(total=video.n_frames, unit="frame", desc="poses") as bar:
            frames = find_in_video(video, self._estimator, bar)
        if len(frames) < 0.9 * video.n_frames - 1:
            self._note(path, f"only {len(frames)} of about {video.n_frames} frames can be read")
        return self._over_time(path, frames, video.fps)

    def _over_time(self, path, people_of_frames, fps):
        """The frames of a video as poses."""
        try:
            joints, notes = poses_over_time(people_of_frames, fps, aspect=self._aspect(), person=self.person)
        except UserError as error:
            raise UserError(f"{shown(path, 1000)}: {error}")
        first = next((people for people in people_of_frames if people), [])
        self._note_several(f"{path}, where somebody is seen first", first)
        for note in notes:
            self._note(path, note)
        stem = os.path.splitext(path)[0]
        return [Member(f"{stem}_{i:05}.png", pose, None, True) for i, pose in enumerate(joints)], fps


def _without_path(error, path):
    """The text of an error of read_image without the path that it starts with."""
    text, prefix = str(error), f"{shown(path, 1000)}: "
    return text[len(prefix):] if text.startswith(prefix) else text


def _load_box(path, box, size):
    return cut_box(read_image(path), box, size)


def _is_below(path, folder):
    """Whether a path lies in a folder, as it is written or with links followed."""
    return any(os.path.join(resolved(path), "").startswith(os.path.join(resolved(folder), ""))
               for resolved in (os.path.abspath, os.path.realpath))


# ---------------------------------------------------------------------------------------------- images of a data set

class _DataSet:
    """The images of an Index, by number, range, name and folder.

    Each method raises UserError for a single image that does not
    show both hips and both shoulders; ranges and folders leave such images out.
    """

    def __init__(self, index):
        self.index = index
        self.is_usable = index.is_usable()
        self.by_path = {}
        self.by_name, self.by_stem = collections.defaultdict(list), collections.defaultdict(list)
        for number, image in enumerate(index.images):
            name = os.path.basename(image)
            self.by_path.setdefault(image, [number])
            if "./" in image or "//" in image:
                self.by_path.setdefault(os.path.normpath(image), [number])
            self.by_name[name].append(number)
            for stem in {os.path.splitext(image)[0], os.path.splitext(name)[0]}:
                self.by_stem[stem].append(number)

    def all(self, item):
        """All images, of the item that is the data set's folder."""
        return self._usable(item, range(len(self.index.images)))

    def find_path(self, item):
        """The images that a file or folder holds, by its path from the working directory; none where it holds none."""
        for resolved in (os.path.abspath, os.path.realpath):
            path = os.path.relpath(resolved(item), resolved(self.index.folder))
            if path in self.by_path:
                return self._one(item, self.by_path[path])
        numbers = self._below(item)
        return self._usable(item, numbers) if numbers else []

    def find(self, item):
        """The images of an item, tried in this order: a number, FROM-TO, a path, a name, a name without extension, a
        folder of the index. So a name made of digits needs its extension.
        """
        digits = re.fullmatch(r"(\d+)(?:-(\d+))?", item, re.ASCII)
        if digits and digits.group(2) is None:
            return self._one(item, [self._number(item, item)])
        if digits:
            return self._range(item, *digits.groups())
        for known in (self.by_path, self.by_name, self.by_stem):
            if item in known:
                return self._one(item, known[item])
        numbers = self._below(item) if item else []
        if numbers:
            return self._usable(item, numbers)
        raise self._refusal(item, f"expected a file, a folder, or an image of {self.index.path}{self._hint(item)}")

    def _number(self, item, digits):
        n = len(self.index.images)
        if len(digits) > MAX_DIGITS or int(digits) >= n:
            raise self._refusal(item, f"expected numbers from 0 to {n - 1}, as {self.index.path} has them, "
                                      "or a name with its extension")
        return int(digits)

    def _range(self, item, begin, end):
        begin, end = self._number(item, begin), self._number(item, end)
        return self._usable(item, range(begin, end + 1) if begin <= end else range(begin, end - 1, -1))

    def _one(self, item, numbers):
        number = numbers[0]
        if len(numbers) > 1:
            raise self._refusal(item, f"{len(numbers)} images of {self.index.path} have this name; "
                                      f"expected a path such as {shown(self.index.images[number])}")
        if not self.is_usable[number]:
            raise self._refusal(item, "expected an image that shows both hips and both shoulders")
        return from_index(self.index, [number])

    def _below(self, folder):
        """Numbers of the index's images in a folder and below; its path starts at the index's or the working one."""
        wanted = {os.path.normpath(os.path.join(base, folder)) for base in (self.index.folder, os.getcwd())}
        numbers = []
        for number, image in enumerate(self.index.images):
            found = os.path.dirname(os.path.normpath(os.path.join(self.index.folder, image)))
            if any(found == folder or found.startswith(os.path.join(folder, "")) for folder in wanted):
                numbers.append(number)
        return numbers

    def _usable(self, item, numbers):
        usable = [number for number in numbers if self.is_usable[number]]
        if not usable:
            raise self._refusal(item, "expected images that show both hips and both shoulders, found none")
        return from_index(self.index, usable)

    def _hint(self, item):
        """The end of a message: the name that is most like the item, if there is one."""
        if len(item) > 200 or len(self.by_path) > MAX_COMPARED:
            return ""
        close = difflib.get_close_matches(item, list(self.by_path) + list(self.by_name), n=1)
        return f"; did you mean {shown(close[0])}?" if close else ""

    def _refusal(self, item, what):
        return UserError(f"{shown(item)}: {what}")


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
