"""Trains a VU-Net and renders people with it.

    python main.py --config toy.yaml                                                    train
    python main.py --config market.yaml --checkpoint RUN                                go on training from a checkpoint
    python main.py --config market_retrain.yaml --retrain --checkpoint RUN              second round
    python main.py --config market.yaml --mode transfer --checkpoint RUN                appearances in other poses
    python main.py --config market.yaml --mode test --checkpoint RUN                    appearances from the prior

RUN is a run folder, its checkpoints folder or a checkpoint prefix. Every command writes to a new run folder,
log/<date>T<time>. README.md says what each option, config key and file is.
"""
import argparse
import math
import shlex
import signal
import sys

from quiet import quiet_stderr

with quiet_stderr():  # TensorFlow greets on stderr while it is imported
    import tensorflow.compat.v1 as tf
import numpy as np
from tqdm import tqdm

from batches import BatchOrder, Loader, pipeline
from checkpoints import Checkpoint, CheckpointSaver, find_checkpoint
from cluster import join_cluster
from config import load_config
from data_index import Index
from deeploss import load_weights
from errors import Parser, UserError, reason, whole_number
from graphs import TrainingGraph, make_renderer
from runs import Run, tile, to_uint8, transfer_grid
from sessions import make_session, set_up_tensorflow
from tools import make_toy


def main(argv=None):
    """Runs one command; returns its exit code: 0, 2 for a user's mistake, 130 or 143 when told to stop."""
    options = parse_options(argv)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    set_up_tensorflow()
    try:
        return MODES[options.mode](options, load_config(options.config)) or 0
    except UserError as error:
        print("error: %s" % error, file=sys.stderr)
        return 2
    except tf.errors.ResourceExhaustedError as error:
        print("error: out of memory, which a smaller batch_size may spare: %s" % reason(error), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


def parse_options(argv):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, metavar="FILE", help="a YAML file such as market.yaml")
    parser.add_argument("--mode", default="train", choices=sorted(MODES))
    parser.add_argument("--log_dir", default="log", metavar="DIR", help="where run folders go (log)")
    parser.add_argument("--checkpoint", metavar="PATH", help="checkpoint prefix, checkpoints folder or run folder")
    parser.add_argument("--retrain", action="store_true",
                        help="keep the checkpoint's weights and moments, but start at step 0 again")
    parser.add_argument("--batches", type=whole_number(1000000), default=10, metavar="N",
                        help="how many batches transfer and test render (10)")
    options = parser.parse_args(argv)
    if options.retrain and options.checkpoint is None:
        parser.error("--retrain needs --checkpoint")
    if options.mode != "train" and options.checkpoint is None:
        parser.error("--mode %s needs --checkpoint" % options.mode)
    return options


# ---------------------------------------------------------------------------------------------- training

def train(options, config):
    index = Index(config["data_index"], config["allow_outside_images"])
    load = Loader(index, config["spatial_size"], config["box_factor"])
    index.usable("test")  # before a cluster forms, bad input has been found
    checkpoint = Checkpoint(find_checkpoint(options.checkpoint)) if options.checkpoint else None
    first_step = 0 if checkpoint is None or options.retrain else checkpoint.step()
    steps = config["lr_decay_end"] - first_step
    if steps <= 0:
        print("nothing left to train: %s is at step %d, and training ends at lr_decay_end %d"
              % (checkpoint.prefix, first_step, config["lr_decay_end"]))
        return 0
    vgg_weights = load_weights(config["vgg_weights"], config["feature_layers"])
    cluster = join_cluster(config)
    order = BatchOrder(index.usable("train"), config["batch_size"], config["seed"], (cluster.number, cluster.size))

    with tf.Graph().as_default(), cluster.device():
        iterator = tf.data.make_initializable_iterator(pipeline(load, order, first_step, steps))
        graph = TrainingGraph(config, iterator.get_next(), load.shapes(), vgg_weights, cluster)
        del vgg_weights  # 80 MB
        saver = CheckpointSaver(graph.saved_variables())
        tf.get_default_graph().finalize()
        with make_session(config, cluster) as session:
            start(session, graph, saver, checkpoint, options.retrain, lambda: load.batch(
                order.front(config["init_batches"] * config["batch_size"])))
            session.run(iterator.initializer)
            run = test_batch = None
            if cluster.number == 0:
                test_batch = load.batch(BatchOrder(index.usable("test"), config["batch_size"], config["seed"]).batch(0))
                run = Run(options.log_dir, config)  # last of all, so that bad input leaves none behind
                run.say("training from step %d to %d%s; pictures and checkpoints: %s" % (
                    first_step, config["lr_decay_end"], ", from %s" % checkpoint.prefix if checkpoint else "", run.folder))
            stopped_by = Trainer(config, session, graph, saver, run, load, test_batch).train(first_step)
            cluster.leave()
            if run is not None:
                finish(options, config, index, load, session, graph, run, stopped_by)
    return 128 + stopped_by if stopped_by else 0


def start(session, graph, saver, checkpoint, retrain, make_init_batch):
    """Gives all workers worker 0's weights: from the checkpoint, or random ones initialised from data."""
    graph.start(session)
    if graph.cluster.number == 0:
        if checkpoint is not None:
            saver.restore(session, checkpoint)
        else:
            graph.initialise_from_data(session, make_init_batch())
        if retrain:
            graph.restart_schedule(session)
    graph.synchronise(session)


def finish(options, config, index, load, session, graph, run, stopped_by):
    """The last lines of a training."""
    if stopped_by:
        run.say("to go on: python main.py --config %s --checkpoint %s"
                % (shlex.quote(options.config), shlex.quote(run.folder)))
    else:
        report_toy(config, index, load, session, graph.renderer, run)
        run.say("done; the pictures are in %s" % run.folder)
    run.close()


class Trainer(object):
    """The training loop, and what it does every so often; that falls to worker 0: the others have no run."""

    def __init__(self, config, session, graph, saver, run, load, test_batch):
        self.config, self.session, self.graph, self.saver, self.run = config, session, graph, saver, run
        self.load, self.test_batch = load, test_batch

    def train(self, step):
        """Trains from `step` to lr_decay_end, or to a SIGINT or SIGTERM, whose number it returns."""
        end, batch_size = self.config["lr_decay_end"], self.config["batch_size"]
        bar = tqdm(total=end * batch_size, initial=step * batch_size, unit="image", unit_scale=True,
                   mininterval=0.2 if sys.stderr.isatty() else 10, disable=self.run is None)
        stopping = False
        with bar, StopSignal() as signals:
            while step < end and not stopping:
                log_now = step == 0 or (step + 1) % self.config["log_freq"] == 0
                scalars, batch, stopping = self.train_step(step, log_now, signals)
                step += 1
                bar.set_postfix(step=step, loss="%.4g" % scalars["loss"], refresh=False)
                bar.update(batch_size)
                if self.run is None:
                    continue
                if log_now:
                    self.log(step, scalars, batch)
                if step % self.config["test_freq"] == 0:
                    self.draw_tests(step)
                if step % self.config["ckpt_freq"] == 0:
                    self.save(step)
        if self.run is not None:
            self.run.say("%s at step %d, saved as %s"
                         % ("stopped by a signal" if stopping else "trained", step, self.save(step)))
        return (signals.number or signal.SIGTERM) if stopping else 0

    def train_step(self, step, with_batch, signals):
        """One Adam step -> its scalars, if asked for its batch (uint8 Examples), and whether to stop after it.

        Workers stop together: each tells the others, with its gradients, of the signal that it has got.
        """
        fetches = [self.graph.scalars, self.graph.batch if with_batch else [], self.graph.stopping, self.graph.update]
        try:
            scalars, batch, stopping, _ = self.session.run(fetches, {self.graph.stop: float(signals.number != 0)})
        except tf.errors.OpError as error:
            if self.load.failure is None:
                self.graph.cluster.explain(error)
                raise
            saved = "" if self.run is None else " (step %d is saved: %s)" % (step, self.save(step))
            raise UserError("%s%s" % (self.load.failure, saved))
        for name in ("loss", "gradient_norm"):
            if not math.isfinite(scalars[name]):
                raise UserError("training stopped: %s is %s in step %d, nothing of it is saved; expected finite numbers"
                                ", which a lower lr may give" % (name, scalars[name], step + 1))
        return scalars, batch, stopping or self.graph.cluster.size == 1 and signals.number != 0

    def log(self, step, scalars, batch):
        """Scalars and pictures of the training batch, and of the test batch with the prefix or suffix `valid`."""
        scalars = dict(scalars, global_step=step)
        self.draw("", step, batch)
        valid = dict(self.draw("valid_", step, self.test_batch), global_step=step)
        scalars.update((name + "_valid", value) for name, value in valid.items())
        self.run.scalars(step, scalars)

    def draw(self, prefix, step, batch):
        """Pictures, stick figures, reconstructions and prior samples of a batch; returns its losses."""
        losses, reconstructions = self.graph.evaluate(self.session, batch)
        samples = self.graph.renderer.sample(self.session, batch.stick, step)
        for name, pictures in (("x", batch.image), ("c", batch.stick), ("sample", to_uint8(reconstructions)),
                               ("test_sample", to_uint8(samples))):
            self.run.picture(prefix + name, tile(pictures), step)
        return losses

    def draw_tests(self, step):
        """Prior samples and the transfer grid of the test batch."""
        samples = self.graph.renderer.sample(self.session, self.test_batch.stick, step)
        self.run.picture("testing_cond", tile(self.test_batch.stick), step)
        self.run.picture("testing_test_sample", tile(to_uint8(samples)), step)
        self.run.picture("transfer", draw_transfers(self.session, self.graph.renderer, self.test_batch), step)

    def save(self, step):
        return self.saver.save(self.session, self.run.checkpoints, step)


class StopSignal(object):
    """While entered, SIGINT and SIGTERM only leave their `number`; a second one stops at once."""

    def __init__(self):
        self.number = 0

    def __enter__(self):
        self._handlers = [(number, signal.signal(number, self._note)) for number in (signal.SIGINT, signal.SIGTERM)]
        return self

    def __exit__(self, *unused):
        self._restore()

    def _note(self, number, frame):
        self.number = number
        self._restore()

    def _restore(self):
        for number, handler in self._handlers:
            signal.signal(number, handler)


def report_toy(config, index, load, session, renderer, run):
    """For the toy data, whose truth can be drawn: the error of transfers to held-out people."""
    if config["spatial_size"] != make_toy.SIZE or not make_toy.is_toy(index.joints, index.extra):
        return

    def render(appearances, poses):
        sources = load.batch(appearances)
        return renderer.render(session, renderer.encode(session, sources.parts, sources.has_part),
                               load.batch(poses).stick)

    errors = make_toy.transfer_error(render, index.extra["person"], {s: index.usable(s) for s in ("train", "test")},
                                     index.extra["toy_seed"])
    line = ("transfer error on held-out people: %.3f; of the mean training appearance: %.3f (ratio %.3f); of a wrong "
            "person: %.3f" % (errors["transfer"], errors["mean_appearance"],
                              errors["transfer"] / errors["mean_appearance"], errors["wrong_person"]))
    run.say(line)


# ---------------------------------------------------------------------------------------------- pictures

def transfer(options, config):
    """Saves grids of the test people in each other's poses."""
    render_batches(options, config, "transfer", lambda session, renderer, batch, i:
                   draw_transfers(session, renderer, batch))


def sample(options, config):
    """Saves grids of poses of the test split, each with somebody from the prior beside it."""
    def draw(session, renderer, batch, i):
        pictures = to_uint8(renderer.sample(session, batch.stick, i))
        return tile(np.concatenate([batch.stick, pictures], axis=2))
    render_batches(options, config, "test_sample", draw)


def render_batches(options, config, name, draw):
    """Restores a checkpoint and saves draw(session, renderer, batch, i) of batches of the test split."""
    index = Index(config["data_index"], config["allow_outside_images"])
    load = Loader(index, config["spatial_size"], config["box_factor"])
    order = BatchOrder(index.usable("test"), config["batch_size"], config["seed"])
    checkpoint = Checkpoint(find_checkpoint(options.checkpoint))
    with tf.Graph().as_default():
        iterator = tf.data.make_initializable_iterator(pipeline(load, order, 0, options.batches))
        batch = iterator.get_next()
        renderer = make_renderer(config, load.shapes())
        saver = CheckpointSaver(tf.trainable_variables())
        tf.get_default_graph().finalize()
        with make_session(config) as session:
            saver.restore(session, checkpoint)
            session.run(iterator.initializer)
            run = None
            for i in tqdm(range(options.batches), unit="batch"):
                try:
                    examples = session.run(batch)
                except tf.errors.OpError:
                    raise load.failure or sys.exc_info()[1]
                picture = draw(session, renderer, examples, i)
                if run is None:
                    run = Run(options.log_dir, config)
                    run.log("%s from %s" % (name, checkpoint.prefix))
                run.picture("%s_%d" % (name, i), picture)
            run.say("the pictures are in %s" % run.folder)
            run.close()


def draw_transfers(session, renderer, batch):
    """The transfer grid of a batch (uint8 Examples): every appearance in every pose."""
    return transfer_grid(batch.stick, batch.image, to_uint8(renderer.transfers(session, batch, batch)))


MODES = {"train": train, "transfer": transfer, "test": sample}

if __name__ == "__main__":
    sys.exit(main())
