"""TensorFlow's own settings: static graphs, threads, precision, XLA; sessions with them."""
import ctypes
import os

import cv2
import tensorflow.compat.v1 as tf

from common.console import quiet_stderr
from common.errors import UserError

# As in malloc.h: M_MMAP_MAX, M_TRIM_THRESHOLD (-1: never) and M_ARENA_MAX.
MALLOC_OPTIONS = ((-4, 0), (-1, -1), (-8, 1))
BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16"}  # of processors that multiply bfloat16 numbers


def set_up_tensorflow():
    """Sets the process up, before anything else: static graphs and resource variables as in TensorFlow 1."""
    tf.logging.set_verbosity(tf.logging.ERROR)
    tf.disable_eager_execution()
    tf.enable_resource_variables()
    cv2.setNumThreads(1)  # the pictures are small, and there are threads enough
    _keep_freed_memory()
    _let_xla_compile_for_cpus()


def _let_xla_compile_for_cpus():
    """Has XLA, where a session asks for it, compile CPUs' part of the graph as well.

    TensorFlow reads this flag once, when it first looks for devices. Under 1.15 a small network took over five minutes.
    """
    flags = os.environ.get("TF_XLA_FLAGS", "")
    if "tf_xla_cpu_global_jit" not in flags and not tf.__version__.startswith("1."):
        os.environ["TF_XLA_FLAGS"] = f"{flags} --tf_xla_cpu_global_jit".strip()


def _keep_freed_memory():
    """Has glibc reuse the memory of freed arrays and tensors.

    By default it returns large ones to the system, which hands out zeroed pages anew. That takes up to a fifth of
    TensorFlow 1.15's step on CPUs, and a quarter of the input pipeline's time at 256 pixels.
    """
    try:
        set_option = ctypes.CDLL(None).mallopt
    except (AttributeError, TypeError, OSError):
        return  # another C library
    for option, value in MALLOC_OPTIONS:
        set_option(option, value)


def make_session(config, cluster=None):
    """A session for the default graph with the config's precision and compiler. Raises UserError."""
    with quiet_stderr():  # TensorFlow reports an error where there is no GPU
        if cluster is not None and cluster.n_workers > 1:
            return tf.Session(cluster.target, config=cluster.options)
        return tf.Session(config=session_options(config))


def session_options(config):
    """The tf.ConfigProto of a config. Raises UserError where this machine cannot do what the config says."""
    options = tf.ConfigProto(intra_op_parallelism_threads=cpu_count(), inter_op_parallelism_threads=cpu_count(),
                             allow_soft_placement=True)  # a GPU has no kernel for the int32 step
    options.gpu_options.allow_growth = True
    rewrites = options.graph_options.rewrite_options
    rewrites.meta_optimizer_iterations = rewrites.ONE  # a second pass takes seconds and speeds up nothing
    if config["precision"] == "mixed" and not has_gpu():
        if not has_mixed_precision():
            raise UserError("precision: mixed: expected a GPU or, on CPUs, TensorFlow 2.x, found TensorFlow "
                            f"{tf.__version__} and no GPU")
        rewrites.auto_mixed_precision_onednn_bfloat16 = rewrites.ON
        # Sums of thousands of numbers lose too much in bfloat16's 8 bits.
        for change in ("INFERLIST_REMOVE", "DENYLIST_ADD"):
            os.environ.setdefault("TF_AUTO_MIXED_PRECISION_GRAPH_REWRITE_" + change, "Mean,Sum")
    if config["xla"]:
        options.graph_options.optimizer_options.global_jit_level = tf.OptimizerOptions.ON_1
    return options


def choose_precision(precision):
    """float32 or mixed for a config's precision; auto is mixed where that is faster, by what the processor can do."""
    if precision != "auto":
        return precision
    return "mixed" if is_mixed_faster() and not has_gpu() else "float32"


def has_mixed_precision():
    """Whether TensorFlow can compute in 16 bit here: on GPUs and, from 2.x on, on CPUs."""
    rewrites = tf.ConfigProto().graph_options.rewrite_options
    return hasattr(rewrites, "auto_mixed_precision_onednn_bfloat16") or has_gpu()


def is_mixed_faster():
    """Whether TensorFlow is faster in 16 bit than in float32 here: on GPUs and on CPUs that multiply bfloat16 numbers.

    By what the processor says of itself. On one with AVX2 alone, a step of toy.yaml took seven times as long.
    """
    return has_gpu() or has_mixed_precision() and bool(BFLOAT16_FLAGS & cpu_flags())


def has_onednn():
    """Whether TensorFlow computes with oneDNN on CPUs: 2.x (see common/__init__.py), 1.15 where Intel built it."""
    try:
        from tensorflow.python.util import _pywrap_util_port as port
    except ImportError:
        from tensorflow.python import pywrap_tensorflow as port  # 1.15
    return port.IsMklEnabled()


def cpu_flags():
    """What the processor can do, as Linux names it; empty on other systems."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            return next((set(line.split()) for line in file if line.startswith("flags")), set())
    except OSError:
        return set()


def has_gpu():
    """Whether TensorFlow finds a GPU that it can use."""
    with quiet_stderr():
        return bool(tf.config.experimental.list_physical_devices("GPU"))


def cpu_count():
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
