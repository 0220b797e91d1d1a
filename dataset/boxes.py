"""Boxes around people, and cutting them out of photos. Joints are (15, 2) in pixels, in the order of JOINTS."""
import io

import numpy as np
from PIL import Image

from dataset.index import TORSO, J, is_visible

MARGIN = 0.15  # on each side, in shares of the height of what the box holds


def has_torso(joints):
    """Whether joints show both hips and both shoulders."""
    return bool(is_visible(joints[[J[name] for name in TORSO]]).all())


def torso_length(joints):
    """Pixels from the middle of the shoulders to the middle of the hips."""
    shoulders, hips = [(joints[J["l" + name]] + joints[J["r" + name]]) / 2 for name in ("shoulder", "hip")]
    return float(np.linalg.norm(shoulders - hips))


def body(joints):
    """Points (n, 2) around somebody with a torso: the visible joints and, if the nose is one, the top of the head."""
    points = joints[is_visible(joints)]
    nose = joints[J["cnose"]]
    if is_visible(nose):
        neck = (joints[J["lshoulder"]] + joints[J["rshoulder"]]) / 2
        points = np.concatenate([points, [neck + 2 * (nose - neck)]])  # as far above the nose as the neck is below it
    return points


def box_around(points, width=None, height=None, aspect=1.0):
    """The box (x, y, width, height) in whole pixels around points (n, 2) and a margin.

    width, height: of the photo, if there is one; the box lies in it if it fits there. aspect: the box's width / height.
    """
    low, high = np.min(points, axis=0), np.max(points, axis=0)
    extent = high - low
    box_height = max(1, int(round((1 + 2 * MARGIN) * max(extent[0] / aspect, extent[1]))))
    size = np.array([max(1, int(round(box_height * aspect))), box_height])
    corner = np.round((low + high - size) / 2).astype(int)
    if width is not None:
        room = np.array([width, height]) - size  # negative if the box is larger than the photo
        corner = np.clip(corner, np.minimum(room, 0), np.maximum(room, 0))
    return int(corner[0]), int(corner[1]), int(size[0]), int(size[1])


def around_person(joints, *size, aspect=1.0):
    """(the box around somebody with a torso, their joints in shares of it). size: (width, height) of the photo, if any.

    aspect: the box's width / height.
    """
    box = box_around(body(joints), *size, aspect=aspect)
    return box, shares_of(joints, box)


def shares_of(joints, box):
    """Joints (..., 2) in shares of a box, -1 where they are missing or outside."""
    shares = (joints - box[:2]) / np.array(box[2:], float)
    is_inside = is_visible(joints) & is_visible(shares) & (shares < 1).all(axis=-1)
    return np.where(is_inside[..., np.newaxis], shares, -1).astype(np.float32)


def cut_box(image, box, size):
    """A box of a PIL image, resized to (size, size, 3) uint8, whatever its aspect; outside, the edges are repeated."""
    x, y, width, height = box
    left, right, before, after = _placed(x, width, image.width, size)
    top, bottom, above, below = _placed(y, height, image.height, size)
    # Shrunk before the edges are repeated: most of a box around somebody in a panorama is outside.
    inside = image.resize((size - before - after, size - above - below), Image.BILINEAR, box=(left, top, right, bottom))
    return np.pad(np.asarray(inside), ((above, below), (before, after), (0, 0)), mode="edge")


def _placed(start, length, limit, size):
    """Along one axis: where a box's part in the photo begins and ends, and pixels of `size` before and after it."""
    begin, end = max(start, 0), min(start + length, limit)
    scale = size / float(length)
    before = min(int(round(scale * (begin - start))), size - 1)
    inside = max(1, int(round(scale * (end - start))) - before)
    return begin, end, before, size - before - inside


def as_jpeg(pixels):
    """The bytes of a JPEG of pixels (h, w, 3) uint8."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95, subsampling=0)
    return file.getvalue()
