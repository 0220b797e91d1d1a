"""Reading pickles of strangers."""
import base64
import collections
import os
import pickle
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from helpers import ROOT

from common.errors import UserError
from dataset.pickles import load_plain

DATA = {"joint_order": ["a", "b"], "imgs": ["x.png", "\u00e9.png"], "train": [True, np.bool_(False)],
        "joints": [np.array([[.5, -1]], np.float32), np.array([[1, 2]], ">i2"), np.asfortranarray(np.eye(3)[:, :2])],
        "all": np.arange(24.0).reshape(2, 3, 4), "names": np.array(["a", "bc"]), "objects": np.array(["a", None, 2], object),
        "number": np.float64(2.5), "none": None, "big": 10**30, "set": {1, 2}, "bytes": b"\x00\xff", "tuple": (1, (2.5,))}

# pickle.dumps of a small dict, protocol 2, by Python 2.7 and numpy 1.16.
PYTHON_2_PICKLE = (
    "eNpljslKxEAURavSnahph3ae501WAcGl6MKNWJBFoJZNUxnsRMxwK5VFQKE3TfCr/DSNFXc+uI8H78I5c+MDxOHDNJtVoBMYDjeF"
    "W+YzDLgZ6GMYc+u1SHNVwQzzOisbNyxk7Gb1m0qFlKKxpzIOi7xSsg6VDatv2XnUf7HEyALLnAZYaWH7GDmMMuM3LVb/ypFqytjG"
    "GjdebrHOCKMtNnyMHTbg9A6bnuc9f3ejFyMKW8EnHxNCHgiZ33f5IuTpEdsKOwEfad9pIaNYYneCPU4F9gU3lRRpjoPESrTTYdIJ"
    "Hfk41kILnCQdP7jBac8/83Gu+e+4+Me/7PgGJbhSuA5q9wd3xGtT")


def write(tmp_path, content):
    path = tmp_path / "index.p"
    path.write_bytes(content)
    return str(path)


def assert_same(a, b):
    if isinstance(b, np.ndarray):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    elif isinstance(b, dict):
        assert list(a) == list(b)
        for key in b:
            assert_same(a[key], b[key])
    elif isinstance(b, (list, tuple)):
        assert type(a) is type(b) and len(a) == len(b)
        for x, y in zip(a, b):
            assert_same(x, y)
    else:
        assert a == b


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_and_arrays_load_in_every_protocol(tmp_path, protocol):
    assert_same(load_plain(write(tmp_path, pickle.dumps(DATA, protocol))), DATA)


@pytest.mark.parametrize("module", [b"numpy.core", b"numpy._core"])
def test_module_names_of_numpy_1_and_2_load(tmp_path, module):
    content = pickle.dumps(DATA, 0).replace(b"numpy._core", b"numpy.core").replace(b"numpy.core", module)
    assert_same(load_plain(write(tmp_path, content)), DATA)


def test_a_pickle_of_python_2_loads(tmp_path):
    path = write(tmp_path, zlib.decompress(base64.b64decode(PYTHON_2_PICKLE)))
    data = load_plain(path)
    np.testing.assert_array_equal(data["joints"], np.array([[[.5, .25]], [[-1, 200]]], np.float32))
    assert data["imgs"] == ["a.png", "b.png"] and list(data["train"]) == [True, False]


class Runs:
    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


HOSTILE = {
    "os.system": lambda mark: Runs(os.system, (f"touch {mark}",)),
    "eval": lambda mark: Runs(eval, (f"open({mark!r}, 'w')",)),
    "open": lambda mark: Runs(open, (mark, "w")),
    "numpy.load": lambda mark: Runs(np.load, (mark,)),
    "numpy.fromfile": lambda mark: Runs(np.fromfile, (mark,)),
    "a class": lambda mark: collections.OrderedDict(a=1),
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", sorted(HOSTILE))
@pytest.mark.parametrize("place", ["top", "dict", "objects"])
def test_whatever_else_a_pickle_names_is_refused_and_does_not_run(tmp_path, name, protocol, place):
    mark = str(tmp_path / "ran")
    value = HOSTILE[name](mark)
    value = {"top": value, "dict": {"imgs": [value]}, "objects": {"joints": np.array([value, 1], object)}}[place]
    with pytest.raises(UserError, match="refused, it is no plain data: it names ") as error:
        load_plain(write(tmp_path, pickle.dumps(value, protocol)))
    assert not os.path.exists(mark) and "\n" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"no pickle", pickle.dumps(DATA)[:-20], b"\x80\x04.", b"\x80\x09N.",
                                     b"(" * 100000 + b"t" * 100000 + b".", b"]" * 20000 + b"a" * 19999 + b"."])
def test_what_is_no_pickle_gives_one_line(tmp_path, content):
    with pytest.raises(UserError) as error:
        load_plain(write(tmp_path, content))
    assert "\n" not in str(error.value)


BOMBS = {
    "bytes": b"\x80\x04B" + struct.pack("<I", 2**31 - 1) + b"x.",
    "long bytes": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.",
    "bytearray": b"\x80\x05\x96" + struct.pack("<Q", 2**32) + b"x.",
    "memo": b"\x80\x02Nr" + struct.pack("<I", 2**31 - 1) + b".",
    "called bytes": b"\x80\x02cbuiltins\nbytes\nJ\xff\xff\xff\x7f\x85R.",
    "array": pickle.dumps(np.zeros((2, 3)), 2).replace(b"K\x02K\x03\x86", b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x86"),
}


@pytest.mark.parametrize("name", sorted(BOMBS))
def test_claims_of_memory_are_not_believed(tmp_path, name):
    """In a process of its own, whose memory ends 300 MB above what it needs anyway."""
    script = (f"import resource, sys; sys.path.insert(0, {ROOT!r}); from dataset import pickles; from common import errors; import numpy\n"
              "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
              "resource.setrlimit(resource.RLIMIT_AS, (used + 300 * 2**20,) * 2)\n"
              "try: pickles.load_plain(sys.argv[1]); print('loaded')\n"
              "except errors.UserError as error: print(error)\n")
    done = subprocess.run([sys.executable, "-c", script, write(tmp_path, BOMBS[name])], capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.count("\n") == 1, done.stderr
    assert "more memory" not in done.stdout  # it was not even tried


def test_an_array_of_arrays_keeps_them_apart(tmp_path):
    array = np.empty(2, object)
    array[0], array[1] = np.eye(2), ["a", "b"]
    loaded = load_plain(write(tmp_path, pickle.dumps({"joints": array})))["joints"]
    np.testing.assert_array_equal(loaded[0], np.eye(2))
    assert loaded.shape == (2,) and loaded[1] == ["a", "b"]


def test_functions_cannot_be_changed(tmp_path):
    content = b"\x80\x02cnumpy.core.multiarray\nscalar\n}X\x04\x00\x00\x00nameK\x01sb."
    with pytest.raises(UserError, match="it changes a function"):
        load_plain(write(tmp_path, content))
    with pytest.raises(UserError, match="empty scalar"):
        load_plain(write(tmp_path, b"\x80\x02cnumpy.core.multiarray\nscalar\nN\x85R."))


def test_arrays_of_raw_pointers_are_refused(tmp_path):
    content = pickle.dumps(np.zeros(1, "u8"), 2).replace(b"u8", b"O8")
    with pytest.raises(UserError, match="refused|damaged"):
        load_plain(write(tmp_path, content))


def test_references_that_multiply_do_not_take_forever(tmp_path):
    value = []
    for _ in range(60):
        value = [value, value]
    load_plain(write(tmp_path, pickle.dumps(value)))
