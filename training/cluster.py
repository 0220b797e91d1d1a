"""The workers of a training: processes that each train on their own batches and average their gradients.

    cluster = join_cluster(config)                      # alone, unless TF_CONFIG names several workers
    with tf.Graph().as_default(), cluster.device():
        gradients, = cluster.average([gradients])
        ...
        with make_session(config, cluster): ...

A worker is one process with one GPU or some cores. It finds the others in the environment variable TF_CONFIG, in the
form that Kubeflow's TFJob and Vertex AI set:

    {"cluster": {"worker": ["host:port", "host:port"]}, "task": {"type": "worker", "index": 0}}

Worker 0 (the chief, where there is one) also listens at the port after its own, for signs of life: averaging would wait
forever for a worker that is gone.
"""
import contextlib
import json
import os
import socket
import sys
import threading
import time

import tensorflow.compat.v1 as tf

from common.console import quiet_stderr
from common.errors import UserError, reason, shown
from common.machine import has_gpu, session_options

BEAT = 2.0  # seconds between two signs of life
SILENCE = 30  # seconds without one after which a worker is given up
PATIENCE = 600  # seconds that workers may start apart from one another
ALIVE, DONE = b".", b"!"
LOST = 3  # exit code of a worker that lost another
N_BUCKETS = 4  # of gradients: those of the last layers are averaged while those of the first are computed
OWN_ERRORS = (tf.errors.ResourceExhaustedError, tf.errors.InvalidArgumentError)  # not from another worker's end


class Alone:
    """The cluster of one worker."""

    worker, n_workers = 0, 1

    def device(self):
        """A context in which operations are placed on this worker."""
        return contextlib.nullcontext()

    def settle(self, config):
        """The config with worker 0's precision, which all must share."""
        return config

    def average(self, tensors):
        """The means over all workers of float32 tensors: gradients, in the order of the layers."""
        return tensors

    def from_worker_0(self, tensors):
        """Worker 0's values of float32 tensors, where they can differ."""
        return []

    def raise_if_lost(self, error):
        """Raises UserError where an error of TensorFlow's comes from another worker's end."""

    def log_with(self, log):
        """Calls log(line) with how gradients are averaged and, before this process ends, with who was lost."""

    def leave(self):
        """Says good-bye, so that the others do not miss this worker."""


ALONE = Alone()


class Cluster:
    """One of several workers. worker: its number, out of n_workers. target, options: of its sessions."""

    def __init__(self, addresses, worker, config):
        self.worker, self.n_workers = worker, len(addresses)
        self._uses_nccl = uses_nccl(config["collectives"])
        options = self._options(config)
        try:
            with quiet_stderr():
                server = tf.train.Server({"worker": addresses}, "worker", worker, config=options)
        except tf.errors.OpError as error:
            raise UserError(f"TF_CONFIG: worker {worker} cannot serve at {addresses[worker]}: {error.message}")
        self._server = server
        self.target = server.target
        self._instances = 0
        self._pulse = Pulse(addresses, worker, config["precision"])
        self.options = self._options(self.settle(config))

    def _options(self, config):
        options = session_options(config)
        options.experimental.collective_nccl = self._uses_nccl
        options.experimental.collective_group_leader = "/job:worker/replica:0/task:0"
        options.device_filters.append(f"/job:worker/task:{self.worker}")
        if config["precision"] == "mixed" and not has_gpu():
            # The remapper would fuse convolutions into operations that a worker refuses in bfloat16.
            rewrites = options.graph_options.rewrite_options
            rewrites.remapping = rewrites.OFF
        return options

    def settle(self, config):
        return dict(config, precision=self._pulse.word)

    def device(self):
        kind = "GPU" if has_gpu() else "CPU"
        return tf.device(f"/job:worker/replica:0/task:{self.worker}/device:{kind}:0")

    def average(self, tensors):
        averages, before = [], []
        for bucket in buckets(tensors[::-1]):  # backward passes begin with the last layers
            with tf.control_dependencies(before):  # the same order on all workers, or NCCL would hang
                averages += self._reduce(bucket, "Div")
            before = [averages[-1].op]
        return averages[::-1]

    def from_worker_0(self, tensors):
        """Worker 0's values of float32 tensors."""
        return self._reduce(tensors if self.worker == 0 else [tf.zeros_like(tensor) for tensor in tensors], "Id")

    def _reduce(self, tensors, final_op):
        """Sums over workers (final_op "Id") or means ("Div").

        Sums one long tensor, which is faster than many and needs no agreement on their order.
        """
        self._instances += 1
        flat = tf.concat([tf.reshape(tensor, [-1]) for tensor in tensors], axis=0)
        flat = tf.raw_ops.CollectiveReduce(input=flat, group_size=self.n_workers, group_key=1, merge_op="Add",
                                           final_op=final_op, instance_key=self._instances, subdiv_offsets=[0])
        sizes = [tensor.shape.num_elements() for tensor in tensors]
        return [tf.reshape(part, tensor.shape) for part, tensor in zip(tf.split(flat, sizes), tensors)]

    def raise_if_lost(self, error):
        if isinstance(error, OWN_ERRORS):
            return
        time.sleep(2 * BEAT)  # for the pulse to find out who is gone, and to end this process
        raise UserError(f"worker {self.worker}: averaging with the others failed: {reason(error)}")

    def log_with(self, log):
        log(f"{self.n_workers} workers average their gradients by {'NCCL' if self._uses_nccl else 'ring'}")
        self._pulse.note = log

    def leave(self):
        self._pulse.leave()


def uses_nccl(collectives):
    """Whether GPUs average by NCCL, for a value of the config key. Raises UserError where this worker has no GPU."""
    if collectives == "nccl" and not has_gpu():
        raise UserError("collectives: nccl: expected a GPU, found none; ring serves CPUs too")
    return collectives != "ring" and has_gpu()


def buckets(tensors, n=N_BUCKETS):
    """Splits tensors of known shapes, in order, into at most n lists of about the same size."""
    sizes = [tensor.shape.num_elements() for tensor in tensors]
    limit, result, filled = sum(sizes) / n, [[]], 0
    for tensor, size in zip(tensors, sizes):
        if filled >= limit * len(result):
            result.append([])
        result[-1].append(tensor)
        filled += size
    return result


def join_cluster(config):
    """The cluster that TF_CONFIG describes, joined once all workers are there; ALONE without it. Raises UserError."""
    addresses, worker = read_tf_config(os.environ.get("TF_CONFIG", ""))
    return Cluster(addresses, worker, config) if len(addresses) > 1 else ALONE


def read_tf_config(text):
    """(addresses of all workers, the number of this one) out of TF_CONFIG's text. Raises UserError."""
    def refuse(expected):
        raise UserError(f"TF_CONFIG: found {shown(text)}, expected {expected}")

    if not text.strip():
        return [], 0
    try:
        data = json.loads(text)
        cluster, task = data.get("cluster") or {}, data.get("task") or {}
        chiefs = list(cluster.get("chief") or cluster.get("master") or [])
        workers = list(cluster.get("worker") or [])
        kind, worker = task.get("type", "worker"), int(task.get("index", 0))
    except (AttributeError, TypeError, ValueError, RecursionError):
        refuse('JSON like {"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", "index": 0}}')
    addresses = chiefs + workers
    if not addresses:
        return [], 0
    if kind not in ("chief", "master", "worker") or set(cluster) - {"chief", "master", "worker"}:
        refuse("chief and worker only, as gradients are averaged without parameter servers and evaluators")
    n_of_kind = len(workers) if kind == "worker" else len(chiefs)
    if not 0 <= worker < n_of_kind:
        refuse("a task that is in the cluster")
    worker += len(chiefs) if kind == "worker" else 0
    for address in addresses:
        host, _, port = address.rpartition(":") if isinstance(address, str) else ("", "", "")
        if not host or not port.isdigit() or not 0 < int(port) < 65535:
            refuse("addresses like host:2222")
    host, port = pulse_address(addresses)
    if f"{host}:{port}" in addresses:
        refuse(f"another address than {host}:{port}, where the first worker listens too")
    return addresses, worker


def pulse_address(addresses):
    """(host, port) at which the first of the workers listens for signs of life: the port after its own."""
    host, _, port = addresses[0].rpartition(":")
    return host, int(port) + 1


class Pulse:
    """Signs of life between worker 0 and each other worker, in threads.

    A process whose partner is silent or gone ends itself, with a line that says so: its own training may be waiting for
    that partner within TensorFlow, where no exception reaches it. note(line), where there is one, is called before.
    word: what worker 0 tells the others when all are there.
    """

    def __init__(self, addresses, worker, word=""):
        self.note, self.word = None, word
        self._addresses = addresses
        self._done = threading.Event()
        host, port = pulse_address(addresses)
        meet, aim = self._find_worker_0, "reach worker 0"
        if worker == 0:
            meet, aim = self._wait_for_all, "listen for the others"
        try:
            self._connections = meet(host.strip("[]"), port, worker)
        except OSError as error:
            raise UserError(f"worker {worker} cannot {aim} at {host}:{port}: {error}")
        for other, connection in self._connections.items():
            connection.settimeout(SILENCE)
            for act in (self._beat, self._listen):
                threading.Thread(target=act, args=(other, connection), daemon=True).start()

    def leave(self):
        self._done.set()
        for connection in self._connections.values():
            try:
                connection.sendall(DONE)
            except OSError:
                pass  # it left before

    def _wait_for_all(self, host, port, worker):
        connections = {}
        listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        with contextlib.closing(listener):
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("", port))
            listener.listen(len(self._addresses))
            end = time.time() + PATIENCE
            while len(connections) < len(self._addresses) - 1:
                listener.settimeout(max(0.1, end - time.time()))
                try:
                    connection, _ = listener.accept()
                    connection.settimeout(5)
                    other = int(connection.recv(16))
                    if not 0 < other < len(self._addresses):
                        raise ValueError(f"there is no worker {other}")
                    connections[other] = connection
                except socket.timeout:
                    if time.time() >= end:
                        missing = [f"worker {i} ({address})" for i, address in enumerate(self._addresses)
                                   if i > 0 and i not in connections]
                        raise UserError(f"{' and '.join(missing)} did not start within {PATIENCE} s")
                except (ValueError, ConnectionError):
                    connection.close()  # a stranger
            for connection in connections.values():
                connection.sendall(ALIVE + self.word.encode() + b"\n")  # all are there
        return connections

    def _find_worker_0(self, host, port, worker):
        end = time.time() + PATIENCE
        while True:
            try:
                connection = socket.create_connection((host, port), timeout=5)
                if connection.getsockname() != connection.getpeername():
                    break
                connection.close()  # where nobody listens yet, a connection can find itself
            except OSError:
                if time.time() >= end:
                    raise
                time.sleep(0.2)
        connection.sendall(b"%d" % worker)
        connection.settimeout(max(1.0, end - time.time()))
        if connection.recv(1) != ALIVE:
            raise OSError("it ended before all workers were there")
        word = connection.makefile("rb", buffering=0).readline().decode()
        if not word.endswith("\n"):
            raise OSError("it ended while all workers met")
        self.word = word.strip()
        return {0: connection}

    def _beat(self, other, connection):
        while not self._done.wait(BEAT):
            try:
                connection.sendall(ALIVE)
            except OSError:
                return  # _listen will notice

    def _listen(self, other, connection):
        what = "has ended"
        try:
            received = ALIVE
            while received and DONE not in received:
                received = connection.recv(64)
            if DONE in received:
                return
        except socket.timeout:
            what = f"hangs: no sign of life for {SILENCE} s"
        except OSError:
            pass  # a connection that breaks has ended, too
        if not self._done.wait(1):  # a worker that ends for a reason of its own says so; this one only follows
            self._end(f"worker {other} ({self._addresses[other]}) {what}, and this one with it; the last checkpoint, "
                      "if there is one, is whole, and the same command with --checkpoint goes on from it")

    def _end(self, line):
        """Ends this process, whatever its other threads wait for."""
        sys.stderr.write(f"error: {line}\n")
        sys.stderr.flush()
        try:
            if self.note is not None:
                self.note(f"ended by an error: {line}")
        finally:
            os._exit(LOST)
