"""Layers: weight normalisation with data-dependent initialisation, residual blocks, sampling up and down.

A layer is one function `layer(walk, x, ...)`. The `Walk` is one way through the networks: whether it initialises, how
much it drops, where its random numbers come from, and how many layers of each kind it has met, which names the next
one. Walks share their variables by name.

    with walk.network("enc_up"):
        h = nin(walk, x, 64)         # variables enc_up/dense_0/{V,g,b}
        h = residual_block(walk, h)  # variables enc_up/conv2d_0/{V,g,b}
"""
import collections
import contextlib
import zlib

import numpy as np
import tensorflow.compat.v1 as tf

V_STDDEV = 0.05  # Salimans & Kingma 2016, section 3


class Walk(object):
    """The settings of one pass through the networks, made anew for every pass.

    name: str, keeps the random numbers of different passes apart.
    step: int scalar (tensor or number); noise and dropout are pure functions of (seed, step, place in the pass).
    seed: int, the run's seed.
    drop_prob: probability in [0, 1) with which residual blocks drop an activation; where it is above 0, a scalar that can
    be fed, as is `noise`, the factor of all noise.
    initialising: whether layers set their g and b from the data they see; the updates gather in `assignments`.
    part: (number, of): this batch is one of several of equal size, whose noise is that of a batch of all of them.
    """

    def __init__(self, name, step=0, seed=0, drop_prob=0.0, initialising=False, part=(0, 1)):
        self.name = name
        self.step = step
        self.seed = seed
        self.drops = drop_prob > 0
        self.drop_prob = tf.placeholder_with_default(tf.constant(drop_prob), ())
        # Not a constant, or the graph optimiser would work out all initial weights, and more slowly than the session.
        self.zero = tf.placeholder_with_default(tf.constant(0, tf.int64), ())
        self.noise = tf.placeholder_with_default(1.0, ())
        self.initialising = initialising
        self.part, self.of_parts = part
        self.assignments = []
        self._scope = None
        self._counts = collections.Counter()

    @contextlib.contextmanager
    def network(self, name):
        """Layers made inside belong to the sub-network `name` and are numbered from 0."""
        outer = self._scope, self._counts
        self._scope, self._counts = name, collections.Counter()
        with tf.name_scope("%s/%s/" % (self.name, name)):
            yield
        self._scope, self._counts = outer

    def place(self, kind):
        """Name of the next thing of this kind, for example enc_up/conv2d_3."""
        number = self._counts[kind]
        self._counts[kind] += 1
        return "%s/%s_%d" % (self._scope, kind, number)

    def normal(self, x):
        """Standard normal noise of the shape of x."""
        shape = tf.shape(x)
        if self.of_parts == 1:
            return self.noise * tf.random.stateless_normal(shape, self._random_key("noise"))
        whole = tf.concat([shape[:1] * self.of_parts, shape[1:]], axis=0)
        noise = tf.random.stateless_normal(whole, self._random_key("noise"))
        return self.noise * tf.ensure_shape(noise[self.part * shape[0]:][:shape[0]], x.shape)

    def activate(self, x):
        """elu(x), of which then a share drop_prob of the values are 0 and the others scaled up to keep the mean."""
        if not self.drops:
            return tf.nn.elu(x)
        kept = tf.random.stateless_uniform(tf.shape(x), self._random_key("dropout")) >= self.drop_prob
        share_kept = 1 - self.drop_prob

        # The way back needs either the activations or what dropout made of them; here it needs no more than the latter,
        # which the next layer keeps anyway, and the choice as booleans: 0.4 GB less for a step of market.yaml.
        @tf.custom_gradient
        def drop(x):
            dropped = tf.where_v2(kept, tf.nn.elu(x) / share_kept, 0.0)

            def gradient(upstream):
                with tf.control_dependencies([upstream]):  # or it would be made, and kept, on the way forth
                    elu = dropped * share_kept
                return tf.raw_ops.EluGrad(gradients=tf.where_v2(kept, upstream / share_kept, 0.0), outputs=elu)
            return dropped, gradient
        return drop(x)

    def _random_key(self, kind):
        name = self.name if kind == "noise" or not self.part else "%s of worker %d" % (self.name, self.part)
        return tf.stack([tf.constant(stream_key(self.seed, "%s/%s" % (name, self.place(kind))), tf.int64),
                         tf.cast(self.step, tf.int64)])


def stream_key(seed, place):
    """The int64 that keys the random numbers of one place (a name) in a run of this seed."""
    return int(np.array((seed << 32 | zlib.crc32(place.encode())) & (2**64 - 1), np.uint64).astype(np.int64))


def conv2d(walk, x, filters, stride=1):
    """3 x 3 convolution, SAME. x (N, h, w, c) -> (N, ceil(h / stride), ceil(w / stride), filters)."""
    return _weight_normalised(walk, "conv2d", x, (3, 3, int(x.shape[-1]), filters), stride)


def nin(walk, x, filters):
    """1 x 1 convolution ("network in network"). x (N, h, w, c) -> (N, h, w, filters)."""
    return _weight_normalised(walk, "dense", x, (int(x.shape[-1]), filters), 1)


def downsample(walk, x, filters):
    """Halves height and width: a convolution of stride 2."""
    return conv2d(walk, x, filters, stride=2)


def upsample(walk, x, filters):
    """Doubles height and width: sub-pixel convolution (Shi et al. 2016)."""
    return tf.depth_to_space(conv2d(walk, x, 4 * filters), 2)


def residual_block(walk, x, a=None):
    """x + f(x, a), x and result (N, h, w, c); a, from a skip connection or the latent, (N, h, w, any)."""
    filters = int(x.shape[-1])
    residual = x
    if a is not None:
        residual = tf.concat([residual, nin(walk, tf.nn.elu(a), filters)], axis=-1)
    residual = walk.activate(residual)
    # TensorFlow 2's graph optimiser would fuse the addition into the convolution, trip over chains of such blocks and
    # give up on all fusions; it does not look through ensure_shape, which costs nothing.
    return x + tf.ensure_shape(conv2d(walk, residual, filters), x.shape)


def _weight_normalised(walk, kind, x, shape, stride):
    """y = g * (x conv V / |V|) + b (Salimans & Kingma 2016), |V| the L2 norm per output channel."""
    name, filters = walk.place(kind), shape[-1]
    with tf.variable_scope(name, reuse=tf.AUTO_REUSE):
        V = tf.get_variable("V", shape, initializer=_direction_initializer(walk, name + "/V"))
        g = tf.get_variable("g", (filters,), initializer=tf.ones_initializer())
        b = tf.get_variable("b", (filters,), initializer=tf.zeros_initializer())
    inverse_norm = tf.rsqrt(tf.reduce_sum(tf.square(V), axis=list(range(len(shape) - 1))))
    if walk.initialising:
        return _initialise_from_data(walk, _conv(x, V * inverse_norm, stride), g, b)
    # g goes into the kernel: scaling the activations instead would read and write all of them once more.
    return tf.nn.bias_add(_conv(x, V * (g * inverse_norm), stride), b)


def _initialise_from_data(walk, t, g, b):
    """Sets g and b so that the layer's output has mean 0 and variance 1 on this batch; returns that output."""
    mean, variance = tf.nn.moments(t, axes=[0, 1, 2])
    scale = tf.rsqrt(variance + 1e-10)
    shift = -mean * scale
    walk.assignments += [g.assign(scale), b.assign(shift)]
    return t * scale + shift


def _conv(x, kernel, stride):
    if kernel.shape.ndims == 2:
        kernel = kernel[tf.newaxis, tf.newaxis]
    return tf.nn.conv2d(x, kernel, strides=[1, stride, stride, 1], padding="SAME")


def _direction_initializer(walk, place):
    def initializer(shape, dtype=tf.float32, partition_info=None):
        key = tf.stack([tf.constant(stream_key(walk.seed, place), tf.int64), walk.zero])
        return V_STDDEV * tf.random.stateless_normal(shape, key, dtype=dtype)
    return initializer
