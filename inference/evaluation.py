"""Figures of a trained network on the whole test split: the mode evaluate."""
import collections
import json
import sys

import numpy as np
import tensorflow.compat.v1 as tf
from tqdm import tqdm

from batches import Examples, Loader
from common.console import progress_bar
from common.errors import UserError, shown
from common.machine import cpu_count, make_session
from common.threads import read_ahead
from dataset import toy
from dataset.index import is_list
from dataset.selection import Selection, from_index, unique_labels
from deeploss import PerceptualLoss, load_weights
from inference.mixing import composite, part_numbers
from inference.rendering import LateRun, finite_uint8, open_index, restored, stick_figures

METRICS = ("ssim", "psnr", "mae", "perceptual_loss")
SAMPLES = 4  # of every pose
SSIM_WINDOW = 11
MAX_POSES = 10  # of one person, that each image of the person is rendered in
MAX_PSNR = 100.0  # dB; equal pictures have no finite one


def evaluate(options, config):
    """Prints and saves (metrics.json) how reconstructions, transfers and samples compare with the test split."""
    if config["spatial_size"] < SSIM_WINDOW:
        raise UserError(f"--mode evaluate: spatial_size: {config['spatial_size']}: expected 16 or more, as SSIM looks "
                        f"at windows of {SSIM_WINDOW} pixels")
    index = open_index(config)
    numbers, (pairs, n_pairs_left_out) = index.usable("test"), find_pairs(index)
    checkpoint = options.network.checkpoint()
    step, vgg_weights = checkpoint.step(), load_weights(config["vgg_weights"], config["feature_layers"])
    with restored(options, config) as renderer, Comparison(config, vgg_weights) as compare, \
            LateRun(options, config, "evaluation") as late:
        evaluation = Evaluation(config, index, renderer, compare, late=late, save=options.save)
        with progress_bar(total=len(numbers) + len(pairs), unit="image") as bar:
            evaluation.of_images(numbers, bar)
            evaluation.of_pairs(pairs, bar)
        if not late.is_made:
            raise UserError(f"no image of the test split can be read: {evaluation.left_out[0]}")
        run, metrics = late.run(), evaluation.metrics()
        run.write("metrics.json", json.dumps({
            **metrics, "checkpoint": checkpoint.name, "step": step, "data_index": config["data_index"],
            "left_out": evaluation.left_out, "pairs_left_out": n_pairs_left_out, "config": config}, indent=2).encode())
        for line in table(metrics):
            run.say(line)
        if evaluation.left_out:
            run.say(f"left out, as they could not be read: {len(evaluation.left_out)} images, which metrics.json names")
        if n_pairs_left_out:
            run.say(f"left out: {n_pairs_left_out} pairs in which not both are test images with hips and shoulders")
        report_toy(config, index, run, load=evaluation.load, renderer=renderer)
        report_toy_mixes(config, index, run, renderer=renderer)
        run.say(f"the figures are in {run.path('metrics.json')}")


class Comparison:
    """compare(real, made): how alike pictures (N, S, S, 3) uint8 are.

    A graph and a session of its own, in float32: rewritten for mixed precision, SSIM would be off in the third decimal.
    """

    def __init__(self, config, vgg_weights):
        shape = (None, config["spatial_size"], config["spatial_size"], 3)
        with tf.Graph().as_default() as graph:
            self._real, self._made = pictures = [tf.placeholder(tf.uint8, shape) for _ in range(2)]
            self._loss = PerceptualLoss(vgg_weights, config["feature_layers"], config["feature_weights"],
                                        config["gram_weights"])
            self._metrics = self._compare(*[tf.cast(picture, tf.float32) for picture in pictures])
            graph.finalize()
            self._session = make_session(dict(config, precision="float32"))
        self._session.run(self._loss.load_op, self._loss.load_feed)

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self._session.close()

    def _compare(self, real, made):
        # TensorFlow's SSIM: Gaussian windows, sigma 1.5, population covariances, as Wang et al. 2004.
        return {"ssim": tf.image.ssim(real, made, 255.0),
                "psnr": tf.minimum(tf.image.psnr(real, made, 255.0), MAX_PSNR),
                "mae": tf.reduce_mean(tf.abs(real - made), axis=[1, 2, 3]),
                "perceptual_loss": self._loss.per_image(real / 127.5 - 1, made / 127.5 - 1)}

    def __call__(self, real, made, metrics=METRICS):
        """{metric: (N,) floats}."""
        return self._session.run({name: self._metrics[name] for name in metrics}, {self._real: real, self._made: made})


class Evaluation:
    """Goes through images and pairs of images, a batch in memory at a time.

    late: a LateRun, whose run is made when the first images have been read. save: whether pictures are saved to it.
    left_out: why images could not be read.
    """

    def __init__(self, config, index, renderer, compare, *, late, save):
        self.load = Loader(index, config["spatial_size"], config["box_factor"])
        self.renderer, self.compare, self.late = renderer, compare, late
        self.left_out = []
        self._labels = unique_labels(index.images) if save else None
        self._saved = collections.Counter()
        self._moments = {}  # of (task, metric): number, sum and sum of squares

    def of_images(self, numbers, bar):
        """Reconstructions through posterior means, and samples from the prior, of these images of the index."""
        for chunk, batch in self._batches(numbers[:, np.newaxis], bar):
            made = finite_uint8(self.renderer.transfer(batch, batch.stick))
            self._note("reconstruction", self.compare(batch.image, made))
            first = int(np.searchsorted(numbers, chunk[0, 0])) * SAMPLES  # other noise for every batch
            samples = [finite_uint8(self.renderer.sample(batch.stick, first + k)) for k in range(SAMPLES)]
            metrics = ("mae", "perceptual_loss")
            distances = [self.compare(one, other, metrics) for one, other in zip(samples, samples[1:])]
            self._note("sampling", {name: np.mean([of_two[name] for of_two in distances], axis=0) for name in metrics})
            for folder, pictures in (("real", batch.image), ("reconstruction", made), ("sample", samples[0])):
                self._save(folder, chunk[:, 0], pictures)

    def of_pairs(self, pairs, bar):
        """Transfers of the first image's appearance to the second's pose, for pairs (P, 2) of one person."""
        for chunk, batch in self._batches(pairs, bar):
            sources, targets = (Examples(*[array[k::2] for array in batch]) for k in range(2))
            made = finite_uint8(self.renderer.transfer(sources, targets.stick))
            self._note("transfer", self.compare(targets.image, made))
            self._save("transfer", chunk[:, 1], made)

    def metrics(self):
        """{task: {"n": ..., metric: {"mean": ..., "std": ...}}}, with None for a task that nothing was there for."""
        results = {"reconstruction": None, "transfer": None, "sampling": None}
        for (task, metric), (n, total, squares) in self._moments.items():
            mean = total / n
            results[task] = results[task] or {"n": n}
            results[task][metric] = {"mean": mean, "std": max(0.0, squares / n - mean**2) ** 0.5}
        if results["sampling"]:
            results["sampling"]["samples_per_pose"] = SAMPLES
        return results

    def _batches(self, groups, bar):
        """(groups (n, k), Examples of n * k images) of groups (N, k) of images that can be read."""
        size = self.renderer.batch_size
        chunks = [groups[start:start + size] for start in range(0, len(groups), size)]
        for chunk, loaded in zip(chunks, read_ahead(self._read, chunks, cpu_count())):
            whole = [k for k, examples in enumerate(loaded) if examples is not None]
            if whole:
                self.late.run()
                yield chunk[whole], Examples(*[np.concatenate(arrays) for arrays in zip(*[loaded[k] for k in whole])])
            bar.update(len(chunk))

    def _read(self, numbers):
        """Examples of a group of images, or None where one cannot be read, which is said once."""
        try:
            return self.load(numbers)
        except UserError as error:
            if str(error) not in self.left_out:
                self.left_out.append(str(error))
                tqdm.write(f"left out: {error}", file=sys.stderr)
            return None

    def _note(self, task, values):
        for metric, value in values.items():
            value = value.astype(np.float64)
            n, total, squares = self._moments.get((task, metric), (0, 0.0, 0.0))
            self._moments[task, metric] = n + len(value), total + value.sum(), squares + (value**2).sum()

    def _save(self, folder, numbers, pictures):
        """Saves pictures under the names of these images; of further ones of an image, in folders of their own."""
        if self._labels is None:
            return
        for number, picture in zip(numbers, pictures):
            self._saved[folder, number] += 1
            times = self._saved[folder, number]
            in_folder = folder if times == 1 else f"{folder}_{times}"
            self.late.run().picture(f"{in_folder}/{self._labels[number]}", picture)


# ---------------------------------------------------------------------------------------------- pairs of one person

def find_pairs(index):
    """((P, 2) int64, how many pairs are left out): usable test images of one person, from and to.

    They are the index's `pairs` or, without those, each image with others of the same `person`. Raises UserError where
    these are not what they should be.
    """
    usable = np.zeros(len(index.images), bool)
    usable[index.usable("test")] = True
    if "pairs" in index.extra:
        pairs = given_pairs(index)
        kept = pairs[usable[pairs].all(axis=1)]
        return kept, len(pairs) - len(kept)
    if "person" in index.extra:
        return pairs_of_one_person(index, np.flatnonzero(usable)), 0
    return np.zeros((0, 2), np.int64), 0


def given_pairs(index):
    """The index's `pairs`, (P, 2) int64. Raises UserError."""
    n, pairs = len(index.images), as_whole_numbers(index.extra["pairs"], n_columns=2)
    are_numbers_of_images = pairs is not None and ((pairs >= 0) & (pairs < n)).all()
    if not are_numbers_of_images:
        raise UserError(f"{index.path}: pairs: expected pairs of numbers from 0 to {n - 1}, "
                        f"found {shown(index.extra['pairs'])}")
    return pairs


def pairs_of_one_person(index, numbers):
    """Each of these images with the next ones of the same person, at most MAX_POSES, the last with the first again.

    (P, 2) int64. Raises UserError.
    """
    n, people = len(index.images), as_whole_numbers(index.extra["person"])
    if people is None or len(people) != n:
        raise UserError(f"{index.path}: person: expected {n} whole numbers, found {shown(index.extra['person'])}")
    images = collections.defaultdict(list)
    for number in numbers:
        images[people[number]].append(number)
    pairs = []
    for of_one in images.values():
        n_poses = min(MAX_POSES, len(of_one) - 1)
        pairs += [(a, of_one[(i + k) % len(of_one)]) for i, a in enumerate(of_one) for k in range(1, n_poses + 1)]
    return np.array(pairs, np.int64).reshape(-1, 2)


def as_whole_numbers(values, n_columns=None):
    """Values of an index as (n,) int64 or, with n_columns, as (n, n_columns); None where they are something else."""
    shape = (-1, n_columns) if n_columns else (-1,)
    if isinstance(values, np.ndarray):
        fits = values.dtype.kind in "iu" and values.ndim == len(shape) and values.shape[1:] == shape[1:]
        return values.astype(np.int64).reshape(shape) if fits or not values.size else None
    if not is_list(values):
        return None
    rows = values if n_columns else [values]
    # Looked at before numpy is asked: lists that hold one another many times over would fill the memory.
    for row in rows:
        fits = is_list(row) and (n_columns is None or len(row) == n_columns)
        if not fits or not all(isinstance(value, (int, np.integer)) and abs(value) < 2**62 for value in row):
            return None
    return np.array(values, np.int64).reshape(shape)


# ---------------------------------------------------------------------------------------------- what is said

def table(metrics):
    """The figures as lines of text: mean +- standard deviation over images."""
    lines = [f"{'task':15} {'n':>7}" + "".join(f"{name:>22}" for name in METRICS)]
    for task, found in metrics.items():
        if found is None:
            lines.append(f"{task:15} {'none':>7}")
            continue
        cells = [f"{found[name]['mean']:.4g} +- {found[name]['std']:.3g}" if name in found else "" for name in METRICS]
        lines.append((f"{task:15} {found['n']:7}" + "".join(f"{cell:>22}" for cell in cells)).rstrip())
    lines.append("sampling: between samples of the same pose; mae in levels of 0 to 255, psnr in dB")
    return lines


def is_toy(config, index):
    """Whether the true pictures of transfers can be drawn."""
    return config["spatial_size"] == toy.SIZE and toy.is_toy(index.joints, index.extra)


def report_toy(config, index, run, *, load, renderer):
    """For the toy data, whose truth can be drawn: the error of transfers to held-out people."""
    if not is_toy(config, index):
        return

    def render(appearances, poses):
        return renderer.transfer(load.batch(appearances), load.batch(poses).stick)

    try:
        errors = toy.transfer_error(render, index.extra["person"], {s: index.usable(s) for s in ("train", "test")},
                                    index.extra["toy_seed"])
    except UserError as error:  # an image cannot be read; what was done before is none the worse
        run.say(f"no transfer error on held-out people: {error}")
        return
    error, of_mean = errors["transfer"], errors["mean_appearance"]
    run.say(f"transfer error on held-out people: {error:.3f}; of the mean training appearance: {of_mean:.3f} "
            f"(ratio {error / of_mean:.3f}); of a wrong person: {errors['wrong_person']:.3f}")


def report_toy_mixes(config, index, run, *, renderer):
    """For the toy data, the errors within parts that somebody else gave, beside those of transfers of one person."""
    if not is_toy(config, index):
        return

    def render(part, appearances, others, poses):
        people = Selection(from_index(index, appearances))
        load = Loader(people, config["spatial_size"], config["box_factor"])
        latents = renderer.encode(load.batch(range(len(people))))
        joints = index.joints[poses]
        sticks = stick_figures(joints, renderer.size)
        pictures = renderer.render(latents, sticks)
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
