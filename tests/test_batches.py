import os
import pickle
import threading

import cv2
import numpy as np
from PIL import Image
import pytest
import tensorflow.compat.v1 as tf

import batches
from batches import J, JOINTS, BatchOrder, Index, Loader
from errors import UserError

HERE = os.path.dirname(os.path.abspath(__file__))
GOLDEN = np.load(os.path.join(HERE, "golden", "batches.npz"))
CASES = [name[len("image/"):] for name in GOLDEN.files if name.startswith("image/")]
STANDING = {"rankle": (.4, .95), "rknee": (.4, .75), "rhip": (.42, .55), "rshoulder": (.4, .3), "relbow": (.3, .4),
            "rwrist": (.25, .5), "reye": (.48, .1), "lankle": (.6, .95), "lknee": (.6, .75), "lhip": (.58, .55),
            "lshoulder": (.6, .3), "lelbow": (.7, .4), "lwrist": (.75, .5), "leye": (.52, .1), "cnose": (.5, .14)}


def standing(*missing, **moved):
    points = dict(STANDING, **moved)
    points.update((name, (-1, -1)) for name in missing)
    return np.array([points[name] for name in JOINTS], np.float32)


def make_index(folder, n=4, image=None, **changes):
    """Writes n images and their index; half of them train."""
    os.makedirs(str(folder / "images"), exist_ok=True)
    names = ["images/%d.png" % i for i in range(n)]
    for i, name in enumerate(names):
        Image.fromarray(np.full((20, 10, 3), 10 * i, np.uint8) if image is None else image).save(str(folder / name))
    index = dict(joint_order=list(JOINTS), imgs=names, train=[i < n / 2 for i in range(n)], joints=[standing()] * n)
    index.update(changes)
    path = str(folder / "index.p")
    with open(path, "wb") as file:
        pickle.dump({key: value for key, value in index.items() if value is not None}, file)
    return path


# ------------------------------------------------------------------------------- stick figures and part crops

@pytest.mark.parametrize("case", CASES)
def test_stick_figures_equal_the_published_ones(case):
    figure = batches.stick_figure(GOLDEN["joints/" + case].astype(np.float32), 128)
    assert (figure != GOLDEN["stick/" + case]).mean() < 1e-3


@pytest.mark.parametrize("case", CASES)
def test_part_crops_equal_the_published_ones(case):
    crops, has_part = batches.part_crops(GOLDEN["image/" + case], GOLDEN["joints/" + case].astype(np.float32), 1)
    found = (crops / 127.5 - 1) * np.repeat(has_part, 3)
    difference = np.abs(found - GOLDEN["parts_box1/" + case].astype(np.float32)) * 127.5
    assert difference.max() < 8 and difference.mean() < 0.5


def test_the_golden_joints_come_in_the_order_of_the_program():
    assert [str(name) for name in GOLDEN["joint_order"]] == list(JOINTS)


@pytest.mark.parametrize("size", [256, 128, 64, 32])
def test_a_limb_is_as_thick_as_the_size_says(size):
    joints = standing(*[name for name in JOINTS if name not in ("rknee", "rankle")])
    figure = batches.stick_figure(joints, size)
    expected = np.zeros((size, size), np.uint8)
    cv2.line(expected, (int(.4 * size), int(.75 * size)), (int(.4 * size), int(.95 * size)), 255,
             {256: 6, 128: 3, 64: 1, 32: 1}[size])
    np.testing.assert_array_equal(figure[..., 0], expected)
    assert not figure[..., 1:].any()


def test_a_torso_that_is_not_convex_is_filled_as_it_is():
    joints = standing(lhip=(.5, .45), rhip=(.42, .8))
    expected = np.zeros((128, 128), np.uint8)
    corners = np.array([joints[J[name]] * 128 for name in ("lhip", "lshoulder", "rshoulder", "rhip")]).astype(np.int32)
    cv2.fillPoly(expected, [corners], 255)
    np.testing.assert_array_equal(batches.stick_figure(joints, 128)[..., 2], expected)


def test_right_left_and_torso_have_a_channel_each_and_the_neck_is_dimmer():
    figure = batches.stick_figure(standing(), 128)
    assert figure[int(.65 * 128), int(.41 * 128), 0] == 255 and figure[int(.65 * 128), int(.59 * 128), 1] == 255
    assert figure[int(.45 * 128), 64, 2] == 255
    assert tuple(figure[int(.22 * 128), 64]) == (127, 127, 0)


def test_later_lines_are_drawn_over_earlier_ones():
    hand_on_chest = standing(rwrist=(.5, .25), relbow=(.5, .2))
    figure = batches.stick_figure(hand_on_chest, 128)
    assert figure[int(.22 * 128), 64, 0] == 127  # the neck, over the arm


def test_missing_joints_take_their_lines_with_them():
    assert not batches.stick_figure(standing(*JOINTS), 64).any()
    without_torso = batches.stick_figure(standing("lhip"), 64)
    assert not without_torso[..., 2].any() and without_torso[..., 0].any()


def test_limbs_lie_along_the_rows_of_their_crops():
    """A forearm that points to the side lies along the rows of its crop: the elbow's end left, the wrist's right."""
    image = np.zeros((128, 128, 3), np.uint8)
    joints = standing(lelbow=(.6, .4), lwrist=(.9, .4))
    image[46:57, 77:96, 0] = 255  # the half near the elbow is red, the other green
    image[46:57, 96:116, 1] = 255
    crops, has_part = batches.part_crops(image, joints, 1)
    crop = crops[..., 3 * 3:3 * 4]
    assert has_part[3]
    assert (crop[32, 8] == (255, 0, 0)).all() and (crop[32, 56] == (0, 255, 0)).all()


@pytest.mark.parametrize("missing, parts", [
    ((), [1] * 8), (("lelbow",), [1, 1, 0, 0, 1, 1, 1, 1]), (("rwrist",), [1, 1, 1, 1, 1, 0, 1, 1]),
    (("lknee", "rknee", "cnose"), [1] * 8), (("lhip",), [0, 1, 1, 1, 1, 1, 0, 1]),
    (("lshoulder",), [0, 0, 0, 1, 1, 1, 1, 1])])
def test_parts_without_their_joints_are_missing(missing, parts):
    crops, has_part = batches.part_crops(np.full((32, 32, 3), 200, np.uint8), standing(*missing), 0)
    assert list(has_part) == parts
    assert [bool(crops[..., 3 * i:3 * i + 3].any()) for i in range(8)] == [bool(part) for part in parts]


def test_two_joints_at_one_point_make_a_missing_part():
    _, has_part = batches.part_crops(np.full((32, 32, 3), 200, np.uint8),
                                     standing(lelbow=(.6, .3), rhip=(.58, .55), cnose=(.5, .3)), 0)
    assert list(has_part) == [0, 0, 0, 1, 1, 1, 1, 1]


def test_missing_parts_are_exactly_grey_in_the_graph(graph):
    joints = standing("lelbow")
    image = np.random.RandomState(0).randint(0, 256, (16, 16, 3)).astype(np.uint8)
    crops, has_part = batches.part_crops(image, joints, 1)
    examples = batches.Examples(*[tf.constant(a[np.newaxis]) for a in
                                  (image, batches.stick_figure(joints, 16), crops, has_part)])
    with tf.Session() as session:
        found = session.run(batches.to_float(examples))
    np.testing.assert_allclose(found.image[0], image / 127.5 - 1, atol=1e-6)
    assert not found.parts[..., 6:12].any() and found.parts[..., :6].any()
    assert {float(found.stick.min()), float(found.stick.max())} == {-1.0, 1.0}


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
    loaded = batches.load_image(path, 32)
    assert loaded.shape == (32, 32, 3) and loaded.dtype == np.uint8
    exact = batches.load_image(path, 20)[:, :, 0].astype(float).mean()
    assert abs(exact - np.asarray(image.convert("RGB"))[..., 0].mean()) < 6


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    values = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    for name, array in (("grey.png", values), ("colour.png", np.dstack([values] * 3))):
        path = str(tmp_path / name)
        cv2.imwrite(path, array)
        np.testing.assert_allclose(batches.load_image(path, 64)[..., 1], values / 257.0, atol=1.5)


def test_shrinking_averages_over_areas(tmp_path):
    checkerboard = (np.indices((64, 64)).sum(axis=0) % 2 * 255).astype(np.uint8)
    path = str(tmp_path / "checkerboard.png")
    Image.fromarray(checkerboard).save(path)
    inner = batches.load_image(path, 16)[2:-2, 2:-2]
    assert inner.min() > 120 and inner.max() < 135


@pytest.mark.parametrize("damage", ["missing", "truncated.jpg", "truncated.png", "text", "empty", "folder"])
def test_images_that_are_none_are_named(tmp_path, damage):
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
        batches.load_image(str(path), 16)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


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
    (dict(joints=None), "there is no key 'joints'"), (dict(imgs=None), "there is no key 'imgs'"),
    (dict(imgs=["a.png"] * 3), "unequal length: imgs has 3, joints has 4, train has 4"),
    (dict(joint_order=list(JOINTS)[:-1]), "there is no joint 'cnose'"),
    (dict(joint_order=list(JOINTS) + ["leye"]), "'leye' stands there 2 times"),
    (dict(joint_order=7), "joint_order: expected a list of names, found int"),
    (dict(joints=[standing()[:-1]] * 4), r"joints\[0\]: expected shape \(15, 2\), found \(14, 2\)"),
    (dict(joints=[standing(), standing() * np.nan] * 2), r"joints\[1\]: expected finite"),
    (dict(joints=[standing(), [["a", "b"]] * 15] * 2), r"joints\[1\]: expected numbers"),
    (dict(joints=[standing(), standing()[:-1]] * 2), r"joints\[1\]: expected shape \(15, 2\), found \(14, 2\)"),
    (dict(joints=[standing() * 1e300] * 4), r"joints\[0\]: expected finite"),
    (dict(joints=[standing() * 256] * 4), "joints: expected shares of width and height.*as of pixels"),
    (dict(imgs=["a", ["b", "c"], "d", "e"]), r"imgs\[1\]: expected a path, found \['b', 'c'\]"),
    (dict(imgs=[np.zeros((50, 50))] * 4), r"imgs\[0\]: expected a path, found array"),
    (dict(train=np.zeros((4, 40))), r"train\[0\]: expected true or false, found array"),
    (dict(joints=5), "joints: expected a list, found int"), (dict(train="yes"), "train: expected a list, found str"),
    (dict(train=[True, 2, False, None]), r"train\[1\]: expected true or false, found 2"),
    (dict(imgs=["a", 3, "", "b"]), r"imgs\[1\]: expected a path, found 3"),
    (dict(imgs=[], train=[], joints=[]), "imgs: the list is empty")])
def test_every_fault_of_an_index_is_named(tmp_path, changes, message):
    path = make_index(tmp_path, **changes)
    with pytest.raises(UserError, match=message) as error:
        Index(path)
    assert str(error.value).startswith(path) and "\n" not in str(error.value)


@pytest.mark.parametrize("split, train, name", [("train", [False] * 4, "training"), ("test", [True] * 4, "test")])
def test_a_split_without_people_is_named(tmp_path, split, train, name):
    index = Index(make_index(tmp_path, train=train))
    with pytest.raises(UserError, match="no usable %s image" % name):
        index.usable(split)


def test_a_missing_index_says_how_to_get_data(tmp_path):
    with pytest.raises(UserError, match="download_data.sh.*make_toy.py"):
        Index(str(tmp_path / "index.p"))


# ---------------------------------------------------------------------------------------------- the pipeline

def test_a_pass_shows_every_image_once_and_fills_up_from_its_front():
    order = BatchOrder(range(100, 110), batch_size=4, seed=3)
    for epoch in range(3):
        numbers = np.concatenate([order.batch(3 * epoch + k) for k in range(3)])
        assert sorted(numbers[:10]) == list(range(100, 110))
        np.testing.assert_array_equal(numbers[10:], numbers[:2])
    assert list(order.batch(0)) != list(order.batch(3))


def test_the_order_is_a_function_of_seed_and_epoch():
    order, same, other = (BatchOrder(range(50), 8, seed) for seed in (1, 1, 2))
    order.batch(3)
    for k in (20, 0, 7):
        np.testing.assert_array_equal(order.batch(k), same.batch(k))
    assert list(order.batch(0)) != list(other.batch(0))


def test_small_sets_go_round():
    order = BatchOrder([5, 6, 7], batch_size=8, seed=0)
    assert sorted(set(order.batch(4))) == [5, 6, 7] and len(order.batch(4)) == 8
    assert len(order.front(20)) == 20


def run_pipeline(load, order, first, n):
    with tf.Graph().as_default(), tf.Session() as session:
        iterator = tf.data.make_initializable_iterator(batches.pipeline(load, order, first, n))
        batch = iterator.get_next()
        session.run(iterator.initializer)
        return [session.run(batch) for _ in range(n)]


def test_the_pipeline_gives_the_batches_of_the_order_from_any_place(tmp_path):
    load = Loader(Index(make_index(tmp_path, n=9)), 16, 1)
    order = BatchOrder(range(9), 4, seed=0)
    for k, found in enumerate(run_pipeline(load, order, 2, 5)):
        for a, b in zip(found, load.batch(order.batch(2 + k))):
            assert a.dtype == np.uint8
            np.testing.assert_array_equal(a, b)


@pytest.mark.skipif(batches.cpu_count() < 2, reason="TensorFlow starts as many threads as there are cores")
def test_images_are_loaded_in_several_threads(tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "cpu_count", lambda: 2)
    load = Loader(Index(make_index(tmp_path)), 16, 1)
    together = threading.Barrier(2)

    class Waiting(object):
        shapes = load.shapes

        def __call__(self, number):
            together.wait(timeout=60)
            return load(number)
    assert len(run_pipeline(Waiting(), BatchOrder(range(4), 4, 0), 0, 2)) == 2


def test_a_broken_image_stops_the_pipeline_and_is_remembered(tmp_path):
    load = Loader(Index(make_index(tmp_path)), 16, 1)
    (tmp_path / "images" / "2.png").write_bytes(b"no image")
    with pytest.raises(tf.errors.OpError):
        run_pipeline(load, BatchOrder(range(4), 2, 0), 0, 2)
    assert "2.png: cannot be read as an image" in str(load.failure)


def test_all_joints_have_a_number():
    assert [J[name] for name in JOINTS] == list(range(15))
