import os
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from helpers import ROOT, make_index, standing
from PIL import Image

import dataset.index
from batches import BatchOrder
from common.errors import UserError
from dataset.index import JOINTS, Index, index_faults, load_image

# ---------------------------------------------------------------------------------------------- images

PIXELS = np.random.RandomState(0).randint(0, 256, (30, 20, 3)).astype(np.uint8)


@pytest.mark.parametrize("name, image", [
    ("rgb.png", Image.fromarray(PIXELS)), ("grey.png", Image.fromarray(PIXELS[..., 0])),
    ("alpha.png", Image.fromarray(np.dstack([PIXELS, PIXELS[..., 0]]))),
    ("grey_alpha.png", Image.fromarray(PIXELS[..., 0]).convert("LA")),
    ("palette.png", Image.fromarray(PIXELS).convert("P")), ("bits.png", Image.fromarray(PIXELS[..., 0]).convert("1")),
    ("rgb.jpg", Image.fromarray(PIXELS)), ("grey.jpg", Image.fromarray(PIXELS[..., 0])),
    ("cmyk.jpg", Image.fromarray(PIXELS).convert("CMYK"))])
def test_images_of_every_kind_load(tmp_path, name, image):
    path = str(tmp_path / name)
    image.save(path)
    loaded = load_image(path, 32)
    assert loaded.shape == (32, 32, 3) and loaded.dtype == np.uint8
    exact = load_image(path, 20)[:, :, 0].astype(float).mean()
    assert abs(exact - np.asarray(image.convert("RGB"))[..., 0].mean()) < 6


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    values = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    for name, array in (("grey.png", values), ("colour.png", np.dstack([values] * 3))):
        path = str(tmp_path / name)
        cv2.imwrite(path, array)
        np.testing.assert_allclose(load_image(path, 64)[..., 1], values / 257.0, atol=1.5)


def test_shrinking_averages_over_areas(tmp_path):
    checkerboard = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    path = str(tmp_path / "checkerboard.png")
    Image.fromarray(checkerboard).save(path)
    inner = load_image(path, 16)[2:-2, 2:-2]
    assert inner.min() > 120 and inner.max() < 135


@pytest.mark.parametrize("damage", ["missing", "truncated.jpg", "truncated.png", "text", "empty", "folder"])
def test_files_that_are_no_images_are_named(tmp_path, damage):
    path = tmp_path / damage
    if damage.startswith("truncated"):
        whole = str(tmp_path / ("whole" + damage[-4:]))
        Image.fromarray(np.random.RandomState(0).randint(0, 256, (99, 99, 3)).astype(np.uint8)).save(whole)
        path.write_bytes(open(whole, "rb").read()[:-2000])
    elif damage == "folder":
        path.mkdir()
    elif damage != "missing":
        path.write_bytes(b"" if damage == "empty" else b"no image")
    with pytest.raises(UserError) as error:
        load_image(str(path), 16)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_images_too_large_to_hold_are_refused(tmp_path, monkeypatch):
    path = str(tmp_path / "large.png")
    Image.fromarray(PIXELS).save(path)
    monkeypatch.setattr(dataset.index, "MAX_PIXELS", 599)
    with pytest.raises(UserError, match="at most 599 pixels, found 20 x 30"):
        load_image(path, 16)


def test_files_for_which_a_program_would_be_started_are_refused(tmp_path):
    path = tmp_path / "postscript.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(UserError, match="cannot be read as an image"):
        load_image(str(path), 16)


# ---------------------------------------------------------------------------------------------- the index

def test_joints_are_looked_up_by_name(tmp_path):
    order = ["extra"] + list(JOINTS)[::-1]
    joints = np.stack([np.concatenate([[[.9, .9]], standing("lwrist")[::-1]])] * 4)
    objects = np.empty(4, object)
    for i in range(4):
        objects[i] = joints[i]
    for given in (joints, list(joints), joints.tolist(), objects):
        index = Index(make_index(tmp_path, joint_order=order, joints=given))
        np.testing.assert_array_equal(index.joints[0], standing("lwrist"))
    assert index.image_path(1) == str(tmp_path / "images/1.png")


def test_only_people_with_both_hips_and_shoulders_are_used(tmp_path):
    joints = [standing(), standing("lhip"), standing("cnose", "rknee"), standing("rshoulder"), standing("lshoulder"),
              standing("rhip"), standing()]
    index = Index(make_index(tmp_path, n=7, joints=joints, train=[True] * 4 + [False] * 3))
    assert list(index.usable("train")) == [0, 2] and list(index.usable("test")) == [6]


@pytest.mark.parametrize("changes, message", [
    ({"joints": None}, "there is no key 'joints'"), ({"imgs": None}, "there is no key 'imgs'"),
    ({"imgs": ["a.png"] * 3}, "unequal length: imgs has 3, joints has 4, train has 4"),
    ({"joint_order": list(JOINTS)[:-1]}, "there is no joint 'cnose'"),
    ({"joint_order": list(JOINTS) + ["leye"]}, "'leye' occurs 2 times"),
    ({"joint_order": 7}, "joint_order: expected a list of names, found int"),
    ({"joints": [standing()[:-1]] * 4}, r"joints\[0\]: expected shape \(15, 2\), found \(14, 2\)"),
    ({"joints": [standing(), standing() * np.nan] * 2}, r"joints\[1\]: expected finite"),
    ({"joints": [standing(), [["a", "b"]] * 15] * 2}, r"joints\[1\]: expected 15 pairs of numbers"),
    ({"joints": [standing(), standing()[:-1]] * 2}, r"joints\[1\]: expected shape \(15, 2\), found \(14, 2\)"),
    ({"joints": [standing(), standing(leye=(np.inf, 0))] * 2}, r"joints\[1\]: expected finite"),
    ({"joints": [standing() * 256] * 4}, "joints: expected shares of width and height.*as of pixels"),
    ({"joints": [standing(), [[.5, .5]] * 14 + [[.5, [.5]]]] * 2}, r"joints\[1\]: expected 15 pairs of numbers"),
    ({"joints": [standing(), [[10**400, 1]] * 15] * 2}, r"joints\[1\]: expected 15 pairs of numbers"),
    ({"joints": [standing()] * 3 + [standing(lknee=(.5, 180.))]}, r"joints\[3\]: expected shares.*found 180"),
    ({"imgs": ["a.png", "../b.png", "c.png", "d.png"]},
     r"imgs\[1\]: \.\./b.png leaves the folder.*allow_outside_images"),
    ({"imgs": ["a.png", "b.png", "images/../../c.png", "d.png"]}, r"imgs\[2\]: .* leaves the folder"),
    ({"imgs": ["a.png", "b.png", "c.png", "/etc/passwd"]}, r"imgs\[3\]: /etc/passwd leaves the folder"),
    ({"imgs": ["a", ["b", "c"], "d", "e"]}, r"imgs\[1\]: expected a path, found \['b', 'c'\]"),
    ({"imgs": [np.zeros((50, 50))] * 4}, r"imgs\[0\]: expected a path, found array"),
    ({"train": np.zeros((4, 40))}, r"train\[0\]: expected true or false, found array"),
    ({"joints": 5}, "joints: expected a list, found int"), ({"train": "yes"}, "train: expected a list, found str"),
    ({"train": [True, 2, False, None]}, r"train\[1\]: expected true or false, found 2"),
    ({"imgs": ["a", 3, "", "b"]}, r"imgs\[1\]: expected a path, found 3"),
    ({"imgs": [], "train": [], "joints": []}, "imgs: the list is empty")])
def test_every_fault_of_an_index_is_named(tmp_path, changes, message):
    path = make_index(tmp_path, **changes)
    with pytest.raises(UserError, match=message) as error:
        Index(path)
    assert str(error.value).startswith(path) and "\n" not in str(error.value)


def test_faults_of_every_kind_are_listed_together():
    faults = index_faults({"joint_order": list(JOINTS)[1:] + ["lwrist"], "imgs": ["../a", 5],
                           "train": [True, 7, False], "joints": [standing(), "x"]})
    for words in ("no joint 'rankle'", "'lwrist' occurs 2 times", "unequal length", "../a leaves", "imgs[1]: expected",
                  "train[1]: expected", "joints[1]: expected pairs of numbers"):
        assert sum(words in fault for fault in faults) == 1, words


def test_images_outside_of_the_folder_are_read_where_allowed(tmp_path):
    (tmp_path / "inner").mkdir()
    path = make_index(tmp_path / "inner", imgs=[f"../{i}.png" for i in range(4)])
    Image.fromarray(PIXELS).save(str(tmp_path / "0.png"))
    index = Index(path, allow_outside=True)
    assert load_image(index.image_path(0), 16).shape == (16, 16, 3)


def test_values_that_hold_one_another_many_times_over_are_refused_in_no_time():
    bomb = [0.5, 0.5]
    for _ in range(60):
        bomb = [bomb, bomb]
    for changes in ({"joints": [bomb] * 2}, {"joints": [[bomb] * 15] * 2}, {"joints": bomb}, {"imgs": [bomb] * 2},
                    {"train": [bomb] * 2}, {"joint_order": [bomb] * 15}, {"joint_order": bomb}):
        data = {"joint_order": list(JOINTS), "imgs": ["a", "b"], "train": [True, False], "joints": [standing()] * 2}
        faults = index_faults(dict(data, **changes))
        assert faults and all(len(fault) < 200 for fault in faults)


def test_a_list_that_occurs_many_times_is_checked_once():
    """To check it for each person would take half a minute."""
    order = list(JOINTS) + [f"extra{i}" for i in range(185)]
    n, start = 200000, time.time()
    data = {"joint_order": order, "imgs": ["a.png"] * n, "train": [True] * n, "joints": [[[.5, .5]] * 200] * n}
    assert index_faults(data) == [] and time.time() - start < 10


def test_every_row_of_an_array_is_checked():
    """Rows are views, made one after another at the same address."""
    joints = np.stack([standing(cnose=(0.5, 0.1 * i)) for i in range(6)])
    joints[[2, 5], 3] = np.nan
    data = {"joint_order": list(JOINTS), "imgs": list("abcdef"), "train": [True] * 6, "joints": joints}
    assert [fault[:9] for fault in index_faults(data)] == ["joints[2]", "joints[5]"]


@pytest.mark.parametrize("split, train, name", [("train", [False] * 4, "training"), ("test", [True] * 4, "test")])
def test_a_split_without_people_is_named(tmp_path, split, train, name):
    index = Index(make_index(tmp_path, train=train))
    with pytest.raises(UserError, match=f"no usable {name} image"):
        index.usable(split)


def test_a_missing_index_says_how_to_get_data(tmp_path):
    with pytest.raises(UserError, match="download_data.sh.*make_toy.py.*docs/data.md"):
        Index(str(tmp_path / "index.p"))


MAKE = f"""
import sys; sys.path.insert(0, {ROOT!r})
import numpy as np
from dataset.index import JOINTS, STANDING
from dataset.pickles import dump_index
n, person = 10**6, np.array([STANDING[name] for name in JOINTS], np.float32)
dump_index({{"joint_order": list(JOINTS), "imgs": [f"images/{{i:07}}.jpg" for i in range(n)],
            "train": np.arange(n) % 50 != 0, "joints": np.broadcast_to(person, (n, 15, 2)).copy()}}, sys.argv[1])
"""
READ = f"""
import re, sys, time; sys.path.insert(0, {ROOT!r})
from dataset.index import Index
start = time.time()
Index(sys.argv[1]).usable("train")
print(time.time() - start, re.search("VmHWM:[^0-9]*([0-9]+)", open("/proc/self/status").read()).group(1))
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="memory is read from Linux's /proc")
def test_a_million_people_are_read_soon_and_in_little_memory(tmp_path):
    path = str(tmp_path / "index.p")
    subprocess.run([sys.executable, "-c", MAKE, path], check=True)
    done = subprocess.run([sys.executable, "-c", READ, path], check=True, stdout=subprocess.PIPE)
    seconds, kilobytes = map(float, done.stdout.split())
    assert seconds < 20 and kilobytes < 10**6, done.stdout  # 10 s where nothing else runs
    os.remove(path)  # 200 MB


def test_the_order_of_a_million_people_takes_no_time():
    start, order = time.time(), BatchOrder(np.arange(10**6), 16, seed=0)
    for k in (0, 62499, 62500):  # the last batch of a pass, and the next
        assert len(order.batch(k)) == 16
    assert time.time() - start < 2


def test_one_array_of_joints_is_checked_as_a_list_of_them_is(tmp_path):
    person = standing()
    for changed in (np.nan, np.inf, 150.0):
        joints = np.stack([person, person.copy(), person])
        joints[1, 4] = changed
        data = {"joint_order": list(JOINTS), "imgs": ["a.png", "b.png", "c.png"], "train": [True, False, True]}
        faults = index_faults(dict(data, joints=joints))
        assert faults == index_faults(dict(data, joints=list(joints))) and len(faults) == 1 and "joints[1]" in faults[0]
    assert "as of pixels" in index_faults(dict(data, joints=100 * np.stack([person] * 3)))[0]
    assert "expected shape (15, 2)" in index_faults(dict(data, joints=np.zeros((3, 14, 2))))[0]
