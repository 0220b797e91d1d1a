"""The workers of one training on this machine: processes with a GPU each or, without GPUs, with cores of their own.

When a worker fails, all end. Ctrl-C and SIGTERM stop all after the current step, with a checkpoint.
"""
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

from common.errors import UserError

WORKER, N_WORKERS = "VUNET_WORKER", "VUNET_WORKERS"  # in the environment of the workers that `launch` starts
TO_NOTICE = 5.0  # seconds in which the workers end by themselves when one has failed
TO_SAVE = 20.0  # seconds from SIGTERM to SIGKILL


def launch(command, n_workers):
    """Runs a command, a list of words, in n workers; returns the exit code of the first that failed, or 0.

    n_workers: 0 for one per GPU or, without GPUs, a single one. Raises UserError.
    """
    if os.environ.get("TF_CONFIG", "").strip():
        raise UserError("--workers: the environment variable TF_CONFIG names workers too; expected one of the two")
    environments = make_environments(n_workers)
    workers = []
    stopper = Stopper(workers)
    signal.signal(signal.SIGINT, stopper)
    signal.signal(signal.SIGTERM, stopper)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup ignores it
        signal.signal(signal.SIGHUP, stopper)
    try:
        for worker, environment in enumerate(environments):
            workers.append(start(command, worker, len(environments), environment))
    except OSError as error:
        signal_workers(workers, signal.SIGKILL)
        raise UserError(f"{command[0]}: cannot be started: {error.strerror}")
    if stopper.asked:  # while they were started: the last ones have not heard of it
        signal_workers(workers, stopper.asked)
    return wait(workers, stopper)


# ---------------------------------------------------------------------------------------------- what workers need

def make_environments(n_workers):
    """The environment variables of each worker, a list of dicts: TF_CONFIG, and its GPU. Raises UserError."""
    gpus = find_gpus()
    n_workers = n_workers or max(1, len(gpus))
    if gpus and len(gpus) < n_workers:
        raise UserError(f"--workers: expected at most {len(gpus)}, one for each GPU, found {n_workers}")
    addresses = [f"127.0.0.1:{port}" for port in free_ports(n_workers)]
    environments = []
    for worker in range(n_workers):
        config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": worker}}
        environment = dict(os.environ, TF_CONFIG=json.dumps(config))
        environment.update({WORKER: str(worker), N_WORKERS: str(n_workers)})
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = gpus[worker]
        environments.append(environment)
    return environments


def find_gpus():
    """The GPUs that this process may use, as names for CUDA_VISIBLE_DEVICES."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    gpus = [line for line in listed.stdout.splitlines() if line.startswith("GPU ")]
    return [str(number) for number in range(len(gpus))]


def free_ports(n):
    """n free ports. The one after the first is free too: there worker 0 listens for signs of life."""
    while True:
        with socket.socket() as first, socket.socket() as second:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
            try:
                second.bind(("", port + 1))
            except (OSError, OverflowError):
                continue
            others = [socket.socket() for _ in range(n - 1)]
            for other in others:
                other.bind(("127.0.0.1", 0))
            ports = [port] + [other.getsockname()[1] for other in others]
            for other in others:
                other.close()
            return ports


def cores_of(worker, n_workers):
    """The numbers of the cores that a worker gets when the cores of this process are divided evenly."""
    if not hasattr(os, "sched_getaffinity"):
        return []
    cores = sorted(os.sched_getaffinity(0))
    return cores[worker * len(cores) // n_workers:(worker + 1) * len(cores) // n_workers]


# ---------------------------------------------------------------------------------------------- their lives

def start(command, worker, n_workers, environment):
    """A worker as a process. Lines that workers other than 0 print go to stderr with the worker's number in front."""
    cores = cores_of(worker, n_workers)
    on_gpu = environment.get("CUDA_VISIBLE_DEVICES", "").strip() not in ("", "-1")

    pipes = {} if worker == 0 else {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "universal_newlines": True}
    # In a session of its own, as this process passes the terminal's Ctrl-C on.
    with on_cores([] if on_gpu else cores):
        process = subprocess.Popen(command, env=environment, start_new_session=True, **pipes)
    if worker > 0:
        threading.Thread(target=relay, args=(process, worker), daemon=True).start()
    return process


@contextlib.contextmanager
def on_cores(cores):
    """Has this process run on these cores, and what it starts meanwhile for good."""
    if not cores:
        yield
        return
    all_cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, all_cores)


def relay(process, worker):
    """Prints what a worker prints, with its number in front."""
    for line in process.stdout:
        sys.stderr.write(f"worker {worker}: {line}")


class Stopper:
    """A handler of signals: the first asks the workers to end, the second kills them. asked: by which signal, or 0."""

    def __init__(self, workers):
        self.workers, self.asked = workers, 0

    def __call__(self, number, frame):
        gentle = signal.SIGINT if number == signal.SIGINT else signal.SIGTERM
        signal_workers(self.workers, signal.SIGKILL if self.asked else gentle)
        self.asked = gentle


def signal_workers(workers, number):
    """Sends a signal to the workers that run."""
    for worker in workers:
        if worker.poll() is None:
            worker.send_signal(number)


def wait(workers, stopper):
    """Waits until all have ended, and ends all when one fails; returns the exit code.

    Once `stopper` has asked them to end, worker 0 may take all the time that it needs to save.
    """
    code, failed_at, told = 0, None, False
    while any(worker.poll() is None for worker in workers):
        time.sleep(0.1)
        if failed_at is None and not stopper.asked:
            code = first_failure(workers)
            failed_at = time.time() if code else None
        if failed_at is None:
            continue
        late = time.time() - failed_at - TO_NOTICE
        if late > TO_SAVE:
            signal_workers(workers, signal.SIGKILL)
        elif late > 0 and not told:
            signal_workers(workers, signal.SIGTERM)
            told = True
    code = code or first_failure(workers)
    return 128 - code if code < 0 else code


def first_failure(workers):
    """The exit code of the first worker that has failed, or 0."""
    return next((worker.returncode for worker in workers if worker.poll()), 0)
