"""The perceptual loss, and where VGG19's weights come from."""
import hashlib

import h5py
import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import deeploss
from common.errors import UserError

LAYERS = ["input_1", "block1_conv1", "block2_conv2"]


def weights(layers=LAYERS):
    return deeploss.load_weights("random", layers)


def test_the_network_has_16_convolutions_and_5_poolings():
    assert len(deeploss.CONVOLUTIONS) == 16
    assert len([layer for layer in deeploss.LAYERS if layer.endswith("pool")]) == 5
    assert deeploss.weight_shapes()["block5_conv4/kernel"] == (3, 3, 512, 512)
    assert sum(np.prod(shape) for shape in deeploss.weight_shapes().values()) == 20024384  # VGG19 without top


def test_loaded_weights_are_in_the_session_and_neither_trained_nor_saved(graph):
    loss = deeploss.PerceptualLoss(weights(), LAYERS, [1, 1, 1], [0, 0, 0])
    assert not tf.trainable_variables() and not tf.global_variables()
    with tf.Session() as session:
        session.run(loss.load_op, loss.load_feed)
        for name, value in weights().items():
            np.testing.assert_array_equal(session.run(loss.variables[name]), value)


def test_terms_are_the_formula(graph):
    random = np.random.RandomState(0)
    x, y = random.normal(size=(2, 2, 4, 4, 3)).astype(np.float32)
    terms = deeploss.weighted_terms([tf.constant(x)] * 2, [tf.constant(y)] * 2, [1.0, 0.5], [0.0, 2.0])
    with tf.Session() as session:
        found = session.run(terms)
    def gram(a):
        return np.einsum("nhwc,nhwd->ncd", a, a) / (4 * 4 * 4)
    distance, gram_distance = np.abs(x - y).mean(), np.abs(gram(x) - gram(y)).mean()
    np.testing.assert_allclose(found.feature_losses, [distance, 0.5 * distance], rtol=1e-5)
    np.testing.assert_allclose(found.gram_losses, [0, 2 * gram_distance], rtol=1e-5)
    np.testing.assert_allclose(found.likelihood_loss, 5 * (1.5 * distance + 2 * gram_distance), rtol=1e-5)


def test_without_gram_weights_there_are_no_gram_losses(graph):
    x = tf.ones((1, 2, 2, 3))
    assert deeploss.weighted_terms([x], [x], [1.0], [0.0]).gram_losses == []


def test_preprocessing_is_vggs(graph):
    rgb = np.array([[[[-1.0, 0.0, 1.0]]]], np.float32)
    with tf.Session() as session:
        found = session.run(deeploss.preprocess(tf.constant(rgb)))
    np.testing.assert_allclose(found[0, 0, 0], [255 - 103.939, 127.5 - 116.779, 0 - 123.68], rtol=1e-5)


def write_h5(path, names, style):
    with h5py.File(str(path), "w") as file:
        for name in names:
            layer, part = name.split("/")
            suffix = {"keras": "{}/{}_{}_1:0".format(layer, layer, {"kernel": "W", "bias": "b"}[part]),
                      "later": f"{layer}/{layer}/{part}:0",
                      "model": f"model_weights/{layer}/{layer}/{part}"}[style]
            file[suffix] = weights()[name]


@pytest.mark.parametrize("style", ["keras", "later", "model"])
def test_h5_files_of_keras_load(tmp_path, style):
    path = tmp_path / "vgg19.h5"
    write_h5(path, deeploss.needed_weights(LAYERS), style)
    loaded = deeploss.load_weights(str(path), LAYERS)
    assert set(loaded) == set(deeploss.needed_weights(LAYERS))
    for name, value in weights().items():
        np.testing.assert_array_equal(loaded[name], value)


def test_an_npz_needs_only_the_layers_that_the_loss_needs(tmp_path):
    path = tmp_path / "vgg19.npz"
    np.savez(str(path), **weights(["block1_conv2"]))
    loaded = deeploss.load_weights(str(path), ["input_1", "block1_conv2"])
    np.testing.assert_array_equal(loaded["block1_conv2/kernel"], weights()["block1_conv2/kernel"])
    with pytest.raises(UserError, match="block2_conv1/kernel, which the feature layers need"):
        deeploss.load_weights(str(path), LAYERS)


def test_weights_of_another_shape_are_refused(tmp_path):
    path = tmp_path / "vgg19.npz"
    np.savez(str(path), **dict(weights(), **{"block1_conv1/kernel": np.zeros((3, 3, 1, 64), np.float32)}))
    with pytest.raises(UserError, match=r"\(3, 3, 1, 64\) for block1_conv1/kernel.*expected shape \(3, 3, 3, 64\)"):
        deeploss.load_weights(str(path), LAYERS)


@pytest.mark.parametrize("name", ["broken.h5", "broken.npz"])
def test_damaged_files_give_one_line(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"no weights")
    with pytest.raises(UserError, match="cannot read") as error:
        deeploss.load_weights(str(path), LAYERS)
    assert "\n" not in str(error.value)


def test_a_missing_file_says_where_to_get_one(tmp_path):
    with pytest.raises(UserError, match="there is no file .*" + deeploss.IMAGENET_URL):
        deeploss.load_weights(str(tmp_path / "none.h5"), LAYERS)


def test_a_failed_download_says_where_to_get_the_file_and_where_to_put_it(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr(deeploss, "IMAGENET_URL", "http://127.0.0.1:9/" + deeploss.IMAGENET_FILE)
    with pytest.raises(UserError) as error:
        deeploss.load_weights("imagenet", LAYERS)
    assert "http://127.0.0.1:9/" in str(error.value) and str(tmp_path / "keras" / "models") in str(error.value)
    assert "\n" not in str(error.value)


def test_the_weights_are_downloaded_once_into_kerass_own_cache(server, tmp_path, monkeypatch):
    served = tmp_path / "served" / deeploss.IMAGENET_FILE
    write_h5(served, deeploss.needed_weights(LAYERS), "keras")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    monkeypatch.setattr(deeploss, "IMAGENET_URL", f"{server}/{deeploss.IMAGENET_FILE}")
    with pytest.raises(UserError, match="hash"):
        deeploss.load_weights("imagenet", LAYERS)
    assert not list((tmp_path / "keras" / "models").iterdir())
    monkeypatch.setattr(deeploss, "IMAGENET_MD5", hashlib.md5(served.read_bytes()).hexdigest())
    loaded = deeploss.load_weights("imagenet", LAYERS)["block1_conv1/bias"]
    np.testing.assert_array_equal(loaded, weights()["block1_conv1/bias"])
    served.rename(tmp_path / "keras" / "elsewhere.h5")
    assert (tmp_path / "keras" / "models" / deeploss.IMAGENET_FILE).is_file()
    np.testing.assert_array_equal(deeploss.load_weights("imagenet", LAYERS)["block1_conv1/bias"], loaded)


def test_the_gradient_of_distances_is_tensorflows_own(graph):
    random = np.random.RandomState(0)
    x, y = (tf.constant(random.normal(size=(2, 3, 4)), tf.float32) for _ in range(2))
    results = [[distance] + tf.gradients(3 * distance, [x, y])
               for distance in (deeploss.mean_distance(x, y), tf.reduce_mean(tf.abs(x - y)))]
    with tf.Session() as session:
        for found, expected in zip(*session.run(results)):
            np.testing.assert_allclose(found, expected, rtol=1e-5)
