"""The mode evaluate: its figures against other implementations, its pairs, what it saves, and what it survives."""
import json
import os
import shutil
import tracemalloc

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from helpers import exit_code, make_index, only_run, standing
from PIL import Image
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from tqdm import tqdm

import main
from common.errors import UserError
from dataset.index import Index, load_image
from dataset.toy import draw, make_person, make_pose
from deeploss import PerceptualLoss, load_weights
from inference import evaluation, tables
from inference.evaluation import Comparison, Evaluation, Rendering, batches_of, renderings_of
from inference.items import by_person, choose_items, find_pairs, spread
from inference.metrics import consistency
from inference.tables import AppearanceFeatures
from training.config import load_config


def evaluate(run, log_dir, *options):
    """metrics.json and the folder of an evaluation."""
    assert exit_code(main, "--mode", "evaluate", "--checkpoint", str(run), "--log_dir", str(log_dir), *options) == 0
    folder = only_run(log_dir)
    return json.loads((folder / "metrics.json").read_text()), folder


# ---------------------------------------------------------------------------------------------- figures

def noisy_pictures(n, size):
    random = np.random.RandomState(0)
    coarse = random.randint(0, 256, (n, size // 8, size // 8, 3)).astype(np.uint8)
    real = np.stack([np.asarray(Image.fromarray(picture).resize((size, size), Image.BICUBIC)) for picture in coarse])
    noise = random.normal(scale=np.linspace(1, 60, n)[:, None, None, None], size=real.shape)
    return real, (real + noise).clip(0, 255).astype(np.uint8)


@pytest.fixture
def comparison(small_config):
    """Compares up to 6 pictures of 32 pixels."""
    config = load_config(small_config(batch_size=6, spatial_size=32, precision="mixed"))  # which it must not heed
    with Comparison(config, load_weights("random", config["feature_layers"])) as compare:
        yield lambda real, made: compare(np.concatenate([real, made]), [(i, len(real) + i) for i in range(len(real))])


def test_similarities_are_scikit_images(comparison):
    real, made = noisy_pictures(6, 32)
    found = comparison(real, made)
    for i in range(6):
        ssim = structural_similarity(real[i], made[i], gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
                                     data_range=255, channel_axis=-1)
        assert abs(found["ssim"][i] - ssim) < 1e-3
        assert abs(found["psnr"][i] - peak_signal_noise_ratio(real[i], made[i], data_range=255)) < 1e-3
        np.testing.assert_allclose(found["mae"][i], np.abs(real[i].astype(float) - made[i]).mean(), rtol=1e-5)
    assert found["ssim"].max() > 0.95 and found["ssim"].min() < 0.7


def test_equal_pictures_are_as_alike_as_can_be(comparison):
    real, _ = noisy_pictures(4, 32)  # fewer than a batch
    found = comparison(real, real)
    np.testing.assert_allclose(found["ssim"], np.ones(4), atol=1e-6)
    assert (found["mae"] == 0).all() and (found["perceptual_loss"] == 0).all() and (found["psnr"] == 100).all()


def test_the_perceptual_loss_of_images_has_the_mean_that_training_minimises(graph):
    random = np.random.RandomState(0)
    layers = ["input_1", "block1_conv2", "block2_conv1"]
    loss = PerceptualLoss(load_weights("random", layers), layers, [1.0, 0.5, 2.0], [0.0, 0.1, 0.2])
    x, y = (tf.constant(random.uniform(-1, 1, (3, 16, 16, 3)), tf.float32) for _ in range(2))
    of_images, of_batch = loss.per_image(loss.features(x), loss.features(y)), loss(x, y).likelihood_loss
    with tf.Session() as session:
        session.run(loss.load_op, loss.load_feed)
        of_images, of_batch = session.run([of_images, of_batch])
    assert of_images.shape == (3,) and of_images.std() > 0
    np.testing.assert_allclose(of_images.mean(), of_batch, rtol=1e-5)


# ---------------------------------------------------------------------------------------------- the paper's tables

class SeesEverybody:
    """In the place of the pose model: somebody stands in every picture."""

    def __call__(self, image):
        return [standing().astype(float) * image.size]

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        pass


def test_the_papers_tables_are_printed_beside_the_papers_figures(trained, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(evaluation, "Estimator", SeesEverybody)
    metrics, _ = evaluate(trained[0], tmp_path / "log", "--samples", 5)
    assert metrics["joints"]["reconstruction"] == {"n": 5, "error": 0.0, "found": 1.0, "pck": 1.0}
    assert metrics["joints"]["transfer"]["n"] >= 5
    found = metrics["consistency"]
    assert found["poses"] == 10 and 0 < found["std"] < found["max"] and found["neighbours"]["std"] < found["std"]
    assert 0 < found["one_person"]["std"] and found["one_person"]["groups"] == 3
    assert set(metrics["protocols"]) >= {"ssim", "ssim_flat51", "joints", "consistency"}
    out = capsys.readouterr().out
    for words in ("Table 1, reconstructions: SSIM ", "Table 2, joints of 5 pictures, reconstruction: 0.00 pixels",
                  "Market-1501 54.60", "Table 3, appearance: length of the standard deviation ", "55.95 and 125.99",
                  "ssim_flat51 is left out: pictures are smaller than its window of 51 pixels"):
        assert words in out, words


def test_made_pictures_are_not_looked_at_where_nobody_is_in_the_real_one():
    class SeesNobody(SeesEverybody):
        n = 0

        def __call__(self, image):
            self.n += 1
            return []

    estimator, picture = SeesNobody(), np.zeros((16, 16, 3), np.uint8)
    finder = tables.JointFinder(estimator)
    asked = estimator.n  # whether it works
    finder.note(picture, [("reconstruction", picture), ("transfer", picture)])
    assert estimator.n == asked + 1
    assert [finder.figures()[task]["n"] for task in ("reconstruction", "transfer")] == [0, 0]


def test_pictures_in_the_data_sets_own_aspect_are_compared_beside_the_squares(trained, tmp_path, small_config, capsys):
    random = np.random.RandomState(0)
    image = random.randint(0, 256, (20, 15, 3)).astype(np.uint8)
    index = make_index(tmp_path, n=6, image=image, person=[0] * 6)
    config = small_config(data_index=index)
    metrics, _ = evaluate(trained[0], tmp_path / "log", "--config", config, "--size", "own")
    own = metrics["own_size"]
    assert own["pixels"] == [12, 16] and own["reconstruction, own size"]["n"] == metrics["reconstruction"]["n"] == 3
    assert own["transfer, own size"]["ssim"]["mean"] != metrics["transfer"]["ssim"]["mean"]
    assert "own size: 12 x 16 pixels" in capsys.readouterr().out
    narrow = make_index(tmp_path, n=4)  # 10 x 20, which is 8 x 16
    options = ["--mode", "evaluate", "--checkpoint", trained[0], "--config", small_config(data_index=narrow), "--size",
               "own", "--log_dir", tmp_path / "none"]
    assert exit_code(main, *options) == 2
    assert "--size own: expected pictures of 11 pixels or more, found 8 x 16" in capsys.readouterr().err


def test_tables_that_cannot_be_had_are_left_out_with_the_reason(trained, tmp_path, capsys, monkeypatch):
    class Missing(SeesEverybody):
        def __call__(self, image):
            raise UserError("MediaPipe is not there")

    def no_weights(vgg_weights, layers):
        raise UserError("no weights for block5")

    monkeypatch.setattr(evaluation, "Estimator", Missing)
    monkeypatch.setattr(tables, "load_weights", no_weights)
    metrics, _ = evaluate(trained[0], tmp_path / "log", "--images", 2)
    assert metrics["joints"] == {"why_not": "MediaPipe is not there"}
    assert metrics["consistency"] == {"why_not": "no weights for block5"}
    out = capsys.readouterr().out
    assert "Table 2, joints: left out: MediaPipe is not there" in out
    assert "Table 3, appearance: left out: no weights for block5" in out


def test_one_person_is_more_consistent_than_several(small_config):
    config = load_config(small_config(spatial_size=64))
    with AppearanceFeatures(config) as features:
        same, different = [features(np.stack([draw(make_person(0, person), make_pose(0, k))[0]
                                              for k, person in enumerate(people)])) for people in ([3] * 8, range(8))]
    assert consistency([same])["std"] < 0.7 * consistency([different])["std"]


# ---------------------------------------------------------------------------------------------- the whole mode

def test_evaluate_without_a_config_prints_and_saves_figures_of_the_whole_split(trained, tmp_path, capsys):
    run, config = trained
    index = Index(load_config(config)["data_index"])
    metrics, folder = evaluate(run, tmp_path / "log")
    out = capsys.readouterr().out
    n = len(index.usable("test"))
    assert metrics["reconstruction"]["n"] == n and metrics["sampling"]["n"] == n
    assert metrics["transfer"]["n"] == len(find_pairs(index)[0]) > n and metrics["pairs_left_out"] == 0
    for task in ("reconstruction", "transfer"):
        assert -0.1 < metrics[task]["ssim"]["mean"] < 1 and 5 < metrics[task]["psnr"]["mean"] < 40
        assert "{:.4g} +- {:.3g}".format(metrics[task]["ssim"]["mean"], metrics[task]["ssim"]["std"]) in out
    assert "ssim" not in metrics["sampling"] and metrics["sampling"]["mae"]["mean"] > 0
    assert metrics["step"] == 4 and metrics["checkpoint"].endswith("model.ckpt-4")
    assert metrics["config"] == load_config(config) and metrics["left_out"] == []
    assert {path.name for path in folder.glob("*") if path.is_dir()} <= {"checkpoints", "source"}


def test_saved_pictures_have_equal_names_and_give_the_figures(trained, tmp_path):
    run, config = trained
    index = Index(load_config(config)["data_index"])
    metrics, folder = evaluate(run, tmp_path / "log", "--save")
    names = {name: {path.name for path in (folder / name).iterdir()}
             for name in ("real", "reconstruction", "transfer", "sample")}
    assert names["real"] == names["reconstruction"] == names["sample"] and names["transfer"] <= names["real"]
    assert len(names["real"]) == len(index.usable("test"))
    transfers = list(folder.glob("transfer*/*.png"))
    assert len(transfers) == metrics["transfer"]["n"]
    number = index.usable("test")[0]
    stem = os.path.splitext(os.path.basename(index.images[number]))[0]
    np.testing.assert_array_equal(np.asarray(Image.open(str(folder / "real" / (stem + ".png")))),
                                  load_image(index.image_path(number), 16))
    for task in ("reconstruction", "transfer"):
        paths = transfers if task == "transfer" else list((folder / task).iterdir())
        errors = [np.abs(np.asarray(Image.open(str(path)), float)
                         - np.asarray(Image.open(str(folder / "real" / path.name)), float)).mean() for path in paths]
        np.testing.assert_allclose(metrics[task]["mae"]["mean"], np.mean(errors), rtol=1e-4)
        np.testing.assert_allclose(metrics[task]["mae"]["std"], np.std(errors), rtol=1e-3)


def test_a_broken_image_is_named_and_the_rest_goes_on(trained, toy, tmp_path, small_config, capfd):
    run, _ = trained
    shutil.copytree(str(toy), str(tmp_path / "data"))
    index = Index(str(tmp_path / "data" / "index.p"))
    broken = index.usable("test")[1]
    with open(index.image_path(broken), "wb") as file:
        file.write(b"no image")
    config = small_config(data_index=index.path)
    metrics, _ = evaluate(run, tmp_path / "log", "--config", config)
    out, err = capfd.readouterr()
    assert err.count("left out: ") == 1 and index.images[broken] in err
    assert "left out, as they could not be read: 1 images" in out and len(metrics["left_out"]) == 1
    assert metrics["reconstruction"]["n"] == len(index.usable("test")) - 1
    assert metrics["transfer"]["n"] == sum(broken not in pair for pair in find_pairs(index)[0].tolist())


def test_table_3_does_without_training_images_and_without_people_who_cannot_be_read(trained, tmp_path, small_config,
                                                                                  capsys):
    config = small_config(data_index=make_index(tmp_path, n=6, train=[False] * 6, person=[0, 0, 1, 1, 2, 2]))
    for image in Index(load_config(config)["data_index"]).images[:2]:
        (tmp_path / image).write_bytes(b"no image")
    metrics, _ = evaluate(trained[0], tmp_path / "log", "--config", config)
    assert metrics["consistency"]["one_person"]["groups"] == 2 and "neighbours" not in metrics["consistency"]
    assert metrics["consistency"]["std"] > 0 and metrics["reconstruction"]["n"] == 4
    assert "by neighbours left out: no training image can be read" in capsys.readouterr().out


def test_images_that_are_all_broken_end_the_evaluation(trained, tmp_path, small_config, capsys):
    config = small_config(data_index=make_index(tmp_path))
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    assert exit_code(main, "--mode", "evaluate", "--checkpoint", str(trained[0]), "--config", config,
                      "--log_dir", str(tmp_path / "log")) == 2
    error = capsys.readouterr().err
    assert "no image of the test split can be read: " in error and not (tmp_path / "log").exists()


@pytest.mark.slow
def test_the_toys_transfer_error_that_cannot_be_had_takes_nothing_else_along(toy, tmp_path, small_config, capsys):
    """The toy's error needs all of its images; the figures do not."""
    shutil.copytree(str(toy), str(tmp_path / "data"))
    index = Index(str(tmp_path / "data" / "index.p"))
    os.remove(index.image_path(index.usable("test")[0]))
    changes = dict(spatial_size=64, lr_decay_begin=0, lr_decay_end=1, n_filters=2, max_filters=4)
    config = small_config(data_index=index.path, **changes)
    whole = small_config("whole.yaml", data_index=str(toy / "index.p"), **changes)
    assert exit_code(main, "--config", whole, "--log_dir", str(tmp_path / "train")) == 0
    assert "transfer error on held-out people: " in capsys.readouterr().out
    metrics, _ = evaluate(only_run(tmp_path / "train"), tmp_path / "log", "--config", config)
    out = capsys.readouterr().out
    assert "no transfer error on held-out people: " in out
    assert metrics["reconstruction"]["n"] == len(index.usable("test")) - 1


@pytest.mark.parametrize("extra, expected", [
    ({"person": [7, 3, 7, 3, 7]}, [1, 0, 2, 4]), ({}, [0, 1, 2, 4]), ({"person": [7, 3]}, [0, 1, 2, 4])])
def test_images_of_a_person_follow_one_another_where_people_are_known(tmp_path, extra, expected):
    index = Index(make_index(tmp_path, n=5, **extra))
    np.testing.assert_array_equal(by_person(index, np.array([0, 1, 2, 4])), expected)


def test_batches_hold_neither_too_many_images_nor_too_many_pictures():
    renderings = renderings_of(range(1, 8), [(1, 2), (2, 2)] + [(1, 3)] * 20)
    assert renderings[:4] == [Rendering("reconstruction", 1, 1), Rendering("reconstruction", 2, 2),
                              Rendering("transfer", 1, 2), Rendering("transfer", 2, 2)]
    batches = batches_of(renderings, 3)  # at most six pictures in three poses
    assert [[rendering.target for rendering in batch] for batch in batches] == [
        [1, 2, 2, 2, 3, 3], [3] * 6, [3] * 6, [3] * 6, [3, 4, 5], [6, 7]]
    assert [rendering for batch in batches for rendering in batch] == renderings


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_images(tmp_path, small_config, graph):
    config = load_config(small_config(spatial_size=64, batch_size=8))

    class Stub:
        """Stands for the renderer, the run and the comparison: pictures and figures of the right sizes."""
        batch_size, size = 8, 64

        def run(self):
            return self

        def encode(self, examples):
            return [np.zeros((len(examples.shape_image), 4, 4, 8), np.float32)]

        def render(self, latents, stick, which):
            return np.zeros((len(which),) + stick.shape[1:], np.float32)

        def sample(self, stick, number):
            return np.zeros(stick.shape, np.float32)

        def __call__(self, pictures, pairs, metrics=evaluation.METRICS):
            return {name: np.zeros(len(pairs), np.float32) for name in metrics}

    def peak(n):
        os.makedirs(str(tmp_path / str(n)))
        index = Index(make_index(tmp_path / str(n), n=n, train=[False] * n, person=[0] * n))
        stub = Stub()
        whole = Evaluation(config, index, stub, stub, late=stub, save=False)
        tracemalloc.start()
        with tqdm(total=n, disable=True) as bar:
            whole.of_images(index.usable("test"), find_pairs(index)[0], bar)
            whole.of_samples(index.usable("test"), bar)
        assert whole.metrics()["transfer"]["n"] == 10 * n
        assert whole.metrics()["reconstruction"]["n"] == n
        at_most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return at_most

    assert peak(200) < 1.3 * peak(40)


# ---------------------------------------------------------------------------------------------- pairs

def test_pairs_of_the_toy_are_all_of_one_person(toy):
    index = Index(str(toy / "index.p"))
    pairs, people, usable = find_pairs(index)[0], index.extra["person"], set(index.usable("test"))
    expected = {(a, b) for a in usable for b in usable if a != b and people[a] == people[b]}
    assert set(map(tuple, pairs.tolist())) == expected and len(pairs) == len(expected)


@pytest.mark.parametrize("pairs, expected", [
    ([(2, 3), (3, 2)], [[2, 3], [3, 2]]), (np.array([[3, 2]]), [[3, 2]]), ([], []), (np.zeros((0, 2), int), []),
    ([(0, 3), (2, 4), (2, 3)], [[2, 3]])])  # 0 is for training, 4 has no hip
def test_pairs_of_the_index_go_first(tmp_path, pairs, expected):
    index = Index(make_index(tmp_path, n=5, train=[True, True, False, False, False], pairs=pairs, person=[0] * 5,
                             joints=[standing()] * 4 + [standing("lhip")]))
    found, left_out = find_pairs(index)
    assert found.tolist() == expected and left_out == len(pairs) - len(expected)


def test_of_many_images_of_a_person_each_goes_with_the_next_ten(tmp_path):
    index = Index(make_index(tmp_path, n=30, train=[False] * 30, person=[0] * 30))
    found, _ = find_pairs(index)
    assert len(found) == len({tuple(pair) for pair in found.tolist()}) == 30 * 10
    assert sorted(found[found[:, 0] == 25, 1].tolist()) == [0, 1, 2, 3, 4, 5, 26, 27, 28, 29]


@pytest.mark.parametrize("extra", [
    {"pairs": [(2, 9)]}, {"pairs": [(-1, 2)]}, {"pairs": [(2, 3, 2)]}, {"pairs": [2, 3]}, {"pairs": 7},
    {"pairs": [("a", "b")]}, {"pairs": [(2.5, 3)]}, {"pairs": np.zeros((2, 2))},
    {"person": [1, 2]}, {"person": []}, {"person": np.zeros(0, int)}, {"person": "abcd"},
    {"person": [[1], [1], [1], [1]]}, {"person": [1, 1, 10**30, 1]}])
def test_pairs_and_people_that_are_none_are_refused(tmp_path, extra):
    index = Index(make_index(tmp_path, **extra))
    with pytest.raises(UserError, match="index.p: (pairs|person): expected .*, found "):
        find_pairs(index)


def test_a_part_of_the_split_and_few_samples_can_be_asked_for(trained, tmp_path):
    run, config = trained
    index = Index(load_config(config)["data_index"])
    metrics, _ = evaluate(run, tmp_path / "log", "--images", 4, "--samples", 2)
    numbers, pairs, _ = choose_items(index, 4)
    assert metrics["reconstruction"]["n"] == len(numbers) == 4 and metrics["sampling"]["n"] == 2
    assert (metrics["transfer"] or {"n": 0})["n"] == len(pairs) < len(find_pairs(index)[0])
    assert set(pairs[:, 1].tolist()) <= set(numbers.tolist()) <= set(index.usable("test").tolist())
    assert set(numbers.tolist()) <= set(choose_items(index, 6)[0].tolist())  # a larger part holds the smaller one
    assert spread(np.arange(10), 3).tolist() == [0, 4, 9] and spread(np.arange(3), 7).tolist() == [0, 1, 2]


def test_an_index_without_pairs_has_no_transfers(trained, tmp_path, small_config, capsys):
    run, _ = trained
    config = small_config(data_index=make_index(tmp_path))
    metrics, _ = evaluate(run, tmp_path / "log", "--config", config)
    assert metrics["transfer"] is None and metrics["reconstruction"]["n"] == 2
    lines = capsys.readouterr().out.split("\n")
    assert [line.split() for line in lines if line.startswith("transfer")] == [["transfer", "none"]]


def test_pictures_too_small_for_ssim(trained, tmp_path, small_config, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = small_config(spatial_size=8, bottleneck_factor=1)
    assert exit_code(main, "--mode", "evaluate", "--checkpoint", str(trained[0]), "--config", config) == 2
    assert "spatial_size: 8: expected 16 or more" in capsys.readouterr().err and not (tmp_path / "log").exists()
