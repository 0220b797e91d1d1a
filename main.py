"""Trains a VU-Net and renders people with it.

    python main.py --config toy.yaml                                                    train
    python main.py --config market.yaml --checkpoint RUN                                go on training from a checkpoint
    python main.py --config market.yaml --workers 4                                     on four GPUs of this machine
    python main.py --config market_retrain.yaml --retrain --checkpoint RUN              second round
    python main.py --mode evaluate --checkpoint RUN                                     SSIM, PSNR ... of the test split
    python main.py --mode transfer --checkpoint RUN                                     people in each other's poses
    python main.py --mode transfer --checkpoint RUN --appearance me.jpg --pose you.jpg  me in your pose
    python main.py --mode animate --checkpoint RUN --appearance me.jpg --pose dance.mp4 me in motion, as GIF and MP4
    python main.py --mode test --checkpoint RUN                                         appearances from the prior
    python main.py --mode page --checkpoint RUN                                         a page to drag joints on
    python main.py --mode export --checkpoint RUN --out mine.vunet.zip                  the network as one file

RUN is a run folder, its checkpoints folder, a checkpoint prefix, a network file or the URL of one. All modes but train
use its own config where none is named. All but export and page write to a new run folder, log/<date>T<time>.
docs/configuration.md explains options, config keys and files.
"""
import argparse
import contextlib
import json
import math
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time

from common.console import progress_bar, quiet_stderr

with quiet_stderr():  # TensorFlow greets on stderr while it is imported
    import tensorflow.compat.v1 as tf

from batches import BatchOrder, Examples, make_loader, pipeline
from common.errors import Parser, UserError, number_above_0, reason, run, whole_number
from common.machine import choose_precision, is_mixed_faster, make_session, set_up_tensorflow
from dataset.index import open_index
from deeploss import load_weights
from inference.evaluation import evaluate, report_toy
from inference.mixing import mix_item
from inference.networks import DETAILS, details_of, export, open_network
from inference.rendering import animate, sample, transfer
from inference.validation import Validation
from training.checkpoints import CheckpointSaver
from training.cluster import join_cluster
from training.config import load_config, setting
from training.cost import TimeUse, as_time, forecast, peak_memory
from training.curves import save_result
from training.graphs import Renderer, TrainingGraph, next_batch
from training.runs import Run, tile, to_uint8, transfer_grid
from training.workers import WORKER, launch

DEFAULT_LOG_DIR = "log"
DRY_STEPS = 5  # enough for a mean of those after the first
SAME_REQUEST = 1.0  # seconds
MAX_GRID = 16  # test images in each other's shapes: the published configs' largest batch
MAX_OVERFLOWS = 50  # more than it takes the scale of float16's loss to come down to 1


def main(argv=None):
    """Runs one command; returns its exit code where that is not 0. Raises UserError."""
    options = parse_options(argv)
    if options.workers is not None and WORKER not in os.environ:
        load_config(options.config, dict(options.set))  # bad input is said once, not by each worker
        words = sys.argv[1:] if argv is None else argv
        return launch([sys.executable, os.path.abspath(__file__)] + words, options.workers)
    set_up_tensorflow()
    with contextlib.ExitStack() as stack:
        # Found once: a training that still runs may save another checkpoint at any time.
        options.network = (stack.enter_context(open_network(options.checkpoint, options.best))
                           if options.checkpoint else None)
        config = load_config(options.config or options.network.config_path(), dict(options.set),
                             None if options.config else options.network.config_name())
        if config["precision"] == "auto" and options.network and not options.retrain:  # goes on as it began
            config["precision"] = options.network.precision()
        config["precision"] = choose_precision(config["precision"])
        if options.mode != "train" and not is_mixed_faster():  # a network may come from another machine
            config["precision"] = "float32"
        try:
            return MODES[options.mode](options, config)
        except tf.errors.ResourceExhaustedError as error:
            raise UserError(f"out of memory, which a smaller batch_size may spare: {reason(error)}")


def parse_options(argv):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", metavar="FILE", help="a YAML file such as market.yaml; except for training, "
                                                         "the checkpoint's own is the default")
    parser.add_argument("--set", type=setting, action="append", default=[], metavar="KEY=VALUE",
                        help="another value, in YAML, for a key of the config; may be given several times")
    parser.add_argument("--mode", default="train", choices=sorted(MODES))
    parser.add_argument("--log_dir", default=DEFAULT_LOG_DIR, metavar="DIR",
                        help="where run folders go (log)")
    parser.add_argument("--checkpoint", metavar="PATH",
                        help="checkpoint prefix, checkpoints folder, run folder, network file or URL of an archive")
    parser.add_argument("--best", action="store_true", help="of the run's checkpoints, the one with the highest score "
                                                            "(see eval_freq) instead of the newest")
    parser.add_argument("--dry-run", action="store_true",
                        help="train: do everything once and print what the training will cost; nothing is left behind")
    parser.add_argument("--workers", type=whole_number(1000, least=0), metavar="N",
                        help="train: so many processes of this machine, each with a GPU or some cores; 0: one per GPU")
    parser.add_argument("--retrain", action="store_true", help="train: keep the checkpoint's weights and, where it has "
                                                               "them, moments, but start at step 0 again")
    add_picture_options(parser)
    add_other_options(parser)
    options = parser.parse_args(argv)
    check_options(parser, options)
    return options


def add_picture_options(parser):
    """Options of the modes that make pictures."""
    parser.add_argument("--batches", type=whole_number(1000000), metavar="N",
                        help="transfer, test: how many batches of the test split to render (10)")
    parser.add_argument("--appearance", nargs="+", metavar="IMAGE",
                        help="transfer, animate: whose appearance: photos, folders of photos, names or numbers of the "
                             "index, FROM-TO, a data set's folder or FOLDER:ITEM")
    parser.add_argument("--pose", nargs="+", metavar="IMAGE",
                        help="transfer, animate: whose poses, likewise, or OpenPose's JSON files or a video")
    parser.add_argument("--person", type=whole_number(1000), metavar="N",
                        help="transfer, animate: of several people in a photo or video, number N from the left; "
                             "otherwise the one with the largest torso is taken")
    parser.add_argument("--mix", nargs="+", type=mix_item, metavar="PART=IMAGE",
                        help="transfer, animate: take a part's appearance from another image, such as torso=friend.png")
    parser.add_argument("--aspect", choices=("own", "square"),
                        help="transfer, animate: save square pictures or, by default for photos and videos, pictures "
                             "in the aspect that the network's had")
    parser.add_argument("--fps", type=whole_number(50), metavar="N", help="animate: frames per second (25)")
    parser.add_argument("--seconds_per_pose", type=number_above_0(3600), metavar="S",
                        help="animate: time from one pose to the next (0.5)")


def add_other_options(parser):
    """Options of evaluate, export and page."""
    parser.add_argument("--every", action="store_true",
                        help="evaluate: all checkpoints of the run, as a table and a picture")
    parser.add_argument("--save", action="store_true", help="evaluate: save the pictures too")
    parser.add_argument("--images", type=whole_number(10**9), metavar="N",
                        help="evaluate: only the first N test images of a fixed shuffle")
    parser.add_argument("--samples", type=whole_number(10**9), metavar="N",
                        help="evaluate: for how many poses samples are drawn and compared (500)")
    parser.add_argument("--size", choices=("square", "own"),
                        help="evaluate: compare pictures as squares or also in the aspect of the data set's files")
    parser.add_argument("--out", metavar="FILE", help="export: the file to write, such as mine.vunet.zip")
    parser.add_argument("--metrics", metavar="FILE", help="export: evaluate's metrics.json, to go into the file")
    parser.add_argument("--host", metavar="ADDRESS", help="page: the address to serve it on (127.0.0.1)")
    parser.add_argument("--port", type=whole_number(65535), metavar="N", help="page: the port to serve it on (8000)")


def check_options(parser, options):
    """Refuses options that do not go together."""
    for name, modes in MODES_OF_OPTIONS.items():
        value = getattr(options, name.replace("-", "_"))
        if value is not None and value is not False and options.mode not in modes:
            parser.error(f"--{name} goes with --mode {' or '.join(modes)}")
    for name in ("appearance", "pose"):
        if options.mode == "animate" and getattr(options, name) is None:
            parser.error(f"--mode animate needs --{name}")
    if options.retrain and options.checkpoint is None:
        parser.error("--retrain needs --checkpoint")
    if options.mode != "train" and options.checkpoint is None:
        parser.error(f"--mode {options.mode} needs --checkpoint")
    if options.best and options.checkpoint is None:
        parser.error("--best needs --checkpoint")
    if options.every and (options.save or options.best):
        parser.error("--every goes without --save and --best")
    if options.batches and (options.appearance or options.pose):
        parser.error("--batches goes without --appearance and --pose")
    if options.mode == "train" and options.config is None:
        parser.error("--mode train needs --config")
    if options.mode == "export" and options.out is None:
        parser.error("--mode export needs --out")


def page(options, config):
    """Serves the page until a signal comes."""
    from inference.page.server import serve  # here, as no other mode needs a web server
    serve(options, config)


# ---------------------------------------------------------------------------------------------- training

def train(options, config):
    index = open_index(config)
    load = make_loader(index, config)
    index.usable("test")  # before a cluster forms, bad input has been found
    checkpoint = start_of(options)
    first_step = 0 if checkpoint is None or options.retrain else checkpoint.step()
    validation = Validation(config, load, checkpoint, first_step) if config["eval_freq"] else None
    end = config["lr_decay_end"]
    if end <= first_step:
        print(f"nothing left to train: {checkpoint.name} is at step {first_step}, and training ends at lr_decay_end "
              f"{end}")
        return 0
    last_step = min(end, first_step + DRY_STEPS) if options.dry_run else end
    vgg_weights = load_weights(config["vgg_weights"], config["feature_layers"])
    cluster = join_cluster(config)
    config = cluster.settle(config)
    order = BatchOrder(index.usable("train"), config["batch_size"], config["seed"],
                       worker=cluster.worker, n_workers=cluster.n_workers)

    with tf.Graph().as_default(), cluster.device():
        start_input, batch, waiting = next_batch(pipeline(load, order, first_step, n_batches=last_step - first_step))
        graph = TrainingGraph(config, batch, load.shapes(), vgg_weights, cluster=cluster, waiting=waiting)
        del vgg_weights  # 80 MB
        saver = CheckpointSaver(graph.saved_variables())
        has_weights_only = checkpoint is not None and not checkpoint.has_moments()
        restorer = CheckpointSaver(graph.model_variables) if has_weights_only else saver
        tf.get_default_graph().finalize()
        with make_session(config, cluster) as session, contextlib.ExitStack() as stack:
            memory_before = peak_memory()
            first_images = order.front(config["init_batches"] * config["batch_size"])
            set_weights(session, graph, restorer, checkpoint, retrain=options.retrain,
                        make_init_batch=lambda: load.batch(first_images))
            session.run(start_input)
            run = test_batch = None
            if cluster.worker == 0:  # the run folder comes last of all, so that bad input leaves none behind
                test_batch = load.batch(BatchOrder(index.usable("test"), config["batch_size"], config["seed"]).batch(0))
                run = start_run(stack, options, config, index, cluster)
                if validation is not None:
                    stack.enter_context(validation.of_training(run, saver, session))
                origin = f", from {checkpoint.name}" if checkpoint else ""
                run.say(f"training from step {first_step} to {end}{origin}; pictures and checkpoints: {run.folder}")
            trainer = Trainer(config=config, session=session, graph=graph, saver=saver, load=load, run=run,
                              test_batch=test_batch, validation=validation)
            stopped_by = trainer.train(first_step, last_step, log_first=options.dry_run)
            cluster.leave()
            if run is not None and options.dry_run and not stopped_by:
                trainer.forecast(end - first_step, memory_before)
            elif run is not None and not options.dry_run:
                finish(trainer, options, index, stopped_by)
    return 128 + stopped_by if stopped_by else 0


@contextlib.contextmanager
def scratch_folder(log_dir):
    """A new folder in log_dir; removes it at the end, and log_dir with it where that was made too. Raises UserError."""
    missing, parent = [], os.path.abspath(log_dir)
    while not os.path.exists(parent):
        missing.append(parent)
        parent = os.path.dirname(parent)
    try:
        os.makedirs(log_dir, exist_ok=True)
        folder = tempfile.mkdtemp(prefix="dry-run-", dir=log_dir)
    except OSError as error:
        raise UserError(f"--log_dir: cannot make a folder in {log_dir}: {error.strerror}")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # another run may have begun in it
            for made in missing:
                os.rmdir(made)


def start_run(stack, options, config, index, cluster):
    """The Run of a training, which ends with the stack."""
    log_dir = stack.enter_context(scratch_folder(options.log_dir)) if options.dry_run else options.log_dir
    run = stack.enter_context(Run(log_dir, config, silent=options.dry_run))
    run.write(DETAILS, details_of(index, config))
    cluster.log_with(run.log)
    if config["precision"] == "mixed" and not is_mixed_faster():
        run.say("precision: mixed is slower than float32 here, as this processor has no bfloat16 instructions")
    return run


def start_of(options):
    """The Checkpoint that a training starts from, or None. Raises UserError."""
    checkpoint = options.network.checkpoint() if options.network else None
    if checkpoint and not checkpoint.has_moments() and not options.retrain:
        raise UserError(f"{checkpoint.name}: has no moments of Adam to go on with; expected a checkpoint of a "
                        "training, or --retrain, which starts anew from the weights")
    return checkpoint


def set_weights(session, graph, restorer, checkpoint, *, retrain, make_init_batch):
    """Gives all workers worker 0's weights: from the checkpoint, or random ones initialised from data."""
    graph.start(session)
    if graph.cluster.worker == 0:
        if checkpoint is not None:
            restorer.restore(session, checkpoint)
        else:
            graph.initialise_from_data(session, make_init_batch())
        if retrain:
            graph.restart_schedule(session)
    try:
        graph.synchronise(session)
    except tf.errors.OpError as error:
        graph.cluster.raise_if_lost(error)
        raise


def finish(trainer, options, index, stopped_by):
    """result.png, and the last lines of a training."""
    run = trainer.run
    result = save_result(run, trainer.transfers)
    if stopped_by:
        run.say(f"to go on: {command_to_go_on(options, run.folder)}")
    else:
        if trainer.validation:
            trainer.validation.report()
        report_toy(trainer.config, index, run, load=trainer.load, renderer=trainer.renderer)
    done = "" if stopped_by else "done; "
    also = f"; curves and last transfers: {result}" if result else ""
    run.say(f"{done}the pictures are in {run.folder}{also}")


def command_to_go_on(options, folder):
    """The command that goes on from the newest checkpoint of a run."""
    words = ["python", "main.py", "--config", options.config]
    for key, value in options.set:
        words += ["--set", f"{key}={json.dumps(value)}"]
    if options.log_dir != DEFAULT_LOG_DIR:
        words += ["--log_dir", options.log_dir]
    if options.workers is not None:
        words += ["--workers", str(options.workers)]
    return " ".join(shlex.quote(word) for word in words + ["--checkpoint", folder])


class Trainer:
    """The training loop, and what it does every so often; the latter falls to worker 0: the others have no run.

    run: a Run to log, draw and save to. test_batch: uint8 Examples to validate on and to draw transfers of. Other
    workers have None for both. validation: a Validation, or None. transfers: the last transfer grid (h, w, 3) uint8, or
    None.
    """

    def __init__(self, *, config, session, graph, saver, load, run, test_batch, validation=None):
        self.config, self.session, self.graph, self.saver, self.load = config, session, graph, saver, load
        self.run, self.test_batch, self.validation, self.transfers = run, test_batch, validation, None
        self.renderer = Renderer(graph.rendering, session)
        self.check = FiniteCheck(graph.may_overflow)
        self.time_use = TimeUse()
        self.steps, self.seconds, self.waited = 0, 0.0, 0.0  # since the last log

    def train(self, step, end, log_first=False):
        """Trains from one step to another, or to a SIGINT or SIGTERM, whose number it returns.

        log_first: whether the first of these steps is logged, as step 0 always is.
        """
        batch_size, first = self.config["batch_size"], step if log_first else 0
        bar = progress_bar(total=end * batch_size, initial=step * batch_size, unit="image", unit_scale=True,
                           disable=self.run is None)
        stopping = False
        with bar, StopSignal() as signals:
            while step < end and not stopping:
                log_now = step == first or (step + 1) % self.config["log_freq"] == 0
                scalars, batch, stopping = self.train_step(step, signals)
                step += 1
                stopping = stopping and step < end  # a training that is done is brought to its end
                bar.set_postfix(step=step, loss=f"{scalars['loss']:.4g}", refresh=False)
                bar.update(batch_size)
                if self.run is None:
                    continue
                if log_now:
                    self.log(step, scalars, batch, end - step)
                if step % self.config["test_freq"] == 0:
                    self.draw_tests(step)
                if self.validation and step % self.config["eval_freq"] == 0:
                    self.measure(step)
                if step % self.config["ckpt_freq"] == 0:
                    self.save(step)
        if self.run is not None:
            what = "stopped by a signal" if stopping else "trained"
            self.run.say(f"{what} at step {step}, saved as {self.save(step)}")
            if not stopping and step % self.config["test_freq"]:
                self.draw_tests(step)
            if not stopping and self.validation and step % self.config["eval_freq"]:
                self.measure(step)
            self.run.say(self.time_use.summary())
        return (signals.number or signal.SIGTERM) if stopping else 0

    def train_step(self, step, signals):
        """One Adam step: its scalars, its batch (uint8 Examples), and whether to stop after it.

        Workers stop together: each tells the others, with its gradients, of the signal that it has got.
        """
        # The batch too although few steps log it: TensorFlow optimises the graph anew for every choice of fetches.
        fetches = [self.graph.scalars, self.graph.batch, self.graph.stopping, self.graph.update]
        start = time.time()
        try:
            scalars, batch, stopping, _ = self.session.run(fetches, {self.graph.stop: float(signals.number != 0)})
        except tf.errors.OpError as error:
            if self.load.failure is None:
                self.graph.cluster.raise_if_lost(error)
                raise
            saved = "" if self.run is None else f" (step {step} is saved: {self.save(step)})"
            raise UserError(f"{self.load.failure}{saved}")
        self.check(step, scalars)
        self.note_step(time.time() - start, scalars.pop("input_s"))
        if self.graph.cluster.n_workers == 1:
            stopping = signals.number != 0  # also where the signal came during the step
        return scalars, batch, stopping

    def note_step(self, seconds, waited):
        """Counts one step's time. The first step is counted apart, because TensorFlow optimises the graph in it."""
        is_first = not self.time_use.times
        self.time_use.add("start" if is_first else "steps", seconds)
        self.steps, self.seconds, self.waited = self.steps + 1, self.seconds + seconds, self.waited + waited

    def log(self, step, scalars, batch, n_left):
        """Scalars, distributions and pictures of the training batch and, named `valid`, of the test batch.

        n_left: how many steps are left.
        """
        with self.time_use.of("logging"):
            self.draw("", step, batch)
            valid = self.draw("valid_", step, self.test_batch)
            step_s = self.seconds / self.steps
            rate = self.config["batch_size"] * self.graph.cluster.n_workers / step_s
            share, memory, left = self.waited / self.seconds, peak_memory() / 1e9, ""
            scalars = dict(scalars, global_step=step, step_s=step_s, images_per_s=rate, input_share=share,
                           memory_gb=memory)
            if self.time_use.times["steps"]:  # the first step says nothing of the others
                scalars["left_s"] = n_left * step_s
                left = f", {as_time(n_left * step_s)} left"
            scalars.update((name + "_valid", value) for name, value in dict(valid, global_step=step).items())
            self.run.scalars(step, scalars)
            self.run.say(f"step {step}: loss {scalars['loss']:.4g}, KL {scalars['kl_loss']:.4g}, {step_s:.3g} s/step, "
                         f"{rate:.3g} images/s, {100 * share:.1f} % waiting for input, {memory:.2f} GB{left}")
            self.steps, self.seconds, self.waited = 0, 0.0, 0.0

    def draw(self, prefix, step, batch):
        """Pictures, stick figures, reconstructions and prior samples of a batch; returns its losses."""
        losses, reconstructions, means = self.graph.evaluate(self.session, batch)
        suffix = "_valid" if prefix else ""
        for k, values in enumerate(means):
            self.run.histogram(f"posterior_means_{k}{suffix}", values, step)
        samples = self.renderer.sample(batch.shape_image, step)
        for name, pictures in (("x", batch.image), ("c", batch.shape_image), ("sample", to_uint8(reconstructions)),
                               ("test_sample", to_uint8(samples))):
            self.run.picture(prefix + name, tile(pictures), step)
        return losses

    def draw_tests(self, step):
        """Prior samples and the transfer grid of the test batch."""
        with self.time_use.of("pictures"):
            samples = self.renderer.sample(self.test_batch.shape_image, step)
            self.run.picture("testing_cond", tile(self.test_batch.shape_image), step)
            self.run.picture("testing_test_sample", tile(to_uint8(samples)), step)
            in_grid = Examples(*[arrays[:MAX_GRID] for arrays in self.test_batch])
            cells = to_uint8(self.renderer.transfers(in_grid, in_grid.shape_image))
            self.transfers = transfer_grid(in_grid.shape_image, in_grid.image, cells)
            self.run.picture("transfer", self.transfers, step)

    def measure(self, step):
        """Figures of the test split."""
        with self.time_use.of("evaluation"):
            self.validation.measure(step, self.renderer)

    def save(self, step):
        """Saves a checkpoint; returns its prefix."""
        with self.time_use.of("checkpoints"):
            return self.saver.save(self.session, self.run.checkpoints, step)

    def forecast(self, n_steps, memory_before):
        """Prints what a training of n_steps will cost, after everything was done once."""
        for line in forecast(self.config, n_steps, graph=self.graph, time_use=self.time_use, run=self.run,
                             memory_before=memory_before, n_workers=self.graph.cluster.n_workers):
            print(line)


class FiniteCheck:
    """check(step, scalars) raises UserError when the loss or the gradients of a step are not finite.

    may_overflow: whether float16's gradients may overflow, which ends a step without an update. Even then that may not
    happen in MAX_OVERFLOWS steps in a row.
    """

    def __init__(self, may_overflow):
        self.may_overflow = may_overflow
        self.overflows = 0  # steps without an update in a row

    def __call__(self, step, scalars):
        overflows = self.may_overflow and not math.isfinite(scalars["gradient_norm"])
        self.overflows = self.overflows + 1 if overflows else 0
        is_tolerated = 0 < self.overflows < MAX_OVERFLOWS
        for name in ("loss",) if is_tolerated else ("loss", "gradient_norm"):
            if not math.isfinite(scalars[name]):
                raise UserError(f"training stopped: {name} is {scalars[name]} in step {step + 1}, nothing of it is "
                                "saved; expected finite numbers, which a lower lr may give")


class StopSignal:
    """While entered, SIGINT and SIGTERM only leave their `number`; one more stops at once.

    Not one that follows within SAME_REQUEST seconds: who stops a group of processes reaches workers themselves and
    through what started them.
    """

    def __init__(self):
        self.number, self._noted = 0, 0.0

    def __enter__(self):
        self._handlers = [(number, signal.signal(number, self._note)) for number in (signal.SIGINT, signal.SIGTERM)]
        return self

    def __exit__(self, *unused):
        self._restore()

    def _note(self, number, frame):
        if not self.number:
            self.number, self._noted = number, time.monotonic()
        elif time.monotonic() - self._noted > SAME_REQUEST:
            self._restore()
            os.kill(os.getpid(), number)

    def _restore(self):
        for number, handler in self._handlers:
            signal.signal(number, handler)


MODES = {"train": train, "evaluate": evaluate, "transfer": transfer, "animate": animate, "test": sample,
         "export": export, "page": page}
# Options that not all modes have.
MODES_OF_OPTIONS = {
    "retrain": ("train",), "workers": ("train",), "dry-run": ("train",),
    "batches": ("transfer", "test"), "appearance": ("transfer", "animate"),
    "pose": ("transfer", "animate"), "person": ("transfer", "animate"), "mix": ("transfer", "animate"),
    "aspect": ("transfer", "animate"), "fps": ("animate",), "seconds_per_pose": ("animate",), "save": ("evaluate",),
    "every": ("evaluate",),
    "images": ("evaluate",), "samples": ("evaluate",), "size": ("evaluate",), "out": ("export",),
    "metrics": ("export",), "host": ("page",), "port": ("page",)}

if __name__ == "__main__":
    sys.exit(run(main))
