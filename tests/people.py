"""A person standing upright, and small data sets of such."""
import os
import pickle

import numpy as np
from PIL import Image

from dataset.index import JOINTS
from tools.benchmark import STANDING


def standing(*missing, **moved):
    points = dict(STANDING, **moved)
    points.update((name, (-1, -1)) for name in missing)
    return np.array([points[name] for name in JOINTS], np.float32)


def make_index(folder, n=4, image=None, **changes):
    """Writes n images and their index; half of them train."""
    os.makedirs(str(folder / "images"), exist_ok=True)
    names = [f"images/{i}.png" for i in range(n)]
    for i, name in enumerate(names):
        Image.fromarray(np.full((20, 10, 3), 10 * i % 250, np.uint8) if image is None else image).save(str(folder / name))
    index = {"joint_order": list(JOINTS), "imgs": names, "train": [i < n / 2 for i in range(n)], "joints": [standing()] * n}
    index.update(changes)
    path = str(folder / "index.p")
    with open(path, "wb") as file:
        pickle.dump({key: value for key, value in index.items() if value is not None}, file)
    return path
