"""Figures of a trained network on the whole test split: the mode evaluate."""
import collections
import contextlib
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
from dataset.poses import Estimator
from dataset.selection import Selection, from_index, unique_labels
from deeploss import PerceptualLoss, load_weights
from inference.metrics import FLAT_WINDOW, PROTOCOLS, SSIM_WINDOW, similarities, ssim_flat51
from inference.mixing import composite, part_numbers
from inference.rendering import LateRun, aspect_shape, finite_uint8, open_index, resized, restored, stick_figures
from inference.tables import (
    APPEARANCES,
    NEIGHBOUR_IMAGES,
    POSES,
    AppearanceFeatures,
    JointFinder,
    appearance_figures,
    tables,
)

TASKS = ("reconstruction", "transfer", "sampling")
OWN = ", own size"  # what a task is called where pictures have the aspect of the data set's files
METRICS = ("ssim", "psnr", "mae", "perceptual_loss")
SAMPLES = 4  # of every pose
DEFAULT_SAMPLES = 500  # poses that samples are drawn for
MAX_POSES = 10  # of one person, that each image of the person is rendered in


def evaluate(options, config):
    """Prints and saves (metrics.json) how reconstructions, transfers and samples compare with the test split."""
    if config["spatial_size"] < SSIM_WINDOW:
        raise UserError(f"--mode evaluate: spatial_size: {config['spatial_size']}: expected 16 or more, as SSIM looks "
                        f"at windows of {SSIM_WINDOW} pixels")
    index = open_index(config)
    numbers, pairs, n_pairs_left_out = choose_items(index, options.images)
    poses = spread(numbers, options.samples or DEFAULT_SAMPLES)
    shape = own_shape(config, index) if options.size == "own" else None
    checkpoint = options.network.checkpoint()
    step, vgg_weights = checkpoint.step(), load_weights(config["vgg_weights"], config["feature_layers"])
    with contextlib.ExitStack() as stack:
        renderer = stack.enter_context(restored(options, config))
        compare = stack.enter_context(Comparison(config, vgg_weights))
        compare_own = stack.enter_context(Comparison(config, vgg_weights, shape)) if shape else None
        joints = JointFinder(stack.enter_context(Estimator()), index.aspect())
        late = stack.enter_context(LateRun(options, config, "evaluation"))
        evaluation = Evaluation(config, index, renderer, compare, late=late, save=options.save, joints=joints,
                                joints_of=poses, compare_own=compare_own)
        with progress_bar(total=len(numbers) + len(pairs) + len(poses), unit="image") as bar:
            evaluation.of_images(numbers, pairs, bar)
            if late.is_made:
                evaluation.of_samples(poses, bar)
        if not late.is_made:
            raise UserError(f"no image of the test split can be read: {evaluation.left_out[0]}")
        run, metrics = late.run(), evaluation.metrics()
        metrics["joints"] = {"why_not": joints.why_not} if joints.why_not else joints.figures()
        metrics["consistency"] = evaluation.consistency(numbers)
        run.write("metrics.json", json.dumps({
            **metrics, "protocols": PROTOCOLS, "checkpoint": checkpoint.name, "step": step,
            "data_index": config["data_index"], "left_out": evaluation.left_out,
            "pairs_left_out": n_pairs_left_out, "config": config}, indent=2).encode())
        for line in table(metrics) + tables(metrics):
            run.say(line)
        if evaluation.left_out:
            run.say(f"left out, as they could not be read: {len(evaluation.left_out)} images, which metrics.json names")
        if n_pairs_left_out:
            run.say(f"left out: {n_pairs_left_out} pairs in which not both are test images with hips and shoulders")
        report_toy(config, index, run, load=evaluation.load, renderer=renderer)
        report_toy_mixes(config, index, run, renderer=renderer)
        run.say(f"the figures are in {run.path('metrics.json')}")


def own_shape(config, index):
    """(width, height) of pictures in the aspect of the data set's files. Raises UserError where that is too small."""
    shape = aspect_shape(config["spatial_size"], index.aspect())
    if min(shape) < SSIM_WINDOW:
        raise UserError(f"--size own: expected pictures of {SSIM_WINDOW} pixels or more, found {shape[0]} x {shape[1]}")
    return shape


def choose_items(index, n_images=None):
    """(numbers of test images, (P, 2) pairs of them, how many pairs of the index are left out): what is evaluated.

    n_images: the first so many of a fixed shuffle, and the pairs whose pose is one of these; None takes all.
    """
    numbers, (pairs, n_left_out) = index.usable("test"), find_pairs(index)
    if n_images is not None and n_images < len(numbers):
        numbers = np.sort(np.random.RandomState(0).permutation(numbers)[:n_images])
        pairs = pairs[np.isin(pairs[:, 1], numbers)]
    return numbers, pairs, n_left_out


class Comparison:
    """compare(pictures, pairs): how alike pictures (k, S, S, 3) uint8 are, by pairs (m, 2) of their numbers.

    shape: (width, height) that the pictures are resized to before; by default they stay as they are.

    A graph and a session of its own, in float32: rewritten for mixed precision, SSIM would be off in the third decimal.
    """

    def __init__(self, config, vgg_weights, shape=None):
        self.shape = shape or (config["spatial_size"], config["spatial_size"])
        with tf.Graph().as_default() as graph:
            self._pictures = tf.placeholder(tf.uint8, (None, self.shape[1], self.shape[0], 3))
            self._pairs = tf.placeholder(tf.int32, (None, 2))
            self._loss = PerceptualLoss(vgg_weights, config["feature_layers"], config["feature_weights"],
                                        config["gram_weights"])
            self._metrics = self._compare(tf.cast(self._pictures, tf.float32), self._pairs)
            graph.finalize()
            self._session = make_session(dict(config, precision="float32"))
        self._session.run(self._loss.load_op, self._loss.load_feed)

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self._session.close()

    def _compare(self, pictures, pairs):
        features = self._loss.features(pictures / 127.5 - 1)  # once for each picture
        real, made = (tf.gather(pictures, pairs[:, side]) for side in range(2))
        of_real, of_made = ([tf.gather(values, pairs[:, side]) for values in features] for side in range(2))
        return dict(similarities(real, made), perceptual_loss=self._loss.per_image(of_real, of_made))

    def __call__(self, pictures, pairs, metrics=METRICS):
        """{metric: (m,) floats}; ssim_flat51 too where all metrics are asked for and pictures are large enough."""
        pictures = np.stack([resized(picture, self.shape) for picture in pictures])
        figures = self._session.run({name: self._metrics[name] for name in metrics},
                                    {self._pictures: pictures, self._pairs: pairs})
        if metrics == METRICS and min(self.shape) >= FLAT_WINDOW:
            real, made = (pictures[np.asarray(pairs)[:, side]] for side in range(2))
            figures["ssim_flat51"] = ssim_flat51(real, made)
        return figures


class Evaluation:
    """Goes through images and pairs of images, a batch in memory at a time.

    late: a LateRun, whose run is made when the first images have been read. save: whether pictures are saved to it.
    joints: a JointFinder that sees what is made in the poses of the images `joints_of`. compare_own: another
    Comparison, in the aspect of the data set's files. left_out: why images could not be read.
    """

    def __init__(self, config, index, renderer, compare, *, late, save, joints=None, joints_of=(),
                 compare_own=None):
        self._config, self._joints, self._joints_of = config, joints, set(np.asarray(joints_of).tolist())
        self.load = Loader(index, config["spatial_size"], config["box_factor"])
        self.renderer, self.compare, self.late = renderer, compare, late
        self.compare_own = compare_own
        self.left_out = []
        self._labels = unique_labels(index.images) if save else None
        self._saved = collections.Counter()
        self._moments = {}  # of (task, metric): number, sum and sum of squares

    def of_images(self, numbers, pairs, bar):
        """Reconstructions of these images of the index, and transfers of the first image's appearance to the second's
        pose, for pairs (P, 2) of one person whose second image is among them.
        """
        sources = collections.defaultdict(list)
        for source, target in pairs.tolist():
            sources[target].append(source)
        size = self.renderer.batch_size
        chunks = [numbers[start:start + size].tolist() for start in range(0, len(numbers), size)]
        needed = [sorted(set(chunk).union(*[sources[target] for target in chunk])) for chunk in chunks]
        for chunk, people, loaded in zip(chunks, needed, read_ahead(self._read, needed, cpu_count())):
            examples = {number: found for number, found in zip(people, loaded) if found is not None}
            targets = [number for number in chunk if number in examples]
            if targets:
                self.late.run()
                self._compare(targets, [(source, target) for target in targets for source in sources[target]
                                        if source in examples], examples)
            bar.update(len(chunk) + sum(len(sources[target]) for target in chunk))

    def _compare(self, targets, pairs, examples):
        """Renders these images' people in their own poses, and pairs; notes how like the real pictures they are.

        examples: {number: Examples of one image}.
        """
        people = sorted(examples)
        latents = self.renderer.encode(_stacked([examples[number] for number in people]))
        batch = _stacked([examples[number] for number in targets])
        rendered = [(target, target) for target in targets] + pairs
        who = [people.index(person) for person, _ in rendered]
        where = [targets.index(target) for _, target in rendered]
        made = finite_uint8(self.renderer.render([z[who] for z in latents], batch.stick[where]))
        n = len(targets)
        pictures, numbers = np.concatenate([batch.image, made]), np.stack([where, n + np.arange(len(made))], axis=1)
        for i, (place, picture) in enumerate(zip(where, made)):
            if targets[place] in self._joints_of:
                self._joints.note("reconstruction" if i < n else "transfer", batch.image[place], picture)
        for suffix, compare in (("", self.compare), (OWN, self.compare_own)):
            if compare is not None:
                figures = compare(pictures, numbers)
                self._note("reconstruction" + suffix, {name: values[:n] for name, values in figures.items()})
                if pairs:
                    self._note("transfer" + suffix, {name: values[n:] for name, values in figures.items()})
        self._save("real", targets, batch.image)
        self._save("reconstruction", targets, made[:n])
        if pairs:
            self._save("transfer", [target for _, target in pairs], made[n:])

    def of_samples(self, numbers, bar):
        """How samples from the prior, for the poses of these images of the index, differ from one another."""
        size = self.renderer.batch_size
        for start in range(0, len(numbers), size):
            chunk = numbers[start:start + size]
            sticks = stick_figures(self.load.index.joints[chunk], self.renderer.size)
            samples = [finite_uint8(self.renderer.sample(sticks, start * SAMPLES + k)) for k in range(SAMPLES)]
            n = len(chunk)
            neighbours = [(k * n + i, (k + 1) * n + i) for i in range(n) for k in range(SAMPLES - 1)]
            figures = self.compare(np.concatenate(samples), np.array(neighbours), ("mae", "perceptual_loss"))
            self._note("sampling", {name: values.reshape(n, -1).mean(axis=1) for name, values in figures.items()})
            self._save("sample", chunk, samples[0])
            bar.update(n)

    def consistency(self, numbers):
        """Figures of how much appearances change with the pose, of test images with these numbers; or why not."""
        try:
            features = AppearanceFeatures(self._config)
        except UserError as error:
            return {"why_not": str(error)}
        index = self.load.index
        sticks = stick_figures(index.joints[spread(numbers, POSES)], self.renderer.size)
        people = [found for found in map(self._read, spread(numbers, APPEARANCES)) if found is not None]
        latents = self.renderer.encode(_stacked(people))
        made = [features(finite_uint8(self.renderer.render([z[i:i + 1] for z in latents], sticks)))
                for i in range(len(people))]
        training = self._features_of(features, spread(index.usable("train"), NEIGHBOUR_IMAGES))
        groups = [[self._features_of(features, group) for group in one_or_more] for one_or_more in
                  groups_of_people(index, numbers)]
        features.close()
        return appearance_figures(made, training, *[[rows for rows in group if len(rows) > 1] for group in groups])

    def _features_of(self, features, numbers):
        """Features (k, d) of the images with these numbers that can be read."""
        size = self.renderer.batch_size
        found = []
        for chunk in read_ahead(self._read, [numbers[i:i + size] for i in range(0, len(numbers), size)], cpu_count()):
            whole = [examples.image for examples in chunk if examples is not None]
            if whole:
                found.append(features(np.concatenate(whole)))
        return np.concatenate(found)

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
        try:
            return self.load([number])
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


def _stacked(examples):
    """Examples of several images of a list of Examples."""
    return Examples(*[np.concatenate(arrays) for arrays in zip(*examples)])


def spread(numbers, n):
    """n of these numbers, or all, evenly spread."""
    return numbers[np.unique(np.linspace(0, len(numbers) - 1, n).round().astype(int))] if n < len(numbers) else numbers


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


def groups_of_people(index, numbers):
    """Groups of up to POSES test images: of one person each, and of different people; none if people are not known."""
    people = as_whole_numbers(index.extra.get("person"))
    if people is None or len(people) != len(index.images):
        return [], []
    images = collections.defaultdict(list)
    for number in numbers.tolist():
        images[people[number]].append(number)
    of_one = [group[:POSES] for group in images.values() if len(group) > 1][:APPEARANCES]
    firsts = [group[0] for group in images.values()]
    of_different = [firsts[start:start + POSES] for start in range(0, len(firsts) - POSES + 1, POSES)][:APPEARANCES]
    return of_one, of_different


# ---------------------------------------------------------------------------------------------- what is said

def table(metrics):
    """The figures as lines of text: mean +- standard deviation over images."""
    found_names = {name for task in TASKS if metrics[task] for name in metrics[task]}
    names = [name for name in METRICS[:1] + ("ssim_flat51",) + METRICS[1:] if name in found_names]
    lines = [f"{'task':24} {'n':>7}" + "".join(f"{name:>22}" for name in names)]
    for task in TASKS + tuple(sorted(set(metrics["own_size"]) - {"pixels"})):
        found = metrics["own_size"][task] if task.endswith(OWN) else metrics[task]
        if found is None:
            lines.append(f"{task:24} {'none':>7}")
            continue
        cells = [f"{found[name]['mean']:.4g} +- {found[name]['std']:.3g}" if name in found else "" for name in names]
        lines.append((f"{task:24} {found['n']:7}" + "".join(f"{cell:>22}" for cell in cells)).rstrip())
    if metrics["own_size"]:
        width, height = metrics["own_size"]["pixels"]
        lines.append(f"own size: {width} x {height} pixels, the aspect of the data set's files")
    if "ssim_flat51" not in names:
        lines.append(f"ssim_flat51 is left out: pictures are smaller than its window of {FLAT_WINDOW} pixels")
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
