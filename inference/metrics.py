"""Figures of pictures by the protocols of the field; docs/evaluation.md says how they differ from those of papers.

Pictures are (n, S, S, 3) uint8 arrays. PROTOCOLS says, for each figure, how it is computed.
"""
import numpy as np
import tensorflow.compat.v1 as tf

from common.errors import UserError
from dataset.boxes import torso_length
from dataset.index import is_visible

PROTOCOLS = {
    "ssim": "Wang et al. 2004: Gaussian window of 11 pixels, sigma 1.5, population covariance, per channel, 0 to 255 "
            "(TensorFlow)",
    "ssim_flat51": "flat window of 51 pixels, per channel, 0 to 1 (scikit-image structural_similarity, win_size=51)",
    "psnr": "of RGB, 0 to 255, at most 100 dB (TensorFlow)",
    "mae": "mean absolute difference of RGB in levels of 0 to 255",
    "perceptual_loss": "the likelihood loss that the config trains with",
    "joints": "joints by one estimator (MediaPipe) in the real and the made picture, both in the aspect of the data "
              "set's files, with a longer side of 256 pixels; distances as in a square of 256 x 256",
    "consistency": "features of VGG19's block5_conv2, averaged over positions, of one appearance in several poses",
    "fid": "Frechet distance of Inception features (pool_3 of inception-2015-12-05)",
    "inception_score": "of inception-2015-12-05's logits without bias, 10 splits"}
SSIM_WINDOW, FLAT_WINDOW = 11, 51
MAX_PSNR = 100.0  # dB; equal pictures have no finite one
JOINTS_SIZE = 256
PCK_SHARE = 0.2  # of the torso's length
NEIGHBOURS = 10
SPLITS = 10  # of the pictures, for the Inception Score


def similarities(real, made):
    """{metric: tensor} of ssim, psnr and mae of float32 tensors (..., h, w, 3) in [0, 255], one figure a picture."""
    # TensorFlow's SSIM: Gaussian windows, sigma 1.5, population covariances, as Wang et al. 2004.
    return {"ssim": tf.image.ssim(real, made, 255.0), "psnr": tf.minimum(tf.image.psnr(real, made, 255.0), MAX_PSNR),
            "mae": tf.reduce_mean(tf.abs(real - made), axis=[-3, -2, -1])}


def ssim_flat51(real, made):
    """(n,) similarities with a flat window of 51 pixels, as PIDM, CFLD and others report them.

    Raises UserError where the pictures are smaller than that.
    """
    if min(real.shape[1:3]) < FLAT_WINDOW:
        raise UserError(f"ssim_flat51: expected pictures of {FLAT_WINDOW} pixels or more, found {min(real.shape[1:3])}")
    from skimage.metrics import structural_similarity  # here, as it is slow to import

    def of_channels(a, b):
        return [structural_similarity(a[..., c] / 255.0, b[..., c] / 255.0, win_size=FLAT_WINDOW, data_range=1.0)
                for c in range(3)]
    return np.array([np.mean(of_channels(a, b)) for a, b in zip(real, made)])


# ---------------------------------------------------------------------------------------------- joints: Table 2

def joint_figures(pairs):
    """Figures of pairs of joints, (15, 2) in pixels of JOINTS_SIZE or None for nobody: in the real and made picture.

    {"n": real pictures in which somebody is found, "error": mean distance in pixels over joints that both have,
    "found": share of the real ones' joints that the made ones have, "pck": share of them within 0.2 torso lengths}.
    """
    distances, within, found, n, n_joints = [], 0, 0, 0, 0
    for real, made in pairs:
        if real is None:
            continue
        n += 1
        of_real = is_visible(real)
        n_joints += of_real.sum()
        if made is None:
            continue
        both = of_real & is_visible(made)
        error = np.linalg.norm(real - made, axis=1)[both]
        distances += error.tolist()
        found += both.sum()
        within += (error <= PCK_SHARE * torso_length(real)).sum()
    if not n:
        return {"n": 0, "error": None, "found": None, "pck": None}
    return {"n": n, "error": float(np.mean(distances)) if distances else None, "found": float(found / n_joints),
            "pck": float(within / n_joints)}


# ---------------------------------------------------------------------------------------------- consistency: Table 3

def consistency(features):
    """How much appearances change with the pose: a list of features (p, d), one for each appearance, of p pictures.

    {"std": length of the standard deviation, "max": largest distance of two, means over appearances}.
    """
    lengths = [np.linalg.norm(of_one.std(axis=0)) for of_one in features]
    largest = [max(np.linalg.norm(of_one - row, axis=1).max() for row in of_one) for of_one in features]
    return {"std": float(np.mean(lengths)), "max": float(np.mean(largest))}


def means_of_neighbours(features, others, n=NEIGHBOURS):
    """Each of the features (k, d) replaced by the mean of the n nearest of the others (m, d)."""
    squares = (others**2).sum(axis=1)
    result = np.empty_like(features)
    for i, feature in enumerate(features):
        nearest = np.argpartition(squares - 2 * others.dot(feature), min(n, len(others)) - 1)[:n]
        result[i] = others[nearest].mean(axis=0)
    return result


# ---------------------------------------------------------------------------------------------- distributions

def frechet_distance(a, b):
    """|mean difference|^2 + trace(C_a + C_b - 2 (C_a C_b)^(1/2)) of features (n, d) and (m, d) (Heusel et al. 2017)."""
    from scipy.linalg import sqrtm  # here, as it is slow to import
    means, covariances = zip(*[(features.mean(axis=0), np.cov(features, rowvar=False)) for features in (a, b)])
    root = sqrtm(covariances[0].dot(covariances[1]))
    if not np.isfinite(root).all():  # of nearly singular ones
        shift = 1e-6 * np.eye(len(covariances[0]))
        root = sqrtm((covariances[0] + shift).dot(covariances[1] + shift))
    difference = means[0] - means[1]
    return float(difference.dot(difference) + np.trace(covariances[0]) + np.trace(covariances[1])
                 - 2 * np.trace(root.real))


def inception_score(logits, splits=SPLITS):
    """(mean, standard deviation) over splits of exp(mean KL(p(y|x) || p(y))) of logits (n, classes).

    Salimans et al. 2016.
    """
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    scores = []
    for part in np.array_split(probabilities, splits):
        divergence = (part * (np.log(part + 1e-16) - np.log(part.mean(axis=0) + 1e-16))).sum(axis=1)
        scores.append(np.exp(divergence.mean()))
    return float(np.mean(scores)), float(np.std(scores))
