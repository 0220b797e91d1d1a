"""The toy data set: people of plain shapes and strong colours. The true picture of every transfer can be drawn.

An image is draw(person, pose). make_person(seed, number) says what a person wears, make_pose(seed, number) how one
stands. transfer_error compares transfers of held-out people with their true drawings.
"""
import collections
import os

import cv2
import numpy as np
from PIL import Image

from common.console import progress_bar
from dataset.index import JOINTS
from dataset.pickles import dump_index

SIZE = 64
OVERSAMPLING = 4
POSES_PER_PERSON = 4
BACKGROUND = (232, 232, 228)
EYES = (40, 40, 40)
SHOES = (50, 45, 45)

CLOTHES = ((225, 20, 35), (20, 60, 225), (0, 140, 50), (255, 215, 0), (140, 30, 180), (250, 120, 0), (20, 20, 25),
           (0, 180, 205))
HAIR = ((25, 20, 20), (110, 65, 30), (235, 200, 90), (190, 70, 25), (150, 150, 150))
SKIN = ((250, 215, 185), (205, 150, 110), (120, 75, 50))

FACE = ("reye", "leye", "cnose")
TORSO = ("rhip", "lhip", "rshoulder", "lshoulder")  # another order would make another data set, as random.choice draws

PARTS = ("torso", "head", "arms", "legs")
MARKS = ((255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0))  # colours that tell the parts apart

Person = collections.namedtuple("Person", "hair long_hair skin shirt second_colour pattern sleeves trousers shorts")
Person.__doc__ = """Colours are RGB, 0 to 255; pattern is plain, stripes or halves; sleeves are none, short or long."""

Pose = collections.namedtuple("Pose", "joints hidden from_behind")
Pose.__doc__ = """joints: xy in shares of the picture, by name. hidden: names of the joints that the index lacks.
from_behind: whether the back is seen.
"""


# ------------------------------------------------------------------------------------------ who, and how

def make_person(seed, number):
    """The Person of this number, the same for the same seed. Shirt and trousers differ in colour."""
    random = np.random.RandomState([seed, 0, number])
    shirt, second, trousers = (CLOTHES[i] for i in random.permutation(len(CLOTHES))[:3])
    return Person(hair=HAIR[random.randint(len(HAIR))], long_hair=bool(random.rand() < 0.4),
                  skin=SKIN[random.randint(len(SKIN))], shirt=shirt, second_colour=second,
                  pattern=str(random.choice(["plain", "stripes", "halves"], p=[0.55, 0.2, 0.25])),
                  sleeves=str(random.choice(["none", "short", "long"], p=[0.2, 0.4, 0.4])),
                  trousers=trousers, shorts=bool(random.rand() < 0.3))


def make_pose(seed, number):
    """The Pose of this number, the same for the same seed."""
    random = np.random.RandomState([seed, 1, number])
    from_behind = bool(random.rand() < 0.15)
    height = random.uniform(0.84, 0.94)  # in shares of the picture's
    turn = random.uniform(0.6, 1.0)  # how broad the shoulders look
    lean = random.uniform(-0.15, 0.15)
    hip = np.array([0.5 + random.uniform(-0.06, 0.06), 0.54 + random.uniform(-0.02, 0.03)])
    up = np.array([np.sin(lean), -np.cos(lean)])
    right = np.array([np.cos(lean), np.sin(lean)]) * (1 if from_behind else -1)  # of the body, in the picture
    neck = hip + 0.30 * height * up
    joints = {"cnose": neck + 0.125 * height * up + right * random.uniform(-0.02, 0.02)}
    for side, sign in (("r", 1), ("l", -1)):
        outward = right * sign
        joints[side + "eye"] = joints["cnose"] + (0.022 * up + 0.025 * outward) * height
        joints[side + "shoulder"] = neck + outward * 0.14 * height * turn
        joints[side + "hip"] = hip + outward * 0.075 * height * turn
        down = -up
        spread = random.uniform(-0.2, 1.6) if random.rand() < 0.8 else random.uniform(1.6, 2.6)
        bend = random.uniform(-0.4, 1.4)
        elbow = joints[side + "shoulder"] + 0.165 * height * _turned(down, outward, spread)
        joints[side + "elbow"] = elbow
        joints[side + "wrist"] = elbow + 0.15 * height * _turned(down, outward, spread + bend)
        stride = random.uniform(-0.15, 0.5)
        knee = joints[side + "hip"] + 0.215 * height * _turned(down, outward, stride)
        joints[side + "knee"] = knee
        joints[side + "ankle"] = knee + 0.21 * height * _turned(down, outward, stride - random.uniform(0, 0.6))
    hidden = set(FACE) if from_behind else {name for name in FACE if random.rand() < 0.02}
    hidden |= {name for name in JOINTS if name not in TORSO + FACE and random.rand() < 0.015}
    if random.rand() < 0.02:
        hidden.add(str(random.choice(TORSO)))
    return Pose(joints, hidden, from_behind)


def _turned(down, outward, angle):
    """The unit vector at this angle from straight down towards one side."""
    return np.cos(angle) * down + np.sin(angle) * outward


# ------------------------------------------------------------------------------------------ drawing

def draw(person, pose, **parts):
    """The anti-aliased picture of a person in a pose, (64, 64, 3) uint8, and where the person is, (64, 64) bool.

    parts: other Persons by the name of the part, one of PARTS, that they give.
    """
    who = dict(dict.fromkeys(PARTS, person), **parts)
    side = SIZE * OVERSAMPLING
    canvas = np.zeros((side, side, 4), np.uint8)  # the fourth channel is the person's share of a pixel
    canvas[..., :3] = BACKGROUND
    points = {name: xy * side for name, xy in pose.joints.items()}
    # Nearer parts are drawn later and hide others. Arms are before the body; the lower wrist and foot are nearer.
    arms = sorted("lr", key=lambda arm: points[arm + "wrist"][1])
    legs = sorted("lr", key=lambda leg: points[leg + "ankle"][1])
    if pose.from_behind:
        _draw_face(canvas, who["head"], points, pose)
        for arm in arms:
            _draw_arm(canvas, who["arms"], points, arm)
    elif who["head"].long_hair:
        _draw_long_hair(canvas, who["head"], points)
    for leg in legs:
        _draw_leg(canvas, who["legs"], points, leg)
    _draw_torso(canvas, who["torso"], points, belt=who["legs"].trousers)
    if pose.from_behind:
        _draw_hair_from_behind(canvas, who["head"], points)
    else:
        _draw_face(canvas, who["head"], points, pose)
        for arm in arms:
            _draw_arm(canvas, who["arms"], points, arm)
    small = cv2.resize(canvas, (SIZE, SIZE), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(small[..., :3]), small[..., 3] > 127


def part_masks(person, pose, **parts):
    """Where each of PARTS is seen in draw(person, pose, **parts): {part: (64, 64) bool}. Shoes are no part."""
    who = dict(dict.fromkeys(PARTS, person), **parts)
    marked = {part: who[part]._replace(hair=mark, skin=mark, shirt=mark, second_colour=mark, trousers=mark)
              for part, mark in zip(PARTS, MARKS)}
    picture, mask = draw(person, pose, **marked)
    colours = np.array(MARKS + tuple(_darker(mark) for mark in MARKS) + (SHOES,), float)
    distances = np.linalg.norm(picture[..., np.newaxis, :] - colours, axis=-1)  # (64, 64, 9)
    nearest = np.where(mask, distances.argmin(axis=-1), 2 * len(PARTS))
    return {part: (nearest % len(PARTS) == i) & (nearest < 2 * len(PARTS)) for i, part in enumerate(PARTS)}


def _draw_arm(canvas, person, points, side):
    shoulder, elbow, wrist = (points[side + name] for name in ("shoulder", "elbow", "wrist"))
    width = 0.092 * len(canvas)
    short_sleeve_end = shoulder + 0.6 * (elbow - shoulder)
    _draw_limb(canvas, [shoulder, elbow, wrist], width, person.skin)
    if person.sleeves == "long":
        _draw_limb(canvas, [shoulder, elbow, elbow + 0.85 * (wrist - elbow)], 1.15 * width, person.shirt, outline=False)
    elif person.sleeves == "short":
        _draw_limb(canvas, [shoulder, short_sleeve_end], 1.15 * width, person.shirt, outline=False)


def _draw_leg(canvas, person, points, side):
    hip, knee, ankle = (points[side + name] for name in ("hip", "knee", "ankle"))
    width = 0.125 * len(canvas)
    _draw_limb(canvas, [hip, knee, ankle], width, person.skin if person.shorts else person.trousers)
    if person.shorts:
        # Short enough to show skin on the thighs: the network gets no crops of the lower legs.
        _draw_limb(canvas, [hip, hip + 0.5 * (knee - hip)], 1.1 * width, person.trousers, outline=False)
    cv2.circle(canvas, _pixel(ankle), int(0.065 * len(canvas)), SHOES + (255,), -1)


def _draw_limb(canvas, joints, width, colour, *, outline=True):
    layers = [(1.15 * width, _darker(colour))] if outline else []
    for thickness, shade in layers + [(width, colour)]:
        for a, b in zip(joints, joints[1:]):
            cv2.line(canvas, _pixel(a), _pixel(b), shade + (255,), int(round(thickness)))


def _draw_torso(canvas, person, points, belt):
    lshoulder, rshoulder, lhip, rhip = (points[name] for name in ("lshoulder", "rshoulder", "lhip", "rhip"))
    # A little wider than the joints, which lie inside the body.
    shoulders = _widened(lshoulder, rshoulder, 1.2)
    hips = _widened(lhip, rhip, 1.5)
    top = 0.04 * (shoulders.mean(axis=0) - hips.mean(axis=0))
    shoulders = shoulders + top
    _fill(canvas, [shoulders[0], shoulders[1], hips[1], hips[0]], person.shirt)
    if person.pattern == "stripes":
        for begin in (0.2, 0.6):
            _fill_band(canvas, shoulders, hips, begin=begin, end=begin + 0.2, colour=person.second_colour)
    elif person.pattern == "halves":
        _fill_band(canvas, shoulders, hips, begin=0.5, end=1.0, colour=person.second_colour)
    _fill_band(canvas, shoulders, hips, begin=0.92, end=1.12, colour=belt)


def _widened(a, b, factor):
    middle = 0.5 * (a + b)
    return np.stack([middle + factor * (a - middle), middle + factor * (b - middle)])


def _fill_band(canvas, shoulders, hips, *, begin, end, colour):
    """Fills the torso from `begin` to `end`, in shares of the way from the shoulders to the hips."""
    upper, lower = (shoulders + share * (hips - shoulders) for share in (begin, end))
    _fill(canvas, [upper[0], upper[1], lower[1], lower[0]], colour)


def _fill(canvas, corners, colour):
    cv2.fillPoly(canvas, [np.round(np.stack(corners)).astype(np.int32)], colour + (255,))


def _head(points):
    """Centre and radius of the head, and the unit vector to its top."""
    neck = 0.5 * (points["lshoulder"] + points["rshoulder"])
    up = points["cnose"] - neck
    return neck + 1.05 * up, 0.68 * np.linalg.norm(up), up / np.linalg.norm(up)


def _draw_face(canvas, person, points, pose):
    centre, radius, up = _head(points)
    neck = 0.5 * (points["lshoulder"] + points["rshoulder"])
    _draw_limb(canvas, [neck, centre], 0.07 * len(canvas), person.skin)
    cv2.circle(canvas, _pixel(centre + 0.28 * radius * up), int(1.12 * radius), person.hair + (255,), -1)
    cv2.circle(canvas, _pixel(centre - 0.12 * radius * up), int(0.86 * radius), person.skin + (255,), -1)
    if not pose.from_behind:
        for eye in ("reye", "leye"):
            cv2.circle(canvas, _pixel(points[eye] - 0.3 * radius * up), int(0.13 * radius) + 1, EYES + (255,), -1)


def _draw_long_hair(canvas, person, points):
    centre, radius, up = _head(points)
    cv2.line(canvas, _pixel(centre), _pixel(centre - 1.3 * radius * up), person.hair + (255,), int(2.1 * radius))


def _draw_hair_from_behind(canvas, person, points):
    centre, radius, up = _head(points)
    cv2.circle(canvas, _pixel(centre + 0.1 * radius * up), int(1.15 * radius), person.hair + (255,), -1)
    if person.long_hair:
        _draw_long_hair(canvas, person, points)


def _pixel(point):
    return int(round(point[0])), int(round(point[1]))


def _darker(colour):
    return tuple(int(0.7 * value) for value in colour)


# ------------------------------------------------------------------------------------------ the data set

def make_data_set(out, n_train, n_test, seed):
    """Writes the images and then the index, which it returns. Nobody is in both splits."""
    os.makedirs(os.path.join(out, "images"), exist_ok=True)
    index = {"joint_order": list(JOINTS), "imgs": [], "train": [], "joints": [], "person": [], "toy_seed": seed}
    for number in progress_bar(range((n_train + n_test) * POSES_PER_PERSON), desc="drawing people", unit="image"):
        person = number // POSES_PER_PERSON
        pose = make_pose(seed, number)
        name = os.path.join("images", f"{person:04d}_{number % POSES_PER_PERSON}.png")
        Image.fromarray(draw(make_person(seed, person), pose)[0]).save(os.path.join(out, name))
        index["imgs"].append(name)
        index["train"].append(person < n_train)
        index["person"].append(person)
        index["joints"].append(index_joints(pose))
    index["joints"] = np.stack(index["joints"])
    save_index(index, out)
    return index


def save_index(index, folder):
    """Writes index.p into a folder, whole or not at all."""
    path = os.path.join(folder, "index.p")
    dump_index(index, path + ".part")
    os.replace(path + ".part", path)


def index_joints(pose):
    """The joints of a pose as an index holds them, (15, 2) float32; -1 where hidden or outside of the picture."""
    joints = np.array([pose.joints[name] for name in JOINTS], np.float32)
    missing = [name in pose.hidden for name in JOINTS] | (joints < 0).any(axis=1) | (joints >= 1).any(axis=1)
    joints[missing] = -1
    return joints


# ------------------------------------------------------------------------------------------ the truth of transfers

def is_toy(joints, extra):
    """Whether an index is the toy's, whole and in order.

    joints: (N, 15, 2) in the order of JOINTS. extra: the index's other keys.
    """
    seed, people = extra.get("toy_seed"), extra.get("person")
    if not isinstance(people, list) or len(people) != len(joints):
        return False
    if not all(isinstance(number, int) and 0 <= number < 2**32 for number in [seed] + people):
        return False
    some = {0, len(joints) // 2, len(joints) - 1}
    return all(np.array_equal(joints[i], index_joints(make_pose(seed, i))) for i in some)


def transfer_error(render, people, usable, seed, *, n=200, n_mean=32):
    """Mean absolute error of n transfers to held-out people and poses, and of two other answers, by name.

    "transfer": the transfers; "mean_appearance": always the mean of n_mean training people in the pose; "wrong_person":
    another held-out person in the pose. Errors are of values in [-1, 1], over the person's pixels in the true drawing.

    render(appearances, poses): pictures (n, 64, 64, 3) in [-1, 1] of the images' people in the images' poses.
    people: the number of the person in every image. usable: {"train": image numbers, "test": image numbers}.
    """
    random = np.random.RandomState([seed, 2])
    appearances, poses, others = (random.choice(usable["test"], n) for _ in range(3))
    training = [make_person(seed, people[i]) for i in random.choice(usable["train"], n_mean)]
    pictures = np.clip(render(appearances, poses), -1, 1)
    errors = collections.defaultdict(list)
    for picture, appearance, pose_number, other in zip(pictures, appearances, poses, others):
        if people[other] == people[appearance]:
            other = usable["test"][(list(usable["test"]).index(other) + POSES_PER_PERSON) % len(usable["test"])]
        pose = make_pose(seed, pose_number)
        truth, mask = draw(make_person(seed, people[appearance]), pose)
        mean = np.mean([draw(person, pose)[0] for person in training], axis=0)
        wrong = draw(make_person(seed, people[other]), pose)[0]
        answers = {"transfer": picture, "mean_appearance": mean / 127.5 - 1, "wrong_person": wrong / 127.5 - 1}
        for name, answer in answers.items():
            errors[name].append(np.abs(answer - (truth / 127.5 - 1))[mask].mean())
    return {name: float(np.mean(values)) for name, values in errors.items()}


def mix_errors(render, people, usable, seed, *, n=200):
    """For each of PARTS the errors of n mixed and n unmixed transfers to held-out people and poses, within the part.

    {part: (mixed, unmixed)}: mean absolute errors of values in [-1, 1] over the part's pixels in the true drawing.
    Mixed: somebody with this part of another person, in a pose. Unmixed: that other person in the pose, whole.

    render(part, appearances, others, poses): pictures (n, 64, 64, 3) in [-1, 1] of the images' people, with the part of
    the others' images where part is not None, in the images' poses. people, seed: as in transfer_error. usable: numbers
    of test images.
    """
    random = np.random.RandomState([seed, 3])
    appearances, others, poses = (random.choice(usable, n) for _ in range(3))
    unmixed = np.clip(render(None, others, others, poses), -1, 1)
    errors = {}
    for part in PARTS:
        mixed = np.clip(render(part, appearances, others, poses), -1, 1)
        of_part = []
        for i in range(n):
            wearer, giver = make_person(seed, people[appearances[i]]), make_person(seed, people[others[i]])
            pose = make_pose(seed, poses[i])
            parts = {part: giver}
            pairs = [(mixed[i], draw(wearer, pose, **parts)[0], part_masks(wearer, pose, **parts)[part]),
                     (unmixed[i], draw(giver, pose)[0], part_masks(giver, pose)[part])]
            if all(mask.any() for _, _, mask in pairs):
                of_part.append([np.abs(picture - (truth / 127.5 - 1))[mask].mean() for picture, truth, mask in pairs])
        errors[part] = tuple(np.mean(of_part, axis=0).tolist())
    return errors
