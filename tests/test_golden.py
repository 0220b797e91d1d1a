"""The networks and losses against figures of the published implementation (tests/golden/model.npz)."""
import os
import zlib

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import deeploss
import models
import nn
from common.convolution import make_conv2d
from training import graphs

# The graph that they share takes a minute to build.
pytestmark = [pytest.mark.xdist_group("golden"), pytest.mark.slow]
HERE = os.path.dirname(os.path.abspath(__file__))
LAYERS = ["input_1"] + [f"block{block}_conv2" for block in range(1, 6)]
COCO_GRAM = [0, .01, .01, .01, .01, .01]
GRAM_WEIGHTS = {"coco": COCO_GRAM, "coco_retrain": [2 * w for w in COCO_GRAM], "deepfashion_retrain": [.1] * 6,
                "market_retrain": [0, .05, .05, 0, 0, 0]}


class NoNoise(nn.Pass):
    def __init__(self, *args, **settings):
        super().__init__(*args, conv2d=make_conv2d("float32"), **settings)

    def normal(self, x):
        return tf.zeros_like(x)


def relative_error(found, expected):
    return np.max(np.abs(np.asarray(found) - expected)) / np.max(np.abs(expected))


def summary(array):
    """As in the file: L2 norm and the first 8 values."""
    flat = np.asarray(array, np.float64).ravel()
    padded = np.full(9, np.nan)
    padded[:1 + min(8, flat.size)] = [np.linalg.norm(flat)] + list(flat[:8])
    return padded


def named_normal(name, shape):
    random = np.random.RandomState(zlib.crc32(name.encode()) & 0x7fffffff)
    return random.standard_normal(shape).astype(np.float32)


def make_inputs():
    random = np.random.RandomState(0)
    shapes = [("x", 2, 64, 3), ("c", 2, 64, 3), ("xn", 2, 32, 24), ("cn", 2, 32, 24), ("c2", 2, 64, 3),
              ("x_init", 8, 64, 3), ("c_init", 8, 64, 3), ("xn_init", 8, 32, 24), ("cn_init", 8, 32, 24)]
    return {name: random.uniform(-1, 1, (n, size, size, channels)).astype(np.float32)
            for name, n, size, channels in shapes}


@pytest.fixture(scope="module")
def golden():
    return np.load(os.path.join(HERE, "golden", "model.npz"))


@pytest.fixture(scope="module")
def found():
    """Everything that is compared, computed in one graph."""
    inputs = make_inputs()
    with tf.Graph().as_default(), tf.Session() as session:
        c, c2, x, xn = (tf.constant(inputs[name]) for name in ("c", "c2", "x", "xn"))
        net = models.VUNet(64, 1, 1)
        init_pass = NoNoise("initialise", initialising=True)
        init_decoded, init_posterior = net.initialise(init_pass, tf.constant(inputs["c_init"]),
                                                      tf.constant(inputs["xn_init"]))
        decoded, posterior = net.train(NoNoise("train"), c, xn)
        loss = deeploss.PerceptualLoss(deeploss.load_weights("random", LAYERS), LAYERS, [1] * 6, [1] * 6,
                                       conv2d=make_conv2d("float32", many_channels=True))
        terms = loss(x, decoded.picture)
        kl_loss = tf.add_n(models.kl_divergence(posterior.means, decoded.prior_means))
        likelihood = 5 * tf.add_n(terms.feature_losses)
        variables = tf.trainable_variables()
        kl_weight = tf.placeholder(tf.float32, ())
        gradients = tf.gradients(likelihood + kl_weight * kl_loss, variables)
        fetches = {
            "params": decoded.picture, "q0": posterior.means[0], "q1": posterior.means[1],
            "p0": decoded.prior_means[0], "p1": decoded.prior_means[1],
            "test_forward": net.sample(NoNoise("sample"), c),
            "transfer": net.transfer(NoNoise("transfer"), c2, net.posterior_means(NoNoise("encode"), xn)),
            "vgg_feature_losses_unweighted": terms.feature_losses, "vgg_gram_losses_unweighted": terms.gram_losses,
            "log_kl_loss": kl_loss, "log_likelihood_loss": likelihood,
            "vgg_feat_x": loss.features(x)}
        picture_features = loss.features(decoded.picture)
        for config, gram_weights in GRAM_WEIGHTS.items():
            feature_weights = [2 if config == "coco_retrain" else 1] * 6
            weighted = deeploss.weighted_terms(fetches["vgg_feat_x"], picture_features, feature_weights, gram_weights)
            fetches["likelihood_loss_" + config] = weighted.likelihood_loss
            fetches["vgg_losses_" + config] = weighted.feature_losses
            fetches["vgg_gram_losses_" + config] = weighted.gram_losses

        values = {}
        for variable in variables:
            n = named_normal(variable.op.name, variable.shape.as_list())
            values[variable.initializer.inputs[1]] = {"V": .05 * n, "g": 1 + .1 * n, "b": .1 * n}[variable.op.name[-1]]
        session.run(tf.global_variables_initializer(), values)  # at once, as TensorFlow prepares each other run anew
        session.run(loss.load_op, loss.load_feed)
        values = session.run(fetches)
        for key, weight in (("at0", 1e-6), ("at60000", 0.4000006)):
            values["gradients_" + key] = dict(zip([v.op.name for v in variables],
                                                  session.run(gradients, {kl_weight: weight})))
        values["ddinit_params"], values["ddinit_q"], values["ddinit_p"], _ = session.run(
            [init_decoded.picture, init_posterior.means, init_decoded.prior_means, init_pass.assignments])
        values["ddinit"] = session.run({v.op.name: v for v in variables if v.op.name[-1] in "gb"})
        values["params_after_ddinit"] = session.run(decoded.picture)
        return values


def test_the_inputs_are_those_of_the_published_run(golden):
    for name, array in make_inputs().items():
        np.testing.assert_allclose(summary(array), golden["in_sum_" + name], rtol=1e-6)


@pytest.mark.parametrize("key", ["params", "q0", "q1", "p0", "p1", "test_forward", "transfer"])
def test_forward_pass_equals_the_published_one(golden, found, key):
    assert relative_error(found[key], golden[key]) < 1e-4


@pytest.mark.parametrize("key", [
    "vgg_feature_losses_unweighted", "vgg_gram_losses_unweighted", "log_kl_loss", "log_likelihood_loss"]
    + [kind + config for kind in ("likelihood_loss_", "vgg_losses_", "vgg_gram_losses_") for config in GRAM_WEIGHTS])
def test_losses_equal_the_published_ones(golden, found, key):
    assert relative_error(found[key], golden[key]) < 1e-4


def test_vgg_features_equal_the_published_ones(golden, found):
    for mine, row in zip(found["vgg_feat_x"], golden["vgg_feat_x_summary"]):
        assert relative_error(summary(mine), row) < 1e-4


@pytest.mark.parametrize("key", ["at0", "at60000"])
def test_gradients_equal_the_published_ones(golden, found, key):
    rows = dict(zip([str(name) for name in golden["var_names"]], golden[f"adam_{key}_m"]))
    read = {name for name, row in rows.items() if not np.isnan(row).all()}
    assert read == set(found["gradients_" + key])
    worst = {}
    for name in read:
        mine = summary(0.5 * found["gradients_" + key][name])  # after one step from zero, m = (1 - beta1) * gradient
        row = rows[name]
        known = ~np.isnan(row) & ~np.isnan(mine)
        worst[name] = np.max(np.abs(mine - row)[known]) / np.max(np.abs(row[known]))
    assert max(worst.values()) < 1e-3


def test_data_dependent_initialisation_equals_the_published_one(golden, found):
    expected = {name[len("ddinit/"):]: golden[name] for name in golden.files if name.startswith("ddinit/")}
    read = set(found["ddinit"]) & set(expected)
    assert len(read) == len(found["ddinit"]) and len(expected) - len(read) == 10  # those of the 5 unread layers
    for name in read:  # b is in units of the layer's output, which has variance 1; where it is 0 nothing is relative
        scale = max(np.max(np.abs(expected[name])), 1.0 if name.endswith("b") else 0)
        assert np.max(np.abs(found["ddinit"][name] - expected[name])) < 1e-4 * scale, name
    for key in ("ddinit_params", "params_after_ddinit"):
        assert relative_error(found[key], golden[key]) < 1e-3
    for i in range(2):
        assert relative_error(found["ddinit_q"][i], golden[f"ddinit_q{i}"]) < 1e-3
        assert relative_error(found["ddinit_p"][i], golden[f"ddinit_p{i}"]) < 1e-3


def test_schedules_equal_the_published_ones(golden, graph):
    config = {"lr": 1e-3, "lr_decay_begin": 1000, "lr_decay_end": 100000, "kl_weight_begin": 1e-6,
              "kl_weight_end": 1.0, "kl_ramp": [0.5, 0.75]}
    step = tf.placeholder(tf.int32, ())
    schedules = [graphs.learning_rate(step, config), graphs.kl_weight(step, config)]
    with tf.Session() as session:
        for i, at in enumerate(golden["schedule_steps"]):
            lr, kl = session.run(schedules, {step: at})
            np.testing.assert_allclose(lr, golden["schedule_lr"][i], rtol=1e-5, atol=1e-9)
            np.testing.assert_allclose(kl, golden["schedule_kl_weight"][i], rtol=1e-5)
