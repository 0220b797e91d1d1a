"""What a training takes: parameters and FLOP from its graph, memory, disk, and where its time goes."""
import collections
import contextlib
import os
import resource
import sys
import time

import numpy as np

from training.checkpoints import KEPT

# The sub-networks by the scopes of their variables.
NETWORKS = {"enc_up": "appearance encoder", "enc_down": "posterior", "dec_up": "shape encoder", "dec_down": "decoder",
            "dec_params": "output"}
EXTRAS = 1.2  # room that a larger batch needs beside what was measured: allocators do not fill all that they hold


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
    """Bytes of the machine's memory that nothing uses, or that its control group leaves to this process."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError, StopIteration):
        with open("/proc/meminfo", encoding="ascii") as file:
            free = 1024 * next(int(line.split()[1]) for line in file if line.startswith("MemAvailable:"))
    with contextlib.suppress(OSError, ValueError):
        limit, used = (_number_in(f"/sys/fs/cgroup/memory.{what}") for what in ("max", "current"))
        free = min(free, limit - used)
    return free


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
    """Floating-point operations of convolutions and matrix products that running `op` takes, from their shapes."""
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

    graph: its TrainingGraph. time_use: its TimeUse. run: its Run. memory_before: bytes held before its first step.
    """
    parameters, flop = count_parameters(graph.model_variables), count_flop(graph.update)
    step_s, images = time_use.mean("steps"), config["batch_size"] * n_workers
    every = {"steps": 1, "logging": config["log_freq"], "pictures": config["test_freq"],
             "evaluation": config["eval_freq"], "checkpoints": config["ckpt_freq"]}
    times = {what: -(-n_steps // freq) for what, freq in every.items() if freq}  # all but steps at the end too
    seconds = sum(n * time_use.mean(what) for what, n in times.items())
    checkpoint = folder_size(run.checkpoints) / (2 if os.path.exists(os.path.join(run.checkpoints, "best.json")) else 1)
    pictures = 2 * folder_size(run.folder, ".png")  # TensorBoard's events hold them once more
    disk = checkpoint * (min(times["checkpoints"], KEPT) + bool(config["eval_freq"]))
    disk += pictures * max(times["logging"], times["pictures"], 1)
    per_image = EXTRAS * max(1.0, peak_memory() - memory_before) / config["batch_size"]
    batch = config["batch_size"] + int(max(0, free_memory()) / per_image)
    by_network = ", ".join(f"{name} {n:,}" for name, n in parameters.items() if n)
    return [
        f"parameters: {sum(parameters.values()):,} ({by_network})",
        f"a step: {flop / 1e9:,.1f} GFLOP, {step_s:.3g} s, {images / step_s:.3g} images/s, "
        f"{flop / 1e9 / step_s:.3g} GFLOP/s",
        f"memory: {peak_memory() / 1e9:.2f} GB; the largest batch that fits is about {batch}",
        f"disk: {checkpoint / 1e6:,.0f} MB a checkpoint, about {disk / 1e9:.2f} GB the whole run",
        f"time: about {as_time(seconds)} for {n_steps} steps, {100 * n_steps * step_s / seconds:.0f} % of it in them"]


def folder_size(folder, extension=""):
    """Bytes of the files with this extension in a folder and below."""
    return sum(os.path.getsize(os.path.join(base, name)) for base, _, names in os.walk(folder) for name in names
               if name.endswith(extension))
