"""What a training takes: parameters and FLOP from its graph, memory, disk, and where its time goes."""
import collections
import contextlib
import os
import re
import resource
import sys
import time

import numpy as np

from common.machine import has_gpu
from training.checkpoints import KEPT
from training.workers import N_WORKERS

# The sub-networks by the scopes of their variables.
NETWORKS = {"enc_up": "appearance encoder", "enc_down": "posterior", "dec_up": "shape encoder", "dec_down": "decoder",
            "dec_params": "output"}
MEMORY_MARGIN = 1.2  # allocators do not fill all that they hold
MIN_BYTES = 2**20  # a smaller growth per image says nothing of the batch


# ---------------------------------------------------------------------------------------------- time

class TimeUse:
    """Adds up seconds by what they are spent on. seconds, times: by name.

    with time_use.of("steps"):
        ...
    """

    def __init__(self):
        self.seconds, self.times = collections.Counter(), collections.Counter()

    @contextlib.contextmanager
    def of(self, what):
        start = time.time()
        try:
            yield
        finally:
            self.add(what, time.time() - start)

    def add(self, what, seconds):
        self.seconds[what] += seconds
        self.times[what] += 1

    def mean(self, what):
        """Seconds that it takes once; 0 where it was never done."""
        return self.seconds[what] / max(1, self.times[what])

    def summary(self):
        """A line: the whole time and its shares."""
        total = sum(self.seconds.values())
        shares = [f"{what} {100 * seconds / total:.1f} %" for what, seconds in self.seconds.most_common()]
        return f"{as_time(total)} in all: {', '.join(shares)}"


def as_time(seconds):
    """Seconds as h:mm:ss, or m:ss below an hour."""
    minutes, seconds = divmod(int(round(seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"


def peak_memory():
    """The most bytes of memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def free_memory():
    """Bytes of memory that this process may still take, on Linux; None where nothing tells."""
    free = []
    with contextlib.suppress(OSError, ValueError, StopIteration), open("/proc/meminfo", encoding="ascii") as file:
        free.append(1024 * next(int(line.split()[1]) for line in file if line.startswith("MemAvailable:")))
    for limit, used in (("memory.max", "memory.current"),  # control groups of containers, version 2 and 1
                        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")):
        with contextlib.suppress(OSError, ValueError):
            free.append(_number_in(f"/sys/fs/cgroup/{limit}") - _number_in(f"/sys/fs/cgroup/{used}"))
    return max(0, min(free)) if free else None


def _number_in(path):
    with open(path, encoding="ascii") as file:
        return int(file.read())


# ---------------------------------------------------------------------------------------------- the graph

def count_parameters(variables):
    """{sub-network: number of parameters} of a VU-Net's variables."""
    counts = collections.OrderedDict((name, 0) for name in NETWORKS.values())
    for variable in variables:
        counts[NETWORKS[variable.op.name.split("/")[0]]] += variable.shape.num_elements()
    return counts


def count_flop(op):
    """Floating-point operations of convolutions and matrix products that running `op` takes, from their shapes.

    As they are computed: of Winograd's filtering, its products, not those of the convolution in its place.
    """
    return sum(_flop_of(needed) for needed in needed_by(op))


def needed_by(op):
    """The set of operations that running `op` runs, including itself."""
    todo, seen = [op], {op}
    while todo:
        op = todo.pop()
        for before in [tensor.op for tensor in op.inputs] + list(op.control_inputs):
            if before not in seen:
                seen.add(before)
                todo.append(before)
    return seen


def _flop_of(op):
    """Twice the multiplications: for convolutions, pixels of the smaller (strided) side x size of the kernel."""
    def size(tensor, *axes):
        return int(np.prod([int(tensor.shape[axis]) for axis in axes]))

    if op.type == "Conv2D":
        return 2 * size(op.outputs[0], 0, 1, 2) * size(op.inputs[1], 0, 1, 2, 3)
    if op.type == "Conv2DBackpropInput":  # kernel, gradient
        return 2 * size(op.inputs[2], 0, 1, 2) * size(op.inputs[1], 0, 1, 2, 3)
    if op.type == "Conv2DBackpropFilter":
        return 2 * size(op.inputs[2], 0, 1, 2) * size(op.outputs[0], 0, 1, 2, 3)
    if op.type in ("MatMul", "BatchMatMul", "BatchMatMulV2"):
        is_transposed = op.get_attr("transpose_a" if op.type == "MatMul" else "adj_x")
        summed = op.inputs[0].shape.as_list()[-2 if is_transposed else -1]
        return 2 * int(np.prod(op.outputs[0].shape.as_list())) * int(summed)
    return 0


# ---------------------------------------------------------------------------------------------- all of it

def forecast(config, n_steps, *, graph, time_use, run, memory_before, n_workers):
    """Lines on what a training of n_steps costs, from one that has done everything once.

    graph: its TrainingGraph. time_use: its TimeUse. run: its Run. memory_before: bytes held before its session had
    weights and batches.
    """
    parameters, flop = count_parameters(graph.model_variables), count_flop(graph.update)
    step_s, images = time_use.mean("steps") or time_use.mean("start"), config["batch_size"] * n_workers
    every = {"steps": 1, "logging": config["log_freq"], "pictures": config["test_freq"],
             "evaluation": config["eval_freq"], "checkpoints": config["ckpt_freq"]}
    times = {what: -(-n_steps // freq) for what, freq in every.items() if freq}  # all but steps at the end too
    seconds = n_steps * step_s + sum(n * time_use.mean(what) for what, n in times.items() if what != "steps")
    checkpoint = max(file_sizes(run.checkpoints, r"model\.ckpt-(\d+)").values())
    disk = checkpoint * (min(times["checkpoints"], KEPT) + bool(config["eval_freq"]))
    for what, name in (("logging", r"(?!testing|transfer).*\.png"), ("pictures", r"(testing|transfer).*\.png")):
        once = sum(file_sizes(run.folder, name).values()) / max(1, time_use.times[what])
        disk += 2 * times[what] * once  # TensorBoard's events hold pictures once more
    batch = largest_batch(config["batch_size"], peak_memory() - memory_before)
    by_network = ", ".join(f"{name} {n:,}" for name, n in parameters.items() if n)
    return [
        f"parameters: {sum(parameters.values()):,} ({by_network})",
        f"a step: {flop / 1e9:,.1f} GFLOP, {step_s:.3g} s, {images / step_s:.3g} images/s, "
        f"{flop / 1e9 / step_s:.3g} GFLOP/s",
        f"memory: {peak_memory() / 1e9:.2f} GB" + (f"; the largest batch that fits is about {batch}" if batch else ""),
        f"disk: {checkpoint / 1e6:,.0f} MB a checkpoint, about {disk / 1e9:.2f} GB the whole run",
        f"time: about {as_time(seconds)} for {n_steps} steps, {100 * n_steps * step_s / seconds:.0f} % of it in them"]


def largest_batch(batch_size, growth):
    """About how many images a batch may have that fits in this machine's memory; None where nothing tells.

    growth: bytes that weights and batches of batch_size took, so that the estimate is low rather than high.
    """
    free, per_image = free_memory(), MEMORY_MARGIN * growth / batch_size
    if has_gpu() or free is None or per_image < MIN_BYTES:
        return None
    n_here = int(os.environ.get(N_WORKERS, "1"))
    return batch_size + int(free / n_here / per_image)


def file_sizes(folder, pattern):
    """{what a pattern matches at the start of a file's name: bytes of all these files} of a folder."""
    sizes = collections.Counter()
    for name in os.listdir(folder):
        match = re.match(pattern, name)
        if match:
            sizes[match.group()] += os.path.getsize(os.path.join(folder, name))
    return sizes
