"""Convolutions of 3 x 3 pixels that take less time than TensorFlow's, on CPUs, in float32.

Winograd's minimal filtering needs a quarter of the multiplications (Lavin & Gray 2016, section 4). A map is cut into
windows of 6 x 6 pixels that overlap by two. Windows and kernel are transformed and multiplied, which is 36 matrix
products. The products are transformed back to tiles of 4 x 4. This pays for VGG19's many channels, where products are
as fast as the processor allows: where TensorFlow computes with oneDNN. GPUs' libraries do the like by themselves.

Without oneDNN, as in TensorFlow 1.15, each of a convolution's gradients takes two to five times as long as the
convolution. Both gradients are convolutions too, and are computed as such.
"""
import numpy as np
import tensorflow.compat.v1 as tf

from common.machine import choose_precision, has_gpu, has_onednn

TILE = 4
WINDOW = TILE + 2  # pixels that a tile depends on
# With fewer the transformations, which reading and writing limits, take longer than the multiplications they save; on
# large maps, which leave the processor's caches, twice as many are needed.
MIN_CHANNELS = 128
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
    many_channels: as VGG19 has, up to 512. In a whole step the VU-Net's 128 gained nothing by Winograd's filtering.
    """
    if choose_precision(precision) != "float32" or has_gpu():
        return direct
    if not has_onednn():
        return forward_only
    return winograd if many_channels else direct


def direct(x, kernel):
    """The convolution by TensorFlow's own operation."""
    return tf.nn.conv2d(x, kernel, strides=[1, 1, 1, 1], padding="SAME")


def winograd(x, kernel):
    """The convolution, by Winograd's filtering where that is faster.

    Errors reach some 1e-5 of the largest value; those of TensorFlow's own operation reach 1e-6.
    """
    h, w, c = x.shape[1:].as_list()
    needed = MIN_CHANNELS if h * w <= LARGE_MAP else 2 * MIN_CHANNELS
    pays = min(c, int(kernel.shape[3])) >= needed and min(h, w) >= TILE - 1
    return _by_windows(x, tf.convert_to_tensor(kernel)) if pays else direct(x, kernel)


def forward_only(x, kernel):
    """The convolution by TensorFlow's own operation, which computes its gradients as well."""
    return _with_gradients_forward(x, tf.convert_to_tensor(kernel))


@tf.custom_gradient
def _with_gradients_forward(x, kernel):
    def gradient(upstream):
        # kernel[::-1, ::-1] would take eight times as long.
        turned = tf.transpose(tf.reverse(kernel, [0, 1]), (0, 1, 3, 2))
        # A sum over maps and pixels: so maps take the place of channels, and pixels that of the kernel.
        padded = tf.transpose(tf.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)]), (3, 1, 2, 0))
        along_kernel = tf.nn.conv2d(padded, tf.transpose(upstream, (1, 2, 0, 3)), strides=[1, 1, 1, 1], padding="VALID")
        return direct(upstream, turned), tf.transpose(along_kernel, (1, 2, 0, 3))
    return direct(x, kernel), gradient


@tf.custom_gradient
def _by_windows(x, kernel):
    def gradient(upstream):
        along_kernel = tf.raw_ops.Conv2DBackpropFilter(
            input=x, filter_sizes=tf.shape(kernel), out_backprop=upstream, strides=[1, 1, 1, 1], padding="SAME")
        return _filtered(upstream, kernel, backwards=True), along_kernel
    return _filtered(x, kernel), gradient


def _filtered(x, kernel, backwards=False):
    """x convolved with a kernel (3, 3, c, f), or backwards, from f to c channels with the kernel turned."""
    h, w, c = x.shape[1:].as_list()
    rows, columns = -(-h // TILE), -(-w // TILE)
    padded_h, padded_w = rows * TILE + 2, columns * TILE + 2
    padded = tf.pad(x, [(0, 0), (1, padded_h - h - 1), (1, padded_w - w - 1), (0, 0)])
    # The first rows are the pixels (0, 0) of all windows, the next ones the pixels (0, 1), and so on. So one matrix
    # product transforms them all, and its results lie as the 36 products need them.
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
