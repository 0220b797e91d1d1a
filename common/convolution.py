"""Convolutions of 3 x 3 pixels that take less time than TensorFlow's, on CPUs, in float32.

Winograd's minimal filtering needs a quarter of the multiplications (Lavin & Gray 2016, section 4). A map is cut into
windows of 6 x 6 pixels that overlap by two; windows and kernel are transformed, multiplied, which is 36 matrix
products, and the products transformed back to tiles of 4 x 4. It pays for VGG19's many channels, where products are as
fast as the processor allows: in TensorFlow 2, and in 1.15 as Intel built it. GPUs' libraries do such things themselves.

Other builds of TensorFlow 1.15 take twice as long for a convolution's gradient by the map as for the convolution. That
gradient is a convolution too, with the kernel turned.
"""
import numpy as np
import tensorflow.compat.v1 as tf

from common.machine import choose_precision, has_gpu, has_onednn

TILE = 4
WINDOW = TILE + 2  # pixels that a tile depends on
# With fewer the transformations, which reading and writing limits, take longer than the multiplications they save; on
# large maps, which leave the processor's caches, twice as many are needed.
FEWEST_CHANNELS = 128
LARGE_MAP = 32 * 32

# Lavin & Gray's B^T, G and A^T of F(4 x 4, 3 x 3), each for rows and columns at once.
_WINDOWS, _KERNEL, _TILES = (np.kron(matrix, matrix).astype(np.float32) for matrix in (
    [[4, 0, -5, 0, 1, 0],
     [0, -4, -4, 1, 1, 0],
     [0, 4, -4, -1, 1, 0],
     [0, -2, -1, 2, 1, 0],
     [0, 2, -1, -2, 1, 0],
     [0, 4, 0, -5, 0, 1]],
    [[1 / 4, 0, 0],
     [-1 / 6, -1 / 6, -1 / 6],
     [-1 / 6, 1 / 6, -1 / 6],
     [1 / 24, 1 / 12, 1 / 6],
     [1 / 24, -1 / 12, 1 / 6],
     [0, 0, 1]],
    [[1, 1, 1, 1, 1, 0],
     [0, 1, -1, 2, -2, 0],
     [0, 1, 1, 4, 4, 0],
     [0, 1, -1, 8, -8, 1]]))


def make_conv2d(precision, *, many_channels=False):
    """conv2d(x, kernel) for graphs of this precision (float32, mixed or auto) on this machine: one of the next three.

    x (N, h, w, c) convolved with a kernel (3, 3, c, filters), stride 1, SAME: (N, h, w, filters).
    many_channels: as VGG19 has, up to 512.
    """
    if choose_precision(precision) != "float32" or has_gpu():
        return direct
    if not has_onednn():
        return turned
    return winograd if many_channels else direct


def direct(x, kernel):
    """TensorFlow's own."""
    return tf.nn.conv2d(x, kernel, strides=[1, 1, 1, 1], padding="SAME")


def winograd(x, kernel):
    """By Winograd's filtering where that takes less time; off by 1e-5 of the largest value, TensorFlow's by 1e-6."""
    h, w, c = x.shape[1:].as_list()
    needed = FEWEST_CHANNELS if h * w <= LARGE_MAP else 2 * FEWEST_CHANNELS
    pays = min(c, int(kernel.shape[3])) >= needed
    return _with_gradients(_by_windows, x, kernel) if pays else direct(x, kernel)


def turned(x, kernel):
    """TensorFlow's own, but its gradient by x, which is the convolution with the kernel turned by 180 degrees."""
    return _with_gradients(_turned, x, kernel)


def _with_gradients(convolve, x, kernel):
    """convolve(x, kernel); its gradient by x is convolve(upstream, kernel, backwards=True)."""
    @tf.custom_gradient
    def convolved(x, kernel):
        def gradient(upstream):
            along_kernel = tf.raw_ops.Conv2DBackpropFilter(
                input=x, filter_sizes=tf.shape(kernel), out_backprop=upstream, strides=[1, 1, 1, 1], padding="SAME")
            return convolve(upstream, kernel, backwards=True), along_kernel
        return convolve(x, kernel), gradient
    return convolved(x, tf.convert_to_tensor(kernel))


def _turned(x, kernel, backwards=False):
    return direct(x, tf.transpose(kernel[::-1, ::-1], (0, 1, 3, 2)) if backwards else kernel)


def _by_windows(x, kernel, backwards=False):
    h, w, c = x.shape[1:].as_list()
    rows, columns = -(-h // TILE), -(-w // TILE)
    padded_h, padded_w = rows * TILE + 2, columns * TILE + 2
    padded = tf.pad(x, [(0, 0), (1, padded_h - h - 1), (1, padded_w - w - 1), (0, 0)])
    # First pixel (0, 0) of the windows of all tiles (row, column) of all maps, then (0, 1), and so on: so that a
    # transformation is one matrix product, and its results lie as the 36 products need them.
    i, j, row, column = np.ogrid[:WINDOW, :WINDOW, :rows, :columns]
    pixels = (row * TILE + i) * padded_w + column * TILE + j
    pixels = pixels.reshape(WINDOW**2, 1, rows * columns).astype(np.int32)
    pixels = pixels + tf.reshape(tf.range(tf.shape(x)[0]) * (padded_h * padded_w), (1, -1, 1))
    windows = tf.gather(tf.reshape(padded, (-1, c)), tf.reshape(pixels, (WINDOW**2, -1)))
    windows = tf.reshape(tf.matmul(_WINDOWS, tf.reshape(windows, (WINDOW**2, -1))), (WINDOW**2, -1, c))
    turned = _KERNEL[:, ::-1] if backwards else _KERNEL
    kernels = tf.reshape(tf.matmul(turned, tf.reshape(kernel, (9, -1))), [WINDOW**2] + kernel.shape[2:].as_list())
    tiles = tf.matmul(windows, kernels, transpose_b=backwards)
    filters = int(tiles.shape[2])
    tiles = tf.matmul(_TILES, tf.reshape(tiles, (WINDOW**2, -1)))
    tiles = tf.reshape(tiles, (TILE, TILE, -1, rows, columns, filters))
    y = tf.reshape(tf.transpose(tiles, (2, 3, 0, 4, 1, 5)), (-1, rows * TILE, columns * TILE, filters))
    return tf.ensure_shape(y[:, :h, :w], x.shape[:3].concatenate(filters))
