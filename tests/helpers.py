"""What tests share: a small config, people standing upright, small data sets, damaged files."""
import io
import json
import os
import pickle
import time

import numpy as np
from PIL import Image

from common.errors import run
from dataset.index import JOINTS, STANDING
from dataset.poses import OPENPOSE

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

SMALL = {
    "spatial_size": 16, "box_factor": 1, "bottleneck_factor": 2, "n_filters": 4, "max_filters": 8,
    "batch_size": 2, "init_batches": 2, "lr": 1e-3, "lr_decay_begin": 2, "lr_decay_end": 4, "drop_prob": 0.1,
    "log_freq": 2, "ckpt_freq": 2, "test_freq": 4,
    "feature_layers": ["input_1", "block1_conv1"], "feature_weights": [1.0, 1.0], "gram_weights": [0.0, 0.1],
    "vgg_weights": "random"}
# What a config has for shapes and appearances that are whole pictures.
PICTURES = {"shape": "picture", "appearance": "picture"}


def exit_code(module, *options):
    """The exit code of a command, the module's main, with these options."""
    return run(module.main, [str(option) for option in options])


def wait_for(what, seconds=120):
    """what() as soon as it is true."""
    end = time.time() + seconds
    while time.time() < end:
        value = what()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError("waited in vain")


def only_run(log_dir):
    """The one run folder there."""
    run, = log_dir.iterdir()
    return run


def standing(*missing, **moved):
    """Joints of somebody who stands upright; some may be missing, and others elsewhere."""
    points = dict(STANDING, **moved)
    points.update((name, (-1, -1)) for name in missing)
    return np.array([points[name] for name in JOINTS], np.float32)


def beside(joints, left):
    """Joints of somebody half as broad, in the left or right half of the picture."""
    return np.where(joints < 0, -1, joints * (0.5, 1) + (0 if left else 0.5, 0))


def make_index(folder, n=4, image=None, **changes):
    """Writes n images and their index; half of them train."""
    os.makedirs(str(folder / "images"), exist_ok=True)
    names = [f"images/{i}.png" for i in range(n)]
    for i, name in enumerate(names):
        pixels = np.full((20, 10, 3), 10 * i % 250, np.uint8) if image is None else image
        Image.fromarray(pixels).save(str(folder / name))
    index = {"joint_order": list(JOINTS), "imgs": names, "train": [i < n / 2 for i in range(n)],
             "joints": [standing()] * n}
    index.update(changes)
    path = str(folder / "index.p")
    with open(path, "wb") as file:
        pickle.dump({key: value for key, value in index.items() if value is not None}, file)
    return path


def save_openpose(path, *people, **more):
    """Writes joints, (15, 2) in pixels with -1 where missing, of people as OpenPose's JSON file; returns its path."""
    file = {"people": [{"pose_keypoints_2d": openpose_points(joints)} for joints in people]}
    file.update(more)
    path.write_text(json.dumps(file))
    return path


def openpose_points(joints, n_points=25):
    """Joints (15, 2) as 25 or 18 times x, y and confidence."""
    points = np.zeros((n_points, 3))
    for number, (x, y) in zip(OPENPOSE[3 * n_points], joints):
        if x >= 0:
            points[number] = x, y, 0.9
    return points.ravel().tolist()


def mutated(random, content):
    """bytes -> bytes with some of them changed, cut out, doubled, or moved elsewhere."""
    content = bytearray(content)
    for _ in range(random.randint(1, 5)):
        start, other = random.randint(len(content) + 1, size=2)
        length = min(random.geometric(0.1), len(content))
        kind = random.randint(6)
        if kind == 0:
            content[start:start + length] = b""
        elif kind == 1:
            content[start:start] = content[other:other + length]
        elif kind == 2:
            content[start:start + length] = random.bytes(length)
        elif kind == 3:
            lengths = [b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"]
            content[start:start + 4] = lengths[random.randint(4)]
        elif kind == 4:
            del content[start:]
        elif content:
            content[start % len(content)] ^= 1 << random.randint(8)
        content = content or bytearray(b"x")
    return bytes(content)


def images(formats):
    """Yields the content of an image file in each of these formats, (name, options of Image.save)."""
    picture = Image.fromarray(np.random.RandomState(0).randint(0, 256, (12, 9, 3)).astype(np.uint8))
    for name, options in formats:
        file = io.BytesIO()
        picture.save(file, name, **options)
        yield file.getvalue()
