"""The static graphs: one that trains, and in it or alone one that makes pictures."""
import numpy as np
import tensorflow.compat.v1 as tf

from batches import Examples, to_float
from common.machine import has_gpu
from deeploss import PerceptualLoss
from models import VUNet, kl_divergence
from nn import Walk
from training.cluster import Alone

ADAM_BETA1, ADAM_BETA2 = 0.5, 0.9
KL_WEIGHT_BEGIN = 1e-6


def make_network(config):
    """The VU-Net of a config."""
    return VUNet(config["spatial_size"], config["box_factor"], config["bottleneck_factor"], config["n_filters"],
                 config["max_filters"])


class TrainingGraph:
    """Everything a training needs in the graph; after it is built nothing is added.

    config: as from load_config. batch: Examples, a batch of the pipeline. shapes: Examples of the shapes of one image.
    vgg_weights: arrays as from deeploss.load_weights. cluster: the workers whose gradients are averaged.

    The networks are there once for training and, with dropout and noise fed as 0 and other batches in the place of the
    pipeline's, for validation and pictures: building them anew for each would take as long as many steps.
    """

    def __init__(self, config, batch, shapes, vgg_weights, cluster=Alone()):
        net, seed, self.cluster = make_network(config), config["seed"], cluster
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
        inputs = to_float(batch)
        walk = Walk("train", step, seed, config["drop_prob"], part=(cluster.number, cluster.size))
        decoded, posterior = net.train(walk, inputs.stick, inputs.parts)
        total, self.scalars = self._losses(inputs.image, decoded, posterior, loss)
        self._eval_fetches = dict(self.scalars), decoded.picture, list(posterior.means)
        self._without_dropout = {walk.drop_prob: 0.0}
        self.scalars["global_step"] = step
        self.model_variables = tf.trainable_variables()
        self.stop = tf.placeholder_with_default(0.0, ())
        self.update, self.stopping = self._adam(config, total)

        sample_number = tf.placeholder_with_default(0, ())
        samples = net.sample(Walk("sample", sample_number, seed), inputs.stick)
        self.renderer = Renderer(batch, posterior.means, posterior.samples, decoded.picture, samples, sample_number,
                                 {walk.noise: 0.0, walk.drop_prob: 0.0})

        self._start = [tf.global_variables_initializer(), loss.load_op]
        self._start_feed = loss.load_feed
        self._restart_schedule = self.step.assign(0)
        saved = self.saved_variables()
        values = cluster.from_worker_0([tf.cast(variable, tf.float32) for variable in saved])
        self._synchronise = [variable.assign(tf.cast(value, variable.dtype.base_dtype))
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
        """Worker 0's weights, moments and step for all workers; waits for all of them."""
        if self._synchronise:
            session.run([variable.op for variable in self._synchronise])

    def evaluate(self, session, examples):
        """Losses without dropout (floats by name), reconstructions (N, S, S, 3) and posterior means (one array (N, h, w, c)
        per latent scale) of a batch of uint8 Examples.
        """
        return session.run(self._eval_fetches, {**feed(self.batch, examples), **self._without_dropout})

    def saved_variables(self):
        """What a checkpoint holds: the model, Adam's slots and powers, the step. Not VGG19, not the scale of the loss."""
        return self.model_variables + self._adam_variables + [self.step]

    def _losses(self, image, decoded, posterior, perceptual_loss):
        """What is minimised, and the scalars to log, by name."""
        terms = perceptual_loss(image, decoded.picture)
        kl_losses = kl_divergence(posterior.means, decoded.prior_means)
        kl_loss = tf.add_n(kl_losses)
        # The negative bound of equation 5; the KL term is a cost (the sign in equations 3 to 5 is a misprint).
        total = terms.likelihood_loss + self.kl_weight * kl_loss
        scalars = {"loss": total, "likelihood_loss": terms.likelihood_loss, "kl_loss": kl_loss,
                   "kl_weight": self.kl_weight, "learning_rate": self.learning_rate}
        scalars.update({f"kl_loss_{k}": value for k, value in enumerate(kl_losses)})
        scalars.update({f"vgg_loss_{k}": value for k, value in enumerate(terms.feature_losses)})
        scalars.update({f"gram_loss_{k}": value for k, value in enumerate(terms.gram_losses)})
        return total, scalars

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


class Renderer:
    """Pictures from appearances and poses: works on uint8 Examples of any number, a batch at a time, the last filled up.

    inputs: Examples of the uint8 tensors (batch_size, ...) that are fed. means: posterior means. latents: the tensors that
    the decoder reads as the appearance, fed as well. picture, samples: of given latents and from the prior, of which
    `sample_number` chooses one. quiet: what else is fed, so that nothing but the prior is random. size: S.
    """

    def __init__(self, inputs, means, latents, picture, samples, sample_number, quiet):
        self._inputs, self._means, self._latents = inputs, means, latents
        self._picture, self._samples, self._sample_number, self._quiet = picture, samples, sample_number, quiet
        self.batch_size, self.size = inputs.stick.shape.as_list()[:2]

    def encode(self, session, parts, has_part):
        """Posterior means of part crops (n, s, s, 24), one array per latent scale."""
        return self._run(session, self._means, [self._inputs.parts, self._inputs.has_part], [parts, has_part])

    def render(self, session, latents, stick):
        """Pictures (n, S, S, 3) of n appearances in n poses."""
        return self._run(session, [self._picture], [self._inputs.stick] + self._latents, [stick] + list(latents))[0]

    def render_one(self, session, latents, stick):
        """Pictures (n, S, S, 3) of one appearance, latents (1, h, w, c), in n poses."""
        return self.render(session, [np.repeat(z, len(stick), axis=0) for z in latents], stick)

    def sample(self, session, stick, number=0):
        """Pictures (n, S, S, 3) of these poses in appearances from the prior; another number gives others."""
        return self._run(session, [self._samples], [self._inputs.stick], [stick], number)[0]

    def transfers(self, session, appearances, poses):
        """Every appearance (n Examples) in every pose (m Examples): (n, m, S, S, 3)."""
        latents = self.encode(session, appearances.parts, appearances.has_part)
        return np.stack([self.render_one(session, [z[i:i + 1] for z in latents], poses.stick)
                         for i in range(len(appearances.parts))])

    def _run(self, session, fetches, tensors, arrays, number=0):
        """The fetches, arrays (n, ...), with the arrays (n, ...) fed to the tensors (batch_size, ...)."""
        n, size = len(arrays[0]), int(tensors[0].shape[0])
        chunks = []
        for i, start in enumerate(range(0, n, size)):
            chunk = [np.take(array, np.arange(start, start + size), axis=0, mode="clip") for array in arrays]
            chunks.append(session.run(fetches, {**feed(tensors, chunk), **self._quiet, self._sample_number: number + i}))
        return [np.concatenate(parts)[:n] for parts in zip(*chunks)]


def make_renderer(config, shapes):
    """A Renderer in a graph of its own."""
    net, seed = make_network(config), config["seed"]
    inputs = placeholders(shapes, config["batch_size"])
    pictures = to_float(inputs)
    means = net.posterior_means(Walk("encode", seed=seed), pictures.parts)
    latents = [tf.placeholder(tf.float32, mean.shape) for mean in means]
    picture = net.transfer(Walk("transfer", seed=seed), pictures.stick, latents)
    sample_number = tf.placeholder_with_default(0, ())
    samples = net.sample(Walk("sample", sample_number, seed), pictures.stick)
    return Renderer(inputs, means, latents, picture, samples, sample_number, {})


def placeholders(shapes, n=None):
    """Examples of uint8 placeholders for n images, or for any number."""
    return Examples(*[tf.placeholder(tf.uint8, (n,) + shape) for shape in shapes])


def feed(tensors, arrays):
    """The feed_dict that puts arrays in the place of tensors; both may be Examples."""
    return dict(zip(tensors, arrays))


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
