"""main.py as a user meets it: as a process where that matters, else by calling main()."""
import os
import pickle
import re
import shutil
import signal
import sys
import time

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from helpers import ROOT, exit_code, only_run, wait_for
from PIL import Image

import main
from batches import BatchOrder
from common.errors import UserError
from dataset.index import Index
from training.checkpoints import CheckpointSaver, find_checkpoint
from training.config import load_config
from training.cost import largest_batch
from training.runs import Run

SLOW_TRAIN = pytest.param("train", marks=pytest.mark.slow)
SCALARS = ["global_step", "loss", "likelihood_loss", "kl_loss", "kl_weight", "vgg_loss_0", "vgg_loss_1", "gram_loss_1"]


def tensors(prefix):
    reader = tf.train.NewCheckpointReader(prefix)
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def assert_one_line(result, *words):
    assert result.returncode == 2, result.stderr
    lines = [line for line in result.stderr.replace("\r", "\n").split("\n") if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in result.stderr
    for word in words:
        assert word in lines[0], lines[0]


# ---------------------------------------------------------------------------------------------- training

def test_a_run_folder_holds_what_the_readme_says(trained):
    run, config = trained
    names = {path.name for path in run.iterdir()}
    pictures = {f"{prefix}{name}_{step:07d}.png" for prefix in ("", "valid_") for step in (1, 2, 4)
                for name in ("x", "c", "sample", "test_sample")}
    pictures |= {"testing_cond_0000004.png", "testing_test_sample_0000004.png", "transfer_0000004.png", "result.png"}
    assert pictures == {name for name in names if name.endswith(".png")}
    assert re.match(r"\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d$", run.name)
    assert load_config(str(run / "config.yaml")) == load_config(config)
    assert (run / "source" / "inference" / "network_file.md").exists()
    assert (run / "source" / "models.py").read_text() == open(os.path.join(ROOT, "models.py")).read()
    for step in (2, 4):
        for suffix in (".index", ".meta", ".data-00000-of-00001"):
            assert (run / "checkpoints" / (f"model.ckpt-{step}{suffix}")).exists()
    assert Image.open(str(run / "transfer_0000004.png")).size == (3 * 16, 3 * 16)
    assert Image.open(str(run / "x_0000001.png")).size == (2 * 16, 16)


def test_scalars_are_in_the_log_and_in_tensorboards_events(trained):
    run, _ = trained
    log = (run / "log.txt").read_text()
    for name in SCALARS:
        assert len(re.findall(rf"\b{name}: [-+.e\d]+$", log, re.M)) == 3
        assert len(re.findall(rf"\b{name}_valid: [-+.e\d]+$", log, re.M)) == 3
    assert re.findall(r"global_step: (\d+)", log) == ["1", "2", "4"]
    events, = [path for path in run.iterdir() if path.name.startswith("events.out.tfevents")]
    tags = {}
    for event in tf.train.summary_iterator(str(events)):
        for value in event.summary.value:
            tags.setdefault(value.tag, []).append(event.step)
            if value.tag == "posterior_means/posterior_means_1_valid":
                assert value.histo.num == sum(value.histo.bucket) == 2 * 8 * 8 * 8
                assert value.histo.min < value.histo.max
    for tag in ("loss/loss", "loss/loss_valid", "kl_loss/kl_loss_1", "images_per_s/images_per_s", "x",
                "valid_test_sample", "posterior_means/posterior_means_0", "posterior_means/posterior_means_1_valid"):
        assert tags[tag] == [1, 2, 4], tag
    assert tags["transfer"] == [4]


def test_a_checkpoint_holds_model_slots_powers_and_step(trained):
    run, _ = trained
    values = tensors(find_checkpoint(str(run)))
    assert values["global_step"] == 4 and values["global_step"].dtype == np.int32
    np.testing.assert_allclose(values["beta1_power"], 0.5**5)
    np.testing.assert_allclose(values["beta2_power"], 0.9**5, rtol=1e-6)
    assert not [name for name in values if "vgg" in name.lower() or "block" in name]
    model = {name for name in values if re.search(r"/[Vgb]$", name)}
    assert set(values) == model | {name + slot for name in model for slot in ("/Adam", "/Adam_1")} | {
        "beta1_power", "beta2_power", "global_step"}


@pytest.mark.slow
def test_training_killed_and_resumed_equals_training_undisturbed(program, small_config, tmp_path):
    config = small_config(lr_decay_end=40, lr_decay_begin=10, ckpt_freq=20, log_freq=100, test_freq=100, eval_freq=5,
                          eval_images=4)
    straight = program("--config", config, "--log_dir", "straight")
    assert straight.returncode == 0, straight.stderr

    process = program.start("--config", config, "--log_dir", "killed")
    deadline = time.time() + 200
    while not list((tmp_path / "killed").glob("*/checkpoints/model.ckpt-20.index")):
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    killed = only_run(tmp_path / "killed")
    assert find_checkpoint(str(killed)).endswith("model.ckpt-20")

    resumed = program("--config", config, "--log_dir", "resumed", "--checkpoint", killed)
    assert resumed.returncode == 0 and "from step 20 to 40" in resumed.stdout, resumed.stderr
    for best in (False, True):
        expected, found = (tensors(find_checkpoint(str(only_run(tmp_path / name)), best))
                           for name in ("straight", "resumed"))
        assert (best or expected["global_step"] == 40) and set(expected) == set(found)
        for name in expected:
            assert expected[name].tobytes() == found[name].tobytes(), name
    scores = [(only_run(tmp_path / name) / "checkpoints" / "best.json").read_text() for name in ("straight", "resumed")]
    assert scores[0] == scores[1]


def test_a_signal_in_the_last_step_takes_nothing_away_and_the_grid_is_of_sixteen(small_config, tmp_path, monkeypatch,
                                                                              capsys):
    take_step = main.Trainer.train_step
    monkeypatch.setattr(main.Trainer, "train_step", lambda trainer, step, signals: (
        take_step(trainer, step, signals)[:2] + (step == 1,)))
    config = small_config(lr_decay_begin=1, lr_decay_end=2, batch_size=18, init_batches=1, test_freq=100)
    assert exit_code(main, "--config", config, "--log_dir", tmp_path / "log") == 0
    assert "trained at step 2" in capsys.readouterr().out
    assert Image.open(str(only_run(tmp_path / "log") / "transfer_0000002.png")).size == (17 * 16, 17 * 16)


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="tells by Linux's /proc when TensorFlow is imported")
def test_ctrl_c_while_tensorflow_is_imported_is_one_line(program):
    for seconds in (0, 0.3, 1, 2):  # TensorFlow 1.15 loses a signal that comes while its library is loaded
        process = program.start("--help")
        wait_for(lambda maps=f"/proc/{process.pid}/maps": "tensorflow" in open(maps).read())
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
        if process.returncode:
            break
    assert (process.returncode, stdout, stderr) == (130, "", "interrupted\n")


@pytest.mark.slow
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_step_saves_and_says_how_to_go_on(program, small_config, tmp_path, number, code):
    config = small_config(lr_decay_end=1000000, log_freq=1000000, ckpt_freq=1000000, test_freq=1000000)
    process = program.start("--config", config)
    deadline = time.time() + 200
    while not list((tmp_path / "log").glob("*/x_0000001.png")):  # the loop has begun
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.05)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == code and "Traceback" not in stderr
    step, prefix = re.search(r"stopped by a signal at step (\d+), saved as (\S+)", stdout).groups()
    assert tensors(str(tmp_path / prefix))["global_step"] == int(step) > 0
    folder = re.search(rf"to go on: python main.py --config {re.escape(config)} --checkpoint (\S+)", stdout).group(1)
    assert find_checkpoint(str(tmp_path / folder)) == str(tmp_path / prefix)


@pytest.mark.slow
def test_retraining_keeps_weights_and_moments_and_starts_at_step_0(trained, small_config, tmp_path):
    run, _ = trained
    config = small_config(lr_decay_end=1, lr_decay_begin=0, lr=1e-12, ckpt_freq=1)
    assert exit_code(main, "--config", config, "--retrain", "--checkpoint", run, "--log_dir", tmp_path / "log") == 0
    before, after = (tensors(find_checkpoint(str(folder))) for folder in (run, only_run(tmp_path / "log")))
    assert after["global_step"] == 1
    np.testing.assert_allclose(after["beta1_power"], before["beta1_power"] / 2)
    for name in before:
        if re.search("/[Vgb]$", name):
            np.testing.assert_allclose(after[name], before[name], atol=1e-9)
            # v = beta2 v + (1 - beta2) g^2, so it cannot fall below 0.9 of what it was, unless it was forgotten
            assert (after[name + "/Adam_1"] >= 0.9 * before[name + "/Adam_1"] * (1 - 1e-5)).all()
    assert before["dec_params/conv2d_0/V/Adam_1"].min() > 0


def test_a_finished_training_is_left_alone(trained, tmp_path, capsys):
    run, config = trained
    assert exit_code(main, "--config", config, "--checkpoint", str(run), "--log_dir", str(tmp_path / "log")) == 0
    assert "nothing left to train" in capsys.readouterr().out and not (tmp_path / "log").exists()


@pytest.mark.slow
# The first logs nothing that is not finite.
@pytest.mark.parametrize("changes", [{"lr": 1e30}, {"lr": 1e4, "log_freq": 1}])
def test_a_loss_that_is_not_finite_stops_and_is_not_saved(program, small_config, tmp_path, changes):
    config = small_config(lr_decay_begin=50, lr_decay_end=100, ckpt_freq=1, **changes)
    result = program("--config", config)
    assert_one_line(result, "training stopped: ", " in step ", "expected finite")
    saved = tensors(find_checkpoint(str(only_run(tmp_path / "log"))))
    step = int(re.search(r"in step (\d+)", result.stderr).group(1))
    assert saved["global_step"] == step - 1
    assert np.isfinite(saved["dec_params/conv2d_0/V/Adam"]).all()


@pytest.mark.slow
def test_a_broken_image_in_the_middle_is_named_after_a_checkpoint(program, small_config, toy, tmp_path):
    folder = tmp_path / "data"
    shutil.copytree(str(toy), str(folder))
    index = Index(str(folder / "index.p"))
    order = BatchOrder(index.usable("train"), 2, 0)
    first = {number: k for k in reversed(range(8)) for number in order.batch(k)}
    bad = order.batch(5)[0]
    assert first[bad] == 5 and bad not in order.front(4)
    with open(index.image_path(bad), "rb+") as file:
        file.truncate(100)
    result = program("--config", small_config(data_index=str(folder / "index.p"), lr_decay_end=50, ckpt_freq=100))
    assert_one_line(result, index.images[bad], "step 5 is saved")
    last = (only_run(tmp_path / "log") / "log.txt").read_text().splitlines()[-1]
    assert "ended by an error: " in last and index.images[bad] in last
    assert tensors(find_checkpoint(str(only_run(tmp_path / "log"))))["global_step"] == 5


@pytest.mark.parametrize("mode", [SLOW_TRAIN, "transfer"])
def test_a_broken_image_in_the_first_test_batch_leaves_no_run_folder(
        trained, small_config, toy, tmp_path, capsys, mode):
    folder = tmp_path / "data"
    shutil.copytree(str(toy), str(folder))
    index = Index(str(folder / "index.p"))
    for number in index.usable("test"):
        os.remove(index.image_path(number))
    config = small_config(data_index=str(folder / "index.p"), lr_decay_end=50)
    assert exit_code(main, "--config", config, "--mode", mode, "--checkpoint", str(trained[0]),
                      "--log_dir", str(tmp_path / "log")) == 2
    assert "there is no such image" in capsys.readouterr().err and not (tmp_path / "log").exists()


@pytest.mark.slow
def test_values_set_on_the_command_line_are_saved_and_repeated(program, small_config, tmp_path):
    config = small_config(lr_decay_end=100000)
    training = program.start("--config", config, "--set", "seed=7", "--set", "feature_weights=[1.0, 2]")
    log = None
    while training.poll() is None and "global_step" not in (log or ""):
        log = "".join(path.read_text() for path in tmp_path.glob("log/*/log.txt"))
        time.sleep(0.1)
    training.send_signal(signal.SIGTERM)
    stdout, _ = training.communicate(timeout=100)
    run = only_run(tmp_path / "log")
    saved = load_config(str(run / "config.yaml"))
    assert (saved["seed"], saved["feature_weights"]) == (7, [1.0, 2])
    settings = "--set seed=7 --set 'feature_weights=[1.0, 2]'"
    assert f"to go on: python main.py --config {config} {settings} --checkpoint" in stdout


@pytest.mark.parametrize("given, words", [
    ("seed", "--set: expected KEY=VALUE, found seed"), ("seed=-1", "--set: seed: -1: expected a whole number from 0"),
    ("sede=1", "--set: unknown key sede: 1; did you mean seed?"), ("lr=[", "the value is not YAML"),
    ("lr_decay_begin=9", "--set: lr_decay_begin: 9: expected less than lr_decay_end, 4")])
def test_bad_values_on_the_command_line(small_config, capsys, given, words):
    with pytest.raises(SystemExit) as stop:
        sys.exit(exit_code(main, "--config", small_config(), "--set", given))
    error = capsys.readouterr().err
    assert stop.value.code == 2 and words in error
    assert error.startswith("error: ") and error.count("\n") == 1


def test_a_full_disk_gives_one_line_and_leaves_the_last_checkpoint(tmp_path, graph):
    import resource
    variable = tf.get_variable("a", (100000,))
    saver = CheckpointSaver([variable])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with tf.Session() as session:
        session.run(variable.initializer)
        first = saver.save(session, str(tmp_path), 1)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100000, limits[1]))
        try:
            with pytest.raises(UserError, match="cannot write the checkpoint .*model.ckpt-2") as error:
                saver.save(session, str(tmp_path), 2)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(error.value) and re.search("File too large|No space", str(error.value))
    assert find_checkpoint(str(tmp_path)) == first and tensors(first)["a"].shape == (100000,)


NOISE = np.random.RandomState(0).randint(0, 256, (64, 64, 3)).astype(np.uint8)


@pytest.mark.parametrize("write", [
    lambda run, step: run.log("x" * 100), lambda run, step: run.scalars(step, {"loss": 1.0}),
    lambda run, step: run.picture("x", NOISE, step)], ids=["log", "scalars", "picture"])
def test_a_full_disk_under_log_and_pictures_gives_one_line(tmp_path, small_config, write):
    import resource
    run = Run(str(tmp_path / "log"), load_config(small_config()))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, limits[1]))
    try:
        with pytest.raises(UserError, match="cannot write: ") as error:
            for step in range(100):
                write(run, step)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(error.value)


def test_runs_of_the_same_second_get_folders_of_their_own(tmp_path, small_config, monkeypatch):
    monkeypatch.setattr(time, "strftime", lambda form, *unused: "2018-06-18T12-00-00")
    config = load_config(small_config())
    runs = [Run(str(tmp_path / "log"), config) for _ in range(3)]
    assert len({run.folder for run in runs}) == 3


# ---------------------------------------------------------------------------------------------- pictures

def test_transfer_saves_grids(trained, tmp_path):
    run, config = trained
    assert exit_code(main, "--config", config, "--mode", "transfer", "--checkpoint", str(run), "--batches", "2",
                      "--log_dir", str(tmp_path / "log")) == 0
    pictures = sorted(path.name for path in only_run(tmp_path / "log").glob("*.png"))
    assert pictures == ["transfer_0.png", "transfer_1.png"]
    for name in pictures:
        grid = np.asarray(Image.open(str(only_run(tmp_path / "log") / name)))
        assert grid.shape == (48, 48, 3) and grid[16:, 16:].std() > 0
        np.testing.assert_array_equal(grid[:16, :16], 255)


def test_test_saves_samples_with_the_pose_beside_them(trained, tmp_path):
    run, config = trained
    assert exit_code(main, "--config", config, "--mode", "test", "--checkpoint", run / "checkpoints", "--batches", 1,
                     "--log_dir", tmp_path / "log") == 0
    grid = np.asarray(Image.open(str(only_run(tmp_path / "log") / "test_sample_0.png")))
    assert grid.shape == (16, 2 * 32, 3)
    assert set(np.unique(grid[:, :16])) <= {0, 127, 255} and len(np.unique(grid[:, 16:32])) > 3


# ---------------------------------------------------------------------------------------------- bad input

def test_bad_input_is_one_line_and_no_traceback(program, small_config, tmp_path):
    result = program("--config", small_config(batchsize=3))
    assert result.returncode == 2 and result.stdout == ""
    assert re.match(r"error: .*unknown key batchsize: 3; did you mean batch_size\?\n$", result.stderr)
    assert not (tmp_path / "log").exists()


def hostile_index():
    class Runs:
        def __reduce__(self):
            return os.system, ("touch ran",)
    return pickle.dumps({"imgs": Runs()})


@pytest.mark.parametrize("content, words", [
    (b"no pickle", ["not a pickle"]), (pickle.dumps([1]), ["expected a pickled dict", "list"]),
    (hostile_index(), ["refused", "system"]), (pickle.dumps({"imgs": []}), ["there is no key 'joint_order'"])])
def test_bad_indexes(small_config, tmp_path, capsys, monkeypatch, content, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "index.p").write_bytes(content)
    assert exit_code(main, "--config", small_config(data_index="index.p")) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and all(word in error for word in ["index.p"] + words)
    assert not (tmp_path / "log").exists() and not (tmp_path / "ran").exists()


@pytest.mark.parametrize("mode", [SLOW_TRAIN, "transfer"])
@pytest.mark.parametrize("changes, words", [
    ({"n_filters": 8, "max_filters": 16}, ["of another config", "shape", "[24, 8]", "[24, 16]"]),
    ({"spatial_size": 32}, ["of another config", "has no variable"])])
def test_a_checkpoint_of_another_config(trained, small_config, tmp_path, capsys, monkeypatch, mode, changes, words):
    monkeypatch.chdir(tmp_path)
    run, _ = trained
    options = ["--config", small_config(lr_decay_end=9, **changes), "--mode", mode, "--checkpoint", str(run)]
    assert exit_code(main, *options) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and all(word in error for word in words), error
    assert not (tmp_path / "log").exists()


@pytest.mark.parametrize("options, words", [
    ([], "--config"), (["--config", "c.yaml", "--retrain"], "--retrain needs --checkpoint"),
    (["--config", "c.yaml", "--mode", "transfer"], "--mode transfer needs --checkpoint"),
    (["--config", "c.yaml", "--mode", "test"], "--mode test needs --checkpoint"),
    (["--config", "c.yaml", "--mode", "fly"], "invalid choice: 'fly'"),
    (["--mode", "evaluate"], "--mode evaluate needs --checkpoint"),
    (["--checkpoint", "x"], "--mode train needs --config"),
    (["--mode", "animate", "--checkpoint", "x", "--pose", "1"], "--mode animate needs --appearance"),
    (["--mode", "animate", "--checkpoint", "x", "--appearance", "1"], "--mode animate needs --pose"),
    (["--config", "c.yaml", "--save"], "--save goes with --mode evaluate"),
    (["--mode", "test", "--checkpoint", "x", "--pose", "1"], "--pose goes with --mode transfer or animate"),
    (["--config", "c.yaml", "--fps", "51"], "--fps"), (["--config", "c.yaml", "--appearance"], "--appearance"),
    (["--config", "c.yaml", "--seconds_per_pose", "0"], "a number above 0"),
    (["--config", "c.yaml", "--seconds_per_pose", "nan"], "a number above 0"),
    (["--config", "c.yaml", "--batches", "0"], "--batches"), (["--config", "c.yaml", "--batches", "x"], "--batches")])
def test_bad_options(options, words, capsys):
    with pytest.raises(SystemExit) as stop:
        exit_code(main, *options)
    assert stop.value.code == 2 and words in capsys.readouterr().err


@pytest.mark.parametrize("options, words", [
    (["--config", "none.yaml"], ["there is no file none.yaml"]),
    (["--config", "CONFIG", "--checkpoint", "nowhere"], ["there is no checkpoint nowhere"]),
    (["--config", "CONFIG", "--checkpoint", "."], ["there is no checkpoint in the folder ."]),
    (["--config", "CONFIG", "--mode", "transfer", "--checkpoint", "nowhere"], ["there is no checkpoint nowhere"]),
    pytest.param(["--config", "CONFIG", "--log_dir", "CONFIG"], ["--log_dir", "small.yaml"], marks=pytest.mark.slow)])
def test_bad_paths(small_config, tmp_path, capsys, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    config = small_config()
    assert exit_code(main, *[config if option == "CONFIG" else option for option in options]) == 2
    error = capsys.readouterr().err
    assert [line for line in error.split("\n") if line.startswith("error: ")] == [error.strip()]
    assert all(word in error for word in words) and not (tmp_path / "log").exists()


@pytest.mark.parametrize("train, words", [(True, "no usable test image"), (False, "no usable training image")])
def test_a_split_without_people(small_config, toy, tmp_path, capsys, monkeypatch, train, words):
    monkeypatch.chdir(tmp_path)
    with open(str(toy / "index.p"), "rb") as file:
        index = pickle.load(file)
    with open("index.p", "wb") as file:
        pickle.dump(dict(index, train=[train] * len(index["imgs"])), file)
    assert exit_code(main, "--config", small_config(data_index="index.p")) == 2
    assert words in capsys.readouterr().err and not (tmp_path / "log").exists()


def test_vgg_weights_that_cannot_be_had(small_config, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert exit_code(main, "--config", small_config(vgg_weights="none.h5")) == 2
    assert "vgg_weights: there is no file 'none.h5'" in capsys.readouterr().err and not (tmp_path / "log").exists()


# ---------------------------------------------------------------------------------------------- the configs

@pytest.mark.slow
@pytest.mark.parametrize("name", ["market", "deepfashion_retrain", "coco"])  # the others differ in numbers only
def test_each_kind_of_config_builds_initialises_and_trains(name, small_config, toy, tmp_path):
    """Smaller, but with its own factors, layers and weights."""
    config = load_config(os.path.join(ROOT, name + ".yaml"))
    config.update(data_index=str(toy / "index.p"), vgg_weights="random", spatial_size=32, batch_size=1, init_batches=2,
                  n_filters=4, max_filters=16, lr_decay_begin=1, lr_decay_end=2)
    assert exit_code(main, "--config", small_config(**config), "--log_dir", str(tmp_path / "log")) == 0
    log = (only_run(tmp_path / "log") / "log.txt").read_text()
    assert ("gram_loss_" in log) == (name != "market")
    assert find_checkpoint(str(only_run(tmp_path / "log"))).endswith("model.ckpt-2")


@pytest.mark.slow
def test_the_toy_config_trains_and_reports_its_transfer_error(toy, tmp_path, capsys, small_config):
    config = load_config(os.path.join(ROOT, "toy.yaml"))
    config.update(data_index=str(toy / "index.p"), lr_decay_begin=1, lr_decay_end=2)
    assert exit_code(main, "--config", small_config(**config), "--log_dir", str(tmp_path / "log")) == 0
    report = re.search(r"transfer error on held-out people: ([.\d]+); of the mean training appearance: ([.\d]+) "
                       r"\(ratio [.\d]+\); of a wrong person: ([.\d]+)", capsys.readouterr().out)
    transfer, mean, wrong = (float(report.group(i)) for i in (1, 2, 3))
    assert transfer > 0.1 and 0.2 < mean < wrong < 1


def test_a_dry_run_says_what_a_training_costs_and_leaves_nothing(small_config, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = small_config(lr_decay_end=1000, eval_freq=100, eval_images=2)
    before = sorted(str(path) for path in tmp_path.rglob("*"))
    assert exit_code(main, "--config", config, "--dry-run") == 0
    assert sorted(str(path) for path in tmp_path.rglob("*")) == before
    out = capsys.readouterr().out
    total, parts = re.search(r"^parameters: ([\d,]+) \((.*)\)$", out, re.MULTILINE).groups()
    assert sum(int(n.replace(",", "")) for n in re.findall(r"[\d,]*\d", parts)) == int(total.replace(",", "")) > 0
    for line in (r"a step: [\d.,]+ GFLOP, [\d.e-]+ s, [\d.e+]+ images/s, [\d.e+-]+ GFLOP/s",
                 r"memory: [\d.]+ GB(; the largest batch that fits is about \d{2,6})?",
                 r"disk: \d MB a checkpoint, about 0.\d+ GB the whole run",
                 r"time: about [\d:]+ for 1000 steps, \d+ % of it in them"):
        assert re.search(f"^{line}$", out, re.MULTILINE), out
    assert "training from" not in out
    assert exit_code(main, "--config", small_config(data_index="no.p"), "--dry-run") == 2
    assert exit_code(main, "--config", config, "--dry-run", "--log_dir", "/dev/null/log") == 2
    (tmp_path / "empty").mkdir()
    assert exit_code(main, "--config", small_config(lr_decay_end=1, lr_decay_begin=0), "--dry-run", "--log_dir",
                     "empty/new/log") == 0
    assert sorted(str(path) for path in tmp_path.rglob("*")) == sorted(before + [str(tmp_path / "empty")])


def test_a_dry_run_goes_on_from_a_checkpoint(trained, small_config, tmp_path, capsys):
    config = small_config(lr_decay_end=1000, log_freq=100)
    assert exit_code(main, "--config", config, "--dry-run", "--checkpoint", trained[0], "--log_dir", tmp_path) == 0
    assert "time: about" in capsys.readouterr().out


def test_the_largest_batch_is_estimated_from_what_a_batch_took(monkeypatch):
    monkeypatch.setattr("training.cost.free_memory", lambda: 12 * 10**9)
    assert largest_batch(10, 10**9) == 110  # 120 MB an image, with a margin
    monkeypatch.setenv("VUNET_WORKERS", "2")
    assert largest_batch(10, 10**9) == 60
    assert largest_batch(10, 1000) is None


def test_a_training_says_how_it_goes_and_where_its_time_went(trained):
    log = (trained[0] / "log.txt").read_text()
    assert re.search(r" step 4: loss \d\S*, KL \d\S*, \S+ s/step, \S+ images/s, \S+ % waiting for input, \S+ GB, "
                     r"0:00 left\n", log), log
    for name in ("step_s", "images_per_s", "input_share", "memory_gb", "left_s"):
        assert re.search(rf" {name}: [\d.e-]+\n", log)
    shares = re.search(r" [\d:]+ in all: (.*)\n", log).group(1)
    assert set(re.findall("[a-z]+", shares)) == {"start", "steps", "logging", "pictures", "checkpoints"}
