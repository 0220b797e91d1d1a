"""The Inception network of the original FID code: a frozen TensorFlow graph, inception-2015-12-05.

It cannot be had where this was written, so it was never run: tests use a small graph with its names, fixed batch shapes
and old operations.
"""
import os
import tarfile

import numpy as np
import tensorflow.compat.v1 as tf

from common.downloads import download
from common.errors import UserError, reason, shown

URL = "http://download.tensorflow.org/models/image/imagenet/inception-2015-12-05.tgz"
GRAPH = "classify_image_graph_def.pb"  # in it
INPUT, FEATURES, LOGITS = "ExpandDims:0", "pool_3:0", "softmax/logits/MatMul"
MAX_BYTES = 2**28
BATCH_SIZE = 32


class Inception:
    """inception(pictures): features (n, 2048) and logits (n, 1008), without bias, of pictures (n, h, w, 3) uint8.

    path: of the .tgz or of the .pb in it; None downloads it once. Raises UserError.
    """

    def __init__(self, path=None):
        graph_def = tf.GraphDef()
        path = path or download(URL)
        try:
            graph_def.ParseFromString(_read(path))
            with tf.Graph().as_default():
                # Its own input is one JPEG; in the place of that, any number of pictures.
                self._pictures = tf.placeholder(tf.float32, (None, None, None, 3))
                weights = next(node for node in graph_def.node if node.name == LOGITS).input[1]
                features, weights = tf.import_graph_def(
                    graph_def, {INPUT: self._pictures}, return_elements=[FEATURES, weights + ":0"], name="inception")
                # Behind the features, the graph is for a batch of one.
                self._features, self._weights = features, weights
                self._session = tf.Session()
        except UserError:
            raise
        except Exception as error:  # protobuf's and TensorFlow's errors on other graphs are many
            raise UserError(f"{shown(path, 1000)}: is not the graph of {URL}: {reason(error)}")

    def __call__(self, pictures):
        features = []
        for start in range(0, len(pictures), BATCH_SIZE):
            batch = pictures[start:start + BATCH_SIZE].astype(np.float32)
            found, weights = self._session.run([self._features, self._weights], {self._pictures: batch})
            features.append(found.reshape(len(batch), -1))
        features = np.concatenate(features)
        return features, features.dot(weights)

    def close(self):
        self._session.close()


def _read(path):
    """The bytes of the graph."""
    if not os.path.isfile(path):
        raise UserError(f"--inception: there is no file {shown(path, 1000)}")
    if not tarfile.is_tarfile(path):
        with open(path, "rb") as file:
            return file.read(MAX_BYTES)
    with tarfile.open(path) as archive:
        member = next((member for member in archive if os.path.basename(member.name) == GRAPH), None)
        if member is None or not member.isreg():
            raise UserError(f"{shown(path, 1000)}: expected {GRAPH} in it, found none")
        return archive.extractfile(member).read(MAX_BYTES)
