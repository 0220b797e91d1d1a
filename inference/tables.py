"""What evaluate measures beside its averages over images: Tables 2 and 3 of the paper; how tables are printed."""
import collections

import numpy as np
import tensorflow.compat.v1 as tf
from PIL import Image

from common.convolution import make_conv2d
from common.errors import UserError
from common.machine import make_session
from dataset.poses import choose
from deeploss import features, load_weights, smallest_picture
from inference.metrics import JOINTS_SIZE, consistency, joint_figures, means_of_neighbours
from inference.rendering import aspect_shape

CONSISTENCY_LAYER = "block5_conv2"
APPEARANCES, POSES, NEIGHBOUR_IMAGES = 50, 10, 1000
# Of the paper: Table 1 (SSIM, Inception Score), Table 2 (pixels at 256 x 256), Table 3 (length, largest distance).
PAPER = {1: "Market-1501 .353 +- .097 and 3.214 +- .119; DeepFashion .786 +- .068 and 3.087 +- .239",
         2: "COCO 23.23; DeepFashion 7.34; Market-1501 54.60",
         3: "Market-1501 55.95 and 125.99; DeepFashion 59.24 and 135.83, its second group 56.24 and 121.47"}


# ---------------------------------------------------------------------------------------------- Table 2

class JointFinder:
    """Collects the joints of real and made pictures, by task.

    estimator: of dataset.poses, or a stand-in. aspect: width / height of the data set's files; the estimator sees
    people as slim as they are. why_not: why there are no joints, or None.
    """

    def __init__(self, estimator, aspect=1.0, why_not=None):
        self._estimator = estimator
        self._shape = aspect_shape(JOINTS_SIZE, aspect)
        self._pairs = collections.defaultdict(list)
        self.why_not = why_not
        if why_not:
            return
        try:
            estimator(Image.new("RGB", (JOINTS_SIZE, JOINTS_SIZE)))
        except UserError as error:
            self.why_not = str(error)

    def note(self, real, made):
        """Finds the joints of a real picture (S, S, 3) uint8 and of those made in its pose, [(task, picture)].

        Where nobody is found in the real one the others do not count, and are not looked at.
        """
        if self.why_not is None:
            of_real = self._joints(real)
            for task, picture in made:
                self._pairs[task].append((of_real, None if of_real is None else self._joints(picture)))

    def _joints(self, picture):
        """Joints in pixels of a square of JOINTS_SIZE, or None."""
        joints = choose(self._estimator(Image.fromarray(picture).resize(self._shape, Image.BILINEAR)))[0]
        return None if joints is None else np.where(joints < 0, -1, joints * JOINTS_SIZE / self._shape)

    def figures(self):
        """{task: figures of joint_figures}."""
        return {task: joint_figures(pairs) for task, pairs in self._pairs.items()}


# ---------------------------------------------------------------------------------------------- Table 3

class AppearanceFeatures:
    """features(pictures): CONSISTENCY_LAYER of VGG19 of pictures (k, S, S, 3) uint8, averaged over positions, (k, 512).

    why_not: why there are none, or None.
    """

    def __init__(self, config):
        self.why_not = self._session = None
        size = config["spatial_size"]
        if size < smallest_picture(CONSISTENCY_LAYER):
            self.why_not = (f"{CONSISTENCY_LAYER}: expected pictures of {smallest_picture(CONSISTENCY_LAYER)} pixels "
                            f"or more, found {size}")
            return
        try:
            weights = load_weights(config["vgg_weights"], [CONSISTENCY_LAYER])
        except UserError as error:
            self.why_not = str(error)
            return
        with tf.Graph().as_default():
            self._pictures = tf.placeholder(tf.uint8, (None, size, size, 3))
            # Fed once, as variables: constants would weigh 80 MB in the graph.
            values = {name: tf.placeholder(tf.float32, value.shape) for name, value in weights.items()}
            variables = {name: tf.Variable(value, use_resource=True) for name, value in values.items()}
            images = tf.cast(self._pictures, tf.float32) / 127.5 - 1
            conv2d = make_conv2d("float32", many_channels=True)
            maps = features(images, variables, [CONSISTENCY_LAYER], conv2d=conv2d)[0]
            self._features = tf.reduce_mean(maps, axis=[1, 2])
            self._session = make_session(dict(config, precision="float32", xla=False))
            self._session.run([variable.initializer for variable in variables.values()],
                              {values[name]: weights[name] for name in values})

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        if self._session is not None:
            self._session.close()

    def __call__(self, pictures):
        return self._session.run(self._features, {self._pictures: pictures})


def appearance_figures(of_made, of_training, of_one_person, of_different_people):
    """Table 3: consistency of features (poses, d) of made pictures, a list, and of real ones as floor and ceiling.

    of_training: features (m, d) among which neighbours are looked for. The other two are lists like of_made. All may be
    empty but of_made.
    """
    figures = {"appearances": len(of_made), "poses": len(of_made[0]), **consistency(of_made)}
    if len(of_training):
        figures["neighbours"] = consistency([means_of_neighbours(rows, of_training) for rows in of_made])
    for name, of_real in (("one_person", of_one_person), ("different_people", of_different_people)):
        if of_real:
            figures[name] = {"groups": len(of_real), **consistency(of_real)}
    return figures


# ---------------------------------------------------------------------------------------------- what is printed

def tables(metrics, of_people=True):
    """Lines: Tables 1 to 3 in the paper's form, of people beside the paper's figures."""
    lines = []
    papers = {number: f" (the paper's{what}: {PAPER[number]})" if of_people else ""
              for number, what in ((1, " SSIM and Inception Score"), (2, ""), (3, ", of other features"))}
    ours = metrics["reconstruction"]["ssim"] if metrics["reconstruction"] else None
    if ours:
        lines.append(f"Table 1, reconstructions: SSIM {ours['mean']:.3f} +- {ours['std']:.3f}{papers[1]}")
    joints = metrics["joints"]
    if "why_not" in joints:
        lines.append(f"Table 2, joints: left out: {joints['why_not']}")
    else:
        for task, found in joints.items():
            error = "none" if found["error"] is None else f"{found['error']:.2f} pixels"
            shares = "" if found["found"] is None else f", {found['found']:.0%} found, PCK {found['pck']:.0%}"
            lines.append(f"Table 2, joints of {found['n']} pictures, {task}: {error}{shares}{papers[2]}")
    figures = metrics["consistency"]
    if "why_not" in figures:
        lines.append(f"Table 3, appearance: left out: {figures['why_not']}")
        return lines
    by_neighbours = "left out: no training image can be read"
    if "neighbours" in figures:
        by_neighbours = f"{figures['neighbours']['std']:.2f} and {figures['neighbours']['max']:.2f}"
    lines.append(f"Table 3, appearance: length of the standard deviation {figures['std']:.2f}, largest distance "
                 f"{figures['max']:.2f}; by neighbours {by_neighbours}{papers[3]}")
    for name, words in (("one_person", "of one person"), ("different_people", "of different people")):
        if name in figures:
            lines.append(f"  real pictures {words}: {figures[name]['std']:.2f} and {figures[name]['max']:.2f}")
    return lines
