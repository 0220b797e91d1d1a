"""The toy data set of things: bags and shoes with their edges. The true picture of every transfer can be drawn.

An image is draw(look, outline), its shape edges(outline). make_look(seed, number) says what a thing is made of,
make_outline(seed, number) which form it has; even numbers are bags, odd ones shoes. A look fits both.
"""
import collections
import os

import cv2
import numpy as np
from PIL import Image

from common.console import progress_bar
from common.errors import UserError
from dataset.toy import CLOTHES, SIZE, save_index

OVERSAMPLING = 4
THINGS_PER_LOOK = 4
DRAWING = 3  # data sets of earlier drawings, with other soles, have other truths
BACKGROUND = (245, 245, 242)
METALS = ((245, 200, 60), (190, 190, 200), (30, 30, 30))
# What a pixel shows, in the order of painting.
NOTHING, STRAP, BODY, SOLE, FLAP, BUCKLE, IN_SECOND_COLOUR = range(7)

Look = collections.namedtuple("Look", "colour second_colour pattern buckle")
Look.__doc__ = """Colours are RGB, 0 to 255; pattern is plain (second colour at the bottom), stripes or halves."""

Outline = collections.namedtuple("Outline", "is_bag parts body")
Outline.__doc__ = """parts: [(what, kind, points, width)] in shares of the picture, in the order of painting.
body: its top and bottom.
"""


# ------------------------------------------------------------------------------------------ what, and which form

def make_look(seed, number):
    """The Look of this number, the same for the same seed."""
    random = np.random.RandomState([seed, 10, number])
    colour, second = (CLOTHES[i] for i in random.permutation(len(CLOTHES))[:2])
    pattern = str(random.choice(["plain", "stripes", "halves"], p=[0.5, 0.25, 0.25]))
    return Look(colour, second, pattern, METALS[random.randint(len(METALS))])


def make_outline(seed, number):
    """The Outline of this number, the same for the same seed: a bag's for even numbers, else a shoe's."""
    random = np.random.RandomState([seed, 11, number])
    return _bag(random) if number % 2 == 0 else _shoe(random)


def _bag(random):
    x = 0.5 + random.uniform(-0.05, 0.05)
    top, bottom = random.uniform(0.36, 0.52), random.uniform(0.78, 0.92)
    above, below = (random.uniform(0.2, 0.4) for _ in range(2))
    bulge = random.uniform(0, 0.06)
    body = [(x - above, top), (x + above, top), (x + below + bulge, 0.5 * (top + bottom)), (x + below, bottom),
            (x - below, bottom), (x - below - bulge, 0.5 * (top + bottom))]
    parts = []
    height = random.uniform(0.12, 0.28)
    width = random.uniform(0.025, 0.06)
    for share in ((0.7,), (0.45,), (0.8, 0.5))[random.randint(3)]:
        parts.append((STRAP, "arc", (x, top, share * above, height), width))
    parts.append((BODY, "polygon", body, 0))
    thickness = random.uniform(0.04, 0.08)
    wide = below + bulge * thickness / (0.5 * (bottom - top))
    parts.append((SOLE, "polygon", [(x - wide, bottom - thickness), (x + wide, bottom - thickness), (x + below, bottom),
                                    (x - below, bottom)], 0))
    depth = random.uniform(0.25, 0.65)
    middle = top + depth * (bottom - top)
    if random.rand() < 0.6:
        tip = random.uniform(0.0, 0.08)
        parts.append((FLAP, "polygon", [(x - above, top), (x + above, top), (x + 0.85 * above, middle - tip),
                                        (x, middle), (x - 0.85 * above, middle - tip)], 0))
    parts.append((BUCKLE, "circle", (x, middle), random.uniform(0.03, 0.06)))
    return Outline(True, parts, (top, bottom))


def _shoe(random):
    toe, heel = random.uniform(0.06, 0.14), random.uniform(0.86, 0.94)
    ground = random.uniform(0.76, 0.88)
    lift = random.uniform(0.0, 0.18)  # of the heel
    vamp = ground - random.uniform(0.12, 0.2)  # height of the toes
    shaft = ground - lift - random.uniform(0.25, 0.55)
    opening = random.uniform(0.55, 0.66)
    body = [(toe, ground - 0.03), (toe + 0.04, vamp), (opening - 0.12, vamp - 0.06), (opening, shaft), (heel, shaft),
            (heel, ground - lift - 0.04), (0.6, ground - 0.6 * lift - 0.03), (0.4, ground - 0.03)]
    sole = [(toe, ground - 0.05), (toe, ground), (0.42, ground), (0.66, ground - 0.7 * lift)]
    sole += [(heel - 0.14, ground - lift), (heel - 0.11, ground), (heel, ground), (heel, ground - lift - 0.05)]
    sole += [(0.6, ground - 0.6 * lift - 0.05), (0.4, ground - 0.05)]
    parts = [(BODY, "polygon", body, 0), (SOLE, "polygon", sole, 0)]
    if random.rand() < 0.6:
        low = shaft + random.uniform(0.06, 0.12)
        parts.append((FLAP, "polygon", [(opening, shaft), (heel, shaft), (heel, low), (opening - 0.02, low)], 0))
    place = random.uniform(0.3, 0.8)
    parts.append((BUCKLE, "circle", (0.3 + 0.3 * place, vamp + 0.02), random.uniform(0.03, 0.05)))
    return Outline(False, parts, (shaft, ground))


# ------------------------------------------------------------------------------------------ drawing

def draw(look, outline):
    """The anti-aliased picture of a thing, (64, 64, 3) uint8, and where it is, (64, 64) bool."""
    labels = _paint(outline)
    side = len(labels)
    darker = tuple(int(0.65 * value) for value in look.colour)
    palette = np.array([BACKGROUND, darker, look.colour, look.colour, darker, look.buckle, look.second_colour])
    top, bottom = (side * y for y in outline.body)
    height = (np.arange(side) - top) / (bottom - top)  # 0 at the body's top, 1 at its bottom
    # By height alone, alike in bags and shoes: nothing would say which part of a bag has the colour of a shoe's sole.
    in_second = {"plain": height >= 0.85, "halves": height >= 0.5,
                 "stripes": (np.floor(height / 0.2) % 2 == 1)}[look.pattern]
    labels[((labels == BODY) | (labels == SOLE)) & in_second[:, np.newaxis]] = IN_SECOND_COLOUR
    picture = np.take(palette.astype(np.uint8), labels, axis=0)  # three times as fast as palette[labels]
    mask = cv2.resize((labels > 0).astype(np.float32), (SIZE, SIZE), interpolation=cv2.INTER_AREA) > 0.5
    return cv2.resize(picture, (SIZE, SIZE), interpolation=cv2.INTER_AREA), mask


def edges(outline):
    """The lines of an outline, (64, 64) uint8, white on black, one pixel wide. They do not show the look's pattern."""
    labels = _paint(outline)[OVERSAMPLING // 2::OVERSAMPLING, OVERSAMPLING // 2::OVERSAMPLING]
    lines = np.zeros((SIZE, SIZE), bool)
    lines[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    lines[:-1] |= labels[:-1] != labels[1:]
    return np.where(lines, 255, 0).astype(np.uint8)


def _paint(outline):
    """What each pixel shows, (256, 256) uint8."""
    side = SIZE * OVERSAMPLING
    labels = np.zeros((side, side), np.uint8)
    for what, kind, points, width in outline.parts:
        points = np.round(np.array(points) * side).astype(np.int32)
        if kind == "polygon":
            cv2.fillPoly(labels, [points], what)
        elif kind == "circle":
            cv2.circle(labels, tuple(points.tolist()), int(width * side), what, -1)
        else:
            x, y, half_width, height = points.tolist()
            cv2.ellipse(labels, (x, y), (half_width, height), 0, 180, 360, what, int(width * side))
    return labels


# ------------------------------------------------------------------------------------------ the data set

def make_data_set(out, n_train, n_test, seed):
    """Writes images and shapes and then the index, which it returns. No look is in both splits."""
    for folder in ("images", "shapes"):
        os.makedirs(os.path.join(out, folder), exist_ok=True)
    index = {"imgs": [], "shapes": [], "train": [], "person": [], "toy_seed": seed, "toy_kind": "bags",
             "toy_drawing": DRAWING}
    for number in progress_bar(range((n_train + n_test) * THINGS_PER_LOOK), desc="drawing bags", unit="image"):
        look = number // THINGS_PER_LOOK
        outline = make_outline(seed, number)
        name = f"{look:04d}_{number % THINGS_PER_LOOK}_{'bag' if outline.is_bag else 'shoe'}.png"
        for key, folder, pixels in (("imgs", "images", draw(make_look(seed, look), outline)[0]),
                                    ("shapes", "shapes", edges(outline))):
            index[key].append(f"{folder}/{name}")
            Image.fromarray(pixels).save(os.path.join(out, folder, name))
        index["train"].append(look < n_train)
        index["person"].append(look)
    save_index(index, out)
    return index


# ------------------------------------------------------------------------------------------ the truth of transfers

def is_bags(n_images, extra):
    """Whether an index is this toy's, whole and in order. extra: its keys but for images, shapes and train."""
    kind, drawing, seed, people = [extra.get(key) for key in ("toy_kind", "toy_drawing", "toy_seed", "person")]
    # Types first: comparing arrays gives arrays.
    if not (isinstance(kind, str) and isinstance(people, list)
            and all(isinstance(number, int) for number in [drawing, seed] + people)):
        return False
    return (kind == "bags" and drawing == DRAWING and 0 <= seed < 2**32
            and people == [number // THINGS_PER_LOOK for number in range(n_images)])


def _truth(seed, source, outline):
    """The true picture in [-1, 1] of the look of the image `source` in an outline, and where the thing is."""
    picture, mask = draw(make_look(seed, source // THINGS_PER_LOOK), outline)
    return picture / 127.5 - 1, mask


def _errors(picture, truth):
    """The error of each pixel, (64, 64)."""
    return np.abs(picture - truth).mean(axis=-1)


def transfer_errors(render, usable, seed, *, n=1000, n_mean=32):
    """Mean absolute errors of n transfers of held-out looks to held-out bags, of values in [-1, 1], by name.

    Over the thing's pixels in the true drawing: "bag to bag" and "shoe to bag", and "mean appearance", the error of the
    mean of n_mean training looks in the same outlines. Outside of it: "shows through", within the outline of the thing
    that gave the look, for both kinds of transfers; "beside", of reconstructions at the same pixels; "outside", of
    reconstructions at all pixels. Most of these are far from any edge.

    render(appearances, shapes): pictures (n, 64, 64, 3) in [-1, 1] of these images' looks in these images' outlines.
    usable: {"train": image numbers, "test": image numbers}. Raises UserError where the test ones lack bags or shoes.
    """
    random = np.random.RandomState([seed, 12])
    bags, shoes = ([number for number in usable["test"] if number % 2 == odd] for odd in range(2))
    if not bags or not shoes:
        raise UserError(f"expected bags and shoes in the test split, found {len(bags)} and {len(shoes)}")
    training = [make_look(seed, number // THINGS_PER_LOOK) for number in random.choice(usable["train"], n_mean)]
    outlines = {bag: make_outline(seed, bag) for bag in bags}
    means = {bag: np.mean([draw(look, outline)[0] for look in training], axis=0) / 127.5 - 1
             for bag, outline in outlines.items()}
    of_reconstructions, errors = {}, collections.defaultdict(list)
    for bag, picture in zip(bags, np.clip(render(bags, bags), -1, 1)):
        truth, mask = _truth(seed, bag, outlines[bag])
        of_reconstructions[bag] = _errors(picture, truth)
        errors["outside"].append(of_reconstructions[bag][~mask].mean())
    for kind, things in (("bag to bag", bags), ("shoe to bag", shoes)):
        sources, targets = _equally_often(things, n, random), _equally_often(bags, n, random)
        for picture, source, target in zip(np.clip(render(sources, targets), -1, 1), sources, targets):
            truth, mask = _truth(seed, source, outlines[target])
            error = _errors(picture, truth)
            errors[kind].append(error[mask].mean())
            errors["mean appearance"].append(_errors(means[target], truth)[mask].mean())
            revealed = _truth(seed, source, make_outline(seed, source))[1] & ~mask
            if revealed.any():
                errors["shows through"].append(error[revealed].mean())
                errors["beside"].append(of_reconstructions[target][revealed].mean())
    return {name: float(np.mean(values)) for name, values in errors.items()}


def _equally_often(numbers, n, random):
    """n of these numbers in a random order, each as often as any other: some looks are much harder than others."""
    return np.concatenate([random.permutation(numbers) for _ in range(-(-n // len(numbers)))])[:n]


def colour_spreads(sample, usable, seed, *, n=50, n_samples=8):
    """(of samples, of true looks): how much the mean colours of a bag's pixels differ, in values of [-1, 1].

    Lengths of the standard deviation over n_samples in the same outline, means over n held-out outlines.
    sample(shapes, k): pictures (n, 64, 64, 3) in [-1, 1] of the k-th samples for these images' outlines.
    """
    random = np.random.RandomState([seed, 13])
    targets = random.choice([number for number in usable["test"] if number % 2 == 0], n)
    sampled = [np.clip(sample(targets, k), -1, 1) for k in range(n_samples)]
    spreads = []
    for i, target in enumerate(targets):
        outline = make_outline(seed, target)
        looks = [make_look(seed, number // THINGS_PER_LOOK) for number in random.choice(usable["train"], n_samples)]
        true = [draw(look, outline)[0] / 127.5 - 1 for look in looks]
        mask = draw(looks[0], outline)[1]
        spreads.append([np.linalg.norm(np.std([picture[mask].mean(axis=0) for picture in pictures], axis=0))
                        for pictures in ([pictures[i] for pictures in sampled], true)])
    return tuple(float(value) for value in np.mean(spreads, axis=0))
