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


class Walk:
    """The settings of one pass through the networks, made anew for every pass.

    name: str, keeps the random numbers of different passes apart.
    step: int scalar (tensor or number); noise and dropout are pure functions of (seed, step, place in the pass).
    seed: int, the run's seed.
    drop_prob: probability in [0, 1), counted as at most 255/256, with which residual blocks drop an activation; where it
    is above 0, a scalar that can be fed, as is `noise`, the factor of all noise.
    initialising: whether layers set their g and b from the data they see; the updates gather in `assignments`.
    part: (number, of): this batch is one of several of equal size, whose noise is that of a batch of all of them.
    """

    def __init__(self, name, step=0, seed=0, drop_prob=0.0, initialising=False, part=(0, 1)):
        self.name = name
        self.step = step
        self.seed = seed
        self.drops = drop_prob > 0
        self.drop_prob = tf.placeholder_with_default(tf.constant(drop_prob), ())
        self.kept_scale = 1.0
        # Not a constant, or the graph optimiser would work out all initial weights, and more slowly than the session.
        self.zero = tf.placeholder_with_default(tf.constant(0, tf.int64), ())
        self.noise = tf.placeholder_with_default(1.0, ())
        self.initialising = initialising
        self.part, self.of_parts = part
        self.assignments = []
        self._scope = None
        self._counts = collections.Counter()
        if self.drops:
            self._prepare_dropout()

    @contextlib.contextmanager
    def network(self, name):
        """Layers made inside belong to the sub-network `name` and are numbered from 0."""
        outer = self._scope, self._counts
        self._scope, self._counts = name, collections.Counter()
        with tf.name_scope(f"{self.name}/{name}/"):
            yield
        self._scope, self._counts = outer

    def place(self, kind):
        """Name of the next thing of this kind, for example enc_up/conv2d_3."""
        number = self._counts[kind]
        self._counts[kind] += 1
        return f"{self._scope}/{kind}_{number}"

    def normal(self, x):
        """Standard normal noise of the shape of x."""
        shape = tf.shape(x)
        if self.of_parts == 1:
            return self.noise * tf.random.stateless_normal(shape, self._random_key("noise"))
        whole = tf.concat([shape[:1] * self.of_parts, shape[1:]], axis=0)
        noise = tf.random.stateless_normal(whole, self._random_key("noise"))
        return self.noise * tf.ensure_shape(noise[self.part * shape[0]:][:shape[0]], x.shape)

    def activate(self, x):
        """elu(x), of which then a share drop_prob of the values are 0; `kept_scale` times it has the mean of elu(x)."""
        if not self.drops:
            return tf.nn.elu(x)
        kept = self._kept(tf.shape(x))

        # The way back needs either the activations or what dropout made of them; here it needs no more than the latter,
        # which the next layer keeps anyway, and the choice as booleans: 0.4 GB less for a step of market.yaml.
        @tf.custom_gradient
        def drop(x):
            dropped = tf.nn.elu(x) * tf.cast(kept, tf.float32)

            def gradient(upstream):
                with tf.control_dependencies([upstream]):  # or the choice as floats would be kept from the way forth
                    kept_now = tf.cast(kept, tf.float32)
                return tf.raw_ops.EluGrad(gradients=upstream * kept_now, outputs=dropped)
            return dropped, gradient
        return drop(x)

    def _prepare_dropout(self):
        """The threshold that random bytes, which are quicker to draw than floats, will be compared with: each pass draws one
        of the two next to 256 drop_prob, so that the probability is right.
        """
        share = tf.minimum(self.drop_prob, 255 / 256)
        self.kept_scale = 1 / (1 - share)
        uniform = tf.random.stateless_uniform((), self._random_key("threshold"))
        uniform = tf.floor(2**16 * uniform) / 2**16  # or the sum could be rounded up to the next whole number
        self._drop_threshold = tf.cast(tf.floor(256 * share + uniform) - 128, tf.int8)

    def _kept(self, shape):
        """Booleans of this shape, each false with probability drop_prob."""
        n = tf.reduce_prod(shape)
        # TensorFlow 1.15 wants limits, which cost a division per word.
        least, most = (None, None) if hasattr(tf.raw_ops, "StatelessRandomUniformFullInt") else (tf.int32.min, tf.int32.max)
        words = tf.random.stateless_uniform([(n + 3) // 4], self._random_key("dropout"), minval=least, maxval=most,
                                            dtype=tf.int32)
        random_bytes = tf.reshape(tf.bitcast(words, tf.int8), [-1])[:n]
        return tf.reshape(random_bytes >= self._drop_threshold, shape)

    def _random_key(self, kind):
        name = self.name if kind == "noise" or not self.part else f"{self.name} of worker {self.part}"
        return tf.stack([tf.constant(stream_key(self.seed, f"{name}/{self.place(kind)}"), tf.int64),
                         tf.cast(self.step, tf.int64)])


def stream_key(seed, place):
    """The int64 that keys the random numbers of one place (a name) in a run of this seed."""
    return int(np.array((seed << 32 | zlib.crc32(place.encode())) & (2**64 - 1), np.uint64).astype(np.int64))


def conv2d(walk, x, filters, stride=1, scale=1.0):
    """3 x 3 convolution of scale * x, SAME. x (N, h, w, c) -> (N, ceil(h / stride), ceil(w / stride), filters)."""
    return _weight_normalised(walk, "conv2d", x, (3, 3, int(x.shape[-1]), filters), stride, scale)


def nin(walk, x, filters):
    """1 x 1 convolution ("network in network"). x (N, h, w, c) -> (N, h, w, filters)."""
    return _weight_normalised(walk, "dense", x, (int(x.shape[-1]), filters))


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
    return x + tf.ensure_shape(conv2d(walk, residual, filters, scale=walk.kept_scale), x.shape)


def _weight_normalised(walk, kind, x, shape, stride=1, scale=1.0):
    """y = g * (scale * x conv V / |V|) + b (Salimans & Kingma 2016), |V| the L2 norm per output channel."""
    name, filters = walk.place(kind), shape[-1]
    with tf.variable_scope(name, reuse=tf.AUTO_REUSE):
        V = tf.get_variable("V", shape, initializer=_direction_initializer(walk, name + "/V"))
        g = tf.get_variable("g", (filters,), initializer=tf.ones_initializer())
        b = tf.get_variable("b", (filters,), initializer=tf.zeros_initializer())
    needed = _centre if kind == "conv2d" and x.shape[1] == x.shape[2] == 1 else tf.identity
    if walk.initialising:
        return _initialise_from_data(walk, _conv(x, needed(V) * (scale / _norm(V)), tf.zeros_like(b), stride), g, b)
    # Both factors go into the kernel: scaling the activations instead would read and write all of them once more.
    return _conv(x, _normalised_kernel(V, scale * g, needed), b, stride)


def _normalised_kernel(V, g, needed):
    """The needed part of g V / |V|; its gradient (Salimans & Kingma 2016, equation 3) in fewer passes over V than
    TensorFlow's own.
    """
    @tf.custom_gradient
    def normalise(V, g):
        norm = _norm(V)
        scale = g / norm

        def gradient(upstream):
            along_V = tf.reduce_sum(upstream * needed(V), axis=_inputs(V)) / norm
            edges = [[(whole - part) // 2] * 2 for whole, part in zip(V.shape.as_list(), upstream.shape.as_list())]
            return tf.pad(upstream * scale, edges) - V * (along_V * scale / norm), along_V
        return needed(V) * scale, gradient
    return normalise(V, g)


def _centre(kernel):
    """Of a 3 x 3 kernel the only part that matters to a map of one pixel, (1, 1, c, filters)."""
    return kernel[1:2, 1:2]


def _norm(V):
    """L2 norms of the filters of a kernel, (filters,)."""
    return tf.math.reduce_euclidean_norm(V, axis=_inputs(V))


def _inputs(kernel):
    """All axes but the last, that of the filters."""
    return list(range(kernel.shape.ndims - 1))


def _initialise_from_data(walk, t, g, b):
    """Sets g and b so that the layer's output has mean 0 and variance 1 on this batch; returns that output."""
    mean, variance = tf.nn.moments(t, axes=[0, 1, 2])
    scale = tf.rsqrt(variance + 1e-10)
    shift = -mean * scale
    walk.assignments += [g.assign(scale), b.assign(shift)]
    return t * scale + shift


def _conv(x, kernel, bias, stride):
    if kernel.shape.ndims == 2 or kernel.shape[0] == 1:
        return _times(x, tf.reshape(kernel, kernel.shape[-2:]), bias)
    if stride == 1 and x.shape[1] <= 2 and x.shape[2] <= 2:
        return _conv_of_small_map(x, kernel, bias)
    return tf.nn.bias_add(tf.nn.conv2d(x, kernel, strides=[1, stride, stride, 1], padding="SAME"), bias)


def _conv_of_small_map(x, kernel, bias):
    """A 3 x 3 convolution of a map of 1 or 2 pixels either way as one matrix product.

    On such maps, of hundreds of channels, TensorFlow's convolutions are slower than on others by an order of magnitude.
    """
    h, w, c = x.shape[1:].as_list()
    # Which pixels lie around each, as a matrix: (h w) x 9 neighbours, of which those beyond the edges are none.
    around = np.zeros((h, w, 3, 3, h, w), np.float32)
    for i, j, k, l in np.ndindex(h, w, h, w):
        if abs(k - i) <= 1 and abs(l - j) <= 1:
            around[i, j, k - i + 1, l - j + 1, k, l] = 1
    neighbours = tf.matmul(around.reshape(1, 9 * h * w, h * w), tf.reshape(x, (-1, h * w, c)))
    return _times(tf.reshape(neighbours, (-1, h, w, 9 * c)), tf.reshape(kernel, (9 * c, int(kernel.shape[-1]))), bias)


def _times(x, kernel, bias):
    """The channels of every pixel, x (N, h, w, c), times a kernel (c, filters), plus a bias: (N, h, w, filters).

    As a matrix product: the gradients of TensorFlow's 1 x 1 convolutions take longer.
    """
    h, w, c = x.shape[1:].as_list()
    pixels = tf.matmul(tf.reshape(x, (-1, c)), kernel)
    # Before the change of shape, across which TensorFlow does not fuse it into the product.
    return tf.reshape(tf.nn.bias_add(pixels, bias), (-1, h, w, int(kernel.shape[-1])))


def _direction_initializer(walk, place):
    def initializer(shape, dtype=tf.float32, partition_info=None):
        key = tf.stack([tf.constant(stream_key(walk.seed, place), tf.int64), walk.zero])
        return V_STDDEV * tf.random.stateless_normal(shape, key, dtype=dtype)
    return initializer
