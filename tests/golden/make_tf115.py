"""Makes tf115.vunet.zip and tf115.npz: a network file that TensorFlow 1.15 wrote, and what it makes of two people.

    python3.7 tests/golden/make_tf115.py     (with TensorFlow 1.15; the network is trained for 4 steps)
"""
import os
import sys
import tempfile

import numpy as np
import yaml

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:0] = [os.path.dirname(os.path.dirname(HERE)), os.path.dirname(HERE)]

from helpers import SMALL

import main
from batches import Loader
from dataset.index import Index
from dataset.toy import make_data_set
from inference.networks import open_network
from inference.rendering import restored
from training.config import load_config


class Options:
    """What `restored` needs of a command's options."""


with tempfile.TemporaryDirectory() as folder:
    os.chdir(folder)
    make_data_set("toy", n_train=6, n_test=3, seed=1)
    with open("small.yaml", "w") as file:
        yaml.safe_dump(dict(SMALL, data_index="toy/index.p"), file)
    main.main(["--config", "small.yaml"])
    run = os.path.join("log", os.listdir("log")[0])
    out = os.path.join(HERE, "tf115")
    main.main(["--mode", "export", "--checkpoint", run, "--out", out + ".vunet.zip"])
    index = Index("toy/index.p")
    batch = Loader(index, 16, 1)(index.usable("test")[:2])
    has_part = batch.has_part.repeat(3, axis=-1)[:, np.newaxis, np.newaxis]
    with open_network(out + ".vunet.zip") as Options.network, \
            restored(Options.network, load_config(Options.network.config_path())) as renderer:
        np.savez_compressed(out + ".npz", parts=((batch.appearance / 127.5 - 1) * has_part).astype(np.float32),
                            stick=(batch.shape_image / 127.5 - 1).astype(np.float32),
                            picture=renderer.transfer(batch, batch.shape_image),
                            sample=renderer.sample(batch.shape_image, 1))
