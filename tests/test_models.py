import numpy as np
import pytest
import tensorflow.compat.v1 as tf

import models
import nn


def inputs(size=16, box_factor=1, n=2):
    random = np.random.RandomState(0)
    return [tf.constant(random.uniform(-1, 1, shape), tf.float32)
            for shape in ((n, size, size, 3), (n, size >> box_factor, size >> box_factor, 24))]


def run(fetches):
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        return session.run(fetches)


@pytest.mark.parametrize("size, box_factor, bottleneck_factor, latent_sizes", [
    (16, 1, 1, [2, 4]), (16, 0, 0, [1, 2]), (32, 2, 2, [4, 8]), (8, 1, 0, [1, 2])])
def test_shapes_at_all_factors(graph, size, box_factor, bottleneck_factor, latent_sizes):
    net = models.VUNet(size, box_factor, bottleneck_factor, n_filters=4, max_filters=16)
    stick, parts = inputs(size, box_factor)
    decoded, posterior = net.train(nn.Pass("train"), stick, parts)
    assert decoded.picture.shape.as_list() == [2, size, size, 3]
    for means in (posterior.means, posterior.samples, decoded.prior_means):
        assert [z.shape.as_list()[1:3] for z in means] == [[s, s] for s in latent_sizes]
    picture = run(net.sample(nn.Pass("sample"), stick))
    assert picture.shape == (2, size, size, 3) and np.isfinite(picture).all()


def test_groups_are_the_positions_of_two_by_two_squares(graph):
    z = np.random.RandomState(0).normal(size=(2, 4, 4, 3)).astype(np.float32)
    groups = models.split_groups(tf.constant(z))
    found, merged = run([groups, models.merge_groups(groups)])
    for group, (y, x) in zip(found, ((0, 0), (0, 1), (1, 0), (1, 1))):
        np.testing.assert_array_equal(group, z[:, y::2, x::2])
    np.testing.assert_array_equal(merged, z)


def test_kl_is_that_of_unit_gaussians(graph):
    random = np.random.RandomState(0)
    q, p = random.normal(size=(2, 1, 2, 2, 3)).astype(np.float32)
    found, = run(models.kl_divergence([tf.constant(q)], [tf.constant(p)]))
    z = q + random.normal(size=(200000,) + q.shape)
    monte_carlo = (np.square(z - p) - np.square(z - q)).sum(axis=(1, 2, 3, 4)).mean() / 2
    assert abs(found - monte_carlo) < 0.05 * monte_carlo


@pytest.mark.slow
def test_reconstruction_and_transfer_are_deterministic_and_samples_are_not(graph):
    net = models.VUNet(16, 1, 1, n_filters=4, max_filters=16)
    stick, parts = inputs()
    fetches = [call(nn.Pass(name)) for name in "ab" for call in (
        lambda pass_: net.transfer(pass_, stick, net.posterior_means(pass_, parts)),
        lambda pass_: net.train(pass_, stick, parts)[0].picture,
        lambda pass_: net.sample(pass_, stick))]
    reconstruction, trained, sampled, reconstruction2, trained2, sampled2 = run(fetches)
    np.testing.assert_array_equal(reconstruction, reconstruction2)
    assert np.abs(trained - trained2).max() > 1e-3 and np.abs(sampled - sampled2).max() > 1e-3


def test_the_appearance_comes_from_the_parts_and_the_encoder_does_not_see_the_pose(graph):
    net = models.VUNet(16, 1, 1, n_filters=4, max_filters=16)
    stick, parts = inputs()
    means = net.posterior_means(nn.Pass("encode"), parts)
    picture = net.transfer(nn.Pass("transfer"), stick, means)
    assert all(gradient is None for gradient in tf.gradients(means, [stick]))
    for gradient in run(tf.gradients(picture, [stick] + means)):
        assert np.abs(gradient).max() > 0


def test_the_prior_sees_earlier_groups_only(graph):
    net = models.VUNet(16, 1, 1, n_filters=4, max_filters=16)
    stick, _ = inputs()
    latents = [tf.zeros((2, 2, 2, 16)), tf.zeros((2, 4, 4, 16))]
    prior_means = net.decode(nn.Pass("train"), stick, latents).prior_means
    mean_groups = models.split_groups(prior_means[1])
    for i in range(4):
        given, = run(tf.gradients(mean_groups[i], [latents[1]]))
        by_group = [np.abs(given[:, y::2, x::2]).max() > 0 for y, x in ((0, 0), (0, 1), (1, 0), (1, 1))]
        assert by_group == [True] * i + [False] * (4 - i)
