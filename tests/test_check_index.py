"""python tools/check_index.py INDEX."""
import os
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT, exit_code, images, make_index, mutated, standing
from PIL import Image

from dataset.index import JOINTS, Index, J
from tools import check_index
from tools.check_index import suspicions


def check(path, monkeypatch, folder):
    monkeypatch.chdir(folder)
    return exit_code(check_index, path)


def test_a_good_index_is_described_and_shown(tmp_path, capsys, monkeypatch):
    picture = np.random.RandomState(0).randint(0, 256, (128, 128, 3)).astype(np.uint8)
    path = make_index(tmp_path, n=6, image=picture, joints=[standing("lhip")] + [standing("lelbow")] * 5)
    assert check(path, monkeypatch, tmp_path) == 0
    out = capsys.readouterr().out
    for words in ("6 image files; 128 x 128: 6", "train: 3 images, 2 of them usable",
                  "test: 3 images, 3 of them usable",
                  "lelbow 17 %", "lhip 83 %", "preview.png shows 5 people", "training can start"):
        assert words in out
    preview = np.asarray(Image.open(str(tmp_path / "preview.png")))
    assert preview.shape == (5 * 128, 10 * 128, 3)  # image, stick figure and eight parts of five usable people
    np.testing.assert_array_equal(preview[:128, :128], picture)
    assert (preview[:128, 4 * 128:6 * 128] == 127).all()  # the left arm


def test_every_fault_of_index_and_images_is_listed(tmp_path, capsys, monkeypatch):
    path = make_index(tmp_path, n=4, train=[True, 2, False, 3])
    (tmp_path / "images" / "1.png").write_bytes(b"no image")
    (tmp_path / "images" / "3.png").unlink()
    assert check(path, monkeypatch, tmp_path) == 2
    printed = capsys.readouterr()
    errors = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    for words in ("train[1]: expected", "train[3]: expected", "1.png: cannot be read", "3.png: there is no such image"):
        assert sum(words in line for line in errors) == 1
    assert len(errors) == 4 and "training cannot start: 4 faults" in printed.out


def test_splits_without_people_and_broken_images_stop_a_training(tmp_path, capsys, monkeypatch):
    path = make_index(tmp_path, n=4, train=[True] * 4)
    (tmp_path / "images" / "2.png").write_bytes(b"")
    assert check(path, monkeypatch, tmp_path) == 2
    errors = capsys.readouterr().err
    assert "no usable test image" in errors and "2.png: cannot be read" in errors
    assert check(tmp_path / "none.p", monkeypatch, tmp_path) == 2
    assert "there is no file" in capsys.readouterr().err


@pytest.mark.parametrize("extra, words", [({"pairs": [(0, 99)]}, "pairs: expected pairs of numbers from 0 to 3"),
                                          ({"person": [1, 2]}, "person: expected 4 whole numbers")])
def test_pairs_and_people_that_no_training_could_measure_are_faults(tmp_path, capsys, monkeypatch, extra, words):
    assert check(make_index(tmp_path, n=4, **extra), monkeypatch, tmp_path) == 2
    assert words in capsys.readouterr().err


def test_who_stops_reading_ends_it_without_a_traceback(tmp_path):
    command = [sys.executable, os.path.join(ROOT, "tools", "check_index.py"), make_index(tmp_path, n=4)]
    reads, writes = os.pipe()
    os.close(reads)
    done = subprocess.run(command, cwd=str(tmp_path), timeout=120, stdout=writes, stderr=subprocess.PIPE, text=True)
    os.close(writes)
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr and done.returncode == 141


def mirrored(joints):
    """Left and right named the wrong way round."""
    return joints[:, [J[{"r": "l", "l": "r", "c": "c"}[name[0]] + name[1:]] for name in JOINTS]]


def people(n=20):
    """joints of n people who face the camera, each a little elsewhere."""
    joints = np.stack([standing()] * n)
    return joints + np.random.RandomState(0).uniform(-0.03, 0.03, (n, 1, 2)).astype(np.float32)


@pytest.mark.parametrize("joints, words", [
    (mirrored(people()), "left and right seem swapped"), (people() / [2, 1], "no joint is in the right half"),
    (people() / [1, 2], "no joint is in the lower half"), (people() * 1.5, "lie outside of their image"),
    (np.where(np.arange(15)[:, None] == J["lwrist"], 0, people()), r"are at \(0, 0\)")])
def test_what_looks_wrong_is_said(joints, words):
    assert any(re.search(words, line) for line in suspicions(joints.astype(np.float32)))


def test_swapped_eyes_are_told_from_swapped_people():
    joints = people()
    joints[:, [J["reye"], J["leye"]]] = joints[:, [J["leye"], J["reye"]]]
    line, = suspicions(joints)
    assert line.startswith("the eyes seem swapped: with 100 % of the 20 people")


def test_people_as_they_should_be_look_right(toy):
    assert suspicions(people()) == []
    assert suspicions(Index(str(toy / "index.p")).joints) == []


def test_images_in_both_splits_are_found_by_content(tmp_path, capsys, monkeypatch):
    path = make_index(tmp_path, n=4)
    (tmp_path / "images" / "3.png").write_bytes((tmp_path / "images" / "0.png").read_bytes())
    assert check(path, monkeypatch, tmp_path) == 0
    out = capsys.readouterr().out
    assert "suspicious: images in both splits: 1, for example images/0.png and images/3.png\n" in out


def test_as_a_process_damaged_images_give_a_line_each_and_nothing_else(tmp_path):
    random = np.random.RandomState(5)
    originals = list(images([("JPEG", {}), ("PNG", {}), ("GIF", {}), ("WEBP", {}), ("BMP", {})]))
    path = make_index(tmp_path, n=200)
    for i in range(200):
        (tmp_path / "images" / (f"{i}.png")).write_bytes(mutated(random, originals[i % len(originals)]))
    command = [sys.executable, os.path.join(ROOT, "tools", "check_index.py"), path]
    done = subprocess.run(command, cwd=str(tmp_path), timeout=120, capture_output=True, text=True)
    lines = [line for line in done.stderr.splitlines() if line and "image/s]" not in line]
    assert done.returncode == 2 and len(lines) > 50 and all(line.startswith("error: ") for line in lines), done.stderr
    assert f"training cannot start: {len(lines)} faults" in done.stdout


def test_outside_images_are_refused_unless_allowed(tmp_path, capsys, monkeypatch):
    (tmp_path / "inner").mkdir()
    make_index(tmp_path)
    path = make_index(tmp_path / "inner", imgs=[f"../images/{i}.png" for i in range(4)])
    assert check(path, monkeypatch, tmp_path) == 2
    assert capsys.readouterr().err.count("leaves the folder") == 4
    assert exit_code(check_index, path, "--allow-outside-images") == 0


def test_a_pickle_that_runs_something_does_not(tmp_path, capsys, monkeypatch):
    class Runs:
        def __reduce__(self):
            return os.system, ("touch %s" % (tmp_path / "ran"),)
    (tmp_path / "index.p").write_bytes(pickle.dumps({"imgs": Runs()}))
    assert check(tmp_path / "index.p", monkeypatch, tmp_path) == 2
    assert "refused" in capsys.readouterr().err and not (tmp_path / "ran").exists()
