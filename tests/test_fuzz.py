"""Damaged indexes, configs, photos, videos, archives and so on: each loads or is refused with one line, soon and in
little memory.

`make test` tries 100 of a kind, `make fuzz` 4,000; of videos an eighth. VUNET_FUZZ_CASES is three times that number.
"""
import io
import json
import os
import pickle
import resource
import string
import sys
import tarfile
import tempfile
import time
import zipfile

import numpy as np
import pytest
import yaml
from helpers import SMALL, images, mutated, openpose_points, standing

import batches
from common.errors import UserError
from dataset import bags
from dataset.index import JOINTS, Index, load_image, load_shape
from dataset.selection import Finder
from dataset.videos import Video
from inference.movies import write_gif, write_mp4
from inference.networks import open_network
from tools.check_index import suspicions
from training.config import load_config

CASES_PER_KIND = int(os.environ.get("VUNET_FUZZ_CASES", "300")) // 3
MAX_SECONDS = 15.0  # on a slow machine with other work to do
MAX_MEMORY = 1200  # MB more than before; an image may claim 89 million pixels


def peak_memory():
    """The most memory in MB that this process has held."""
    unit = 2**20 if sys.platform == "darwin" else 2**10  # macOS counts bytes, Linux kB
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def assert_all_answered(originals, path, load, seed, n=CASES_PER_KIND):
    """Fails unless load(path) of each of n mutations of the originals returns or raises UserError with one line."""
    random = np.random.RandomState(seed)
    before = peak_memory()
    answered = {"loaded": 0, "refused": 0}
    for i in range(n):
        path.write_bytes(mutated(random, originals[i % len(originals)]))
        start = time.time()
        try:
            load(str(path))
            answered["loaded"] += 1
        except UserError as error:
            answered["refused"] += 1
            assert "\n" not in str(error) and 10 < len(str(error)) < 1500
        assert time.time() - start < MAX_SECONDS, f"mutation {i}"
    assert peak_memory() - before < MAX_MEMORY
    assert min(answered.values()) > n // 200, answered  # the mutations are neither harmless nor hopeless


def index_pickles():
    joints = [standing("lelbow"), standing(), standing("cnose")]
    lists = {"joint_order": list(JOINTS), "imgs": ["a.png", "b.png", "c.png"], "train": [True, False, True],
             "joints": joints}
    arrays = dict(lists, joints=np.stack(joints), train=np.array(lists["train"]), imgs=np.array(lists["imgs"]))
    plain = dict(lists, joints=[array.tolist() for array in joints])
    return [pickle.dumps(data, protocol) for data in (lists, arrays, plain)
            for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]


def shape_index_pickles():
    lists = {"imgs": ["a.png", "b.png", "c.png"], "shapes": ["d.png", "e.png", "f.png"], "train": [True, False, True],
             "person": [0, 0, 1], "black_on_white": True}
    arrays = dict(lists, shapes=np.array(lists["shapes"]), train=np.array(lists["train"]))
    return [pickle.dumps(data, protocol) for data in (lists, arrays) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]


def use_index(path):
    index = Index(path)
    assert all(isinstance(name, str) for name in index.images + (index.shapes or []))
    bags.is_bags(len(index.images), index.extra)
    if index.joints is None:
        return
    suspicions(index.joints)
    for joints in index.joints[:3]:
        batches.stick_figure(joints, 32)
        batches.part_crops(np.zeros((1, 32, 32, 3), np.uint8), joints[np.newaxis], 16)


def test_indexes(tmp_path):
    assert_all_answered(index_pickles(), tmp_path / "index.p", use_index, seed=0)


def test_indexes_of_shapes(tmp_path):
    assert_all_answered(shape_index_pickles(), tmp_path / "index.p", use_index, seed=6)


def test_configs(tmp_path):
    config = dict(SMALL, data_index="data/toy/index.p")
    originals = [yaml.safe_dump(config, default_flow_style=style).encode() for style in (None, False, True)]
    assert_all_answered(originals, tmp_path / "config.yaml", load_config, seed=1)


def test_images(tmp_path):
    formats = [("JPEG", {}), ("JPEG", {"progressive": True}), ("PNG", {}), ("GIF", {}), ("BMP", {}), ("WEBP", {}),
               ("PPM", {})]
    assert_all_answered(list(images(formats)), tmp_path / "image",
                        lambda path: (load_image(path, 16), load_shape(path, 16)), seed=2)


def openpose_files():
    people = [{"pose_keypoints_2d": openpose_points(standing() * size, n)}
              for size, n in ((100, 18), (1, 25), (50, 25))]
    frames = [{"people": people, "canvas_width": 100, "canvas_height": 200}, {"people": people[:1]}]
    return [json.dumps(data).encode() for data in (frames[0], frames[1], frames, [frames[1]] * 3)]


def test_openposes_files(tmp_path):
    assert_all_answered(openpose_files(), tmp_path / "a.json",
                        lambda path: Finder("none", aspect=lambda: 0.5).select([path], "--pose"), seed=3)


def video_files(folder):
    frames = [np.full((16, 24, 3), 20 * i, np.uint8) for i in range(8)]
    write_mp4(str(folder / "original.mp4"), frames, 10, (24, 16))
    write_gif(str(folder / "original.gif"), frames, 10)
    return [(folder / name).read_bytes() for name in ("original.mp4", "original.gif")]


@pytest.mark.parametrize("extension", ["mp4", "gif", "avi", "webm"])
def test_videos(tmp_path, extension):
    originals = video_files(tmp_path)
    path = tmp_path / f"a.{extension}"
    if extension in ("mp4", "gif"):
        assert_all_answered(originals[extension == "gif":][:1], path, lambda path: list(Video(path)), seed=4,
                            n=CASES_PER_KIND // 16)
    else:  # of another kind than their names say
        for content in originals:
            path.write_bytes(content)
            with pytest.raises(UserError, match="cannot be read as a video"):
                list(Video(str(path)))


def archives(run):
    """Archives of a run folder's checkpoint and config, and in the ZIP much that nobody reads: damage there is none."""
    files = sorted((run / "checkpoints").glob("model.ckpt-4.[id]*")) + [run / "config.yaml"]
    zipped, tarred = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in files:
            archive.write(str(file), str(file.relative_to(run)))
        archive.writestr("notes", np.random.RandomState(0).bytes(4 * len(zipped.getvalue())))
    with tarfile.open(fileobj=tarred, mode="w:gz") as archive:
        for file in files:
            archive.add(str(file), str(file.relative_to(run)))
    return [zipped.getvalue(), tarred.getvalue()]


def test_archives(trained, tmp_path, monkeypatch):
    (tmp_path / "unpacked").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "unpacked"))

    def load(path):
        with open_network(path) as network:
            assert network.checkpoint().step() >= 0 and load_config(network.config_path())

    assert_all_answered(archives(trained[0]), tmp_path / "a.zip", load, seed=5)
    assert {path.name for path in tmp_path.iterdir()} == {"a.zip", "unpacked"}
    assert not list((tmp_path / "unpacked").iterdir())


def doubling(letters, line):
    """A line for each letter but the first, {old} being the letter before it."""
    return "".join(line.format(old=old, new=new) for old, new in zip(letters, letters[1:]))


YAML_BOMBS = {
    "references": "a: &a [x, x]\n" + doubling(string.ascii_lowercase, "{new}: &{new} [*{old}, *{old}]\n"),
    "references as a weight": ("lr: &a [x, x]\nseed: &b [*a, *a]\n"
                               + doubling(string.ascii_lowercase[1:], "{new}: &{new} [*{old}, *{old}]\n")),
    "merges": "a: &a {x: 1}\n" + doubling(string.ascii_lowercase, "{new}: &{new} {{<<: [*{old}, *{old}]}}\n"),
    "depth": "[" * 50000,
    "digits": "lr: " + "9" * 90000,
    "length": "lr: " + "9" * 10000000,
}


@pytest.mark.parametrize("name", sorted(YAML_BOMBS))
def test_configs_that_grow_when_read_are_refused_soon(tmp_path, name):
    path = tmp_path / "config.yaml"
    path.write_text(YAML_BOMBS[name])
    start = time.time()
    with pytest.raises(UserError) as error:
        load_config(str(path))
    assert time.time() - start < MAX_SECONDS and "\n" not in str(error.value) and len(str(error.value)) < 1500


def protocol_2(*opcodes):
    """A pickle of protocol 2 of these opcodes."""
    return b"\x80\x02" + b"".join(opcodes) + b"."


NESTED_TUPLES = b"K\x01" + 60 * b"2\x86"  # twice the last one in a tuple

PICKLE_BOMBS = {
    "a tuple as key": protocol_2(b"}", NESTED_TUPLES, b"Ns"),
    "tuples in a set": protocol_2(b"cbuiltins\nset\n]", NESTED_TUPLES, b"a\x85R"),
    "chosen hashes": protocol_2(b"}(", *[
        b"\x8a\x10" + (k * (2**61 - 1)).to_bytes(16, "little") + b"K\x01" for k in range(2, 20000)], b"u"),
    "a buffer that is a number": protocol_2(
        b"cnumpy.core.numeric\n_frombuffer\n(J\x00\x94\x35\x77cnumpy\ndtype\nX\x02\x00\x00\x00u1",
        b"K\x00K\x01\x87RJ\x00\x94\x35\x77\x85X\x01\x00\x00\x00CtR"),
    "one text encoded many times": protocol_2(
        b"]X" + (10**6).to_bytes(4, "little") + b"a" * 10**6 + b"q\x010c_codecs\nencode\nq\x030",
        5000 * b"h\x03h\x01X\x06\x00\x00\x00latin1\x86Ra"),
    "digits": b"I" + b"9" * 10**7 + b"\n.",
    "digits of a memo": b"Np" + b"9" * 10**7 + b"\n.",
    "bits": b"\x80\x02\x8b\x40\x42\x0f\x00" + b"\x7f" * 10**6 + b".",
    "an endless empty array": pickle.dumps(np.zeros((1, 0), np.float32), 2).replace(
        b"K\x01K\x00\x86", b"J\xff\xff\xff\x7fK\x00\x86"),
}


@pytest.mark.parametrize("name", sorted(PICKLE_BOMBS))
def test_pickles_that_take_forever_are_refused_soon(tmp_path, name):
    path = tmp_path / "index.p"
    path.write_bytes(PICKLE_BOMBS[name])
    start = time.time()
    with pytest.raises(UserError, match="refused, it is no plain data"):
        Index(str(path))
    assert time.time() - start < MAX_SECONDS
