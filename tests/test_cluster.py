"""Several workers, in real processes on this machine."""
import glob
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from helpers import ROOT, exit_code, wait_for

import main
from batches import BatchOrder
from common.errors import UserError
from common.machine import has_mixed_precision
from training import workers
from training.checkpoints import Checkpoint, find_checkpoint
from training.cluster import buckets, read_tf_config, uses_nccl
from training.workers import free_ports, make_environments

# What is tested here takes processes, not networks.
TINY = {"spatial_size": 8, "bottleneck_factor": 1, "drop_prob": 0.0}
LAUNCH = [sys.executable, "-c", f"""
import sys; sys.path.insert(0, {ROOT!r})
from training.workers import launch
sys.exit(launch(sys.argv[1:], 2))"""]


def tf_config(cluster, kind="worker", index=0):
    return json.dumps({"cluster": cluster, "task": {"type": kind, "index": index}})


@pytest.mark.parametrize("text, addresses, number", [
    ("", [], 0), ("{}", [], 0), (tf_config({"worker": ["a:1"]}), ["a:1"], 0),
    (tf_config({"worker": ["a:1", "b:2"]}, index=1), ["a:1", "b:2"], 1),
    (tf_config({"chief": ["c:3"], "worker": ["a:1", "b:2"]}, index=1), ["c:3", "a:1", "b:2"], 2),
    (tf_config({"chief": ["c:3"], "worker": ["a:1", "b:2"]}, "chief"), ["c:3", "a:1", "b:2"], 0)])
def test_the_cluster_is_read_from_tf_config(text, addresses, number):
    assert read_tf_config(text) == (addresses, number)


@pytest.mark.parametrize("text", [
    "no json", "[1]", tf_config({"worker": ["a:1", "b:2"]}, index=2), tf_config({"worker": ["a:1", "b"]}),
    tf_config({"worker": ["a:1"], "ps": ["b:2"]}), tf_config({"worker": ["a:1", "b:2"]}, "evaluator"),
    tf_config({"worker": ["a:1", 7]}), tf_config({"worker": ["a:1", "b:99999"]}), tf_config({"worker": 7}),
    tf_config({"worker": ["a:1", "b:2"]}, index="x"), tf_config({"worker": ["a:1", "a:2"]})])
def test_a_bad_tf_config_is_one_line(text, small_config, tmp_path, monkeypatch, capsys):
    with pytest.raises(UserError, match="TF_CONFIG: found .*, expected "):
        read_tf_config(text)
    monkeypatch.setenv("TF_CONFIG", text)
    monkeypatch.chdir(tmp_path)
    assert exit_code(main, "--config", small_config()) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "log").exists()


def test_workers_share_every_pass_between_them():
    orders = [BatchOrder(range(20), 2, seed=1, worker=worker, n_workers=3) for worker in range(3)]
    for epoch in range(2):  # of 4 batches for each worker
        seen = np.concatenate([order.batch(4 * epoch + k) for k in range(4) for order in orders])
        assert sorted(seen[:20]) == list(range(20)) and (seen[20:] == seen[:4]).all()
    one = BatchOrder(range(20), 6, seed=1)
    np.testing.assert_array_equal(np.concatenate([order.batch(2) for order in orders]), one.batch(2))


def test_gradients_are_averaged_in_buckets_of_about_one_size():
    with tf.Graph().as_default():
        tensors = [tf.zeros(size) for size in (10, 10, 10, 10, 30, 5, 5)]
        found = [[tensor.shape.num_elements() for tensor in bucket] for bucket in buckets(tensors)]
    assert found == [[10, 10], [10, 10], [30], [5, 5]]
    assert buckets([tensors[0]]) == [[tensors[0]]]


def test_nccl_is_for_gpus(monkeypatch):
    monkeypatch.setattr("training.cluster.has_gpu", lambda: False)
    with pytest.raises(UserError, match="collectives: nccl: expected a GPU"):
        uses_nccl("nccl")
    assert not uses_nccl("auto")
    monkeypatch.setattr("training.cluster.has_gpu", lambda: True)
    assert uses_nccl("auto") and uses_nccl("nccl") and not uses_nccl("ring")


def launch(folder, n, *options):
    command = [sys.executable, os.path.join(ROOT, "main.py"), "--workers", str(n)] + [str(word) for word in options]
    return subprocess.Popen(command, cwd=str(folder), stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, universal_newlines=True)


def moments(folder):
    reader = tf.train.NewCheckpointReader(find_checkpoint(glob.glob(str(folder / "log" / "*"))[0]))
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map() if name.endswith("/Adam")}


@pytest.mark.slow
def test_two_workers_make_the_gradients_of_one_with_twice_the_batch(small_config, tmp_path):
    shared = dict(drop_prob=0.0, lr_decay_begin=0, lr_decay_end=1, eval_freq=1, eval_images=4)
    results = {}
    for n, batch_size, init_batches in ((2, 2, 4), (1, 4, 2)):
        folder = tmp_path / str(n)
        folder.mkdir()
        config = small_config(f"{n}.yaml", batch_size=batch_size, init_batches=init_batches, **shared)
        process = launch(folder, n, "--config", config)
        stdout, stderr = process.communicate(timeout=200)
        assert process.returncode == 0, stderr
        run, = glob.glob(str(folder / "log" / "*"))  # worker 0's
        with open(os.path.join(run, "log.txt")) as file:
            assert ("2 workers average their gradients by ring" in file.read()) == (n == 2)
        assert glob.glob(str(folder / "log" / "*" / "checkpoints" / "best-1.index"))
        results[n] = moments(folder)
    assert len(results[1]) > 100 and set(results[1]) == set(results[2])
    for name, expected in results[1].items():  # after one step half the gradient
        np.testing.assert_allclose(results[2][name], expected, atol=1e-4 * np.abs(expected).max() + 1e-9, err_msg=name)


def worker_process(folder, addresses, number, config):
    environment = dict(os.environ, TF_CONFIG=tf_config({"worker": addresses}, index=number))
    return subprocess.Popen([sys.executable, os.path.join(ROOT, "main.py"), "--config", config], cwd=str(folder),
                            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)


@pytest.mark.slow
def test_workers_make_a_dry_run(small_config, tmp_path):
    precision = "mixed" if has_mixed_precision() else "float32"
    process = launch(tmp_path, 2, "--config", small_config(precision=precision, **TINY), "--dry-run")
    stdout, stderr = process.communicate(timeout=200)
    assert process.returncode == 0 and "time: about" in stdout, stderr
    assert not (tmp_path / "log").exists()


@pytest.mark.slow
def test_when_a_worker_dies_the_others_end_and_training_can_go_on(small_config, tmp_path):
    config = small_config(lr_decay_end=100000, log_freq=100000, test_freq=100000, ckpt_freq=20, **TINY)
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2)]
    workers = [worker_process(tmp_path, addresses, number, config) for number in range(2)]
    wait_for(lambda: glob.glob(str(tmp_path / "log" / "*" / "checkpoints" / "*.index")))
    workers[1].kill()
    start = time.time()
    _, stderr = workers[0].communicate(timeout=60)
    assert time.time() - start < 60 and workers[0].returncode == 3
    assert f"error: worker 1 ({addresses[1]}) has ended" in stderr and "Traceback" not in stderr
    run = glob.glob(str(tmp_path / "log" / "*"))[0]
    step = Checkpoint(find_checkpoint(run)).step()
    assert step >= 20
    # The same again with --checkpoint, by two workers and by one; a signal to the launcher stops all.
    for n in (2, 1):
        process = launch(tmp_path, n, "--config", config, "--checkpoint", run, "--log_dir", tmp_path / str(n))
        saved = str(tmp_path / str(n) / "*" / "checkpoints" / "*.index")
        wait_for(lambda saved=saved: glob.glob(saved))
        process.send_signal(signal.SIGTERM)
        stdout, stderr = process.communicate(timeout=60)
        assert process.returncode == 143 and f"training from step {step}" in stdout and "to go on" in stdout, stderr
        assert Checkpoint(find_checkpoint(glob.glob(str(tmp_path / str(n) / "*"))[0])).step() > step


PULSE = f"""
import sys, time; sys.path.insert(0, {ROOT!r})
from training import cluster
cluster.SILENCE, cluster.BEAT = 2, 0.2
number = int(sys.argv[2])
pulse = cluster.Pulse(["127.0.0.1:%d" % int(sys.argv[1]), "127.0.0.1:9"], number, ["mixed", "float32"][number])
print(pulse.word, flush=True)
time.sleep(60)
"""


@pytest.mark.slow
def test_a_worker_that_hangs_is_noticed():
    port = free_ports(1)[0]
    processes = [subprocess.Popen([sys.executable, "-c", PULSE, str(port), str(number)], stdout=subprocess.PIPE,
                                  stderr=subprocess.PIPE, universal_newlines=True) for number in range(2)]
    for process in processes:
        assert process.stdout.readline() == "mixed\n"  # worker 0's word
    processes[0].send_signal(signal.SIGSTOP)
    _, stderr = processes[1].communicate(timeout=30)
    processes[0].kill()
    processes[0].communicate()
    assert processes[1].returncode == 3
    assert f"error: worker 0 (127.0.0.1:{port}) hangs: no sign of life for 2 s" in stderr


def test_the_launcher_ends_all_when_one_fails(tmp_path):
    script = """import json, os, sys, time
number = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
time.sleep(99 * number)
sys.exit(7)"""
    start = time.time()
    done = subprocess.run(LAUNCH + [sys.executable, "-c", script], timeout=60)
    assert done.returncode == 7 and time.time() - start < 30


def test_workers_end_where_another_cannot_be_started(monkeypatch):
    started = []

    def start(command, worker, *unused):
        if worker == 2:
            raise OSError(11, "no more processes")
        started.append(subprocess.Popen(command))
        return started[-1]

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    monkeypatch.setattr(workers, "start", start)
    try:
        with pytest.raises(UserError, match="sleep: cannot be started: no more processes"):
            workers.launch(["sleep", "60"], 3)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert [process.wait(timeout=10) for process in started] == [-signal.SIGKILL] * 2


@pytest.mark.slow
def test_the_launcher_leaves_worker_0_the_time_to_save(tmp_path):
    """It takes 8 s after the signal, the other worker none."""
    script = """import json, os, signal, sys, time
def stop(*unused):
    if number == 0:
        time.sleep(8)
        open(sys.argv[1], "w").close()
    sys.exit(143)
number = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
signal.signal(signal.SIGTERM, stop)
open("%s.%d" % (sys.argv[1], number), "w").close()
time.sleep(60)"""
    saved = tmp_path / "saved"
    launcher = subprocess.Popen(LAUNCH + [sys.executable, "-c", script, str(saved)])
    while len(list(tmp_path.iterdir())) < 2:
        time.sleep(0.1)
    launcher.send_signal(signal.SIGTERM)
    assert launcher.wait(timeout=60) == 143 and saved.exists()


@pytest.mark.parametrize("options, tf_config, words", [
    (["--workers", "-1"], "", "--workers: expected a whole number from 0 to 1000, found -1"),
    (["--workers", "2"], "{}", "--workers: the environment variable TF_CONFIG names workers too"),
    (["--workers", "0", "--mode", "evaluate", "--checkpoint", "x"], "", "--workers goes with --mode train"),
    (["--workers", "2", "--set", "batch_size=x"], "", "--set: batch_size: x: expected a positive")])
def test_bad_numbers_of_workers_are_one_line(options, tf_config, words, small_config, monkeypatch, capsys):
    monkeypatch.setenv("TF_CONFIG", tf_config)
    try:
        code = exit_code(main, "--config", small_config(), *options)
    except SystemExit as end:
        code = end.code
    assert code == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_without_gpus_there_is_one_worker_by_default(monkeypatch):
    monkeypatch.setattr("training.workers.find_gpus", lambda: [])
    assert len(make_environments(0)) == 1
    monkeypatch.setattr("training.workers.find_gpus", lambda: ["2", "5"])
    assert [environment["CUDA_VISIBLE_DEVICES"] for environment in make_environments(0)] == ["2", "5"]
    with pytest.raises(UserError, match="expected at most 2, one for each GPU"):
        make_environments(3)
