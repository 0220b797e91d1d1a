import os
import sys
import threading

import cv2
import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from helpers import PICTURES, make_index, standing

import batches
from batches import BatchOrder, Loader
from dataset.index import JOINTS, Index, J

HERE = os.path.dirname(os.path.abspath(__file__))
GOLDEN = np.load(os.path.join(HERE, "golden", "batches.npz"))
CASES = [name[len("image/"):] for name in GOLDEN.files if name.startswith("image/")]


# ------------------------------------------------------------------------------- stick figures and part crops

def part_crops(image, joints, s):
    """Crops and has_part of one image."""
    crops, has_part = batches.part_crops(image[np.newaxis], joints[np.newaxis], s)
    return crops[0], has_part[0]


@pytest.mark.parametrize("case", CASES)
def test_stick_figures_equal_the_published_ones(case):
    figure = batches.stick_figure(GOLDEN["joints/" + case].astype(np.float32), 128)
    assert (figure != GOLDEN["stick/" + case]).mean() < 1e-3


@pytest.mark.parametrize("case", CASES)
def test_part_crops_equal_the_published_ones(case):
    crops, has_part = part_crops(GOLDEN["image/" + case], GOLDEN["joints/" + case].astype(np.float32), 64)
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
    crops, has_part = part_crops(image, joints, 64)
    crop = crops[..., 3 * 3:3 * 4]
    assert has_part[3]
    assert (crop[32, 8] == (255, 0, 0)).all() and (crop[32, 56] == (0, 255, 0)).all()


@pytest.mark.parametrize("missing, parts", [
    ((), [1] * 8), (("lelbow",), [1, 1, 0, 0, 1, 1, 1, 1]), (("rwrist",), [1, 1, 1, 1, 1, 0, 1, 1]),
    (("lknee", "rknee", "cnose"), [1] * 8), (("lhip",), [0, 1, 1, 1, 1, 1, 0, 1]),
    (("lshoulder",), [0, 0, 0, 1, 1, 1, 1, 1])])
def test_parts_without_their_joints_are_missing(missing, parts):
    crops, has_part = part_crops(np.full((32, 32, 3), 200, np.uint8), standing(*missing), 32)
    assert list(has_part) == parts
    assert [bool(crops[..., 3 * i:3 * i + 3].any()) for i in range(8)] == [bool(part) for part in parts]


def test_edges_of_jittered_pictures_move_by_their_share_and_half_are_mirrored():
    image = np.zeros((40, 40, 3), np.uint8)
    image[10:30, 8:20] = 255  # rows 0.25 to 0.75, columns 0.2 to 0.5
    images = np.stack([image] * 400)
    still = batches.jittered(images, 0.0, np.random.RandomState(0))
    mirrored = np.array([(picture == image[:, ::-1]).all() for picture in still])
    assert 150 < mirrored.sum() < 250 and all((picture == image).all() for picture in still[~mirrored])

    moved = batches.jittered(images, 0.1, np.random.RandomState(0))
    rows = np.array([np.flatnonzero(picture[..., 0].max(axis=1) > 127)[[0, -1]] + [0, 1] for picture in moved]) / 40
    columns = np.array([np.flatnonzero(picture[..., 0].max(axis=0) > 127)[[0, -1]] + [0, 1] for picture in moved]) / 40
    columns[mirrored] = 1 - columns[mirrored, ::-1]  # the same random numbers, so the same ones
    for found, before in ((rows, (0.25, 0.75)), (columns, (0.2, 0.5))):
        changes = np.abs(found - before).max(axis=0)
        assert (changes > 0.05).all() and (changes < 0.1 + 0.5 / 40 + 1e-6).all()
        assert np.std(found[:, 1] - found[:, 0]) > 0.01  # stretched, not only shifted


def test_two_joints_at_one_point_make_a_missing_part():
    _, has_part = part_crops(np.full((32, 32, 3), 200, np.uint8),
                             standing(lelbow=(.6, .3), rhip=(.58, .55), cnose=(.5, .3)), 32)
    assert list(has_part) == [0, 0, 0, 1, 1, 1, 1, 1]


def test_missing_parts_are_exactly_grey_in_the_graph(graph):
    joints = standing("lelbow")
    image = np.random.RandomState(0).randint(0, 256, (16, 16, 3)).astype(np.uint8)
    crops, has_part = part_crops(image, joints, 8)
    examples = batches.Examples(*[tf.constant(a[np.newaxis]) for a in
                                  (image, batches.stick_figure(joints, 16), crops, has_part)])
    with tf.Session() as session:
        found = session.run(batches.to_float(examples))
    np.testing.assert_allclose(found.image[0], image / 127.5 - 1, atol=1e-6)
    assert not found.appearance[..., 6:12].any() and found.appearance[..., :6].any()
    assert {float(found.shape_image.min()), float(found.shape_image.max())} == {-1.0, 1.0}


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
        iterator = tf.data.make_initializable_iterator(batches.pipeline(load, order, first, n_batches=n))
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

    class Waiting:
        shapes = load.shapes

        def __call__(self, numbers, seed):
            together.wait(timeout=60)
            return load(numbers, seed)
    assert len(run_pipeline(Waiting(), BatchOrder(range(4), 4, 0), 0, 2)) == 2


def test_tensorflow_does_not_rewrite_the_loading(tmp_path):
    """TensorFlow 1.15 would turn Python's part into graph code, in each call, at a hundred times the cost."""
    load = Loader(Index(make_index(tmp_path)), 16, 1)
    callers = []

    class Watching:
        shapes = load.shapes

        def __call__(self, numbers, seed):
            callers.append(sys._getframe().f_back.f_code.co_filename)
            assert sys._getframe().f_code.co_filename == __file__
            return load(numbers, seed)
    run_pipeline(Watching(), BatchOrder(range(4), 4, 0), 0, 2)
    assert len(callers) >= 2 and {os.path.basename(name) for name in callers} == {"batches.py"}


def test_jitter_is_the_same_from_any_place_and_another_one_for_every_batch_and_worker(bag_index):
    load = Loader(Index(bag_index), 16, 1, **PICTURES, jitter=0.2)
    order, second = (BatchOrder([3], 1, seed=0, worker=worker, n_workers=2) for worker in range(2))
    whole = run_pipeline(load, order, 0, 6)
    for a, b in zip(whole[2:] + whole[:2], run_pipeline(load, order, 2, 4) + run_pipeline(load, order, 0, 2)):
        np.testing.assert_array_equal(a.appearance, b.appearance)
    appearances = [batch.appearance for batch in whole + run_pipeline(load, second, 0, 2)]
    assert len({appearance.tobytes() for appearance in appearances}) == 8
    plain = load.batch([3])
    for batch in whole:  # only what the encoder sees is jittered
        np.testing.assert_array_equal(batch.image, plain.image)
        np.testing.assert_array_equal(batch.shape_image, plain.shape_image)
    np.testing.assert_array_equal(plain.appearance, Loader(Index(bag_index), 16, 1, **PICTURES).batch([3]).appearance)


def test_a_broken_image_stops_the_pipeline_and_is_remembered(tmp_path):
    load = Loader(Index(make_index(tmp_path)), 16, 1)
    (tmp_path / "images" / "2.png").write_bytes(b"no image")
    with pytest.raises(tf.errors.OpError):
        run_pipeline(load, BatchOrder(range(4), 2, 0), 0, 2)
    assert "2.png: cannot be read as an image" in str(load.failure)


def test_all_joints_have_a_number():
    assert [J[name] for name in JOINTS] == list(range(15))
