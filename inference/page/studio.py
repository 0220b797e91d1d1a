"""What the page can do, without HTTP: people and photos, their pictures in poses and shapes, animations, data sets.

What comes from a page is JSON and bytes, and nothing of it is trusted: UserErrors say in one line what is wrong. Joints
are lists of 15 pairs in the order of JOINTS, in shares of the picture that they belong to, [-1, -1] where missing.
"""
import base64
import contextlib
import functools
import io
import os
import sys
import tempfile
import threading
import zipfile

import numpy as np
from PIL import Image

from batches import make_loader
from common.errors import UserError, shown
from dataset.boxes import around_person, as_jpeg, cut_box
from dataset.builder import IndexBuilder
from dataset.index import JOINTS, STANDING, WHITE, as_shape, decode_image
from dataset.pairs import as_png
from dataset.photos import Photos
from dataset.poses import from_left, is_usable, read_joints, read_number
from dataset.selection import Member, Selection, from_index
from inference.mixing import GROUPS, composite, part_numbers
from inference.movies import write_gif, write_mp4
from inference.rendering import aspect_shape, finite_uint8, resized

MIN_SIDE, MAX_SIDE = 16, 1280  # pixels of a photo that is kept
MAX_BYTES = 20 * 10**6  # of a request
MAX_DRAWING = 1024  # pixels of a side
MAX_FRAMES = 500
MAX_PEOPLE = 500  # in a data set
CACHED_PEOPLE = 64
SIZE = 256  # of people on the page and in data sets


class Studio:
    """Pictures from a network. `render` uses its session, so only one thread at a time may call it; the rest is free.

    renderer: a Renderer. index: an Index whose test people can be chosen, or None. aspect: the width / height of the
    network's pictures. draws_lines: whether its shapes are line drawings, if they are pictures. find_people(image):
    the people in a PIL image, joints in pixels. Raises UserError.
    """

    def __init__(self, config, renderer, *, index=None, aspect=1.0, draws_lines=True, find_people):
        self.config, self.index, self.aspect, self.photos = config, index, aspect, Photos()
        self.draws_lines = draws_lines
        self.people = [] if index is None else index.usable("test").tolist()
        self.shape = aspect_shape(config["spatial_size"], aspect)
        self.draws_joints = config["shape"] == "joints"
        # Whether people are cut out of photos by their joints, as Finder does.
        self.needs_joints = self.draws_joints or config["appearance"] == "parts"
        self.parts = sorted(GROUPS) if self.draws_joints and config["appearance"] != "none" else []
        self._renderer, self._find_people = renderer, find_people
        self._known = set(self.people)
        self._latents = functools.lru_cache(maxsize=CACHED_PEOPLE)(self._latents)
        self._reading = threading.Lock()  # of photos, which may take hundreds of megabytes each

    def about(self):
        """What a page must know of the network, for JSON."""
        sees_people = self.config["appearance"] != "none"
        return {"size": self.config["spatial_size"], "aspect": self.aspect, "joints": JOINTS, "parts": list(self.parts),
                "n_people": len(self.people), "standing": standing(), "draws_joints": self.draws_joints,
                "needs_joints": self.needs_joints, "draws_lines": self.draws_lines, "sees_people": sees_people,
                "max_frames": MAX_FRAMES, "max_bytes": MAX_BYTES}

    def some_people(self, start, n):
        """[{"person": number, "joints": joints or None}] of n test people of the index."""
        joints = self.index.joints if self.index is not None and self.index.uses_joints else None
        return [{"person": number, "joints": None if joints is None else joints[number].tolist()}
                for number in self.people[start:start + n]]

    def person(self, number):
        """The JPEG of a test person. Raises UserError."""
        with private(f"person {self._checked(number)}: cannot be read"):
            return as_jpeg(resized(self.index.image(number, SIZE), aspect_shape(SIZE, self.aspect)))

    def person_shape(self, number):
        """The PNG of a test image's shape. Raises UserError."""
        if self.index is None or self.index.shapes is None:
            raise UserError("shapes: the network's index has none")
        with private(f"person {self._checked(number)}: has edges that cannot be read"):
            return as_png(self.index.shape_image(number, self.config["spatial_size"]))

    def add_photo(self, content):
        """Takes the bytes of an image file: its id, its width and height, everybody's joints, and a note or None.

        Where nobody's joints are found, the only ones are those of somebody standing in the middle. Raises UserError.
        """
        with self._reading:
            image = decode_image(io.BytesIO(content), "photo", MAX_SIDE // 2)
            image.thumbnail((MAX_SIDE, MAX_SIDE))
            if min(image.size) < MIN_SIDE:
                raise UserError(f"photo: is too narrow; expected sides of at least {MIN_SIDE} pixels of {MAX_SIDE}")
            people, note = self._people_in(image) if self.needs_joints else ([], None)
            return {"photo": self.photos.add(image), "width": image.width, "height": image.height, "people": people,
                    "note": note}

    def _people_in(self, image):
        """([joints] from the left, a note or None) of an image."""
        people, note = [], "nobody was found: drag the figure onto the person"
        try:
            with private("nobody is looked for, as the terminal explains: drag the figure onto the person"):
                people = [joints for joints in from_left(self._find_people(image)) if is_usable(joints)]
        except UserError as error:
            note = str(error)
        if not people:
            return [standing(0.4 * min(2, image.height / image.width))], note
        return [np.where(joints < 0, -1, joints / image.size).round(4).tolist() for joints in people], None

    def _checked(self, value):
        if value not in self._known:
            raise UserError(f"person: expected the number of a test image, found {shown(value)}")
        return value

    def _latents(self, person, photo, joints):
        """Latents (1, h, w, c) of a test person or, where that is None, of a photo. joints: hashable, or None."""
        points = None if joints is None else np.array(joints, np.float32)
        if photo is not None:
            return self._encode(self._of_photo(photo, points))
        member, = from_index(self.index, [self._checked(person)])
        with private(f"person {person}: cannot be read"):
            return self._encode(member if points is None else member._replace(joints=points))

    def _encode(self, member):
        return self._renderer.encode(make_loader(Selection([member]), self.config, with_shapes=False)([0]))

    def _of_photo(self, photo, points):
        image = self.photos.image(photo)
        if not self.needs_joints:
            return Member("photo", None, lambda size: np.asarray(image.resize((size, size), Image.BILINEAR)), True)
        if points is None:
            raise UserError("joints: expected those of the person in the photo, found none")
        box, joints = self._in_photo(points, image, "joints")
        return Member("photo", joints, functools.partial(cut_box, image, box), True)

    def _in_photo(self, joints, image, name, aspect=None):
        """(box, joints in shares of it) around somebody. joints: in shares of the image. Raises UserError."""
        joints = np.where(joints < 0, -1, np.float64(joints) * image.size)
        if not is_usable(joints):
            raise UserError(f"{name}: expected hips and shoulders at different places")
        return around_person(joints, *image.size, aspect=aspect or self.aspect)

    def pose_of(self, photo):
        """Joints in the picture that is cut out around somebody, {"photo": id, "joints": joints}. Raises UserError."""
        image = self.photos.image(photo.get("photo"))
        return self._in_photo(read_joints(photo.get("joints"), "joints"), image, "joints")[1].tolist()

    def latents_of(self, who, name):
        """Latents of {"person": number} or {"photo": id}, both with "joints" if they are corrected or of a photo."""
        if not isinstance(who, dict):
            raise UserError(f"{name}: expected an object with person or photo, found {shown(who)}")
        joints = None if who.get("joints") is None else read_joints(who["joints"], f"{name}: joints")
        key = None if joints is None else tuple(map(tuple, joints.tolist()))
        photo = who.get("photo")
        if photo is not None:
            self.photos.jpeg(photo)  # raises Gone
            return self._latents(None, photo, key)
        person = who.get("person")
        if not isinstance(person, int) or isinstance(person, bool):
            raise UserError(f"{name}: expected a person's number or a photo, found {shown(who)}")
        return self._latents(person, None, key)

    def render(self, order):
        """The picture (h, w, 3) uint8 of a dict from JSON: shape, and who or sample; blend, share, parts.

        Raises UserError.
        """
        shape, joints = self._read_shape(order.get("shape"))
        if order.get("sample") is not None:
            pictures = self._renderer.sample(shape, int(read_number(order["sample"], "sample", 0, 10**6)))
        else:
            pictures = self._renderer.render(self._appearance(order), shape)
            parts = order.get("parts") or {}
            if parts:
                pictures = composite(pictures, self._givers(parts, shape), joints[np.newaxis])
        return resized(finite_uint8(pictures)[0], self.shape)

    def _appearance(self, order):
        latents = self.latents_of(order.get("who"), "who")
        if order.get("blend") is None:
            return latents
        share = read_number(order.get("share"), "share", 0, 1)
        others = self.latents_of(order["blend"], "blend")
        return [(1 - share) * z + share * other for z, other in zip(latents, others)]

    def _givers(self, parts, shape):
        if not isinstance(parts, dict) or not set(parts) <= set(self.parts):
            raise UserError(f"parts: expected some of {', '.join(self.parts) or 'none'}, found {shown(parts)}")
        return [(part_numbers(name), self._renderer.render(self.latents_of(who, name), shape))
                for name, who in parts.items()]

    def _read_shape(self, value):
        """(the shape image (1, S, S, 3) uint8, joints (15, 2) or None) of joints, or of an image file in base64."""
        size = self.config["spatial_size"]
        if self.draws_joints:
            joints = read_joints(value, "shape")
            return make_loader(Selection([Member("pose", joints, None, True)]), self.config).shape_images([0]), joints
        try:
            file = io.BytesIO(base64.b64decode(value))
        except (TypeError, ValueError):
            raise UserError(f"shape: expected an image file in base64, found {shown(value)}")
        image = decode_image(file, "shape", ground=WHITE, max_side=max(MAX_DRAWING, size))
        return as_shape(image, size, False, self.draws_lines)[np.newaxis], None

    def animation(self, order, turn):
        """The bytes of a GIF or MP4 of an order with frames, dicts that replace parts of it. Raises UserError.

        turn: entered for each picture.
        """
        frames, kind = read_dicts(order.get("frames"), "frames", MAX_FRAMES), order.get("format")
        if kind not in ("gif", "mp4"):
            raise UserError(f"format: expected gif or mp4, found {shown(kind)}")
        fps = read_number(order.get("fps"), "fps", 1, 50)
        pictures = []
        for frame in frames:
            with turn():
                pictures.append(self.render(dict(order, **frame)))
        with private(f"the {kind.upper()} cannot be written"), tempfile.TemporaryDirectory(prefix="vunet-") as folder:
            path = os.path.join(folder, "animation")
            write = write_gif if kind == "gif" else functools.partial(write_mp4, size=self.shape)
            write(f"{path}.{kind}", pictures, fps)
            with open(f"{path}.{kind}", "rb") as file:
                return file.read()

    def data_set(self, photos):
        """The bytes of a ZIP with a data set of the people in [{"photo": id, "joints": joints}]. Raises UserError."""
        people = []
        for i, photo in enumerate(read_dicts(photos, "photos", MAX_PEOPLE)):
            image, name = self.photos.image(photo.get("photo")), f"photos[{i}]: joints"
            box, joints = self._in_photo(read_joints(photo.get("joints"), name), image, name, aspect=1.0)
            people.append((joints, as_jpeg(cut_box(image, box, SIZE))))
        content = io.BytesIO()
        with private("the data set cannot be written"), tempfile.TemporaryDirectory(prefix="vunet-") as folder:
            with IndexBuilder(os.path.join(folder, "people"), JOINTS, silent=True) as builder:
                for i, (joints, jpeg) in enumerate(people):
                    builder.add(f"{i:05}", joints, jpeg=jpeg)
                builder.finish()
            with zipfile.ZipFile(content, "w") as archive:
                for base, _, names in os.walk(folder):
                    for name in sorted(names):
                        archive.write(os.path.join(base, name), os.path.relpath(os.path.join(base, name), folder))
        return content.getvalue()


@contextlib.contextmanager
def private(line):
    """Replaces errors about the server's own files, which name paths, by this line; the terminal gets the whole."""
    try:
        yield
    except (UserError, OSError) as error:
        print(f"page: {error}", file=sys.stderr, flush=True)
        raise UserError(line)


def read_dicts(value, name, most):
    """A list of 1 to `most` objects from JSON. Raises UserError."""
    is_list = isinstance(value, list) and 1 <= len(value) <= most
    if not is_list or not all(isinstance(item, dict) for item in value):
        raise UserError(f"{name}: expected a list of 1 to {most} objects, found {shown(value)}")
    return value


def standing(breadth=0.8):
    """Joints of somebody standing in the middle of a picture, who fills most of it."""
    joints = np.array([STANDING[name] for name in JOINTS])
    return (0.5 + (joints - 0.5) * (breadth, 0.8)).round(4).tolist()
