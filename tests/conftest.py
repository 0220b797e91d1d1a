"""What the tests share: a small data set of drawn people, a small config, and the program as a process."""
import functools
import http.server
import os
import signal
import subprocess
import sys
import threading

import pytest
import yaml

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from common.console import quiet_stderr

with quiet_stderr():
    import tensorflow.compat.v1 as tf

from helpers import PICTURES, ROOT, SMALL, exit_code, only_run

from common.machine import set_up_tensorflow

set_up_tensorflow()
# A script's background jobs ignore Ctrl-C, and so would the programs that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items):
    """Starts with the slow tests, so that no process is left alone with one at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


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
    return train(tmp_path_factory.mktemp("trained"), dict(SMALL, data_index=str(toy / "index.p")))


@pytest.fixture(scope="session")
def bag_index(tmp_path_factory):
    """Path of the index of a few drawn bags and shoes."""
    from dataset.bags import make_data_set
    folder = tmp_path_factory.mktemp("bags")
    make_data_set(str(folder), n_train=3, n_test=3, seed=0)
    return str(folder / "index.p")


@pytest.fixture(scope="session")
def trained_on_bags(bag_index, tmp_path_factory):
    """The run folder of a small training on them, and its config."""
    config = dict(SMALL, **PICTURES, data_index=bag_index, eval_freq=2, eval_images=4)
    return train(tmp_path_factory.mktemp("trained_on_bags"), config)


def train(folder, config):
    """(run folder, path of the config) of a training in a folder."""
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(config))
    import main
    assert exit_code(main, "--config", path, "--log_dir", folder / "log") == 0
    return only_run(folder / "log"), str(path)


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


@pytest.fixture
def server(tmp_path, monkeypatch):
    """The address of a web server of tmp_path/served; downloads are kept in tmp_path/cache."""
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *unused):
            pass

    (tmp_path / "served").mkdir()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    handler = functools.partial(Handler, directory=str(tmp_path / "served"))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
