"""Perceptual loss: L1 distances of VGG19 features, and of their Gram matrices, between two pictures.

    loss = PerceptualLoss(weights, feature_layers, feature_weights, gram_weights)
    terms = loss(target, picture)              # scalars; terms.likelihood_loss is what training minimises
    session.run(loss.load_op, loss.load_feed)  # once: puts the weights into the session

The network is written out rather than taken from Keras, whose loading of weights fails silently in graph mode. Its
variables are neither trainable nor global, so neither Adam nor the Saver sees them.
"""
import collections
import os
import zlib

import h5py
import numpy as np
import tensorflow.compat.v1 as tf

from common.convolution import direct
from common.downloads import download
from common.errors import UserError, reason

# (block, convolutions, filters) of VGG19 (Simonyan & Zisserman 2015, table 1, column E); a pooling ends each block.
BLOCKS = ((1, 2, 64), (2, 2, 128), (3, 4, 256), (4, 4, 512), (5, 4, 512))
CONVOLUTIONS = [f"block{block}_conv{i + 1}" for block, n, _ in BLOCKS for i in range(n)]
LAYERS = ["input_1"] + [layer for block, n, _ in BLOCKS
                        for layer in [f"block{block}_conv{i + 1}" for i in range(n)] + [f"block{block}_pool"]]
IMAGENET_MEAN_BGR = (103.939, 116.779, 123.68)
# The weight of the perceptual loss against the KL term, as published.
LIKELIHOOD_FACTOR = 5.0

IMAGENET_FILE = "vgg19_weights_tf_dim_ordering_tf_kernels_notop.h5"
IMAGENET_URL = "https://storage.googleapis.com/tensorflow/keras-applications/vgg19/" + IMAGENET_FILE
IMAGENET_MD5 = "253f8cb515780f3b799900260a226db6"

Terms = collections.namedtuple("Terms", "likelihood_loss feature_losses gram_losses")
Terms.__doc__ = """Scalars: the weighted sum, and its weighted terms per layer (gram_losses is empty without Gram)."""


class PerceptualLoss:
    """5 * sum_k feature_weights[k] mean|F_k(x) - F_k(y)| + 5 * sum_k gram_weights[k] mean|G_k(x) - G_k(y)|.

    weights: {"block1_conv1/kernel": array, ".../bias": array, ...} as from `load_weights`.
    feature_layers: names out of LAYERS; feature_weights, gram_weights: as many numbers >= 0. Where all Gram weights
    are 0 no Gram matrix is made. conv2d: as from `make_conv2d`.
    """

    def __init__(self, weights, feature_layers, feature_weights, gram_weights, *, conv2d=direct):
        self.layers = list(feature_layers)
        self.feature_weights = list(feature_weights)
        self.gram_weights = list(gram_weights)
        self.conv2d = conv2d
        self.variables, assignments, self.load_feed = {}, [], {}
        with tf.variable_scope("vgg19"):
            for name in needed_weights(self.layers):
                value = weights[name]
                self.variables[name] = variable = tf.get_variable(
                    name, value.shape, initializer=tf.zeros_initializer(), trainable=False,
                    collections=[tf.GraphKeys.LOCAL_VARIABLES])
                # Fed rather than constants: those would weigh 80 MB in the graph and in every .meta file.
                placeholder = tf.placeholder(tf.float32, value.shape)
                assignments.append(variable.assign(placeholder))
                self.load_feed[placeholder] = value
        self.load_op = tf.group(*assignments)

    def __call__(self, target, picture):
        """Terms of the loss between two batches (N, S, S, 3) in [-1, 1]."""
        return weighted_terms(self.features(target), self.features(picture), self.feature_weights, self.gram_weights)

    def features(self, images):
        """Features of images (N, S, S, 3) in [-1, 1], (N, h, w, c) for each feature layer."""
        return features(images, self.variables, self.layers, conv2d=self.conv2d)

    def per_image(self, of_target, of_picture):
        """The likelihood loss between two lists of features, of each image (N,); `__call__` gives their mean."""
        return weighted_terms(of_target, of_picture, self.feature_weights, self.gram_weights,
                              distance=image_distances).likelihood_loss


@tf.custom_gradient
def mean_distance(x, y):
    """Mean absolute difference of tensors of one shape, a scalar. Its gradient takes half of TensorFlow's passes."""
    difference = y - x

    def gradient(upstream):
        along_y = tf.sign(difference) * (upstream / tf.cast(tf.size(difference), tf.float32))
        return -along_y, along_y
    return tf.reduce_mean(tf.abs(difference)), gradient


def image_distances(x, y):
    """Mean absolute difference of each of N pairs (N, ...): (N,)."""
    return tf.reduce_mean(tf.abs(x - y), axis=list(range(1, x.shape.ndims)))


def weighted_terms(target_features, picture_features, feature_weights, gram_weights, *, distance=mean_distance):
    """Terms of the loss between two lists of features (N, h, w, c), one per layer, measured with `distance`."""
    feature_losses = [weight * distance(x, y) for weight, x, y
                      in zip(feature_weights, target_features, picture_features)]
    gram_losses = []
    if any(weight > 0 for weight in gram_weights):
        gram_losses = [weight * distance(gram_matrix(x), gram_matrix(y)) if weight > 0 else tf.constant(0.0)
                       for weight, x, y in zip(gram_weights, target_features, picture_features)]
    return Terms(LIKELIHOOD_FACTOR * sum(feature_losses + gram_losses), feature_losses, gram_losses)


def features(images, weights, layers, *, conv2d=direct):
    """VGG19 features of images (N, S, S, 3) in [-1, 1]: for each of `layers` (N, h, w, c), after the ReLU.

    weights: tensors or variables by name; those of layers beyond the deepest asked for are not read. conv2d: as from
    `make_conv2d`.
    """
    deepest = max(LAYERS.index(layer) for layer in layers)
    outputs = {}
    with tf.name_scope("vgg19/"):
        x = preprocess(images)
        for layer in LAYERS[:deepest + 1]:
            if layer in CONVOLUTIONS:
                # In this order, and read by nobody in between, TensorFlow fuses the three, if the first is its own.
                x = conv2d(x, weights[layer + "/kernel"])
                x = tf.nn.relu(tf.nn.bias_add(x, weights[layer + "/bias"]))
            elif layer != "input_1":
                x = tf.nn.max_pool(x, ksize=[1, 2, 2, 1], strides=[1, 2, 2, 1], padding="VALID")
            outputs[layer] = x
    return [outputs[layer] for layer in layers]


def preprocess(images):
    """RGB in [-1, 1] -> what VGG19 was trained on: BGR in [0, 255] less the mean of ImageNet."""
    return tf.reverse((images + 1) * 127.5, axis=[-1]) - IMAGENET_MEAN_BGR


def gram_matrix(x):
    """Second moments of features (N, h, w, c), positions forgotten: (N, c, c), divided by 4 h w."""
    h, w, c = x.shape[1:4]
    flat = tf.reshape(x, [-1, int(h) * int(w), int(c)])
    return tf.matmul(flat, flat, transpose_a=True) / (4.0 * int(h) * int(w))


def needed_weights(layers):
    """Names of the weights that features of these layers need, in the order of the network."""
    deepest = max(LAYERS.index(layer) for layer in layers)
    return [layer + part for layer in LAYERS[:deepest + 1] if layer in CONVOLUTIONS for part in ("/kernel", "/bias")]


def smallest_picture(layer):
    """Size of the smallest picture whose features in this layer have a pixel left."""
    return 2**sum(pool.endswith("_pool") for pool in LAYERS[:LAYERS.index(layer) + 1])


def weight_shapes():
    """{"block1_conv1/kernel": (3, 3, 3, 64), "block1_conv1/bias": (64,), ...} of all 16 convolutions."""
    shapes, channels = {}, 3
    for block, n, filters in BLOCKS:
        for i in range(n):
            layer = f"block{block}_conv{i + 1}"
            shapes[layer + "/kernel"], shapes[layer + "/bias"] = (3, 3, channels, filters), (filters,)
            channels = filters
    return shapes


def load_weights(source, layers):
    """The weights that `layers` need, as float32 arrays by name.

    source: "imagenet" (Keras's own file, downloaded into Keras's cache unless it is there), "random" (always the same
    numbers), or the path of a Keras .h5 or an .npz file.
    Raises UserError where they cannot be had.
    """
    names = needed_weights(layers)
    if source == "random":
        return {name: random_weight(name, weight_shapes()[name]) for name in names}
    path = find_imagenet_file() if source == "imagenet" else source
    if not os.path.isfile(path):
        raise UserError(f"vgg_weights: there is no file {path!r}; expected imagenet, random or the path of an .h5 or "
                        f".npz file ({IMAGENET_URL})")
    try:
        found = _read_npz(path, names) if path.endswith(".npz") else _read_h5(path, names)
    except Exception as error:  # h5py, zipfile and numpy raise all kinds on a damaged file
        raise UserError(f"vgg_weights: cannot read {path}: {reason(error)}")
    for name in names:
        expected = weight_shapes()[name]
        shape = found[name].shape if name in found else "nothing"
        if shape != expected:
            raise UserError(f"vgg_weights: {path} has {shape} for {name}, which the feature layers need; expected "
                            f"shape {expected}")
    return {name: np.asarray(found[name], np.float32) for name in names}


def random_weight(name, shape):
    """He-initialised kernels and small biases (arrays), a function of the name alone."""
    random = np.random.RandomState(zlib.crc32(name.encode()) & 0x7fffffff)
    scale = np.sqrt(2.0 / np.prod(shape[:-1])) if len(shape) == 4 else 0.01
    return (random.standard_normal(shape) * scale).astype(np.float32)


def find_imagenet_file():
    """Path of Keras's VGG19 file in Keras's cache, downloaded if need be. Raises UserError where that fails."""
    keras_home = os.environ.get("KERAS_HOME") or os.path.join(os.path.expanduser("~"), ".keras")
    folder = os.path.join(keras_home, "models")
    try:
        return download(IMAGENET_URL, f"md5:{IMAGENET_MD5}", folder)
    except UserError as error:
        raise UserError(f"vgg_weights: VGG19's weights: {error}; get them elsewhere and put them into {folder}, or set "
                        "vgg_weights to their path")


def _read_npz(path, names):
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in names if name in arrays}


def _read_h5(path, names):
    found = {}
    with h5py.File(path, "r") as file:
        root = file["model_weights"] if "model_weights" in file else file

        def collect(h5_name, item):
            # block1_conv1/block1_conv1_W_1:0 in Keras's own file, .../kernel:0 in later ones: told apart by rank.
            if isinstance(item, h5py.Dataset):
                name = h5_name.split("/")[0] + ("/kernel" if len(item.shape) == 4 else "/bias")
                if name in names:
                    found[name] = item[()]
        root.visititems(collect)
    return found
