"""Figures of pictures against other implementations and against written-out numbers."""
import numpy as np
import pytest
from helpers import standing
from skimage.metrics import structural_similarity

from common.errors import UserError
from dataset.index import J
from inference.metrics import (
    consistency,
    frechet_distance,
    inception_score,
    joint_figures,
    means_of_neighbours,
    ssim_flat51,
)


def test_ssim_flat51_is_scikit_images():
    random = np.random.RandomState(0)
    real = random.randint(0, 256, (2, 64, 56, 3)).astype(np.uint8)
    made = (real + random.normal(scale=30, size=real.shape)).clip(0, 255).astype(np.uint8)
    found = ssim_flat51(real, made)
    for i in range(2):
        expected = structural_similarity(real[i] / 255.0, made[i] / 255.0, win_size=51, data_range=1.0, channel_axis=-1)
        np.testing.assert_allclose(found[i], expected, atol=1e-6)
    np.testing.assert_allclose(ssim_flat51(real, real), [1, 1])
    with pytest.raises(UserError, match="ssim_flat51: expected pictures of 51 pixels or more, found 48"):
        ssim_flat51(real[:, :48], made[:, :48])


def test_joints_count_what_both_pictures_show():
    real = np.where(standing() < 0, -1, standing().astype(float) * 256)
    made = real + (3.0, 4.0)
    made[J["lwrist"]] = -1
    made[J["rankle"]] += 100
    figures = joint_figures([(real, made), (None, made), (real, None)])
    assert figures["n"] == 2 and figures["found"] == pytest.approx(14 / 30)
    expected = (13 * 5 + np.linalg.norm((103, 104))) / 14
    assert figures["error"] == pytest.approx(expected) and figures["pck"] == pytest.approx(13 / 30)
    assert joint_figures([(real, real)]) == {"n": 1, "error": 0.0, "found": 1.0, "pck": 1.0}
    assert joint_figures([(None, real)])["error"] is None


def test_consistency_is_the_spread_of_one_appearance():
    same, spread = np.ones((4, 3)), np.array([[0.0, 0], [2, 0], [0, 2], [2, 2]])
    assert consistency([same]) == {"std": 0.0, "max": 0.0}
    found = consistency([spread, np.ones((4, 2))])
    assert found["std"] == pytest.approx(np.sqrt(2) / 2) and found["max"] == pytest.approx(np.sqrt(8) / 2)


def test_features_become_the_means_of_their_neighbours():
    others = np.array([[0.0, 0], [0, 2], [10, 10], [10, 12]])
    found = means_of_neighbours(np.array([[1.0, 1], [9, 9]]), others, n=2)
    np.testing.assert_allclose(found, [[0, 1], [10, 11]])
    np.testing.assert_allclose(means_of_neighbours(np.array([[1.0, 1]]), others[:2], n=10), [[0, 1]])


def test_the_frechet_distance_of_gaussians_written_out():
    random = np.random.RandomState(0)
    a = random.normal(size=(20000, 3)) * (1, 2, 3)
    b = random.normal(size=(20000, 3)) * (2, 2, 1) + (0, 1, 0)
    assert frechet_distance(a, b) == pytest.approx(1 + 1 + 0 + 4, rel=0.05)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a[:2], b[:2]) > 0  # covariances of rank 1


def test_the_inception_score_written_out():
    certain = 100 * np.eye(4)[np.arange(400) % 4]
    assert inception_score(certain, splits=10)[0] == pytest.approx(4)
    assert inception_score(np.zeros((50, 7)), splits=5) == (pytest.approx(1), pytest.approx(0))
    mixed = np.log([[0.75, 0.25], [0.25, 0.75]])
    divergence = 0.75 * np.log(1.5) + 0.25 * np.log(0.5)
    assert inception_score(mixed, splits=1)[0] == pytest.approx(np.exp(divergence))
