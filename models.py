"""The variational U-Net (Esser, Sutter, Ommer: A Variational U-Net for Conditional Appearance and Shape Generation).

                  appearance                            shape
                      |                                    |
                   enc_up                               dec_up
                      | skips                              | skips
                   enc_down -- posterior q(z|x,c) --->  dec_down -- prior p(z|c)
                      (means, samples of 2 latents)        |
                                                       dec_params -> picture

Shape is a picture, such as a stick figure or edges. It enters through the decoder's skip connections. Appearance, part
crops or the whole picture, must pass through the latents. All tensors are float32, NHWC; pictures and crops in [-1, 1].
N is the batch, S the spatial size, s = S / 2^box_factor, k the channels of the appearance (24 for part crops).
"""
import collections

import tensorflow.compat.v1 as tf

from nn import channels, conv2d, downsample, nin, residual_block, upsample

LATENT_SCALES = 2
BLOCKS_PER_SCALE = 2

Posterior = collections.namedtuple("Posterior", "means samples")
Posterior.__doc__ = """Means and samples of q(z|x, c), one tensor (N, h, w, c) per latent scale, coarse to fine."""

Decoded = collections.namedtuple("Decoded", "picture prior_means")
Decoded.__doc__ = """A picture (N, S, S, 3), not squashed, and the prior's means, shaped as the posterior's."""


class VUNet:
    """The networks of one configuration; the weights live in the graph, by name, and all passes share them.

    spatial_size: S, a power of two. box_factor: the appearance is 2^box_factor smaller. bottleneck_factor: the coarsest
    feature maps are 2^bottleneck_factor pixels wide. n_filters, max_filters: at full size and at most. has_encoder:
    without one no appearance is seen, and the latents come from the prior (the paper's ablation, section 4.4).
    """

    def __init__(self, spatial_size, box_factor, bottleneck_factor, *, n_filters=32, max_filters=128, has_encoder=True):
        self.n_scales = spatial_size.bit_length() - bottleneck_factor  # 1 + log2(S) - bottleneck_factor
        self.box_factor = box_factor
        self.n_filters = n_filters
        self.max_filters = max_filters
        self.has_encoder = has_encoder

    def initialise(self, pass_, shape_image, appearance):
        """As `train`, with an initialising pass: running its `assignments` sets all g and b."""
        return self.train(pass_, shape_image, appearance)

    def train(self, pass_, shape_image, appearance):
        """Reconstruction through posterior samples -> (Decoded, Posterior), the terms of the bound (equation 5)."""
        posterior = self.posterior(pass_, appearance)
        return self.decode(pass_, shape_image, posterior.samples if self.has_encoder else None), posterior

    def posterior_means(self, pass_, appearance):
        """What an appearance (N, s, s, k) says of the latents: one tensor per latent scale, none without an encoder."""
        return self.posterior(pass_, appearance, sample=False).means

    def transfer(self, pass_, shape_image, latents, which=None):
        """Pictures (N, S, S, 3) of appearances, given by their latents, in shapes (N, S, S, 3).

        Without an encoder there are no latents, and the prior's are taken. which: (N,) numbers of each picture's shape,
        where there are fewer shapes than pictures; each shape is looked at once.
        """
        return self.decode(pass_, shape_image, latents or None, which).picture

    def sample(self, pass_, shape_image):
        """Pictures (N, S, S, 3) of these shapes with appearances drawn from the prior p(z|c)."""
        return self.decode(pass_, shape_image, None).picture

    def posterior(self, pass_, appearance, sample=True):
        """q(z|x, c) of appearances (N, s, s, k) -> Posterior; without `sample` the means stand for the samples."""
        if not self.has_encoder:
            return Posterior([], [])
        with pass_.network("enc_up"):
            skips = self._up(pass_, appearance, self.n_scales - self.box_factor, self.n_filters * 2**self.box_factor)
        with pass_.network("enc_down"):
            return self._enc_down(pass_, skips, sample)

    def decode(self, pass_, shape_image, latents, which=None):
        """p(x|c, z) of shapes (N, S, S, 3) -> Decoded; with no latents they are drawn from the prior.

        which: as in `transfer`.
        """
        with pass_.network("dec_up"):
            skips = self._up(pass_, shape_image, self.n_scales, self.n_filters)
            if which is not None:
                skips = [tf.gather(skip, which) for skip in skips]
        with pass_.network("dec_down"):
            h, prior_means = self._dec_down(pass_, skips, latents)
        with pass_.network("dec_params"):
            return Decoded(conv2d(pass_, h, 3), prior_means)

    def _up(self, pass_, x, n_scales, n_filters):
        """enc_up and dec_up: features of every block, fine to coarse. Shared because they differ in size alone."""
        skips = []
        h = nin(pass_, x, n_filters)
        for scale in range(n_scales):
            for _ in range(BLOCKS_PER_SCALE):
                h = residual_block(pass_, h)
                skips.append(h)
            if scale + 1 < n_scales:
                n_filters = min(2 * n_filters, self.max_filters)
                h = downsample(pass_, h, n_filters)  # (N, h/2, w/2, n_filters)
        return skips

    def _enc_down(self, pass_, skips, sample):
        skips = list(skips)
        means, samples = [], []
        h = nin(pass_, skips[-1], channels(skips[-1]))
        for scale in range(LATENT_SCALES):
            h = residual_block(pass_, h, skips.pop())
            mean = conv2d(pass_, h, channels(h))
            z = mean + pass_.normal(mean) if sample else mean
            means.append(mean)
            samples.append(z)
            # The original goes on here after the last latent, into layers that nothing reads.
            if scale + 1 < LATENT_SCALES:
                h = residual_block(pass_, h, tf.concat([skips.pop(), z], axis=-1))
                h = upsample(pass_, h, channels(skips[-1]))
        return Posterior(means, samples)

    def _dec_down(self, pass_, skips, latents):
        skips = list(skips)
        prior_means = []
        h = nin(pass_, skips[-1], channels(skips[-1]))
        for scale in range(self.n_scales):
            h = residual_block(pass_, h, skips.pop())
            if scale < LATENT_SCALES:
                mean, z = self._prior(pass_, h, None if latents is None else latents[scale])
                prior_means.append(mean)
                h = nin(pass_, tf.concat([h, z], axis=-1), channels(h))
            h = residual_block(pass_, h, skips.pop())
            if scale + 1 < self.n_scales:
                h = upsample(pass_, h, channels(skips[-1]))
        return h, prior_means

    def _prior(self, pass_, h, given):
        """Mean of p(z|c, coarser z) from features h, and the latent: the given one or, without it, a sample.

        On maps larger than 1 x 1 the prior is autoregressive over four groups of positions, the pixels of every 2 x 2
        square: each is predicted from the latent's groups before it.
        """
        n = channels(h)
        if h.shape[1] == 1:
            mean = conv2d(pass_, h, n)
            return mean, mean + pass_.normal(mean) if given is None else given
        groups = [] if given is None else split_groups(given)
        means = []
        features = tf.space_to_depth(residual_block(pass_, h), 2)  # (N, h/2, w/2, 4n)
        for group in range(4):
            means.append(conv2d(pass_, features, n))
            if given is None:
                groups.append(means[group] + pass_.normal(means[group]))
            if group < 3:
                features = residual_block(pass_, features, groups[group])
        return merge_groups(means), merge_groups(groups) if given is None else given


def kl_divergence(posterior_means, prior_means):
    """KL(q || p), a list of scalars, one per latent scale: sums over positions and channels, batch means.

    Both Gaussians have unit covariance, so log q - log p = ((z - p)^2 - (z - q)^2) / 2, whose mean under q is
    (q - p)^2 / 2.
    """
    return [tf.nn.l2_loss(p - q) / tf.cast(tf.shape(q)[0], tf.float32) for q, p in zip(posterior_means, prior_means)]


def split_groups(z):
    """(N, h, w, c) as four tensors (N, h/2, w/2, c): the pixels of 2 x 2 squares, row by row."""
    return tf.split(tf.space_to_depth(z, 2), 4, axis=-1)


def merge_groups(groups):
    """The inverse of split_groups."""
    return tf.depth_to_space(tf.concat(groups, axis=-1), 2)
