"""Figures of a trained network on the whole test split: the mode evaluate."""
import collections
import contextlib
import json
import os
import sys

import numpy as np
import tensorflow.compat.v1 as tf
from tqdm import tqdm

from batches import Examples, make_loader
from common.console import progress_bar
from common.convolution import make_conv2d
from common.errors import UserError, shown
from common.machine import cpu_count, make_session
from common.threads import read_ahead
from dataset import bags, toy
from dataset.index import open_index
from dataset.poses import Estimator
from dataset.selection import Selection, from_index, unique_labels
from deeploss import PerceptualLoss, load_weights
from inference.items import by_person, choose_items, groups_of_people, spread
from inference.metrics import FLAT_WINDOW, PROTOCOLS, SSIM_WINDOW, similarities, ssim_flat51
from inference.mixing import composite, part_numbers
from inference.rendering import LateRun, aspect_shape, finite_uint8, resized, restored
from inference.tables import (
    APPEARANCES,
    NEIGHBOUR_IMAGES,
    POSES,
    AppearanceFeatures,
    JointFinder,
    appearance_figures,
    tables,
)
from training.curves import save_curves

TASKS = ("reconstruction", "transfer", "sampling")
OWN = ", own size"  # what a task is called where pictures have the aspect of the data set's files
METRICS = ("ssim", "psnr", "mae", "perceptual_loss")
TABLE_METRICS = ("ssim", "ssim_flat51", "psnr", "mae", "perceptual_loss")
SAMPLES = 4  # of every pose
DEFAULT_SAMPLES = 500  # poses that samples are drawn for


def evaluate(options, config):
    """Prints and saves (metrics.json) how reconstructions, transfers and samples compare with the test split."""
    if config["spatial_size"] < SSIM_WINDOW:
        raise UserError(f"--mode evaluate: spatial_size: {config['spatial_size']}: expected 16 or more, as SSIM looks "
                        f"at windows of {SSIM_WINDOW} pixels")
    index = open_index(config)
    numbers, pairs, n_pairs_left_out = choose_items(index, options.images)
    poses = spread(numbers, options.samples or DEFAULT_SAMPLES)
    shape = own_shape(config, index) if options.size == "own" else None
    networks = all_networks(options) if options.every else [options.network]
    steps = [network.checkpoint().step() for network in networks]
    vgg_weights = load_weights(config["vgg_weights"], config["feature_layers"])
    by_step = {}
    with contextlib.ExitStack() as stack:
        compare = stack.enter_context(Comparison(config, vgg_weights))
        compare_own = stack.enter_context(Comparison(config, vgg_weights, shape)) if shape else None
        features = stack.enter_context(AppearanceFeatures(config))
        estimator = stack.enter_context(Estimator())
        late = stack.enter_context(LateRun(options, config, "evaluation"))
        no_joints = None if config["shape"] == "joints" else f"shape: {config['shape']}"
        aspect = index.aspect()
        for step, network in zip(steps, networks):
            if options.every and not os.path.isfile(network.prefix + ".index"):
                late.run().say(f"step {step} is left out: a training has removed the checkpoint meanwhile")
                continue
            with restored(network, config) as renderer:
                evaluation = Evaluation(config, index, renderer, compare, late=late, save=options.save,
                                        joints=JointFinder(estimator, aspect, no_joints), joints_of=poses,
                                        compare_own=compare_own)
                metrics = by_step[step] = evaluation.measure(numbers, pairs, poses, features)
                run, left_out = late.run(), evaluation.left_out
                name = f"metrics_{step}.json" if options.every else "metrics.json"
                run.write(name, json.dumps({
                    **metrics, "protocols": PROTOCOLS, "checkpoint": network.name, "step": step,
                    "data_index": config["data_index"], "left_out": left_out,
                    "pairs_left_out": n_pairs_left_out, "config": config}, indent=2).encode())
                if not options.every:
                    say_lines(run, table(metrics) + tables(metrics, config["shape"] == "joints"))
                    say_left_out(run, left_out, n_pairs_left_out)
                    report_toy(config, index, run, load=evaluation.load, renderer=renderer)
                    report_toy_mixes(config, index, run, renderer=renderer)
        if not by_step:
            raise UserError("--every: a training has removed all checkpoints meanwhile")
        if options.every:
            say_every(run, by_step)
            say_left_out(run, left_out, n_pairs_left_out)
        run.say(f"the figures are in {run.folder if options.every else run.path(name)}")


def all_networks(options):
    """The Networks of all checkpoints of the run folder that the options name. Raises UserError."""
    if not os.path.isdir(options.checkpoint):
        raise UserError("--every: expected --checkpoint to name a run folder, found "
                        f"{shown(options.checkpoint, 1000)}")
    return options.network.all_steps()


def own_shape(config, index):
    """(width, height) of pictures in the aspect of the data set's files. Raises UserError where that is too small."""
    shape = aspect_shape(config["spatial_size"], index.aspect())
    if min(shape) < SSIM_WINDOW:
        raise UserError(f"--size own: expected pictures of {SSIM_WINDOW} pixels or more, found {shape[0]} x {shape[1]}")
    return shape


class Comparison:
    """compare(pictures, pairs): how alike pictures (k, S, S, 3) uint8 are, by pairs (m, 2) of their numbers.

    vgg_weights: None leaves out what takes long, perceptual_loss and ssim_flat51. shape: (width, height) that the
    pictures are resized to before; by default they stay as they are.

    A graph and a session of its own, in float32: rewritten for mixed precision, SSIM would be off in the third decimal.
    """

    def __init__(self, config, vgg_weights, shape=None):
        self.shape = shape or (config["spatial_size"], config["spatial_size"])
        with tf.Graph().as_default() as graph:
            self._pictures = tf.placeholder(tf.uint8, (None, self.shape[1], self.shape[0], 3))
            self._pairs = tf.placeholder(tf.int32, (None, 2))
            self._has_flat51 = vgg_weights is not None and min(self.shape) >= FLAT_WINDOW
            pictures = tf.cast(self._pictures, tf.float32)
            self._metrics = similarities(*[tf.gather(pictures, self._pairs[:, side]) for side in range(2)])
            if vgg_weights is not None:
                loss = PerceptualLoss(vgg_weights, config["feature_layers"], config["feature_weights"],
                                      config["gram_weights"], conv2d=make_conv2d("float32", many_channels=True))
                self._metrics["perceptual_loss"] = self._compare_features(loss, pictures)
            graph.finalize()
            self._session = make_session(dict(config, precision="float32", xla=False))
        if vgg_weights is not None:
            self._session.run(loss.load_op, loss.load_feed)

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self._session.close()

    def _compare_features(self, loss, pictures):
        features = loss.features(pictures / 127.5 - 1)  # once for each picture
        return loss.per_image(*[[tf.gather(values, self._pairs[:, side]) for values in features] for side in range(2)])

    def __call__(self, pictures, pairs, metrics=METRICS):
        """{metric: (m,) floats}; ssim_flat51 too where all metrics are asked for and pictures are large enough."""
        pictures = np.stack([resized(picture, self.shape) for picture in pictures])
        figures = self._session.run({name: self._metrics[name] for name in metrics if name in self._metrics},
                                    {self._pictures: pictures, self._pairs: pairs})
        if self._has_flat51 and metrics == METRICS:
            real, made = (pictures[np.asarray(pairs)[:, side]] for side in range(2))
            figures["ssim_flat51"] = ssim_flat51(real, made)
        return figures


Rendering = collections.namedtuple("Rendering", "task source target")
Rendering.__doc__ = """A picture to make: the person of image `source` in the pose of image `target`.

task: reconstruction or transfer.
"""


def renderings_of(numbers, pairs):
    """Renderings: of each image its reconstruction, then the transfers to its pose. pairs: [(source, target)]."""
    sources = collections.defaultdict(list)
    for source, target in pairs:
        sources[target].append(source)
    renderings = []
    for number in numbers:
        renderings.append(Rendering("reconstruction", number, number))
        renderings += [Rendering("transfer", source, number) for source in sources[number]]
    return renderings


def batches_of(renderings, size):
    """Renderings in lists of at most 2 * size, in at most `size` poses, so that memory is bounded."""
    batches, poses = [], set()
    for rendering in renderings:
        poses.add(rendering.target)
        if not batches or len(batches[-1]) == 2 * size or len(poses) > size:
            batches.append([])
            poses = {rendering.target}
        batches[-1].append(rendering)
    return batches


class Evaluation:
    """Goes through images and pairs of images, a batch in memory at a time.

    late: a LateRun, whose run is made when the first images have been read, or None. save: whether pictures are saved
    to it. joints: a JointFinder that sees what is made in the poses of the images `joints_of`. compare_own: another
    Comparison, in the aspect of the data set's files. left_out: why images could not be read.
    """

    def __init__(self, config, index, renderer, compare, *, late=None, save=False, joints=None, joints_of=(),
                 compare_own=None):
        self._config, self._joints, self._joints_of = config, joints, set(np.asarray(joints_of).tolist())
        self.load = make_loader(index, config)
        self.renderer, self.compare, self.late = renderer, compare, late
        self.compare_own = compare_own
        self.left_out = []
        self._labels = unique_labels(index.images) if save else None
        self._saved = collections.Counter()
        self._moments = {}  # of (task, metric): number, sum and sum of squares

    def measure(self, numbers, pairs, poses, features):
        """All figures of these images and pairs of the index, as in metrics.json.

        poses: numbers of the images whose poses samples are drawn for. features: AppearanceFeatures. Raises UserError
        where no image can be read.
        """
        with progress_bar(total=len(numbers) + len(pairs) + len(poses), unit="image") as bar:
            self.of_images(numbers, pairs, bar)
            if not self._moments:
                raise UserError(f"no image of the test split can be read: {self.left_out[0]}")
            self.of_samples(poses, bar)
        metrics, why_not = self.metrics(), self._joints.why_not
        metrics["joints"] = {"why_not": why_not} if why_not else self._joints.figures()
        metrics["consistency"] = self.consistency(numbers, features)
        return metrics

    def of_images(self, numbers, pairs, bar):
        """Reconstructions of these images of the index, and transfers of the first image's appearance to the second's
        pose, for pairs (P, 2) of one person whose second image is among them.
        """
        # By person, so that most sources are in the same batch, and are read once.
        renderings = renderings_of(by_person(self.load.index, numbers).tolist(), pairs.tolist())
        rendered = ([batch] for batch in self._rendered(renderings, bar))
        for (done, by_suffix), in read_ahead(self._compared, rendered, 1):  # while the next batch is rendered
            for task in ("reconstruction", "transfer"):
                chosen = [rendering.task == task for rendering in done]
                for suffix, figures in by_suffix.items():
                    self._note(task + suffix, {name: values[chosen] for name, values in figures.items()})

    def _rendered(self, renderings, bar):
        """Yields, for a batch of renderings, those whose images can be read, the pictures of their poses' images and
        what was made, and for each its places among these pictures, (m, 2): the real one and the made one.
        """
        chunks = batches_of(renderings, self.renderer.batch_size)
        needed = [sorted({number for _, *both in chunk for number in both}) for chunk in chunks]
        for chunk, people, loaded in zip(chunks, needed, read_ahead(self._read, needed, cpu_count())):
            examples = {number: found for number, found in zip(people, loaded) if found is not None}
            readable = [rendering for rendering in chunk if {rendering.source, rendering.target} <= set(examples)]
            if readable:
                if self.late is not None:
                    self.late.run()
                yield self._render(readable, examples)
            bar.update(len(chunk))

    def _render(self, renderings, examples):
        """As _rendered. examples: {number: Examples}."""
        people, targets = sorted(examples), list(dict.fromkeys(rendering.target for rendering in renderings))
        latents = self.renderer.encode(_stacked([examples[number] for number in people]))
        batch = _stacked([examples[number] for number in targets])
        who = [people.index(rendering.source) for rendering in renderings]
        where = [targets.index(rendering.target) for rendering in renderings]
        made = finite_uint8(self.renderer.render([z[who] for z in latents], batch.shape_image, where))
        for (task, _, target), place, picture in zip(renderings, where, made):
            if task == "reconstruction":
                self._save("real", target, batch.image[place])
            self._save(task, target, picture)
        n = len(targets)
        return renderings, np.concatenate([batch.image, made]), np.stack([where, n + np.arange(len(made))], axis=1)

    def _compared(self, rendered):
        """(renderings, {suffix of the task: figures of all}) of what _rendered yields; notes its joints."""
        renderings, pictures, places = rendered
        made_of = collections.defaultdict(list)  # of a real picture's place: tasks and pictures in its pose
        for (task, _, target), (real, made) in zip(renderings, places):
            if target in self._joints_of:
                made_of[real].append((task, pictures[made]))
        for real, in_its_pose in made_of.items():
            self._joints.note(pictures[real], in_its_pose)
        comparisons = {"": self.compare, OWN: self.compare_own}
        return renderings, {suffix: compare(pictures, places) for suffix, compare in comparisons.items() if compare}

    def of_samples(self, numbers, bar):
        """How samples from the prior, for the poses of these images of the index, differ from one another."""
        size = self.renderer.batch_size
        for start in range(0, len(numbers), size):
            wanted = numbers[start:start + size]
            chunk, shapes = self._shapes_of(wanted)
            bar.update(len(wanted))
            if not chunk:
                continue
            samples = [finite_uint8(self.renderer.sample(shapes, start * SAMPLES + k)) for k in range(SAMPLES)]
            n = len(chunk)
            neighbours = [(k * n + i, (k + 1) * n + i) for i in range(n) for k in range(SAMPLES - 1)]
            figures = self.compare(np.concatenate(samples), np.array(neighbours), ("mae", "perceptual_loss"))
            self._note("sampling", {name: values.reshape(n, -1).mean(axis=1) for name, values in figures.items()})
            for number, picture in zip(chunk, samples[0]):
                self._save("sample", number, picture)

    def consistency(self, numbers, features):
        """Figures of how much appearances change with the pose, of test images with these numbers; or why not."""
        if features.why_not:
            return {"why_not": features.why_not}
        index = self.load.index
        made = self.made_features(numbers, features, APPEARANCES)
        if not made:
            return {"why_not": "no image can be read"}
        of_training = np.flatnonzero(index.train & index.is_usable())
        training = self._features_of(features, spread(of_training, NEIGHBOUR_IMAGES))
        groups = [[self._features_of(features, group) for group in one_or_more] for one_or_more in
                  groups_of_people(index, numbers)]
        return appearance_figures(made, training, *[[rows for rows in group if len(rows) > 1] for group in groups])

    def made_features(self, numbers, features, n):
        """Features (POSES, d) of n of these test images, each rendered in the same poses: a list.

        Of fewer, where images cannot be read.
        """
        poses, shapes = self._shapes_of(spread(numbers, POSES))
        people = [found for found in map(self._read, spread(numbers, n)) if found is not None]
        if not people or not poses:
            return []
        latents = self.renderer.encode(_stacked(people))
        return [features(finite_uint8(self.renderer.render([z[i:i + 1] for z in latents], shapes)))
                for i in range(len(people))]

    def _features_of(self, features, numbers):
        """Features (k, d) of the images with these numbers that can be read."""
        size = self.renderer.batch_size
        found = []
        for chunk in read_ahead(self._read, [numbers[i:i + size] for i in range(0, len(numbers), size)], cpu_count()):
            whole = [examples.image for examples in chunk if examples is not None]
            if whole:
                found.append(features(np.concatenate(whole)))
        return np.concatenate(found) if found else np.zeros((0, 0))

    def metrics(self):
        """{task: {"n": ..., metric: {"mean": ..., "std": ...}}}, with None for a task that nothing was there for."""
        results = dict.fromkeys(TASKS)
        own = {}
        for (task, metric), (n, total, squares) in self._moments.items():
            mean = total / n
            of_task = own if task.endswith(OWN) else results
            of_task[task] = of_task.get(task) or {"n": n}
            of_task[task][metric] = {"mean": mean, "std": max(0.0, squares / n - mean**2) ** 0.5}
        if results["sampling"]:
            results["sampling"]["samples_per_pose"] = SAMPLES
        if own:
            own["pixels"] = list(self.compare_own.shape)
        results["own_size"] = own
        return results

    def _read(self, number):
        """Examples of an image, or None where it cannot be read, which is said once."""
        return self._or_none(self.load, number)

    def _shapes_of(self, numbers):
        """([those of these numbers whose shapes can be read], their shapes (n, S, S, 3))."""
        found = [(number, self._or_none(self.load.shape_images, number)) for number in numbers]
        found = [(number, shape[0]) for number, shape in found if shape is not None]
        return [number for number, _ in found], np.array([shape for _, shape in found])

    def _or_none(self, read, number):
        """read([number]), or None where it cannot be read, which is said once."""
        try:
            return read([number])
        except UserError as error:
            if str(error) not in self.left_out:
                self.left_out.append(str(error))
                tqdm.write(f"left out: {error}", file=sys.stderr)
            return None

    def _note(self, task, values):
        for metric, value in values.items():
            if len(value):
                value = value.astype(np.float64)
                n, total, squares = self._moments.get((task, metric), (0, 0.0, 0.0))
                self._moments[task, metric] = n + len(value), total + value.sum(), squares + (value**2).sum()

    def _save(self, folder, number, picture):
        """Saves a picture under the name of this image; further ones of the image in folders of their own."""
        if self._labels is None:
            return
        self._saved[folder, number] += 1
        times = self._saved[folder, number]
        in_folder = folder if times == 1 else f"{folder}_{times}"
        self.late.run().picture(f"{in_folder}/{self._labels[number]}", picture)


def _stacked(examples):
    """Examples of several images of a list of Examples."""
    return Examples(*[np.concatenate(arrays) for arrays in zip(*examples)])


# ---------------------------------------------------------------------------------------------- what is said

def say_lines(run, lines):
    for line in lines:
        run.say(line)


def say_left_out(run, left_out, n_pairs_left_out):
    """Says how many images could not be read, and how many pairs could not be used."""
    if left_out:
        run.say(f"left out, as they could not be read: {len(left_out)} images, which the JSON file names")
    if n_pairs_left_out:
        run.say(f"left out: {n_pairs_left_out} pairs in which not both are usable test images")


def say_every(run, by_step):
    """Prints the figures of several checkpoints, {step: metrics}, and draws them: every.png."""
    by_step = {step: means(metrics) for step, metrics in by_step.items()}
    names = list(dict.fromkeys(name for found in by_step.values() for name in found))
    run.say(f"{'step':28}" + "".join(f"{step:>10}" for step in by_step))
    curves = {}
    for name in names:
        steps = [step for step in by_step if name in by_step[step]]
        values = [by_step[step][name] for step in steps]
        curves[f"eval_{name}"] = np.array(steps), np.array(values)
        cells = [f"{found[name]:.4g}" if name in found else "" for found in by_step.values()]
        run.say((f"{name:28}" + "".join(f"{cell:>10}" for cell in cells)).rstrip())
    save_curves({"": curves}, run.path("every.png"))
    run.say(f"as a picture: {run.path('every.png')}")


def means(metrics):
    """{"ssim_transfer": 0.4, ...}: the means that one follows over a training, without those of samples."""
    found = {}
    for task in TASKS[:2]:
        for metric in TABLE_METRICS:
            if metrics[task] and metric in metrics[task]:
                found[f"{metric}_{task}"] = metrics[task][metric]["mean"]
    for task, figures in metrics.get("joints", {}).items():
        if task != "why_not" and figures["error"] is not None:
            found[f"joints_{task}"] = figures["error"]
    if "std" in metrics.get("consistency", {}):
        found["consistency"] = metrics["consistency"]["std"]
    return found


def table(metrics):
    """The figures as lines of text: mean +- standard deviation over images."""
    own = {task: found for task, found in sorted(metrics["own_size"].items()) if task != "pixels"}
    lines = rows({**{task: metrics[task] for task in TASKS}, **own})
    if own:
        width, height = metrics["own_size"]["pixels"]
        lines.append(f"own size: {width} x {height} pixels, the aspect of the data set's files")
    if "ssim_flat51" not in lines[0]:
        lines.append(f"ssim_flat51 is left out: pictures are smaller than its window of {FLAT_WINDOW} pixels")
    lines.append("sampling: between samples of the same pose; mae in levels of 0 to 255, psnr in dB")
    return lines


def rows(of_tasks):
    """{task: figures, or None} as lines of text, a header first."""
    found_names = {name for found in of_tasks.values() if found for name in found}
    names = [name for name in TABLE_METRICS if name in found_names]
    lines = [f"{'task':24} {'n':>7}" + "".join(f"{name:>22}" for name in names)]
    for task, found in of_tasks.items():
        if found is None:
            lines.append(f"{task:24} {'none':>7}")
            continue
        cells = [f"{found[name]['mean']:.4g} +- {found[name]['std']:.3g}" if name in found else "" for name in names]
        lines.append((f"{task:24} {found['n']:7}" + "".join(f"{cell:>22}" for cell in cells)).rstrip())
    return lines


def is_toy(config, index):
    """Whether the true pictures of transfers can be drawn."""
    return config["spatial_size"] == toy.SIZE and index.joints is not None and toy.is_toy(index.joints, index.extra)


def report_toy(config, index, run, *, load, renderer):
    """For the toy data, whose truth can be drawn: the errors of transfers to held-out people or things."""
    if config["spatial_size"] == toy.SIZE and bags.is_bags(len(index.images), index.extra):
        report_bags(index, run, load=load, renderer=renderer)
    if not is_toy(config, index):
        return

    def render(appearances, poses):
        return renderer.transfer(load.batch(appearances), load.shape_images(poses))

    try:
        errors = toy.transfer_error(render, index.extra["person"], {s: index.usable(s) for s in ("train", "test")},
                                    index.extra["toy_seed"])
    except UserError as error:  # an image cannot be read; what was done before is none the worse
        run.say(f"no transfer error on held-out people: {error}")
        return
    error, of_mean = errors["transfer"], errors["mean_appearance"]
    run.say(f"transfer error on held-out people: {error:.3f}; of the mean training appearance: {of_mean:.3f} "
            f"(ratio {error / of_mean:.3f}); of a wrong person: {errors['wrong_person']:.3f}")


def report_bags(index, run, *, load, renderer):
    """The errors of transfers to held-out bags, what shows through of other outlines, and the spread of samples."""
    usable, seed = {s: index.usable(s) for s in ("train", "test")}, index.extra["toy_seed"]
    try:
        errors = bags.transfer_errors(lambda appearances, shapes: renderer.transfer(
            load.batch(appearances), load.shape_images(shapes)), usable, seed)
        of_samples, of_truth = bags.colour_spreads(lambda shapes, k: renderer.sample(
            load.shape_images(shapes), 1000 * k), usable, seed)
    except UserError as error:  # an image cannot be read; what was done before is none the worse
        run.say(f"no transfer error on held-out bags: {error}")
        return
    of_mean = errors["mean appearance"]
    for kind in ("bag to bag", "shoe to bag"):
        run.say(f"transfer error on held-out bags, {kind}: {errors[kind]:.3f}; of the mean training appearance: "
                f"{of_mean:.3f} (ratio {errors[kind] / of_mean:.3f})")
    run.say(f"error of transfers within the outline of the thing that gave the look, but outside of the bag: "
            f"{errors['shows through']:.4f}; of reconstructions at the same pixels: {errors['beside']:.4f} (ratio "
            f"{errors['shows through'] / errors['beside']:.2f}); anywhere outside of the bag: {errors['outside']:.4f}")
    run.say(f"spread of the colours of samples: {of_samples:.3f}; of true looks: {of_truth:.3f} (ratio "
            f"{of_samples / of_truth:.2f})")


def report_toy_mixes(config, index, run, *, renderer):
    """For the toy data, the errors within parts that somebody else gave, beside those of transfers of one person."""
    if not is_toy(config, index):
        return

    def render(part, appearances, others, poses):
        people = Selection(from_index(index, appearances))
        load = make_loader(people, config, with_shapes=False)
        latents = renderer.encode(load.batch(range(len(people))))
        joints = index.joints[poses]
        pictures = renderer.render(latents, make_loader(index, config).shape_images(poses))
        if part is None:
            return pictures
        return composite(pictures, [(part_numbers(part), render(None, others, others, poses))], joints)

    try:
        errors = toy.mix_errors(render, index.extra["person"], index.usable("test"), index.extra["toy_seed"])
    except UserError as error:
        run.say(f"no errors of mixed people: {error}")
        return
    for part, (mixed, unmixed) in errors.items():
        run.say(f"error of mixed {part}: {mixed:.3f}; of one person's: {unmixed:.3f} (ratio {mixed / unmixed:.3f})")
