"""Appearance part by part: one person with the arms, say, of another.

Everybody of the mix is rendered whole, in the same pose. The pictures are then put together along the pose: near a
part's joints the picture is that of the person who gives the part. To exchange the crops that the encoder sees would be
simpler, but it has learnt how the parts of one person go together: on the toy data, which knows the truth, the error
within an exchanged part was then 1.5 to 2.3 times that of a transfer of one person.
"""
import argparse
import re

import cv2
import numpy as np

from batches import LIMB_PARTS, PARTS, make_loader
from common.errors import UserError, shown
from dataset.boxes import torso_length
from dataset.index import JOINTS, TORSO, J, is_visible

# Names of several crops together. No crop shows the lower legs; they go with the thighs.
GROUPS = {"torso": ["torso"], "head": ["head"], "arms": [part for part in PARTS if part.endswith(" arm")],
          "legs": [part for part in PARTS if part.endswith(" thigh")]}
NAMES = sorted(GROUPS) + [part.replace(" ", "_") for part in PARTS if part not in GROUPS]

# How far clothed bodies reach beyond the lines between their joints, in torso lengths.
RADII = {"upper arm": 0.19, "lower arm": 0.17, "thigh": 0.24, "shin": 0.21}
HEAD_RADIUS, HEAD_CENTRE = 1.05, 1.15  # in lengths from neck to nose, from the neck upwards
NECK_LENGTH = 0.42  # from neck to nose, in torso lengths, where the nose is not seen
SHOULDERS, HIPS, WAIST = 1.2, 1.5, 0.92  # a torso's width over its joints'; where the trousers begin
BACKGROUND = 0.25  # torso lengths from all parts where the picture is that of the person who is mixed
SOFTNESS = 0.004  # of the seams, in shares of the picture's side
FINENESS = 4  # regions are drawn so much larger


def part_numbers(name):
    """The numbers of the crops that a name means, such as arms or left_thigh; None where it means none."""
    name = re.sub(r"[ _-]+", " ", name.strip().lower())
    names = GROUPS.get(name, [name] if name in PARTS else [])
    return [PARTS.index(part) for part in names] or None


class Mix:
    """Parts that other people give. givers: [(numbers of parts, Selection of one person)]."""

    def __init__(self, givers, config):
        self._givers = givers
        self._config = config
        self._latents = None

    def composite(self, renderer, pictures, joints, shape_images):
        """Pictures (n, S, S, 3) of somebody in poses (n, 15, 2), with the others' parts in them.

        shape_images: of these poses, (n, S, S, 3).
        """
        if self._latents is None:
            self._latents = [renderer.encode(make_loader(person, self._config, with_shapes=False)([0]))
                             for _, person in self._givers]
        others = [(numbers, renderer.render(latents, shape_images))
                  for latents, (numbers, _) in zip(self._latents, self._givers)]
        return composite(pictures, others, joints)


def composite(pictures, others, joints):
    """Pictures (n, S, S, 3) of somebody in poses (n, 15, 2), with parts from others' pictures.

    others: [(numbers of parts, pictures of the same poses)].
    """
    regions = np.stack([part_regions(pose, pictures.shape[1]) for pose in joints])  # (n, 8, S, S)
    result = np.array(pictures)
    for numbers, of_other in others:
        result += regions[:, numbers].sum(axis=1)[..., np.newaxis] * (of_other - pictures)
    return result


def mix_item(text):
    """The type of the option --mix: PART=IMAGE as the pair (numbers of crops, image)."""
    name, _, source = text.partition("=")
    numbers = part_numbers(name)
    if not numbers or not source:
        raise argparse.ArgumentTypeError(f"expected PART=IMAGE, PART one of {', '.join(NAMES)}, found {shown(text)}")
    return numbers, source


def read_mix(items, finder, config):
    """The Mix of items as from mix_item; None without items. Raises UserError."""
    givers, taken = [], set()
    if items and config["shape"] != "joints":
        raise UserError(f"--mix: needs joints; the config has shape: {config['shape']}")
    for numbers, source in items or ():
        twice = [PARTS[number] for number in numbers if number in taken]
        if twice:
            raise UserError(f"--mix: {shown(source)}: an item before it gives {twice[0]} already")
        taken |= set(numbers)
        person = finder.select([source], "--mix", pictures=True)
        if len(person) != 1:
            raise UserError(f"--mix: {shown(source)}: expected one image, found {len(person)}")
        givers.append((numbers, person))
    return Mix(givers, config) if givers else None


# ---------------------------------------------------------------------------------------------- regions of parts

def part_regions(joints, size):
    """Which of PARTS a pixel belongs to in a pose (15, 2): weights (8, size, size) that add up to 1 near the body."""
    points = joints.astype(np.float64) * size
    distances = np.stack([_distance(_draw(part, points, is_visible(joints), size)) for part in PARTS])
    faces_us = points[J["rshoulder"], 0] < points[J["lshoulder"], 0]
    # Where parts overlap, the nearer one is seen: arms, head and torso from the front, the other way from behind.
    depth = {"torso": 1.0, "head": 1.5 if faces_us else 0.5}
    depths = [depth.get(part, (0.0 if faces_us else 2.0) if part.endswith("arm") else 2.0) for part in PARTS]
    scores = distances / (SOFTNESS * size) + 2 * np.array(depths)[:, np.newaxis, np.newaxis]
    background = np.full((1, size, size), BACKGROUND * torso_length(points) / (SOFTNESS * size))
    scores = np.concatenate([scores, background])
    weights = np.exp(scores.min(axis=0) - scores)
    return (weights / weights.sum(axis=0))[:-1].astype(np.float32)


def _distance(region):
    """Pixels from each pixel to the region (S, S) uint8; far where there is none."""
    if region.max() < 128:
        return np.full(region.shape, 1e6)
    return cv2.distanceTransform((region < 128).astype(np.uint8), cv2.DIST_L2, 5).astype(np.float64)


def _draw(part, points, visible, size):
    """The region of a part in a picture, (size, size) uint8. points: (15, 2) in pixels."""
    canvas = np.zeros((FINENESS * size, FINENESS * size), np.uint8)
    left, right = points[J["lshoulder"]], points[J["rshoulder"]]
    neck, length = (left + right) / 2, torso_length(points)
    if part == "torso":
        corners = _torso_corners(points)
        cv2.fillPoly(canvas, [np.round(FINENESS * corners).astype(np.int32)], 255)
    elif part == "head":
        hips = (points[J["lhip"]] + points[J["rhip"]]) / 2
        up = points[J["cnose"]] - neck if visible[J["cnose"]] else NECK_LENGTH * (neck - hips)
        radius = int(FINENESS * HEAD_RADIUS * np.linalg.norm(up))
        cv2.circle(canvas, _pixel(neck + HEAD_CENTRE * up), radius, 255, -1)
    else:
        for a, b, radius in _bones(part):
            if visible[a] and visible[b]:
                cv2.line(canvas, _pixel(points[a]), _pixel(points[b]), 255, max(1, int(2 * FINENESS * radius * length)))
    return cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)


def _torso_corners(points):
    lhip, lshoulder, rshoulder, rhip = (points[J[name]] for name in TORSO)
    upper, lower = (a + b for a, b in ((lshoulder, rshoulder), (lhip, rhip)))
    left_top, right_top = (upper / 2 + SHOULDERS * (corner - upper / 2) for corner in (lshoulder, rshoulder))
    left_end, right_end = (lower / 2 + HIPS * (corner - lower / 2) for corner in (lhip, rhip))
    return np.stack([left_top, right_top, right_top + WAIST * (right_end - right_top),
                     left_top + WAIST * (left_end - left_top)])


def _bones(part):
    """[(joint, joint, radius in torso lengths)] of an arm's or leg's part."""
    i = PARTS.index(part) - (len(PARTS) - len(LIMB_PARTS[0]))
    a, b = LIMB_PARTS[0][i], LIMB_PARTS[1][i]
    kind = part.split(" ", 1)[1]
    bones = [(a, b, RADII[kind])]
    if kind == "thigh":
        bones.append((b, J[JOINTS[b].replace("knee", "ankle")], RADII["shin"]))
    return bones


def _pixel(point):
    return tuple(int(round(FINENESS * value)) for value in point)
