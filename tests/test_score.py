"""tools/score.py, and Inception's graph. A small graph with the same names stands in for it."""
import json
import os
import tarfile

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from helpers import exit_code
from PIL import Image

from common.errors import UserError
from dataset.toy import draw, make_person, make_pose
from inference.inception import Inception
from inference.metrics import frechet_distance
from tools import score


@pytest.fixture
def folders(tmp_path):
    """Folders of ten drawn people, of the same with noise, and of others in their poses."""
    random = np.random.RandomState(0)
    for name in ("real", "noisy", "others"):
        (tmp_path / name).mkdir()
    for i in range(10):
        real, other = (draw(make_person(0, i + k), make_pose(0, i))[0] for k in (0, 1))
        noisy = (real + random.normal(scale=10, size=real.shape)).clip(0, 255).astype(np.uint8)
        for name, picture in (("real", real), ("noisy", noisy), ("others", other)):
            Image.fromarray(picture).save(str(tmp_path / name / f"{i}.png"))
    return tmp_path


def scored(folders, made, capsys, *options):
    assert exit_code(score, folders / "real", folders / made, "--json", *options) == 0
    return json.loads(capsys.readouterr().out)


def test_truth_against_truth_is_perfect_and_others_are_not(folders, capsys):
    truth, noisy, others = (scored(folders, made, capsys) for made in ("real", "noisy", "others"))
    assert truth["n"] == 10 and truth["mae"]["mean"] == 0 and truth["psnr"]["mean"] == 100
    assert truth["ssim"]["mean"] == pytest.approx(1) and truth["ssim_flat51"]["mean"] == pytest.approx(1)
    assert 1 > noisy["ssim"]["mean"] and noisy["psnr"]["mean"] > others["psnr"]["mean"]
    assert set(truth["protocols"]) == {"ssim", "ssim_flat51", "psnr", "mae"}
    assert exit_code(score, folders / "real", folders / "noisy") == 0
    assert "ssim_flat51" in capsys.readouterr().out


def test_names_and_sizes_that_do_not_pair_are_refused(folders, capsys):
    os.rename(str(folders / "noisy" / "3.png"), str(folders / "noisy" / "x.png"))
    Image.new("RGB", (9, 9)).save(str(folders / "others" / "4.png"))
    (folders / "empty").mkdir()
    (folders / "double").mkdir()
    for name in ("1.png", "1.jpg"):
        Image.new("RGB", (9, 9)).save(str(folders / "double" / name))
    for made, words in (("noisy", "found 2 pictures without partner, such as 3"), ("others", "expected 64 x 64 pixels"),
                        ("none", "there is no such folder"), ("empty", "10 pictures without partner"),
                        ("double", "expected one picture of each name, found several called 1")):
        assert exit_code(score, folders / "real", folders / made) == 2
        error = [line for line in capsys.readouterr().err.replace("\r", "\n").split("\n") if line.startswith("error")]
        assert len(error) == 1 and words in error[0]


def stand_in(path):
    """Writes a graph with Inception's names, fixed batch of one and old operations; returns its path."""
    random = np.random.RandomState(0)
    with tf.Graph().as_default() as graph:
        jpeg = tf.placeholder(tf.string, (), "DecodeJpeg/contents")
        picture = tf.cast(tf.image.decode_jpeg(jpeg, 3), tf.float32)
        x = tf.expand_dims(picture, 0, name="ExpandDims")
        x = tf.image.resize_bilinear(x, (16, 16))
        x = tf.nn.conv2d(x, tf.constant(random.normal(size=(3, 3, 3, 6)), tf.float32), [1, 1, 1, 1], "SAME")
        for name in ("mean", "variance", "beta", "gamma"):
            tf.constant(random.uniform(0.5, 1, 6), tf.float32, name=name)
        x = tf.identity(x, name="batchnorm")
        x = tf.nn.avg_pool(tf.nn.relu(x), [1, 16, 16, 1], [1, 1, 1, 1], "VALID", name="pool_3")
        x = tf.reshape(x, (1, 6), name="pool_3/_reshape")
        with tf.name_scope("softmax/logits/"):
            tf.matmul(x, tf.constant(random.normal(size=(6, 4)), tf.float32, name="weights"), name="MatMul")
        graph_def = graph.as_graph_def()
    # No new graph may have this operation; one of an old version may.
    graph_def.versions.producer = 8
    node, = [node for node in graph_def.node if node.name == "batchnorm"]
    node.op = "BatchNormWithGlobalNormalization"
    node.input.extend(["mean", "variance", "beta", "gamma"])
    node.attr["variance_epsilon"].f = 1e-3
    node.attr["scale_after_normalization"].b = False
    (path / "classify_image_graph_def.pb").write_bytes(graph_def.SerializeToString())
    with tarfile.open(str(path / "inception.tgz"), "w:gz") as archive:
        archive.add(str(path / "classify_image_graph_def.pb"), "classify_image_graph_def.pb")
    return str(path / "inception.tgz")


def test_inceptions_features_and_logits_of_any_number_of_pictures(tmp_path):
    inception = Inception(stand_in(tmp_path))
    pictures = np.random.RandomState(1).randint(0, 256, (40, 20, 24, 3)).astype(np.uint8)
    features, logits = inception(pictures)
    assert features.shape == (40, 6) and logits.shape == (40, 4)
    one, _ = Inception(str(tmp_path / "classify_image_graph_def.pb"))(pictures[37:38])
    np.testing.assert_allclose(one[0], features[37], rtol=1e-4)
    inception.close()


def test_fid_and_inception_score_of_folders(folders, tmp_path, capsys):
    path = stand_in(tmp_path)
    truth, others = (scored(folders, made, capsys, "--fid", "--inception", path) for made in ("real", "others"))
    assert truth["fid"] == pytest.approx(0, abs=1e-3) and others["fid"] > truth["fid"] + 1e-3
    assert truth["inception_score"]["mean"] >= 1
    pictures = [np.stack([np.asarray(Image.open(str(folders / name / f"{i}.png"))) for i in range(10)])
                for name in ("real", "others")]
    features = [Inception(path)(of_folder)[0] for of_folder in pictures]
    assert others["fid"] == pytest.approx(frechet_distance(*features), rel=1e-2)


def test_too_few_pictures_for_fid_are_refused(folders, tmp_path, capsys):
    for name in ("real", "others"):
        (folders / name / "3.png").unlink()
    options = [folders / "real", folders / "others", "--fid", "--inception", stand_in(tmp_path)]
    assert exit_code(score, *options) == 2
    assert "--fid: expected at least 10 pictures in each folder, found 9" in capsys.readouterr().err


def test_other_graphs_are_refused(tmp_path):
    (tmp_path / "a.pb").write_bytes(b"no graph")
    (tmp_path / "b.pb").write_bytes(tf.Graph().as_graph_def().SerializeToString())
    with tarfile.open(str(tmp_path / "c.tgz"), "w:gz") as archive:
        archive.add(str(tmp_path / "a.pb"), "a.pb")
    for name in ("a.pb", "b.pb", "c.tgz", "none"):
        with pytest.raises(UserError, match=name) as error:
            Inception(str(tmp_path / name))
        assert "\n" not in str(error.value)
