"""What is measured while a network trains, the best checkpoint, and the table over all checkpoints of a run."""
import json
import re
import shutil

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from helpers import exit_code, make_index, only_run
from PIL import Image

import main
from common.errors import UserError
from inference.evaluation import Evaluation
from inference.networks import open_network
from training.checkpoints import BestCheckpoint, Checkpoint, CheckpointSaver, checkpoints_in, find_checkpoint, read_best
from training.curves import read_curves


def tensors(prefix):
    reader = tf.train.NewCheckpointReader(prefix)
    return {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}


def best_of(run):
    """(prefix, what best.json says) of a run's best checkpoint."""
    return find_checkpoint(str(run), best=True), json.loads((run / "checkpoints" / "best.json").read_text())


@pytest.fixture(scope="module")
def measured(trained, tmp_path_factory):
    """The run of a training as `trained`, but measured every step, and what it printed."""
    folder = tmp_path_factory.mktemp("measured")
    assert exit_code(main, "--config", trained[1], "--set", "eval_freq=1", "--set", "eval_images=5", "--log_dir",
                     folder / "log") == 0
    return only_run(folder / "log")


def test_measuring_leaves_the_training_as_it_is(trained, measured):
    expected, found = (tensors(find_checkpoint(str(run))) for run in (trained[0], measured))
    assert set(expected) == set(found)
    for name in expected:
        assert expected[name].tobytes() == found[name].tobytes(), name


def test_the_figures_are_in_the_log_in_tensorboard_and_in_the_table_at_the_end(measured):
    curves = read_curves(str(measured))
    names = [f"eval_{metric}_{task}" for metric in ("ssim", "psnr", "mae") for task in ("reconstruction", "transfer")]
    for name in names + ["eval_consistency", "eval_seconds"]:
        steps, values = curves[name]
        assert steps.tolist() == [1, 2, 3, 4] and np.isfinite(values).all() and len(set(values)) > 1, name
    assert curves["loss"][0].tolist() == [1, 2, 4]
    log = (measured / "log.txt").read_text()
    last = {name: values[-1] for name, (_, values) in curves.items()}
    row = re.search(r"transfer +5 +(\S+) \+- \S+ +(\S+) \+- \S+ +(\S+) \+- ", log).groups()
    assert row == tuple(f"{last[f'eval_{metric}_transfer']:.4g}" for metric in ("ssim", "psnr", "mae"))
    assert "consistency of appearances: " in log
    events, = [path for path in measured.iterdir() if path.name.startswith("events.out.tfevents")]
    tags = {value.tag for event in tf.train.summary_iterator(str(events)) for value in event.summary.value}
    assert {"eval_ssim/eval_ssim_transfer", "eval_ssim/eval_ssim_reconstruction"} <= tags


def test_the_best_checkpoint_is_the_one_of_the_highest_ssim_of_transfers(measured):
    steps, scores = read_curves(str(measured))["eval_ssim_transfer"]
    prefix, best = best_of(measured)
    assert best["step"] == steps[scores.argmax()] and best["score"] == scores.max()
    assert checkpoints_in(str(measured / "checkpoints"), "best") == {best["step"]: prefix}
    assert tensors(prefix)["global_step"] == best["step"]
    with open_network(str(measured), best=True) as network:
        assert network.prefix == prefix
    assert exit_code(main, "--mode", "test", "--checkpoint", measured, "--best", "--batches", 1, "--log_dir",
                     measured.parent.parent / "best") == 0
    assert f"from {prefix}" in (only_run(measured.parent.parent / "best") / "log.txt").read_text()


def test_without_pairs_the_reconstructions_choose(tmp_path, small_config):
    config = small_config(data_index=make_index(tmp_path), eval_freq=2)
    assert exit_code(main, "--config", config, "--log_dir", tmp_path / "log") == 0
    curves = read_curves(str(only_run(tmp_path / "log")))
    assert "eval_ssim_transfer" not in curves
    assert best_of(only_run(tmp_path / "log"))[1]["conditions"]["score"] == "ssim_reconstruction"


def test_pairs_of_no_images_are_refused_before_a_run_begins(tmp_path, small_config, capsys):
    config = small_config(data_index=make_index(tmp_path, pairs=[(0, 9)]), eval_freq=2)
    assert exit_code(main, "--config", config, "--log_dir", tmp_path / "log") == 2
    assert "pairs: expected pairs of numbers from 0 to 3" in capsys.readouterr().err
    assert not (tmp_path / "log").exists()


def test_a_resumed_run_carries_the_best_one_on(measured, trained, tmp_path):
    earlier = tmp_path / "earlier"
    shutil.copytree(str(measured / "checkpoints"), str(earlier))
    for file in list(earlier.glob("best*")) + list(earlier.glob("model.ckpt-4.*")):
        file.unlink()
    for suffix in ("index", "data-00000-of-00001"):
        shutil.copy(str(earlier / f"model.ckpt-2.{suffix}"), str(earlier / f"best-1.{suffix}"))
    best = {"step": 1, "score": 0.99, "conditions": best_of(measured)[1]["conditions"]}
    (earlier / "best.json").write_text(json.dumps(best))
    options = ["--config", trained[1], "--set", "eval_freq=1", "--set", "eval_images=5", "--checkpoint", earlier]
    assert exit_code(main, *options, "--log_dir", tmp_path / "log") == 0
    prefix, found = best_of(only_run(tmp_path / "log"))
    assert found == best and prefix.endswith("best-1")
    assert len(tensors(prefix)) == len(tensors(str(earlier / "best-1")))
    (earlier / "best.json").write_text("[1, 2]")
    assert exit_code(main, *options, "--log_dir", tmp_path / "none") == 2 and not (tmp_path / "none").exists()


# ---------------------------------------------------------------------------------------------- keeping the best

@pytest.fixture
def session(graph):
    tf.get_variable("a", (), initializer=tf.zeros_initializer())
    with tf.Session() as session:
        session.run(tf.global_variables_initializer())
        yield session


def best_checkpoint(session, folder, conditions=None):
    folder.mkdir(exist_ok=True)
    return BestCheckpoint(CheckpointSaver(tf.global_variables()), session, str(folder), conditions or {"of": "ssim"})


def test_only_a_higher_score_replaces_the_best(session, tmp_path):
    best = best_checkpoint(session, tmp_path / "a")
    for step, score in ((1, 0.5), (2, 0.5), (3, 0.4), (4, 0.6), (5, 0.1)):
        best.offer(step, score)
    assert (best.step, best.score) == (4, 0.6)
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["best-4.data-00000-of-00001", "best-4.index",
                                                                        "best.json"]


@pytest.mark.parametrize("first_step, conditions, is_carried", [
    (4, {"of": "ssim"}, True), (3, {"of": "ssim"}, False), (9, {"of": "another"}, False)])
def test_a_best_one_is_carried_on_where_it_compares(session, tmp_path, first_step, conditions, is_carried):
    best_checkpoint(session, tmp_path / "a").offer(4, 0.6)
    earlier = read_best(Checkpoint(str(tmp_path / "a" / "best-4")))
    later = best_checkpoint(session, tmp_path / "b", conditions)
    later.carry_on(earlier, first_step)
    assert later.step == (4 if is_carried else None)
    assert {path.name for path in (tmp_path / "b").iterdir()} == (
        {path.name for path in (tmp_path / "a").iterdir()} if is_carried else set())


def test_a_run_that_was_killed_between_two_files_has_a_whole_best_one(session, tmp_path):
    best = best_checkpoint(session, tmp_path / "a")
    best.offer(4, 0.6)
    CheckpointSaver(tf.global_variables()).save_aside(session, str(tmp_path / "a"), "best", 5)  # and then no more
    later = best_checkpoint(session, tmp_path / "b")
    later.carry_on(read_best(Checkpoint(str(tmp_path / "a" / "best-5"))), 9)
    assert later.step == 4 and later.score == 0.6
    best.offer(6, 0.7)
    assert checkpoints_in(str(tmp_path / "a"), "best") == {6: str(tmp_path / "a" / "best-6")}


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"step": "1", "score": 0.5}', '{"step": 1, "score": "high"}'])
def test_a_damaged_best_json_is_refused(session, tmp_path, content):
    best_checkpoint(session, tmp_path / "a").offer(4, 0.6)
    (tmp_path / "a" / "best.json").write_text(content)
    with pytest.raises(UserError, match=r"best\.json"):
        read_best(Checkpoint(str(tmp_path / "a" / "best-4")))


def test_a_best_one_that_is_not_there_is_named(trained, capsys):
    for path, words in ((trained[0], "--best: there is no best checkpoint in the folder"),
                        (find_checkpoint(str(trained[0])), "--best: expected --checkpoint to name a run folder")):
        assert exit_code(main, "--mode", "test", "--checkpoint", path, "--best") == 2
        assert words in capsys.readouterr().err


def test_the_best_one_of_a_run_in_an_archive(measured, tmp_path):
    archive = shutil.make_archive(str(tmp_path / "run"), "zip", str(measured.parent), measured.name)
    with open_network(archive, best=True) as network:
        assert Checkpoint(network.prefix).step() == best_of(measured)[1]["step"]
    (measured / "checkpoints").rename(tmp_path / "aside")
    try:
        shutil.make_archive(str(tmp_path / "none"), "zip", str(measured))
    finally:
        (tmp_path / "aside").rename(measured / "checkpoints")
    with pytest.raises(UserError, match="there is no best checkpoint in it"), open_network(
            str(tmp_path / "none.zip"), best=True):
        pass


# ---------------------------------------------------------------------------------------------- every checkpoint

def test_all_checkpoints_of_a_run_are_compared(measured, tmp_path, capsys):
    assert exit_code(main, "--mode", "evaluate", "--checkpoint", measured, "--every", "--images", 4, "--log_dir",
                     tmp_path / "log") == 0
    out, folder = capsys.readouterr().out, only_run(tmp_path / "log")
    steps = sorted({2, 4, best_of(measured)[1]["step"]})
    assert re.search(r"^step +" + " +".join(map(str, steps)) + "$", out, re.M)
    by_step = {step: json.loads((folder / f"metrics_{step}.json").read_text()) for step in steps}
    assert all(found["step"] == step for step, found in by_step.items())
    for metric in ("ssim", "perceptual_loss"):
        cells = [f"{by_step[step]['transfer'][metric]['mean']:.4g}" for step in steps]
        assert re.search(rf"^{metric}_transfer +" + " +".join(map(re.escape, cells)) + "$", out, re.M)
    assert min(Image.open(str(folder / "every.png")).size) > 300


def test_a_checkpoint_that_a_training_removes_meanwhile_is_left_out(measured, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    shutil.copytree(str(measured), str(run))
    measure = Evaluation.measure

    def measure_while_it_goes(*given):
        for path in (run / "checkpoints").glob("*-4.*"):
            path.unlink()
        return measure(*given)

    monkeypatch.setattr(Evaluation, "measure", measure_while_it_goes)
    assert exit_code(main, "--mode", "evaluate", "--checkpoint", run, "--every", "--images", 4, "--log_dir",
                     tmp_path / "log") == 0
    out = capsys.readouterr().out
    assert "step 4 is left out: a training has removed the checkpoint meanwhile" in out
    steps = sorted({2, best_of(measured)[1]["step"]} - {4})
    assert re.search(r"^step +" + " +".join(map(str, steps)) + "$", out, re.M)


def test_every_needs_a_run_folder(measured, tmp_path, capsys):
    archive = shutil.make_archive(str(tmp_path / "run"), "zip", str(measured))
    for path in (archive, find_checkpoint(str(measured))):
        assert exit_code(main, "--mode", "evaluate", "--checkpoint", path, "--every") == 2
        assert "--every: expected --checkpoint to name a run folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        exit_code(main, "--mode", "evaluate", "--checkpoint", measured, "--every", "--save")
    assert "--every goes without --save" in capsys.readouterr().err
