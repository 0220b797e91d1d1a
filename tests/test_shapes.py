"""Shapes that are pictures: the index, the loader, the toy of bags, every mode; appearances that are whole or none."""
import collections
import json
import os
import pickle
import re
import shutil
import zipfile

import numpy as np
import pytest
from helpers import PICTURES, exit_code, make_index, only_run, save_openpose, standing
from PIL import Image

import main
from batches import BatchOrder, Loader
from common.errors import UserError
from dataset import bags
from dataset.index import Index, as_shape, index_faults, is_grey, load_shape, open_index
from inference.networks import open_network
from tools import check_index
from training.config import load_config


def save(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(pixels, np.uint8)).save(str(path))
    return str(path)


# ---------------------------------------------------------------------------------------------- the index

def changed(path, **changes):
    """The dict of an index with some keys changed, or dropped where None."""
    with open(path, "rb") as file:
        data = dict(pickle.load(file), **changes)
    return {key: value for key, value in data.items() if value is not None}


def test_an_index_of_shapes_needs_no_joints(bag_index):
    index = Index(bag_index)
    assert index.joints is None and len(index.shapes) == len(index.images) == 24
    assert len(index.usable("train")) == len(index.usable("test")) == 12
    assert index_faults(changed(bag_index)) == []


@pytest.mark.parametrize("changes, fault", [
    ({"shapes": None}, "there is no key 'joint_order'"), ({"shapes": 3}, "shapes: expected a list, found int"),
    ({"shapes": ["a.png"]}, "lists of unequal length: imgs has 24, shapes has 1, train has 24"),
    ({"shapes": ["../a.png"] * 24}, "shapes[0]: ../a.png leaves the folder of the index"),
    ({"shapes": [7] * 24}, "shapes[0]: expected a path, found 7"),
    ({"joints": [[(0, 0)]] * 24}, "there is no key 'joint_order'"),
    ({"black_on_white": "yes"}, "black_on_white: expected true or false, found yes")])
def test_faults_of_shapes_are_named(bag_index, changes, fault):
    assert any(found.startswith(fault) for found in index_faults(changed(bag_index, **changes)))


def test_what_the_config_needs_and_the_index_lacks_is_named(bag_index, toy, small_config):
    for index, changes, key in ((bag_index, {}, "joints"), (bag_index, {"shape": "picture"}, "joints"),
                                (str(toy / "index.p"), PICTURES, "shapes")):
        with pytest.raises(UserError, match=f"there is no key '{key}', which the config's shape and appearance need"):
            open_index(load_config(small_config(data_index=index, **changes)))


def test_images_without_torso_are_used_where_joints_are_not(tmp_path):
    names = [save(tmp_path / "shapes" / f"{i}.png", np.zeros((20, 10)))[len(str(tmp_path)) + 1:] for i in range(4)]
    path = make_index(tmp_path, shapes=names, joints=[np.full((15, 2), -1.0)] * 4)
    assert len(Index(path, needs=["shapes"]).usable("train")) == 2
    with pytest.raises(UserError, match="none of those shows both hips"):
        Index(path, needs=["joints"]).usable("train")


# ---------------------------------------------------------------------------------------------- shape images

@pytest.mark.parametrize("size", [16, 20, 64, 100])
@pytest.mark.parametrize("dark", [False, True])
def test_lines_of_one_pixel_survive(tmp_path, size, dark):
    drawing = np.zeros((64, 96), np.uint8)
    drawing[:, 41] = drawing[17] = 255
    path = save(tmp_path / "lines.png", 255 - drawing if dark else drawing)
    shape = load_shape(path, size, dark)
    np.testing.assert_array_equal(shape, load_shape(path, size))  # judged by its brightness
    assert shape.shape == (size, size, 3) and is_grey(shape)
    column, row = 41 * size // 96, 17 * size // 64
    if size <= 64:
        assert (shape[:, column] == 255).all() and (shape[row] == 255).all()
        assert (shape > 0).mean() < 5 / size
    else:
        assert shape.max() > 200


def test_colours_are_kept(tmp_path):
    regions = np.zeros((40, 40, 3), np.uint8)
    regions[:20], regions[20:] = (255, 0, 0), (250, 250, 0)
    shape = load_shape(save(tmp_path / "regions.png", regions), 16, True)
    assert tuple(shape[2, 2]) == (255, 0, 0) and tuple(shape[14, 2]) == (250, 250, 0)


def test_sketches_of_ones_own_are_lines_on_white(tmp_path):
    strokes = np.zeros((32, 32, 4), np.uint8)
    strokes[10:12, 4:28, 3] = 255  # black on nothing, as drawing programs save it
    shape = load_shape(save(tmp_path / "strokes.png", strokes), 32)
    assert shape[10, 10, 0] == 255 and shape[20, 10, 0] == 0
    blue = np.full((32, 32, 3), 255, np.uint8)
    blue[10:12, 4:28] = (30, 40, 200)
    path = save(tmp_path / "blue.png", blue)
    assert load_shape(path, 32).mean() > 200  # a coloured picture, unless the network knows lines only
    shape = load_shape(path, 32, lines=True)
    assert shape[10, 10, 0] > 150 and shape[20, 10, 0] == 0


def test_an_index_says_once_whether_lines_are_dark(tmp_path):
    drawing = np.full((32, 32), 255, np.uint8)
    drawing[4:28, 4:28] = 0  # mostly dark, and yet black on white
    names = [save(tmp_path / "shapes" / f"{i}.png", drawing)[len(str(tmp_path)) + 1:] for i in range(4)]
    path = make_index(tmp_path, shapes=names, joints=None, joint_order=None, black_on_white=True)
    assert Index(path).shape_image(0, 32)[16, 16, 0] == 255 and Index(path).shape_image(0, 32)[1, 1, 0] == 0


@pytest.mark.parametrize("content", [b"", b"no image", None])
def test_a_damaged_shape_image_is_named(tmp_path, content, capsys, monkeypatch):
    monkeypatch.chdir(str(tmp_path))
    names = [f"shapes/{i}.png" for i in range(4)]
    for name in names:
        save(tmp_path / name, np.zeros((8, 8)))
    path = make_index(tmp_path, shapes=names, joints=None, joint_order=None)
    (tmp_path / names[1]).unlink()
    if content is not None:
        (tmp_path / names[1]).write_bytes(content)
    load = Loader(Index(path), 16, 1, **PICTURES)
    assert load([0]).shape_image.shape == (1, 16, 16, 3)
    with pytest.raises(UserError, match=r"shapes/1\.png"):
        load([0, 1])
    assert exit_code(check_index, path) == 2 and "shapes/1.png" in capsys.readouterr().err


@pytest.mark.parametrize("pattern, begin", [("plain", 0.85), ("halves", 0.5), ("stripes", 0.2)])
def test_the_second_colour_begins_at_the_same_height_of_bags_and_shoes(pattern, begin):
    look = bags.Look((200, 0, 0), (0, 0, 200), pattern, (200, 200, 0))
    for number in range(8):
        outline = bags.make_outline(0, number)
        picture = bags.draw(look, outline)[0]
        rows = np.flatnonzero(((picture[..., 2] > 150) & (picture[..., 0] < 50)).any(axis=1))
        top, bottom = (bags.SIZE * y for y in outline.body)
        assert abs(rows.min() - top - begin * (bottom - top)) < 2 or outline.parts[-2][0] == bags.FLAP
        assert rows.min() >= top + begin * (bottom - top) - 1


def test_examples_of_every_kind(bag_index, toy):
    of_bags = Loader(Index(bag_index), 16, 1, **PICTURES)([0, 5])
    assert of_bags.appearance.shape == (2, 8, 8, 3) and of_bags.has_part.tolist() == [[1], [1]]
    np.testing.assert_allclose(of_bags.appearance.mean(), of_bags.image.mean(), atol=2)
    index = Index(str(toy / "index.p"))
    number = index.usable("train")[0]
    parts, whole, none = (Loader(index, 16, 1, appearance=appearance)([number])
                          for appearance in ("parts", "picture", "none"))
    np.testing.assert_array_equal(parts.shape_image, whole.shape_image)
    assert whole.appearance.shape == (1, 8, 8, 3) and none.appearance.shape == (1, 8, 8, 0)
    assert parts.appearance.shape == (1, 8, 8, 24)


# ---------------------------------------------------------------------------------------------- the toy

def test_bags_are_the_same_for_the_same_seed(bag_index):
    index = Index(bag_index)
    for number in (0, 5, 23):
        outline = bags.make_outline(0, number)
        assert outline.is_bag == (number % 2 == 0)
        picture, mask = bags.draw(bags.make_look(0, number // 4), outline)
        np.testing.assert_array_equal(index.image(number, 64), picture)
        np.testing.assert_array_equal(index.shape_image(number, 64)[..., 0], bags.edges(outline))
        assert 0.05 < mask.mean() < 0.5 and 0.02 < (bags.edges(outline) > 0).mean() < 0.2
    assert bags.is_bags(24, index.extra) and not bags.is_bags(25, index.extra)


@pytest.mark.parametrize("key, value", [
    ("toy_drawing", None), ("toy_drawing", 1), ("toy_drawing", np.array([2, 2])), ("toy_kind", np.array(["bags", "x"])),
    ("toy_seed", 2**32), ("person", [np.zeros(2)] * 24), ("person", np.zeros(24, int))])
def test_an_index_that_is_not_of_this_toy_is_not_taken_for_it(bag_index, key, value):
    assert not bags.is_bags(24, dict(Index(bag_index).extra, **{key: value}))


def test_the_truth_has_no_error_and_a_leak_is_seen():
    usable = {"train": np.arange(40), "test": np.arange(40, 80)}

    def truth(appearances, shapes, leak=0.0):
        pictures = [bags.draw(bags.make_look(0, a // 4), bags.make_outline(0, b))[0] / 127.5 - 1
                    for a, b in zip(appearances, shapes)]
        sources = [bags.draw(bags.make_look(0, a // 4), bags.make_outline(0, a))[0] / 127.5 - 1 for a in appearances]
        noise = np.random.RandomState(0).normal(0, 0.02, np.shape(pictures))
        return (1 - leak) * np.array(pictures) + leak * np.array(sources) + noise

    exact = bags.transfer_errors(lambda a, b: truth(a, b), usable, 0, n=40)
    leaky = bags.transfer_errors(lambda a, b: truth(a, b, 0.3), usable, 0, n=40)
    assert exact["bag to bag"] < 0.02 and exact["shoe to bag"] < 0.02 < 0.2 < exact["mean appearance"]
    assert exact["shows through"] < 1.1 * exact["beside"] and leaky["shows through"] > 2 * leaky["beside"]
    assert 0.01 < exact["outside"] < 0.02


def test_every_held_out_thing_gives_its_look_equally_often():
    asked = []

    def render(appearances, shapes):
        asked.append((appearances, shapes))
        return np.zeros((len(shapes), 64, 64, 3))

    bags.transfer_errors(render, {"train": np.arange(40), "test": np.arange(40, 60)}, 0, n=30, n_mean=2)
    of_bags, of_shoes = asked[1:]
    for first, found in ((40, of_bags[0]), (40, of_bags[1]), (41, of_shoes[0]), (40, of_shoes[1])):
        assert collections.Counter(found) == dict.fromkeys(range(first, 60, 2), 3)
    with pytest.raises(UserError, match="expected bags and shoes in the test split, found 10 and 0"):
        bags.transfer_errors(render, {"train": np.arange(40), "test": np.arange(40, 60, 2)}, 0)


def test_the_spread_of_true_looks_is_theirs_and_that_of_their_mean_is_none():
    usable = {"train": np.arange(400), "test": np.arange(400, 440)}

    def true(targets, k):
        return np.array([bags.draw(bags.make_look(1, 8 * number + k), bags.make_outline(0, number))[0] / 127.5 - 1
                         for number in targets])

    of_samples, of_truth = bags.colour_spreads(true, usable, 0, n=10)
    assert 0.7 < of_samples / of_truth < 1.4
    assert bags.colour_spreads(lambda targets, k: true(targets, 0), usable, 0, n=10)[0] < 1e-6


# ---------------------------------------------------------------------------------------------- every mode

def test_a_training_on_shapes_says_how_it_went(trained_on_bags):
    run, config = trained_on_bags
    shapes = np.asarray(Image.open(str(run / "c_0000001.png")))
    assert is_grey(shapes) and shapes.max() == 255 and (run / "transfer_0000004.png").exists()
    assert "eval_ssim_transfer: " in (run / "log.txt").read_text()


@pytest.mark.slow
def test_bags_of_the_toys_size_are_compared_with_the_truth(bag_index, tmp_path, small_config, capsys):
    config = small_config(data_index=bag_index, spatial_size=64, bottleneck_factor=3, **PICTURES)
    assert exit_code(main, "--config", config, "--log_dir", tmp_path / "log") == 0
    out = capsys.readouterr().out
    assert re.search(r"transfer error on held-out bags, shoe to bag: \d\.\d+; of the mean training appearance: ", out)
    assert "spread of the colours of samples: " in out and "outside of the bag: " in out


def test_evaluate_leaves_joints_out(trained_on_bags, tmp_path, capsys):
    run, _ = trained_on_bags
    assert exit_code(main, "--mode", "evaluate", "--checkpoint", run, "--log_dir", tmp_path / "log", "--save") == 0
    metrics = json.loads((only_run(tmp_path / "log") / "metrics.json").read_text())
    assert metrics["reconstruction"]["n"] == 12 and metrics["transfer"]["n"] == 36
    assert metrics["joints"] == {"why_not": "shape: picture"} and metrics["consistency"]["one_person"]["std"] > 0
    assert "Table 2, joints: left out: shape: picture" in capsys.readouterr().out


def test_images_of_ones_own_are_taken_whole(trained_on_bags, tmp_path, capsys):
    run, _ = trained_on_bags
    sketch = np.full((40, 30), 255, np.uint8)
    sketch[5:35, 8] = sketch[5:35, 22] = 0
    pose = save(tmp_path / "sketch.png", sketch)
    photo = save(tmp_path / "photos" / "photo.png", np.full((20, 30, 3), (200, 30, 60), np.uint8))
    (tmp_path / "photos" / "broken.png").write_bytes(b"x")
    assert exit_code(main, "--mode", "transfer", "--checkpoint", run, "--appearance", tmp_path / "photos", 3, "--pose",
                     pose, 2, "--log_dir", tmp_path / "log", "--aspect", "square") == 0
    folder = only_run(tmp_path / "log")
    grid = np.asarray(Image.open(str(folder / "transfer_0.png")))
    assert grid.shape == (3 * 16, 3 * 16, 3)
    np.testing.assert_array_equal(grid[:16, 16:32], load_shape(pose, 16))
    np.testing.assert_allclose(grid[20, 4], (200, 30, 60), atol=2)
    assert "broken.png: left out: " in capsys.readouterr().out
    for item, words in (("dance.mp4", "expected an image"), ("pose.json", "expected an image")):
        (tmp_path / item).write_bytes(b"{}")
        assert exit_code(main, "--mode", "transfer", "--checkpoint", run, "--appearance", photo, "--pose",
                         tmp_path / item) == 2
        assert words in capsys.readouterr().err
    assert exit_code(main, "--mode", "transfer", "--checkpoint", run, "--appearance", photo, "--pose", pose, "--mix",
                     f"torso={photo}") == 2
    assert "--mix: needs joints" in capsys.readouterr().err


def test_a_broken_shape_is_left_out(bag_index, trained_on_bags, tmp_path, small_config, capfd):
    data = tmp_path / "data"
    shutil.copytree(os.path.dirname(bag_index), str(data))
    index = Index(str(data / "index.p"))
    broken = index.usable("test")[0]
    os.remove(str(data / index.shapes[broken]))
    config = small_config(data_index=index.path, **PICTURES, eval_freq=2, eval_images=24, seed=1)
    assert exit_code(main, "--mode", "evaluate", "--checkpoint", trained_on_bags[0], "--config", config, "--log_dir",
                     tmp_path / "log") == 0
    metrics = json.loads((only_run(tmp_path / "log") / "metrics.json").read_text())
    assert metrics["reconstruction"]["n"] == metrics["sampling"]["n"] == 11 and len(metrics["left_out"]) == 1
    assert index.shapes[broken] in capfd.readouterr().err
    first_batch = set(BatchOrder(index.usable("test"), 2, 1).batch(0))
    assert broken not in first_batch  # or the training could not start
    assert exit_code(main, "--config", config, "--log_dir", tmp_path / "train") == 0


def test_shapes_beside_parts_need_both(tmp_path, small_config):
    names = [save(tmp_path / "shapes" / f"{i}.png", np.eye(20) * 255)[len(str(tmp_path)) + 1:] for i in range(4)]
    config = small_config(data_index=make_index(tmp_path, shapes=names), shape="picture")
    assert exit_code(main, "--config", config, "--log_dir", tmp_path / "train") == 0
    run = only_run(tmp_path / "train")
    photo = save(tmp_path / "me.png", np.full((40, 40, 3), 90, np.uint8))
    save_openpose(tmp_path / "me_keypoints.json", standing() * 40)
    for options in (["transfer"], ["animate", "--fps", 4]):
        assert exit_code(main, "--mode", *options, "--checkpoint", run, "--appearance", photo, "--pose", "2-3",
                         str(tmp_path / "shapes" / "1.png"), "--log_dir", tmp_path / options[0]) == 0


def test_shapes_follow_one_another_in_an_animation(trained_on_bags, tmp_path):
    run, _ = trained_on_bags
    assert exit_code(main, "--mode", "animate", "--checkpoint", run, "--appearance", 1, 2, "--pose", "0-3", "--fps", 10,
                     "--seconds_per_pose", 0.3, "--log_dir", tmp_path / "log") == 0
    with Image.open(str(only_run(tmp_path / "log") / "animation.gif")) as gif:
        assert gif.n_frames == 4 * 3


def test_samples_and_a_network_file_of_shapes(trained_on_bags, tmp_path):
    run, config = trained_on_bags
    assert exit_code(main, "--mode", "test", "--checkpoint", run, "--batches", 1, "--log_dir", tmp_path / "log") == 0
    out = tmp_path / "bags.vunet.zip"
    assert exit_code(main, "--mode", "export", "--checkpoint", run, "--out", out) == 0
    with open_network(str(out)) as network:
        assert network.checkpoint().step() == 4
    assert exit_code(main, "--mode", "test", "--checkpoint", out, "--config", config, "--batches", 1, "--log_dir",
                     tmp_path / "log2") == 0


def test_a_sketch_of_any_size_is_a_shape():
    image = Image.fromarray(np.eye(7, 300, dtype=np.uint8) * 255).convert("RGB")
    assert as_shape(image, 16).max() == 255


# ---------------------------------------------------------------------------------------------- the paper's ablations

@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"appearance": "picture"}, {"appearance": "none"},
                                     {"kl_weight_begin": 0, "kl_weight_end": 0}])
def test_ablations_train_evaluate_and_go_into_a_file(changes, tmp_path, small_config):
    config = small_config(eval_freq=4, **changes)
    assert exit_code(main, "--config", config, "--log_dir", tmp_path / "log") == 0
    run = only_run(tmp_path / "log")
    assert exit_code(main, "--mode", "evaluate", "--checkpoint", run, "--log_dir", tmp_path / "evaluation") == 0
    metrics = json.loads((only_run(tmp_path / "evaluation") / "metrics.json").read_text())
    assert np.isfinite(metrics["transfer"]["ssim"]["mean"])
    if changes.get("appearance") == "none":  # all appearances are the same
        pictures = np.asarray(Image.open(str(run / "transfer_0000004.png")))
        np.testing.assert_array_equal(pictures[16:32, 16:], pictures[32:48, 16:])
        assert "kl_loss: 0.0" in (run / "log.txt").read_text()
    assert exit_code(main, "--mode", "export", "--checkpoint", run, "--out", tmp_path / "mine.vunet.zip") == 0
    with zipfile.ZipFile(str(tmp_path / "mine.vunet.zip")) as archive:
        assert ("encode" in archive.read("README.md").decode()) == (changes.get("appearance") != "none")
