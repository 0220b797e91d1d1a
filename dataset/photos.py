"""People of one's own photos: one of each photo, with the joints of a JSON file beside it or of the pose model."""
import collections
import io
import os
import secrets
import threading

import numpy as np

from common.errors import UserError, shown
from dataset import index
from dataset.boxes import around_person, as_jpeg, cut_box, torso_length
from dataset.builder import files_below, in_parallel
from dataset.index import decode_image, read_image
from dataset.poses import Estimator, choose, people_beside

JOINTS = index.JOINTS
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm")
TO_CONVERT = (".heic", ".heif", ".tif", ".tiff")  # photos too, but not read
MIN_TORSO = 0.15  # in shares of the crop's side
MAX_BYTES = 2**29  # of the photos that are kept in memory


def add_people(builder, options):
    """Adds the person of each photo in options.photos and below; returns no further keys for the index."""
    paths = find_photos(options.photos, builder)
    builder.images_seen = len(paths)
    n_crowded = 0
    with Estimator() as estimator:
        results = in_parallel(lambda path: cut_person(path, estimator, options), paths)
        for path, (n_people, why, shares, jpeg) in zip(paths, results):
            name = os.path.relpath(path, options.photos)
            n_crowded += n_people > 1
            if why:
                builder.leave_out(name, why.split(":")[0], why)
            else:
                builder.add(name, shares, group=name, jpeg=jpeg)
    for line in builder.left_out_lines():
        print("left out: " + line)
    if n_crowded:
        whom = f"person {options.person} from the left" if options.person else "the one with the largest torso"
        print(f"{n_crowded} photos show several people: {whom} was taken")
    return {}


def find_photos(folder, builder):
    """Sorted paths of the photos in the folder and below. Raises UserError if there is none."""
    paths = files_below(folder, EXTENSIONS + TO_CONVERT, builder)
    if not paths:
        found = "none in it" if os.path.isdir(folder) else "no such folder"
        raise UserError(f"{shown(folder, 1000)}: expected a folder with photos ({' '.join(EXTENSIONS)}), found {found}")
    return paths


def cut_person(path, estimator, options):
    """(number of people, why nobody can be used or None, joints in shares of the crop, JPEG) of a photo.

    Raises UserError where there is no estimator.
    """
    if path.lower().endswith(TO_CONVERT):
        return 0, "of another kind than JPEG and PNG; convert them", None, None
    try:
        image = read_image(path)
        people = people_beside(path, image.size)
    except UserError as error:
        return 0, f"cannot be read: {error}", None, None
    if people is None:
        people = estimator(image)
    joints, why = choose(people, options.person)
    if why:
        return len(people), why, None, None
    square, shares = around_person(joints, *image.size)
    if torso_length(joints) < MIN_TORSO * square[2]:
        return len(people), f"torso smaller than {100 * MIN_TORSO:.0f} % of the crop", None, None
    return len(people), None, shares, as_jpeg(cut_box(image, square, options.size))


class Gone(UserError):
    """A photo that is not here, or no longer."""


class Photos:
    """Photos in memory, as JPEG; the oldest go where they would be too many."""

    def __init__(self):
        self._lock = threading.Lock()
        self._photos = collections.OrderedDict()
        self._n_bytes = 0

    def add(self, image):
        """Keeps a PIL image; returns its id, which nobody can guess."""
        jpeg, name = as_jpeg(np.asarray(image)), secrets.token_urlsafe(16)
        with self._lock:
            self._photos[name] = jpeg
            self._n_bytes += len(jpeg)
            while self._n_bytes > MAX_BYTES:
                self._n_bytes -= len(self._photos.popitem(last=False)[1])
        return name

    def jpeg(self, name):
        """The bytes of a photo. Raises Gone."""
        with self._lock:
            if not isinstance(name, str) or name not in self._photos:
                raise Gone(f"photo: {shown(name)}: is not here, or no longer; expected one that was sent")
            return self._photos[name]

    def image(self, name):
        """A photo as a PIL image. Raises Gone."""
        return decode_image(io.BytesIO(self.jpeg(name)), "photo")
