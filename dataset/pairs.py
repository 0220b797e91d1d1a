"""Images with shape images: pairs that stand side by side, or photos whose edges are found."""
import io
import os

import cv2
import numpy as np
from PIL import Image

from common.errors import UserError
from dataset.boxes import as_jpeg
from dataset.builder import in_parallel
from dataset.index import is_bright, is_grey, read_image
from dataset.photos import find_photos

SAMPLED = 100  # pictures that tell whether a data set's shapes are line drawings
BLUR = 1.4  # sigma of the Gaussian before Canny, in pixels (Canny 1986 smooths so too)


def add_pairs(builder, options):
    """Adds the halves of the images in options.images and below; returns further keys for the index."""
    found = find(options, builder)
    draws_lines = are_line_drawings([path for path, _, _ in found], options.photo)
    halves_of = in_parallel(lambda item: encoded_halves(item[0], options.photo, draws_lines), found)
    n_bright = 0
    for (_, name, train), (photo, shape, bright, why) in zip(found, halves_of):
        if why:
            builder.leave_out(name, why)
            continue
        n_bright += bright
        builder.add_pair(name, shape, train=train, jpeg=photo)
    if not draws_lines:
        print("shape images are coloured: taken as they are")
        return {}
    black_on_white = 2 * n_bright > len(builder.entries)
    print(f"shape images are grey, {n_bright} of {len(builder.entries)} mostly bright: taken as "
          f"{'black lines on white' if black_on_white else 'white lines on black'}")
    return {"black_on_white": black_on_white}


def are_line_drawings(paths, photo_side):
    """Whether most shapes of some of these pictures are grey. All of a data set are taken alike."""
    halves = [split(path, photo_side)[0] for path in paths[::max(1, len(paths) // SAMPLED)]]
    grey = []
    for _, shape in filter(None, halves):
        margin = len(shape) // 8  # JPEG carries the photo's colours a few pixels over
        grey.append(is_grey(shape[:, margin:len(shape) - margin]))
    return bool(np.mean(grey or [True]) > 0.5)


def encoded_halves(path, photo_side, draws_lines):
    """(JPEG of the photo, PNG of the shape, whether the shape is bright, None), or (None, None, None, why not)."""
    halves, why = split(path, photo_side)
    if why:
        return None, None, None, why
    photo, shape = halves
    if draws_lines:
        shape = cv2.cvtColor(np.ascontiguousarray(shape), cv2.COLOR_RGB2GRAY)
    return as_jpeg(np.ascontiguousarray(photo)), as_png(shape), is_bright(shape), None


def split(path, photo_side):
    """((photo, shape) (h, w, 3) uint8, None) of a picture that shows both, or (None, why not)."""
    try:
        pixels = np.asarray(read_image(path))
    except UserError:
        return None, "images that cannot be read"
    height, width, _ = pixels.shape
    if width != 2 * height:
        return None, "images that are not two squares side by side"
    left, right = pixels[:, :height], pixels[:, height:]
    return ((left, right) if photo_side == "left" else (right, left)), None


def add_edges(builder, options):
    """Adds the images in options.images and below with their edges; returns further keys for the index."""
    found = find(options, builder)
    edges_of = in_parallel(lambda item: edges_of_file(item[0], options.size), found)
    for (path, name, train), edges in zip(found, edges_of):
        if edges is None:
            builder.leave_out(name, "images that cannot be read")
        elif not edges.any():
            builder.leave_out(name, "images without edges")
        else:
            builder.add_pair(name, as_png(edges), train=train, source=path)
    return {"black_on_white": False}


def edges_of_file(path, size):
    """Edges (h, w) uint8, white on black, of an image file, the longer side `size`; None where it cannot be read."""
    try:
        image = read_image(path, size)
    except UserError:
        return None
    scale = size / max(image.size)
    image = image.resize([max(1, int(round(side * scale))) for side in image.size], Image.BILINEAR)
    return edges(np.asarray(image))


def edges(pixels):
    """Canny's edges (h, w) uint8, 0 or 255, of pixels (h, w, 3) uint8.

    The upper threshold is Otsu's between dark and bright pixels, the lower one half of it.
    """
    grey = cv2.GaussianBlur(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), (0, 0), BLUR)
    threshold, _ = cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
    return cv2.Canny(grey, threshold / 2, threshold)


def find(options, builder):
    """[(path, name, train)] of the images of options.images and options.test_images, in order.

    train: None where all are in one folder, and the builder splits them. Raises UserError where there is none.
    """
    found = []
    has_test_images = options.test_images is not None
    for folder, train in ((options.images, True if has_test_images else None), (options.test_images, False)):
        if folder is None:
            continue
        paths = find_photos(folder, builder)
        if train:  # test images may lie in a folder below
            tests = os.path.join(os.path.abspath(options.test_images), "")
            paths = [path for path in paths if not os.path.abspath(path).startswith(tests)]
        found += [(path, os.path.relpath(path, folder), train) for path in paths]
    builder.images_seen = len(found)
    return found


def as_png(pixels):
    """The bytes of a PNG of pixels (h, w) or (h, w, 3) uint8."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
