"""Measures the speed of training steps, of the input pipeline and of evaluation.

    python tools/benchmark.py step --config market.yaml            a training step, beside the machine's matrix products
    python tools/benchmark.py input --config market.yaml           the input pipeline alone, by number of threads
    python tools/benchmark.py evaluate --config market64.yaml      images and pairs of them that evaluate compares
    python tools/benchmark.py step --config market.yaml --against OTHER_CHECKOUT

If the config's data are missing, made-up ones of the same size take their place. VGG19's weights are random unless
vgg_weights names a file.
--json prints one line of JSON. --against also runs the other checkout's benchmark, in alternation, and prints ratios.
"""
import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

STARTED = time.time()
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import numpy as np
from PIL import Image

from common.console import progress_bar, quiet_stderr

with quiet_stderr():
    import tensorflow.compat.v1 as tf

from batches import BatchOrder, make_loader, pipeline
from common.errors import Parser, UserError, run, shown, whole_number
from common.machine import choose_precision, cpu_count, make_session, set_up_tensorflow
from dataset.index import JOINTS, STANDING, open_index
from dataset.pairs import edges
from dataset.pickles import dump_index
from deeploss import load_weights
from inference.evaluation import Comparison, Evaluation
from training.config import load_config, setting
from training.cost import count_flop, peak_memory
from training.graphs import Renderer, TrainingGraph, make_rendering_tensors

MATRIX_SIZE = 4096


def main(argv=None):
    options = parse_options(argv)
    if options.against:
        results = compare(options)
    else:
        set_up_tensorflow()
        config = load_config(options.config, dict(options.set))
        config["precision"] = choose_precision(config["precision"])
        with tempfile.TemporaryDirectory() as folder:
            results = BENCHMARKS[options.what](config, options, folder)
    if options.json:
        print(json.dumps(results))
        return
    for name, value in results.items():
        print(f"{name:28} {value:.4g}" if isinstance(value, float) else f"{name:28} {value}")


def parse_options(argv):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=sorted(BENCHMARKS))
    parser.add_argument("--config", required=True, metavar="FILE")
    parser.add_argument("--set", type=setting, action="append", default=[], metavar="KEY=VALUE",
                        help="another value for a config key, for example precision=mixed")
    parser.add_argument("--steps", type=whole_number(100000), default=10, metavar="N",
                        help="measurements, after two that do not count (10)")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    parser.add_argument("--against", metavar="PATH", help="another checkout of this repository to compare with")
    parser.add_argument("--rounds", type=whole_number(1000), default=3, metavar="N",
                        help="runs of each checkout with --against (3)")
    return parser.parse_args(argv)


# ---------------------------------------------------------------------------------------------- training steps

def benchmark_step(config, options, folder):
    """Times of training steps and, between them, of matrix products, as the machine's speed varies over time."""
    load, order = make_input(config, folder)
    source = config["vgg_weights"] if os.path.isfile(config["vgg_weights"]) else "random"
    with tf.Graph().as_default():
        iterator = tf.data.make_initializable_iterator(pipeline(load, order))
        weights = load_weights(source, config["feature_layers"])
        graph = TrainingGraph(config, iterator.get_next(), load.shapes(), weights)
        flop = count_flop(graph.update)
        product = MatrixProduct()
        tf.get_default_graph().finalize()
        with make_session(config) as session:
            graph.start(session)
            numbers = order.front(config["init_batches"] * config["batch_size"])
            graph.initialise_from_data(session, load.batch(numbers))
            session.run(iterator.initializer)
            first = time.time() - STARTED
            timed(session, [graph.scalars, graph.update])
            after_first = time.time() - STARTED
            timed(session, [graph.scalars, graph.update])
            memory = peak_memory() / 1e9
            session.run(product.initializer)
            timed(session, product.op)
            steps, waits, products = [], [], []
            for _ in range(options.steps):
                steps.append(timed(session, [graph.scalars, graph.update]))
                waits.append(timed(session, graph.batch.has_part))  # the time until the next batch is there
                products.append(timed(session, product.op))
    step, rate = float(np.median(steps)), product.gflop / float(np.median(products))
    return {"config": os.path.basename(options.config), "tensorflow": tf.__version__, "precision": config["precision"],
            "cores": cpu_count(),
            "step_s": step, "step_s_quartiles": [float(q) for q in np.percentile(steps, [25, 75])],
            "images_per_s": config["batch_size"] / step,
            "gflop_per_step": flop / 1e9, "gflop_per_s": flop / 1e9 / step,
            "matrix_product_gflop_per_s": rate, "share_of_matrix_product": flop / 1e9 / step / rate,
            "share_waiting_for_input": float(np.median(waits)) / step, "peak_memory_gb": memory,
            "start_to_first_step_s": first, "start_to_end_of_first_step_s": after_first}


def timed(session, fetches):
    """Seconds that session.run(fetches) takes."""
    start = time.time()
    session.run(fetches)
    return time.time() - start


class MatrixProduct:
    """A float32 matrix product in the graph: op, initializer of its input, gflop."""

    def __init__(self, size=MATRIX_SIZE):
        with tf.variable_scope("matrix_product"):
            # A variable, as a constant would be 64 MB of the graph.
            a = tf.get_variable("a", initializer=tf.random.uniform((size, size)), collections=[], trainable=False)
        self.initializer = a.initializer
        self.op = tf.matmul(a, a).op
        self.gflop = 2e-9 * size**3


# ---------------------------------------------------------------------------------------------- the input pipeline

def benchmark_input(config, options, folder):
    """Images per second of the pipeline with 1, 2, 4 ... threads, up to the cores of this process."""
    load, order = make_input(config, folder)
    results = {"config": os.path.basename(options.config), "tensorflow": tf.__version__, "cores": cpu_count(),
               "spatial_size": config["spatial_size"], "box_factor": config["box_factor"]}
    threads = 1
    while threads <= cpu_count():
        with tf.Graph().as_default():
            iterator = tf.data.make_initializable_iterator(pipeline(load, order, n_threads=threads))
            batch = iterator.get_next()
            with make_session(config) as session:
                session.run(iterator.initializer)
                rates = []
                for _ in range(options.steps + 2):
                    start, n = time.time(), 0
                    while time.time() - start < 1:
                        session.run(batch.has_part)
                        n += order.batch_size
                    rates.append(n / (time.time() - start))
        results[f"images_per_s_{threads}_threads"] = float(np.median(rates[2:]))
        threads *= 2
    return results


# ---------------------------------------------------------------------------------------------- evaluation

def benchmark_evaluate(config, options, folder):
    """Images and pairs per second of evaluation, without samples, joints and consistency, with random weights."""
    load, order = make_input(config, folder)
    numbers = np.unique(order.front(8 * config["batch_size"]))
    pairs = np.stack([np.roll(numbers, 1), numbers], axis=1)
    source = config["vgg_weights"] if os.path.isfile(config["vgg_weights"]) else "random"
    with tf.Graph().as_default(), Comparison(config, load_weights(source, config["feature_layers"])) as comparison:
        tensors = make_rendering_tensors(config, load.shapes())
        with make_session(config) as session:
            session.run(tf.global_variables_initializer())
            evaluation = Evaluation(config, load.index, Renderer(tensors, session), comparison)
            rates = []
            for _ in range(options.steps + 1):
                start = time.time()
                with progress_bar(disable=True) as bar:
                    evaluation.of_images(numbers, pairs, bar)
                rates.append((len(numbers) + len(pairs)) / (time.time() - start))
    return {"config": os.path.basename(options.config), "tensorflow": tf.__version__, "cores": cpu_count(),
            "images_per_s": float(np.median(rates[1:]))}


# ---------------------------------------------------------------------------------------------- made-up data

def make_input(config, folder):
    """(Loader, BatchOrder) of the config's data or, if that is missing, of made-up people in JPEGs of spatial_size."""
    path = config["data_index"]
    if not os.path.isfile(path):
        path = make_up_data(folder, config["spatial_size"])
    index = open_index(dict(config, data_index=path))
    load = make_loader(index, config)
    return load, BatchOrder(index.usable("train"), config["batch_size"], config["seed"])


def make_up_data(folder, size, n=128):
    """Writes n images as detailed as photos, with edges, and their index; returns its path."""
    random = np.random.RandomState(0)
    for name in ("images", "shapes"):
        os.mkdir(os.path.join(folder, name))
    names, shapes = [f"images/{i}.jpg" for i in range(n)], [f"shapes/{i}.png" for i in range(n)]
    for name, shape in zip(names, shapes):
        coarse = Image.fromarray(random.randint(0, 256, (size // 8, size // 8, 3)).astype(np.uint8))
        pixels = np.asarray(coarse.resize((size, size), Image.BICUBIC)) + random.normal(scale=5, size=(size, size, 3))
        pixels = pixels.clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(os.path.join(folder, name), quality=90)
        Image.fromarray(edges(pixels)).save(os.path.join(folder, shape))
    joints = np.array([STANDING[name] for name in JOINTS]) + random.uniform(-.04, .04, (n, len(JOINTS), 2))
    path = os.path.join(folder, "index.p")
    train = [True] * (n - 1) + [False]
    dump_index({"joint_order": list(JOINTS), "imgs": names, "train": train, "joints": joints, "shapes": shapes}, path)
    return path


# ---------------------------------------------------------------------------------------------- two checkouts

def compare(options):
    """Medians of both checkouts' results, which run in alternation, and ratios of this one's to the other's."""
    runs = {"other": [], "this": []}
    roots = {"other": os.path.abspath(options.against), "this": ROOT}
    for _ in range(options.rounds):
        for name, root in roots.items():
            runs[name].append(run_in(root, options))
    results = {}
    for key, value in runs["this"][0].items():
        if isinstance(value, float) and key in runs["other"][0]:
            this, other = (float(np.median([run[key] for run in runs[name]])) for name in ("this", "other"))
            results.update({key: this, key + "_other": other, key + "_ratio": this / other})
    return results


def run_in(root, options):
    """The results of a checkout's own benchmark. Raises UserError if it fails."""
    script = os.path.join(root, "tools", "benchmark.py")
    if not os.path.isfile(script):
        raise UserError(f"--against: {shown(root, 1000)}: expected a checkout with tools/benchmark.py")
    command = [sys.executable, script, options.what, "--config", os.path.abspath(options.config), "--json",
               "--steps", str(options.steps)] + [f"--set={key}={json.dumps(value)}" for key, value in options.set]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        error = done.stderr.strip().split("\n")[-1]
        raise UserError(f"the benchmark of {root} failed: {error}")
    return json.loads(done.stdout.strip().split("\n")[-1])


BENCHMARKS = {"step": benchmark_step, "input": benchmark_input, "evaluate": benchmark_evaluate}

if __name__ == "__main__":
    sys.exit(run(main))
