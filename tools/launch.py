"""Starts the workers of one training on this machine, one per GPU or, without GPUs, each on its share of the cores.

    python tools/launch.py --workers 2 -- python main.py --config market.yaml

When one fails all end; Ctrl-C and SIGTERM stop all after the step in hand, with a checkpoint. Exit code: the first that is
not 0.
"""
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from common.errors import Parser, UserError, run, whole_number

BY_THEMSELVES = 5.0  # seconds in which the workers notice that one has failed
TO_SAVE = 20.0  # seconds from SIGTERM to SIGKILL


def main(argv=None):
    options = parse_options(argv)
    environments = make_environments(options.workers)
    try:
        workers = [start(options.command, number, environment) for number, environment in enumerate(environments)]
    except OSError as error:
        raise UserError(f"{options.command[0]}: cannot be started: {error.strerror}")

    def stop(number, frame):
        """The first signal asks, the second one insists."""
        for worker in workers:
            if worker.poll() is None:
                worker.send_signal(signal.SIGTERM if not stop.asked else signal.SIGKILL)
        stop.asked = True
    stop.asked = False
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # nohup
        signal.signal(signal.SIGHUP, stop)
    return wait(workers, stop)


def parse_options(argv):
    parser = Parser(description=__doc__.split("\n")[0], usage="%(prog)s --workers N -- COMMAND ...")
    parser.add_argument("--workers", type=whole_number(1000), required=True, metavar="N")
    parser.add_argument("command", nargs="+", metavar="COMMAND")
    return parser.parse_args(argv)


def make_environments(n):
    """A dict of environment variables for each worker: TF_CONFIG, and the GPU. Raises UserError."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(n)]
    gpus = find_gpus()
    if gpus and len(gpus) < n:
        raise UserError(f"--workers: expected at most {len(gpus)}, one for each GPU, found {n}")
    environments = []
    for number in range(n):
        config = {"cluster": {"worker": addresses}, "task": {"type": "worker", "index": number}}
        environments.append(dict(os.environ, TF_CONFIG=json.dumps(config)))
        if gpus:
            environments[-1]["CUDA_VISIBLE_DEVICES"] = gpus[number]
    return environments


def find_gpus():
    """Names for CUDA_VISIBLE_DEVICES of the GPUs that this process may use."""
    if "CUDA_VISIBLE_DEVICES" in os.environ:
        return [name for name in os.environ["CUDA_VISIBLE_DEVICES"].split(",") if name.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    listed = subprocess.run(["nvidia-smi", "-L"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return [str(i) for i, line in enumerate(line for line in listed.stdout.splitlines() if line.startswith("GPU "))]


def free_ports(n):
    """n ports of which the first has a free one after it, where worker 0 listens for signs of life."""
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


def start(command, number, environment):
    """A worker as a process; what workers other than 0 print gets their number in front."""
    n = len(json.loads(environment["TF_CONFIG"])["cluster"]["worker"])
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    share = cores[number * len(cores) // n:(number + 1) * len(cores) // n]
    on_gpu = environment.get("CUDA_VISIBLE_DEVICES", "").strip() not in ("", "-1")

    def settle():
        if share and not on_gpu:
            os.sched_setaffinity(0, share)
    pipes = {} if number == 0 else {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "universal_newlines": True}
    # In a session of its own: Ctrl-C of the terminal is for this process to pass on.
    worker = subprocess.Popen(command, env=environment, preexec_fn=settle, start_new_session=True, **pipes)
    if number > 0:
        def relay():
            for line in worker.stdout:
                sys.stderr.write(f"worker {number}: {line}")
        threading.Thread(target=relay, daemon=True).start()
    return worker


def wait(workers, stop):
    """Waits for all to end, and ends all when one has failed; the exit code.

    Once `stop` has asked them to end, worker 0 takes as long to save as it needs; the others have nothing to save.
    """
    code, failed_at, told = 0, None, False
    while any(worker.poll() is None for worker in workers):
        time.sleep(0.1)
        codes = [worker.poll() for worker in workers]
        if failed_at is None and any(codes) and not stop.asked:
            code, failed_at = next(code for code in codes if code), time.time()
        if failed_at is not None:
            late = time.time() - failed_at
            for worker in workers:
                if worker.poll() is None and (late > BY_THEMSELVES and not told or late > BY_THEMSELVES + TO_SAVE):
                    worker.send_signal(signal.SIGTERM if late < BY_THEMSELVES + TO_SAVE else signal.SIGKILL)
            told = late > BY_THEMSELVES
    codes = [worker.wait() for worker in workers]
    code = code or next((code for code in codes if code), 0)
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    sys.exit(run(main))
