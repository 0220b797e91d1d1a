"""The static graphs: one that trains, and in it or alone one that makes pictures."""
import collections

import numpy as np
import tensorflow.compat.v1 as tf

from batches import Examples, to_float
from deeploss import PerceptualLoss
from models import VUNet, kl_divergence
from nn import Walk

ADAM_BETA1, ADAM_BETA2 = 0.5, 0.9
KL_WEIGHT_BEGIN = 1e-6

Losses = collections.namedtuple("Losses", "total scalars")
Losses.__doc__ = """What is minimised, and the scalars to log, by name."""


def make_network(config):
    """The VU-Net of a config."""
    return VUNet(config["spatial_size"], config["box_factor"], config["bottleneck_factor"], config["n_filters"],
                 config["max_filters"])


class TrainingGraph(object):
    """Everything a training needs in the graph; after it is built nothing is added.

    config: as from load_config. batch: Examples, a batch of the pipeline. shapes: Examples of the shapes of one image.
    vgg_weights: arrays as from deeploss.load_weights.
    """

    def __init__(self, config, batch, shapes, vgg_weights):
        net, seed = make_network(config), config["seed"]
        with tf.variable_scope(tf.get_variable_scope(), use_resource=True):
            self.step = tf.get_variable("global_step", (), tf.int32, initializer=tf.zeros_initializer(),
                                        trainable=False)
        step = tf.identity(self.step)  # one reading, so that all see the step before the update
        self.learning_rate = learning_rate(step, config)
        self.kl_weight = kl_weight(step, config)
        loss = PerceptualLoss(vgg_weights, config["feature_layers"], config["feature_weights"],
                              config["gram_weights"])

        self.init_batch = placeholders(shapes)
        walk = Walk("initialise", seed=seed, drop_prob=config["drop_prob"], initialising=True)
        inputs = to_float(self.init_batch)
        net.initialise(walk, inputs.stick, inputs.parts)
        self._initialise_from_data = tf.group(*walk.assignments)

        self.batch = batch
        losses, _ = self._losses(net, Walk("train", step, seed, config["drop_prob"]), loss, batch)
        self.scalars = dict(losses.scalars, global_step=step)
        self.model_variables = tf.trainable_variables()
        self.update = self._adam(losses.total)

        self.eval_batch = placeholders(shapes)
        losses, self._reconstruction = self._losses(net, Walk("evaluate", step, seed), loss, self.eval_batch)
        self._eval_scalars = losses.scalars
        self.renderer = Renderer(config, net, shapes, seed)

        self._start = [tf.global_variables_initializer(), loss.load_op]
        self._start_feed = loss.load_feed
        self._restart_schedule = self.step.assign(0)

    def start(self, session):
        """Random weights, and VGG19's into the session."""
        session.run(self._start, self._start_feed)

    def initialise_from_data(self, session, examples):
        """Sets all g and b from a large batch of uint8 Examples."""
        session.run(self._initialise_from_data, feed(self.init_batch, examples))

    def restart_schedule(self, session):
        """Back to step 0, weights and moments kept."""
        session.run(self._restart_schedule)

    def evaluate(self, session, examples):
        """Losses without dropout (floats by name) and reconstructions (N, S, S, 3) of uint8 Examples."""
        return session.run((self._eval_scalars, self._reconstruction), feed(self.eval_batch, examples))

    def saved_variables(self):
        """What a checkpoint holds: the model, Adam's slots and powers, the step. Not VGG19."""
        return tf.global_variables()

    def _losses(self, net, walk, perceptual_loss, batch):
        inputs = to_float(batch)
        decoded, posterior = net.train(walk, inputs.stick, inputs.parts)
        terms = perceptual_loss(inputs.image, decoded.picture)
        kl_loss = tf.add_n(kl_divergence(posterior.means, decoded.prior_means))
        # The negative bound of equation 5; the KL term is a cost (the sign in equations 3 to 5 is a misprint).
        total = terms.likelihood_loss + self.kl_weight * kl_loss
        scalars = {"loss": total, "likelihood_loss": terms.likelihood_loss, "kl_loss": kl_loss,
                   "kl_weight": self.kl_weight, "learning_rate": self.learning_rate}
        scalars.update({"vgg_loss_%d" % k: value for k, value in enumerate(terms.feature_losses)})
        scalars.update({"gram_loss_%d" % k: value for k, value in enumerate(terms.gram_losses)})
        return Losses(total, scalars), decoded.picture

    def _adam(self, loss):
        optimizer = tf.train.AdamOptimizer(self.learning_rate, ADAM_BETA1, ADAM_BETA2)
        gradients = optimizer.compute_gradients(loss, self.model_variables)
        # A finite loss can have a gradient that is not; saved weights must never have seen one.
        self.scalars["gradient_norm"] = tf.global_norm([gradient for gradient, _ in gradients])
        return optimizer.apply_gradients(gradients, global_step=self.step)


class Renderer(object):
    """Pictures from appearances and poses: works on uint8 Examples of any number, in chunks of batch_size."""

    def __init__(self, config, net, shapes, seed):
        self._chunk = config["batch_size"]
        self._inputs = placeholders(shapes)
        self._sample_number = tf.placeholder_with_default(0, ())
        inputs = to_float(self._inputs)
        self._encoded = net.posterior_means(Walk("encode", seed=seed), inputs.parts)
        self._latents = [tf.placeholder(tf.float32, mean.shape) for mean in self._encoded]
        self._transfer = net.transfer(Walk("transfer", seed=seed), inputs.stick, self._latents)
        self._sample = net.sample(Walk("sample", self._sample_number, seed), inputs.stick)
        self.model_variables = tf.trainable_variables()

    def encode(self, session, parts, has_part):
        """Posterior means of part crops (n, s, s, 24), one array per latent scale."""
        chunks = [session.run(self._encoded, {self._inputs.parts: p, self._inputs.has_part: h})
                  for p, h in zip(self._chunks(parts), self._chunks(has_part))]
        return [np.concatenate(means) for means in zip(*chunks)]

    def render(self, session, latents, stick):
        """Pictures (n, S, S, 3) of n appearances in n poses."""
        inputs = [self._inputs.stick] + self._latents
        chunks = zip(*[self._chunks(array) for array in [stick] + list(latents)])
        return np.concatenate([session.run(self._transfer, dict(zip(inputs, chunk))) for chunk in chunks])

    def sample(self, session, stick, number=0):
        """Pictures (n, S, S, 3) of these poses in appearances from the prior; another number gives others."""
        return np.concatenate([session.run(self._sample, {self._inputs.stick: chunk,
                                                          self._sample_number: number + i})
                               for i, chunk in enumerate(self._chunks(stick))])

    def transfers(self, session, appearances, poses):
        """Every appearance (n Examples) in every pose (m Examples): (n, m, S, S, 3)."""
        latents = self.encode(session, appearances.parts, appearances.has_part)
        m = len(poses.stick)
        return np.stack([self.render(session, [np.repeat(z[i:i + 1], m, axis=0) for z in latents], poses.stick)
                         for i in range(len(appearances.parts))])

    def _chunks(self, array):
        return [array[i:i + self._chunk] for i in range(0, len(array), self._chunk)]


def placeholders(shapes):
    """Examples of uint8 placeholders for any number of images."""
    return Examples(*[tf.placeholder(tf.uint8, (None,) + shape) for shape in shapes])


def feed(tensors, examples):
    """The feed_dict that puts Examples of arrays into Examples of placeholders."""
    return dict(zip(tensors, examples))


def linear(step, begin, end, start, stop):
    """The straight line from (begin, start) to (end, stop), flat outside; a jump where begin >= end.

    step: int tensor; the result is a float32 scalar.
    """
    if begin >= end:
        return tf.where(step < begin, tf.constant(start, tf.float32), tf.constant(stop, tf.float32))
    share = (tf.cast(step, tf.float32) - begin) / float(end - begin)
    return start + (stop - start) * tf.clip_by_value(share, 0.0, 1.0)


def learning_rate(step, config):
    """`lr` up to lr_decay_begin, then down to 0 at lr_decay_end."""
    return linear(step, config["lr_decay_begin"], config["lr_decay_end"], config["lr"], 0.0)


def kl_weight(step, config):
    """1e-6 through the first half, then up to kl_weight_end at three quarters.

    With the KL term on from the start the decoder would learn to live off the skip connections, and the code collapse.
    """
    end = config["lr_decay_end"]
    return linear(step, end // 2, 3 * end // 4, KL_WEIGHT_BEGIN, config["kl_weight_end"])
