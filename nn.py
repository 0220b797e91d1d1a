"""Layers: weight normalisation with data-dependent initialisation, residual blocks, sampling up and down.

A layer is one function `layer(pass_, x, ...)`. The `Pass` is one way through the networks: it says whether layers
initialise, how much they drop and where random numbers come from. It also counts the layers of each kind, which names
the next one. Passes share their variables by name.

    with pass_.network("enc_up"):
        h = nin(pass_, x, 64)         # variables enc_up/dense_0/{V,g,b}
        h = residual_block(pass_, h)  # variables enc_up/conv2d_0/{V,g,b}
"""
import collections
import contextlib
import zlib

import numpy as np
import tensorflow.compat.v1 as tf

from common.convolution import direct

V_STDDEV = 0.05  # Salimans & Kingma 2016, section 3
MAX_DROP_PROB = 255 / 256
USUAL_BATCH = 16  # for choices between equal ways of computing that depend on the number of pixels


class Pass:
    """The settings of one pass through the networks, made anew for every pass.

    name: str, keeps the random numbers of different passes apart.
    step: int scalar (tensor or number); noise and dropout are pure functions of (seed, step, place in the pass).
    seed: int, the run's seed.
    drop_prob: with which probability residual blocks drop an activation, in [0, 1), at most MAX_DROP_PROB. Where it is
    above 0, the attribute is a scalar tensor that can be fed.
    initialising: whether layers set their g and b from the data they see; the updates gather in `assignments`.
    worker, n_workers: this batch is one of n_workers batches of equal size; their noise is that of one large batch.
    noise: a factor of all noise; the attribute is a scalar tensor that can be fed.
    conv2d: what convolves where the stride is 1, as from `make_conv2d`; worth it where gradients are taken.
    """

    def __init__(self, name, step=0, seed=0, drop_prob=0.0, *, initialising=False, worker=0, n_workers=1, noise=1.0,
                 conv2d=direct):
        self.name = name
        self.step = step
        self.seed = seed
        self.worker = worker
        self.n_workers = n_workers
        self.initialising = initialising
        self.conv2d = conv2d
        self.assignments = []
        self._scope = None
        self._counts = collections.Counter()
        self.noise = tf.placeholder_with_default(noise, ())
        # Not a constant, or the graph optimiser would work out all initial weights, and more slowly than the session.
        self.zero = tf.placeholder_with_default(tf.constant(0, tf.int64), ())
        self.drop_prob = tf.placeholder_with_default(tf.constant(drop_prob), ())
        self.dropout = Dropout(self, self.drop_prob) if drop_prob > 0 else None

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
        """Standard normal noise of the shape of x, (N, h, w, c)."""
        shape = tf.shape(x)
        key = self.random_key("noise", per_worker=False)
        if self.n_workers == 1:
            return self.noise * tf.random.stateless_normal(shape, key)
        of_all_workers = tf.concat([shape[:1] * self.n_workers, shape[1:]], axis=0)
        noise = tf.random.stateless_normal(of_all_workers, key)[self.worker * shape[0]:][:shape[0]]
        return self.noise * tf.ensure_shape(noise, x.shape)

    def random_key(self, kind, per_worker=True):
        """The key, (2,) int64, of the random numbers of the next thing of this kind, in this step."""
        name = f"{self.name} of worker {self.worker}" if per_worker and self.worker else self.name
        key = stream_key(self.seed, f"{name}/{self.place(kind)}")
        return tf.stack([tf.constant(key, tf.int64), tf.cast(self.step, tf.int64)])


class Dropout:
    """Which activations a pass drops: elu(x) and the scale that gives what is left elu's mean.

    The choice is made from random bytes, which are quicker to draw than floats. Each pass draws one of the two
    thresholds next to 256 drop_prob, so that the probability is exact.
    """

    def __init__(self, pass_, drop_prob):
        self._pass = pass_
        share = tf.minimum(drop_prob, MAX_DROP_PROB)
        self.scale = 1 / (1 - share)
        uniform = tf.random.stateless_uniform((), pass_.random_key("threshold"))
        uniform = tf.floor(2**16 * uniform) / 2**16  # or the sum could be rounded up to the next whole number
        self._threshold = tf.cast(tf.floor(256 * share + uniform) - 128, tf.int8)

    def elu(self, x):
        """elu(x), not scaled, with a share drop_prob of the values set to 0."""
        kept = self._kept(x.shape.as_list() if x.shape.is_fully_defined() else tf.shape(x))

        # The gradient needs either the activations or what dropout made of them. Here it needs only the latter, which
        # the next layer keeps anyway, and the choice as booleans: 0.4 GB less for a step of market.yaml.
        @tf.custom_gradient
        def dropped_elu(x):
            dropped = tf.nn.elu(x) * tf.cast(kept, tf.float32)

            def gradient(upstream):
                with tf.control_dependencies([upstream]):  # else the floats of the forward pass would be kept
                    kept_now = tf.cast(kept, tf.float32)
                return tf.raw_ops.EluGrad(gradients=upstream * kept_now, outputs=dropped)
            return dropped, gradient
        return dropped_elu(x)

    def _kept(self, shape):
        """Booleans of this shape, numbers or a tensor, each false with probability drop_prob."""
        n = int(np.prod(shape)) if isinstance(shape, list) else tf.reduce_prod(shape)
        # TensorFlow 1.15 wants limits, which cost a division per word.
        needs_limits = not hasattr(tf.raw_ops, "StatelessRandomUniformFullInt")
        minval, maxval = (tf.int32.min, tf.int32.max) if needs_limits else (None, None)
        key = self._pass.random_key("dropout")
        words = tf.random.stateless_uniform([(n + 3) // 4], key, minval=minval, maxval=maxval, dtype=tf.int32)
        random_bytes = tf.reshape(tf.bitcast(words, tf.int8), [-1])
        if not isinstance(n, int) or n % 4:  # else there are just as many as are needed
            random_bytes = random_bytes[:n]
        return tf.reshape(random_bytes >= self._threshold, shape)


def stream_key(seed, place):
    """The int64 that keys the random numbers of one place (a name) in a run of this seed."""
    return int(np.array((seed << 32 | zlib.crc32(place.encode())) & (2**64 - 1), np.uint64).astype(np.int64))


# ---------------------------------------------------------------------------------------------- layers

def conv2d(pass_, x, filters, stride=1):
    """3 x 3 convolution, SAME. x (N, h, w, c) -> (N, ceil(h / stride), ceil(w / stride), filters)."""
    return _weight_normalised(pass_, "conv2d", x, (3, 3, channels(x), filters), stride=stride)


def nin(pass_, x, filters):
    """1 x 1 convolution ("network in network"). x (N, h, w, c) -> (N, h, w, filters)."""
    return _weight_normalised(pass_, "dense", x, (channels(x), filters))


def elu_conv2d(pass_, x, filters):
    """3 x 3 convolution, SAME, of dropout(elu(x)). x (N, h, w, c) -> (N, h, w, filters)."""
    shape = (3, 3, channels(x), filters)
    if pass_.dropout is None:
        return _weight_normalised(pass_, "conv2d", tf.nn.elu(x), shape)
    return _weight_normalised(pass_, "conv2d", pass_.dropout.elu(x), shape, x_scale=pass_.dropout.scale)


def downsample(pass_, x, filters):
    """Halves height and width: a convolution of stride 2."""
    return conv2d(pass_, x, filters, stride=2)


def upsample(pass_, x, filters):
    """Doubles height and width: sub-pixel convolution (Shi et al. 2016)."""
    return tf.depth_to_space(conv2d(pass_, x, 4 * filters), 2)


def residual_block(pass_, x, a=None):
    """x + f(x, a), x and result (N, h, w, c); a, from a skip connection or the latent, (N, h, w, any)."""
    residual = x
    if a is not None:
        residual = tf.concat([residual, nin(pass_, tf.nn.elu(a), channels(x))], axis=-1)
    residual = elu_conv2d(pass_, residual, channels(x))
    # TensorFlow 2's graph optimiser would fuse the addition into the convolution, trip over chains of such blocks and
    # give up on all fusions. It does not look through ensure_shape, which costs nothing.
    return x + tf.ensure_shape(residual, x.shape)


def channels(x):
    """Number of channels of an NHWC tensor."""
    return int(x.shape[-1])


# ---------------------------------------------------------------------------------------------- weight normalisation

def _weight_normalised(pass_, kind, x, shape, *, stride=1, x_scale=None):
    """y = g * (x_scale * x conv V / |V|) + b (Salimans & Kingma 2016), |V| the L2 norm per output channel.

    x_scale: a scalar, or None for 1.

    All factors go into the kernel or, where that has more numbers than the result, into the result: either is read and
    written once more, and again in the gradients.
    """
    name, filters = pass_.place(kind), shape[-1]
    with tf.variable_scope(name, reuse=tf.AUTO_REUSE):
        V = tf.get_variable("V", shape, initializer=_direction_initializer(pass_, name + "/V"))
        g = tf.get_variable("g", (filters,), initializer=tf.ones_initializer())
        b = tf.get_variable("b", (filters,), initializer=tf.zeros_initializer())
    V = tf.convert_to_tensor(V)  # one reading for both uses
    kernel = _reached(V, x)
    if pass_.initialising:
        scale = (1.0 if x_scale is None else x_scale) / _norm(V)
        return _initialise_from_data(pass_, _conv(pass_, x, kernel * scale, None, stride), g, b)
    scale = _over_norm(tf.convert_to_tensor(g) if x_scale is None else x_scale * g, V)
    if _has_few_pixels(x, kernel):
        return tf.nn.bias_add(_conv(pass_, x, kernel, None, stride) * scale, b)
    return _conv(pass_, x, kernel * scale, b, stride)


def _has_few_pixels(x, kernel):
    """Whether x, (N, h, w, c), has fewer pixels than each filter of the kernel has numbers, for a usual N."""
    return USUAL_BATCH * x.shape[1] * x.shape[2] < np.prod(kernel.shape.as_list()[:-1])


@tf.custom_gradient
def _over_norm(g, V):
    """g / |V|, (filters,). Its gradient (Salimans & Kingma 2016, equation 3) reads V less often than TensorFlow's."""
    norm = _norm(V)
    scale = g / norm

    def gradient(upstream):
        along_V = upstream / norm
        return along_V, V * (-along_V * scale / norm)
    return scale, gradient


def _norm(V):
    """|V|, (filters,): the L2 norm per output channel."""
    return tf.math.reduce_euclidean_norm(V, axis=list(range(V.shape.ndims - 1)))


def _reached(V, x):
    """The part of a kernel that meets pixels of x: all of it, or the centre of a 3 x 3 kernel on a map of one pixel."""
    is_one_pixel = x.shape[1] == 1 and x.shape[2] == 1
    return V[1:2, 1:2] if V.shape.ndims == 4 and is_one_pixel else V


def _initialise_from_data(pass_, t, g, b):
    """Sets g and b so that the layer's output has mean 0 and variance 1 on this batch; returns that output."""
    mean, variance = tf.nn.moments(t, axes=[0, 1, 2])
    scale = tf.rsqrt(variance + 1e-10)
    shift = -mean * scale
    pass_.assignments += [g.assign(scale, read_value=False), b.assign(shift, read_value=False)]
    return t * scale + shift


def _direction_initializer(pass_, place):
    def initializer(shape, dtype=tf.float32, partition_info=None):
        key = tf.stack([tf.constant(stream_key(pass_.seed, place), tf.int64), pass_.zero])
        return tf.random.stateless_normal(shape, key, stddev=V_STDDEV, dtype=dtype)
    return initializer


# ---------------------------------------------------------------------------------------------- convolutions

def _conv(pass_, x, kernel, bias, stride):
    """x (N, h, w, c) convolved with a kernel (c, filters) or (1 or 3, 1 or 3, c, filters), plus any bias (filters,)."""
    if kernel.shape.ndims == 2:
        return _times(x, kernel, bias)
    if kernel.shape[0] == 1:
        return _times(x, tf.reshape(kernel, kernel.shape[-2:]), bias)
    if stride == 1 and USUAL_BATCH * x.shape[1] * x.shape[2] <= x.shape[3]:
        return _conv_of_small_map(x, kernel, bias)
    if stride == 1:
        return _plus(pass_.conv2d(x, kernel), bias)
    return _plus(tf.nn.conv2d(x, kernel, strides=[1, stride, stride, 1], padding="SAME"), bias)


def _conv_of_small_map(x, kernel, bias):
    """A 3 x 3 convolution, SAME, of small maps with many channels, as one matrix product.

    On such maps, of hundreds of channels, TensorFlow's convolutions are slower than on others by up to an order of
    magnitude.
    """
    h, w, c = x.shape[1:].as_list()
    # Selects, for each of the h w pixels, its 9 neighbours; those beyond the edges are 0.
    around = np.zeros((h, w, 3, 3, h, w), np.float32)
    for y, x_, other_y, other_x in np.ndindex(h, w, h, w):
        if abs(other_y - y) <= 1 and abs(other_x - x_) <= 1:
            around[y, x_, other_y - y + 1, other_x - x_ + 1, other_y, other_x] = 1
    neighbours = tf.matmul(around.reshape(1, 9 * h * w, h * w), tf.reshape(x, (-1, h * w, c)))
    return _times(tf.reshape(neighbours, (-1, h, w, 9 * c)), tf.reshape(kernel, (9 * c, channels(kernel))), bias)


def _times(x, kernel, bias):
    """The channels of every pixel, x (N, h, w, c), times a kernel (c, filters), plus a bias: (N, h, w, filters).

    As a matrix product: the gradients of TensorFlow's 1 x 1 convolutions take longer.
    """
    h, w, c = x.shape[1:].as_list()
    pixels = tf.matmul(tf.reshape(x, (-1, c)), kernel)
    # Before the change of shape, across which TensorFlow does not fuse it into the product.
    return tf.reshape(_plus(pixels, bias), (-1, h, w, channels(kernel)))


def _plus(x, bias):
    return x if bias is None else tf.nn.bias_add(x, bias)
