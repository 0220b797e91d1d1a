"""What the tests share: a small data set of drawn people, a small config, and the program as a process."""
import os
import subprocess
import sys

import pytest
import yaml

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from common.console import quiet_stderr

with quiet_stderr():
    import tensorflow.compat.v1 as tf

tf.logging.set_verbosity(tf.logging.ERROR)
tf.disable_eager_execution()
tf.enable_resource_variables()

SMALL = {
    "batch_size": 2, "init_batches": 2, "spatial_size": 16, "box_factor": 1, "bottleneck_factor": 1, "n_filters": 4, "max_filters": 8, "lr": 1e-3,
    "lr_decay_begin": 2, "lr_decay_end": 4, "log_freq": 2, "ckpt_freq": 2, "test_freq": 4, "drop_prob": 0.1,
    "feature_layers": ["input_1", "block1_conv1"], "feature_weights": [1.0, 1.0], "gram_weights": [0.0, 0.1], "vgg_weights": "random"}


def only_run(log_dir):
    """The one run folder there."""
    run, = log_dir.iterdir()
    return run


@pytest.fixture
def graph():
    """A graph of the test's own."""
    with tf.Graph().as_default() as graph:
        yield graph


@pytest.fixture(scope="session")
def toy(tmp_path_factory):
    """Folder of a data set of a few drawn people."""
    from dataset.toy import make_data_set
    folder = tmp_path_factory.mktemp("toy")
    make_data_set(str(folder), n_train=6, n_test=3, seed=1)
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory, toy):
    """The run folder of a finished small training, and its config."""
    folder = tmp_path_factory.mktemp("trained")
    config = folder / "small.yaml"
    config.write_text("".join("{}: {}\n".format(*item) for item in dict(SMALL, data_index=str(toy / "index.p")).items()))
    import main
    assert main.main(["--config", str(config), "--log_dir", str(folder / "log")]) == 0
    return only_run(folder / "log"), str(config)


@pytest.fixture
def small_config(tmp_path, toy):
    """Writes a config for `toy`, with changes; returns its path."""
    def write(name="small.yaml", drop=(), **changes):
        config = dict(SMALL, data_index=str(toy / "index.p"))
        config.update(changes)
        for key in drop:
            del config[key]
        path = tmp_path / name
        path.write_text(yaml.safe_dump(config))
        return str(path)
    return write


@pytest.fixture
def program(tmp_path):
    """Runs main.py with options as a process in an empty folder; the result has returncode, stdout and stderr."""
    def run(*options, **popen):
        process = start(*options, **popen)
        stdout, stderr = process.communicate(timeout=300)
        return subprocess.CompletedProcess(options, process.returncode, stdout, stderr)

    def start(*options, **popen):
        command = [sys.executable, os.path.join(ROOT, "main.py")] + [str(option) for option in options]
        return subprocess.Popen(command, cwd=str(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                                universal_newlines=True, **popen)
    run.start = start
    return run
