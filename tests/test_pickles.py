"""Reading pickles of strangers."""
import base64
import collections
import gc
import os
import pickle
import pickletools
import resource
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from helpers import ROOT, standing

from common.errors import UserError
from dataset import pickles
from dataset.builder import IndexBuilder
from dataset.index import JOINTS
from dataset.pickles import dump_index, load_plain

DATA = {"joint_order": ["a", "b"], "imgs": ["x.png", "\u00e9.png"], "train": [True, np.bool_(False)],
        "joints": [np.array([[.5, -1]], np.float32), np.array([[1, 2]], ">i2"), np.asfortranarray(np.eye(3)[:, :2])],
        "all": np.arange(24.0).reshape(2, 3, 4), "names": np.array(["a", "bc"]), "number": np.float64(2.5),
        "objects": np.array(["a", None, 2], object), "none": None, "big": 10**30, "set": {1, 2}, "bytes": b"\x00\xff",
        "tuple": (1, (2.5,)), "frozenset": frozenset(["a", None]), "keys": {b"x": {}, 3: {"y": [{}]}, None: set()},
        "zero": np.array(5), "text": np.array(["\u20ac", "ab"], ">U2"), "long": list(range(300)),
        "letters": np.str_("ab")}

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
        assert type(a) is type(b) and a == b


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
                                     b"(" * 100000 + b"t" * 100000 + b".", b"]" * 20000 + b"a" * 19999 + b"."],
                         ids=range(7))  # what is pickled differs between the processes of xdist
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
    script = (f"import resource, sys; sys.path.insert(0, {ROOT!r})\n"
              "from dataset import pickles; from common import errors\n"
              "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
              "resource.setrlimit(resource.RLIMIT_AS, (used + 300 * 2**20,) * 2)\n"
              "try: pickles.load_plain(sys.argv[1]); print('loaded')\n"
              "except errors.UserError as error: print(error)\n")
    done = subprocess.run([sys.executable, "-c", script, write(tmp_path, BOMBS[name])], capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == 0 and done.stdout.count("\n") == 1, done.stderr
    assert ("more memory" in done.stdout) == (name == "memo")  # the others are not even tried


def test_an_array_of_arrays_keeps_them_apart(tmp_path):
    array = np.empty(2, object)
    array[0], array[1] = np.eye(2), ["a", "b"]
    loaded = load_plain(write(tmp_path, pickle.dumps({"joints": array})))["joints"]
    np.testing.assert_array_equal(loaded[0], np.eye(2))
    assert loaded.shape == (2,) and loaded[1] == ["a", "b"]
    array[1] = np.ones((2, 2))
    loaded = load_plain(write(tmp_path, pickle.dumps({"joints": array})))["joints"]
    assert loaded.shape == (2,) and loaded[1].shape == (2, 2)


def limit():
    return resource.getrlimit(resource.RLIMIT_AS)


def address_space():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def limit_while_loading(path, monkeypatch):
    """The limit of memory, and whether garbage is collected, while a file is loaded."""
    found, load = [], pickles._with_stand_ins

    def look(content):
        found.append((limit(), gc.isenabled()))
        return load(content)
    monkeypatch.setattr(pickles, "_with_stand_ins", look)
    load_plain(path)
    return found[0]


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="the limit is for Linux")
def test_memory_is_limited_while_a_file_is_loaded(tmp_path, monkeypatch):
    path, before = write(tmp_path, pickle.dumps("x" * 10**6)), address_space()
    (soft, hard), collects = limit_while_loading(path, monkeypatch)
    assert abs(soft - before - 120 * 10**6) < 10**7 and hard == limit()[1] and not collects


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="the limit is for Linux")
def test_a_lower_limit_of_memory_stays(tmp_path, monkeypatch):
    path, before = write(tmp_path, pickle.dumps(1)), limit()
    lower = address_space() + 5 * 10**7, before[1]
    resource.setrlimit(resource.RLIMIT_AS, lower)
    try:
        assert limit_while_loading(path, monkeypatch)[0] == lower == limit()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="the limit is for Linux")
def test_a_claim_of_a_gigabyte_is_refused(tmp_path):
    with pytest.raises(UserError, match="it claims more memory than a file of its size needs"):
        load_plain(write(tmp_path, b"\x80\x02Nr" + struct.pack("<I", 2**26) + b"."))


@pytest.mark.parametrize("content, words", [
    (pickle.dumps(DATA), None), (b"no pickle", "not a pickle"), (pickle.dumps(DATA)[:-20], "damaged"),
    (pickle.dumps(Runs(eval, ("1",))), "it names"), (b"]q\x00h\x00a.", "nested too deeply"),
    (b"\x80\x02Nr\xff\xff\xff\x7f.", "more memory")], ids=range(6))
def test_limits_are_restored_however_a_load_ends(tmp_path, content, words):
    before = limit()
    path = write(tmp_path, content)
    if words is None:
        load_plain(path)
    else:
        with pytest.raises(UserError, match=words):
            load_plain(path)
    assert limit() == before and gc.isenabled()


def test_garbage_is_not_collected_after_a_load_where_it_was_not_before(tmp_path):
    gc.disable()
    try:
        load_plain(write(tmp_path, pickle.dumps(DATA)))
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_functions_cannot_be_changed(tmp_path):
    content = b"\x80\x02cnumpy.core.multiarray\nscalar\n}X\x04\x00\x00\x00nameK\x01sb."
    with pytest.raises(UserError, match="it changes a function"):
        load_plain(write(tmp_path, content))
    with pytest.raises(UserError, match="empty scalar"):
        load_plain(write(tmp_path, b"\x80\x02cnumpy.core.multiarray\nscalar\nN\x85R."))


@pytest.mark.parametrize("name", sorted(pickles.MAKERS))
@pytest.mark.parametrize("state", [b"}U\x04nameU\x00s", b"N}U\x0c__defaults__U\x00s\x86", b"K\x01"])
def test_what_one_file_does_to_a_name_does_not_reach_the_next(tmp_path, name, state):
    stand_in = "c{}\n{}\n".format(*name.rsplit(".", 1)).encode()
    for change in (stand_in + state, stand_in + b")R" + state):  # of the function, and of what it returns
        with pytest.raises(UserError):
            load_plain(write(tmp_path, b"\x80\x02" + change + b"b" + stand_in + b"\x86."))
    assert_same(load_plain(write(tmp_path, pickle.dumps(DATA, 2))), DATA)


UNSAFE_KEYS = {"tuple": (1, 2), "float": float("nan"), "whole number": 2**61, "frozenset": frozenset([1])}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("key", sorted(UNSAFE_KEYS))
def test_keys_that_could_take_forever_to_hash_are_refused(tmp_path, key, protocol):
    key = UNSAFE_KEYS[key]
    for value in ({key: 1}, {1: 2, key: 3}, {key}, frozenset([key]), [{"a": {key: None}}]):
        with pytest.raises(UserError, match="as a key or in a set"):
            load_plain(write(tmp_path, pickle.dumps(value, protocol)))


def test_keys_of_the_oldest_opcode_for_dicts_are_looked_at_too(tmp_path):
    assert load_plain(write(tmp_path, b"(K\x01K\x02K\x03K\x04d.")) == {1: 2, 3: 4}
    with pytest.raises(UserError, match="it has a tuple as a key"):
        load_plain(write(tmp_path, b"()K\x02d."))


def test_many_sets_of_one_list_are_refused(tmp_path):
    one_list = b"](" + b"K\x01" * 1000 + b"eq\x010"
    with pytest.raises(UserError, match="it makes set of a list"):
        load_plain(write(tmp_path, one_list + b"](" + b"cbuiltins\nset\nh\x01\x85R" * 2 + b"e."))


@pytest.mark.parametrize("content, words", [
    (b"Px\n.", "PERSID at byte 0"), (b"NQ.", "BINPERSID at byte 1"), (b"\x80\x02\x82\x01.", "EXT1 at byte 2"),
    (b"\x80\x02\x8b\x01\x00\x00\x00\x01.", "LONG4 at byte 2"), (b"I" + b"9" * 801 + b"\n.", "INT at byte 0"),
    (b"F" + b"9" * 801 + b"\n.", "FLOAT at byte 0"), (b"V" + b"x" * 10, "UNICODE at byte 0 is cut off")])
def test_opcodes_that_plain_data_does_not_use_are_refused(tmp_path, content, words):
    with pytest.raises(UserError, match="refused, it is no plain data: its " + words):
        load_plain(write(tmp_path, content))


def array_state(dtype, shape, content):
    """A pickle of an array that numpy would not have written."""
    made = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n)R(K\x01" + shape + b"cnumpy\ndtype\n"
    return made + b"U" + bytes([len(dtype)]) + dtype + b"\x85R\x89" + content + b"tb."


def test_bytes_are_text_encoded_as_python_does(tmp_path):
    for encoding, words in (("latin1", None), ("utf-8", "it encodes text as 'utf-8'")):
        path = write(tmp_path, b"c_codecs\nencode\n(V\\u00e9\nV" + encoding.encode() + b"\ntR.")
        if words is None:
            assert load_plain(path) == b"\xe9"
        else:
            with pytest.raises(UserError, match=words):
                load_plain(path)


def test_files_that_are_too_large_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(pickles, "MAX_SIZE", 10**6)
    with pytest.raises(UserError, match="it is larger than 1 MB"):
        load_plain(write(tmp_path, pickle.dumps(b"x" * 10**6)))


STATES = {
    "a list too short": (array_state(b"O8", b"K\x09\x85", b"]"), "cannot reshape"),
    "raw pointers": (array_state(b"O8", b"K\x01\x85", b"U\x08aaaaaaaa"), "unknown type or content"),
    "a number": (array_state(b"f4", b"K\x01\x85", b"K\x04"), "unknown type or content"),
    "too few bytes": (array_state(b"f4", b"K\x02\x85", b"U\x04aaaa"), "cannot reshape"),
    "too many bytes": (array_state(b"f4", b"K\x01\x85", b"U\x08aaaaaaaa"), "cannot reshape"),
    "part of a number": (array_state(b"f4", b"K\x01\x85", b"U\x05aaaaa"), "buffer size"),
    "a negative shape": (array_state(b"f4", b"(" + b"J\xff\xff\xff\xff" * 2 + b"t", b"U\x04aaaa"), "unknown dimension"),
    "an endless shape": (array_state(b"f4", b"J\xff\xff\xff\x7fK\x00\x86", b"U\x00"), "an empty array of shape"),
    "a structure": (array_state(b"V8", b"K\x01\x85", b"U\x08aaaaaaaa"), "an array of type 'V8'"),
    "nothing": (array_state(b"U0", b"K\x01\x85", b"U\x00"), "an array of type 'U0'"),
    "no character": (array_state(b"U1", b"K\x01\x85", b"U\x04\xff\xff\xff\x7f"), "can't decode"),
    "half a character": (array_state(b"U1", b"K\x01\x85", b"U\x04\x80\xdc\x00\x00"), "can't decode"),
    "no type": (b"cnumpy.core.multiarray\n_reconstruct\n)R(K\x01)NI00\nU\x00tb.", "unknown type or content"),
    "no state": (b"cnumpy.core.multiarray\n_reconstruct\n)R.", "damaged"),
    "no call": (b"cnumpy\nndarray\n.", "damaged"),
}


@pytest.mark.parametrize("name", sorted(STATES))
def test_states_of_arrays_are_checked_before_numpy_sees_them(tmp_path, name):
    content, words = STATES[name]
    with pytest.raises(UserError, match=words):
        load_plain(write(tmp_path, content))


def test_arrays_of_raw_pointers_are_refused(tmp_path):
    content = pickle.dumps(np.zeros(1, "u8"), 2).replace(b"u8", b"O8")
    with pytest.raises(UserError, match="an array, or an empty scalar, of unknown type or content"):
        load_plain(write(tmp_path, content))


def test_references_that_multiply_do_not_take_forever(tmp_path):
    value = []
    for _ in range(60):
        value = [value, value]
    value = load_plain(write(tmp_path, pickle.dumps(value)))
    for _ in range(60):
        assert len(value) == 2 and value[0] is value[1]  # shared, as it was
        value = value[0]
    assert value == []


@pytest.mark.parametrize("shared", [np.eye(2), ["a"] * 200, {"a": 1}, (np.eye(2),), {1, 2}])
def test_what_is_shared_stays_shared(tmp_path, shared):
    first, second = load_plain(write(tmp_path, pickle.dumps([shared, {"again": shared}])))
    assert first is second["again"]


NAME = "cnumpy._core.multiarray\n_reconstruct\n"
INDEX = {"joint_order": ["a", NAME], "imgs": [NAME, "b"], "train": [True, np.bool_(False)], "seed": np.int64(3),
         "joints": np.frombuffer(NAME.encode() * 8, np.float32)[:72].reshape(2, 18, 2), "bytes": NAME.encode()}


def test_an_index_names_modules_that_numpy_1_has_and_its_data_stay(tmp_path):
    path = str(tmp_path / "index.p")
    dump_index(INDEX, path)
    with open(path, "rb") as file:
        content = file.read()
    names = {name for opcode, name, _ in pickletools.genops(content) if opcode.name == "GLOBAL"}
    assert content[:2] == b"\x80\x02"  # protocol 2
    assert names == {"numpy.core.multiarray _reconstruct", "numpy.core.multiarray scalar", "numpy ndarray",
                     "numpy dtype", "_codecs encode"}
    for loaded in (pickle.loads(content), load_plain(path)):
        assert_same(loaded, INDEX)
        assert isinstance(loaded["joints"], np.ndarray) and loaded["joints"].shape == (2, 18, 2)


def test_data_sets_of_this_program_name_only_modules_that_numpy_1_has(tmp_path, toy):
    with IndexBuilder(str(tmp_path / "built"), JOINTS) as builder:
        for name in ("a", "b"):
            builder.add(name, standing(), jpeg=b"", train=name == "a")
        builder.finish(weight=np.float64(2.5))
    for folder, n in ((tmp_path / "built", 2), (toy, 36)):
        content = (folder / "index.p").read_bytes()
        assert b"numpy._core" not in content and content[:2] == b"\x80\x02"
        joints = pickle.loads(content)["joints"]
        assert isinstance(joints, np.ndarray) and joints.shape == (n, 15, 2)
