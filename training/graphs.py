"""The static graphs: one that trains, and in it or alone one that renders."""
import collections

import numpy as np
import tensorflow.compat.v1 as tf

from batches import Examples, to_float
from common.convolution import make_conv2d
from common.machine import has_gpu
from deeploss import PerceptualLoss
from models import VUNet, kl_divergence
from nn import Pass
from training.cluster import ALONE

ADAM_BETA1, ADAM_BETA2 = 0.5, 0.9


def make_network(config):
    """The VU-Net of a config."""
    return VUNet(config["spatial_size"], config["box_factor"], config["bottleneck_factor"],
                 n_filters=config["n_filters"], max_filters=config["max_filters"],
                 has_encoder=config["appearance"] != "none")


def next_batch(dataset):
    """(the op that starts a dataset, its next batch, the seconds until that is there)."""
    iterator = tf.data.make_initializable_iterator(dataset)
    start = tf.timestamp()
    with tf.control_dependencies([start]):
        batch = iterator.get_next()
    with tf.control_dependencies([batch.has_part]):
        waiting = tf.timestamp() - start
    with tf.control_dependencies([waiting]):  # the clock is read before the step begins, also by a single thread
        return iterator.initializer, tf.nest.map_structure(tf.identity, batch), waiting


class TrainingGraph:
    """Everything that a training needs in the graph; after it is built nothing is added.

    One copy of the network serves training, validation and rendering. The latter two feed dropout 0 and their own
    batch, and rendering noise 0. Building another copy would take as long as many steps.

    config: as from load_config. batch: Examples, a batch of the pipeline. shapes: Examples of the shapes of one image.
    vgg_weights: arrays as from deeploss.load_weights. cluster: the workers whose gradients are averaged. waiting: the
    seconds until the batch was there, or None.

    scalars: what a step logs, by name. update: the op that takes a step. stop: a scalar to feed, above 0 where this
    worker was told to stop; stopping: whether any was. rendering: RenderingTensors.
    """

    def __init__(self, config, batch, shapes, vgg_weights, *, cluster=ALONE, waiting=None):
        net, seed, self.cluster = make_network(config), config["seed"], cluster
        with tf.variable_scope(tf.get_variable_scope(), use_resource=True):
            self.step = tf.get_variable("global_step", (), tf.int32, initializer=tf.zeros_initializer(),
                                        trainable=False)
        step = tf.identity(self.step)  # one reading, so that all see the step before the update
        self.learning_rate = learning_rate(step, config)
        self.kl_weight = kl_weight(step, config)
        perceptual_loss = PerceptualLoss(vgg_weights, config["feature_layers"], config["feature_weights"],
                                         config["gram_weights"],
                                         conv2d=make_conv2d(config["precision"], many_channels=True))

        self.init_batch = placeholders(shapes)
        init_pass = Pass("initialise", seed=seed, drop_prob=config["drop_prob"], initialising=True)
        inputs = to_float(self.init_batch)
        net.initialise(init_pass, inputs.shape_image, inputs.appearance)
        self._initialise_from_data = tf.group(*init_pass.assignments)

        self.batch = batch
        inputs = to_float(batch)
        train_pass = Pass("train", step, seed, config["drop_prob"], worker=cluster.worker, n_workers=cluster.n_workers,
                          conv2d=make_conv2d(config["precision"]))
        decoded, posterior = net.train(train_pass, inputs.shape_image, inputs.appearance)
        loss, self.scalars = self._losses(inputs.image, decoded, posterior, perceptual_loss)
        self._eval_fetches = dict(self.scalars), decoded.picture, list(posterior.means)
        self._without_dropout = {train_pass.drop_prob: 0.0}
        self.scalars["global_step"] = step
        if waiting is not None:
            self.scalars["input_s"] = waiting
        self.model_variables = tf.trainable_variables()
        self.stop = tf.placeholder_with_default(0.0, ())
        self.update, self.stopping = self._adam(config, loss)

        sample_number = tf.placeholder_with_default(0, ())
        samples = net.sample(Pass("sample", sample_number, seed), inputs.shape_image)
        self.rendering = RenderingTensors(
            config["batch_size"], batch, posterior.means, None, posterior.samples, decoded.picture, samples,
            sample_number, deterministic={train_pass.noise: 0.0, train_pass.drop_prob: 0.0})
        self._set_up_start(perceptual_loss)

    def _set_up_start(self, perceptual_loss):
        self._start = [tf.global_variables_initializer(), perceptual_loss.load_op]
        self._start_feed = perceptual_loss.load_feed
        self._restart_schedule = self.step.assign(0)
        saved = self.saved_variables()
        values = self.cluster.from_worker_0([tf.cast(variable, tf.float32) for variable in saved])
        self._synchronise = [variable.assign(tf.cast(value, variable.dtype.base_dtype)).op
                             for variable, value in zip(saved, values)]

    def start(self, session):
        """Random weights, and VGG19's into the session."""
        session.run(self._start, self._start_feed)
        self._start_feed.clear()  # 80 MB

    def initialise_from_data(self, session, examples):
        """Sets all g and b from a large batch of uint8 Examples."""
        session.run(self._initialise_from_data, feed(self.init_batch, examples))

    def restart_schedule(self, session):
        """Back to step 0, weights and moments kept."""
        session.run(self._restart_schedule)

    def synchronise(self, session):
        """Gives all workers worker 0's weights, moments and step; waits for all of them."""
        if self._synchronise:
            session.run(self._synchronise)

    def evaluate(self, session, examples):
        """Losses, reconstructions and posterior means of a batch of uint8 Examples, without dropout.

        Losses are floats by name, reconstructions (N, S, S, 3), posterior means an array (N, h, w, c) per latent scale.
        """
        return session.run(self._eval_fetches, {**feed(self.batch, examples), **self._without_dropout})

    def saved_variables(self):
        """What a checkpoint holds: the model, Adam's slots and powers, the step. No VGG19, no scale of the loss."""
        return self.model_variables + self._adam_variables + [self.step]

    def _losses(self, image, decoded, posterior, perceptual_loss):
        """What is minimised, and the scalars to log, by name."""
        terms = perceptual_loss(image, decoded.picture)
        kl_losses = kl_divergence(posterior.means, decoded.prior_means)
        kl_loss = tf.add_n(kl_losses) if kl_losses else tf.constant(0.0)
        # The negative bound of equation 5; the KL term is a cost (the sign in equations 3 to 5 is a misprint).
        loss = terms.likelihood_loss + self.kl_weight * kl_loss
        scalars = {"loss": loss, "likelihood_loss": terms.likelihood_loss, "kl_loss": kl_loss,
                   "kl_weight": self.kl_weight, "learning_rate": self.learning_rate}
        scalars.update({f"kl_loss_{k}": value for k, value in enumerate(kl_losses)})
        scalars.update({f"vgg_loss_{k}": value for k, value in enumerate(terms.feature_losses)})
        scalars.update({f"gram_loss_{k}": value for k, value in enumerate(terms.gram_losses)})
        return loss, scalars

    def _adam(self, config, loss):
        """(the update, whether any worker was told to stop)."""
        adam = optimizer = tf.train.AdamOptimizer(self.learning_rate, ADAM_BETA1, ADAM_BETA2)
        # Float16 needs its loss scaled, ever more until gradients overflow, which ends that step without an update.
        self.may_overflow = config["precision"] == "mixed" and has_gpu()
        if self.may_overflow:
            optimizer = tf.train.experimental.enable_mixed_precision_graph_rewrite(adam)
        # Not gated, or the graph would have gradients of VGG19's weights, which nobody reads.
        gradients, variables = zip(*optimizer.compute_gradients(loss, self.model_variables, optimizer.GATE_NONE))
        averages = self.cluster.average(list(gradients) + [self.stop])
        gradients, stopping = averages[:-1], averages[-1] > 0
        # A finite loss can have a gradient that is not; saved weights must never have seen one.
        self.scalars["gradient_norm"] = tf.global_norm(gradients)
        apply = optimizer.apply_gradients(zip(gradients, variables))
        self._adam_variables = adam.variables()
        with tf.control_dependencies([apply]):
            return self.step.assign_add(1).op, stopping


# ---------------------------------------------------------------------------------------------- rendering

RenderingTensors = collections.namedtuple(
    "RenderingTensors", "batch_size inputs means which latents picture samples sample_number deterministic")
RenderingTensors.__doc__ = """What a Renderer feeds and fetches.

batch_size: how many pictures are made at a time. inputs: Examples of uint8 tensors (n, ...). means: posterior means,
one per latent scale. latents: what the decoder reads as the appearance, one per latent scale, fed too. picture: of
given latents in the inputs' shapes. which: the numbers of the pictures' shapes, of any number; or None, where n is
batch_size and picture k is of shape k. samples: pictures with appearances from the prior; sample_number chooses which.
deterministic: a feed_dict that leaves only the prior random.
"""


def make_rendering_tensors(config, shapes):
    """RenderingTensors of a config, alone in the default graph. shapes: Examples of the shapes of one image."""
    net, seed = make_network(config), config["seed"]
    inputs, which = placeholders(shapes), tf.placeholder(tf.int32, (None,))
    pictures = to_float(inputs)
    means = net.posterior_means(Pass("encode", seed=seed), pictures.appearance)
    latents = [tf.placeholder(tf.float32, mean.shape) for mean in means]
    picture = net.transfer(Pass("transfer", seed=seed, noise=0.0), pictures.shape_image, latents, which)
    sample_number = tf.placeholder_with_default(0, ())
    samples = net.sample(Pass("sample", sample_number, seed), pictures.shape_image)
    return RenderingTensors(config["batch_size"], inputs, means, which, latents, picture, samples, sample_number,
                            deterministic={})


class Renderer:
    """Pictures from appearances and poses, with the weights in a session.

    Works on uint8 Examples of any number, a batch at a time. Latents are arrays (n, h, w, c), one per latent scale.
    size: S, the side of a picture.
    """

    def __init__(self, tensors, session):
        self._tensors, self._session = tensors, session
        self.batch_size, self.size = tensors.batch_size, int(tensors.inputs.shape_image.shape[1])

    def encode(self, examples):
        """Latents of n Examples: their posterior means."""
        inputs = self._tensors.inputs
        return self._run(self._tensors.means, [inputs.appearance, inputs.has_part],
                         [examples.appearance, examples.has_part])

    def render(self, latents, shape_images, which=None):
        """Pictures (n, S, S, 3) of n appearances in n shapes; of one appearance where latents are (1, h, w, c).

        which: (n,) numbers of the shapes, where these are fewer.
        """
        which = np.arange(len(shape_images)) if which is None else np.asarray(which)
        latents = [np.repeat(z, len(which), axis=0) if len(z) == 1 else z for z in latents]
        tensors, size = self._tensors, self.batch_size
        if tensors.which is None:
            return self._run([tensors.picture], [tensors.inputs.shape_image] + list(tensors.latents),
                             [shape_images[which]] + latents)[0]
        order = np.argsort(which, kind="stable")  # pictures of one shape, which is looked at once, follow one another
        pictures = []
        for start in range(0, len(order), size):
            chunk = order[start:start + size]
            shapes, places = np.unique(which[chunk], return_inverse=True)
            fed = feed([tensors.inputs.shape_image, tensors.which] + tensors.latents,
                       [shape_images[shapes], places] + [z[chunk] for z in latents])
            pictures.append(self._session.run(tensors.picture, fed))
        return np.concatenate(pictures)[np.argsort(order)]

    def transfer(self, appearances, shape_images):
        """Pictures (n, S, S, 3) of n Examples, each in one of n shapes."""
        return self.render(self.encode(appearances), shape_images)

    def transfers(self, appearances, shape_images):
        """Every one of n Examples in every one of m shapes: (n, m, S, S, 3)."""
        latents, n = self.encode(appearances), len(appearances.image)
        return np.stack([self.render([z[i:i + 1] for z in latents], shape_images) for i in range(n)])

    def sample(self, shape_images, number=0):
        """Pictures (n, S, S, 3) of these shapes in appearances from the prior; another number gives others."""
        return self._run([self._tensors.samples], [self._tensors.inputs.shape_image], [shape_images], number)[0]

    def _run(self, fetches, tensors, arrays, number=0):
        """The fetches, arrays (n, ...), with the arrays (n, ...) fed to the tensors, a batch at a time."""
        n, size = len(arrays[0]), self.batch_size
        chunks = []
        for i, start in enumerate(range(0, n, size)):
            # A batch of fixed size is filled up.
            end = start + size if self._tensors.which is None else min(start + size, n)
            chunk = [np.take(array, np.arange(start, end), axis=0, mode="clip") for array in arrays]
            chunks.append(self._session.run(fetches, {
                **feed(tensors, chunk), **self._tensors.deterministic, self._tensors.sample_number: number + i}))
        return [np.concatenate(parts)[:n] for parts in zip(*chunks)]


def placeholders(shapes, n=None):
    """Examples of uint8 placeholders for n images, or for any number."""
    return Examples(*[tf.placeholder(tf.uint8, (n,) + shape) for shape in shapes])


def feed(tensors, arrays):
    """The feed_dict that puts arrays in the place of tensors; both may be Examples."""
    return dict(zip(tensors, arrays))


# ---------------------------------------------------------------------------------------------- schedules

def linear(step, *, begin, end, start, stop):
    """The straight line from (begin, start) to (end, stop), flat outside; a jump where begin >= end.

    step: int tensor; the result is a float32 scalar.
    """
    if begin >= end:
        return tf.where(step < begin, tf.constant(start, tf.float32), tf.constant(stop, tf.float32))
    share = (tf.cast(step, tf.float32) - begin) / float(end - begin)
    return start + (stop - start) * tf.clip_by_value(share, 0.0, 1.0)


def learning_rate(step, config):
    """`lr` up to lr_decay_begin, then down to 0 at lr_decay_end."""
    return linear(step, begin=config["lr_decay_begin"], end=config["lr_decay_end"], start=config["lr"], stop=0.0)


def kl_weight(step, config):
    """kl_weight_begin up to the first share of lr_decay_end in kl_ramp, then up to kl_weight_end at the second.

    With the KL term on from the start the decoder would learn to live off the skip connections, and the code collapse.
    """
    begin, end = [int(share * config["lr_decay_end"]) for share in config["kl_ramp"]]
    return linear(step, begin=begin, end=end, start=config["kl_weight_begin"], stop=config["kl_weight_end"])
