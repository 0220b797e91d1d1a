"""The contract with the published code's checkpoints, and finding and saving."""
import json
import os

import numpy as np
import pytest
import tensorflow.compat.v1 as tf

from batches import Examples
from common.errors import UserError
from training.checkpoints import Checkpoint, CheckpointSaver, find_checkpoint
from training.config import load_config
from training.graphs import TrainingGraph, make_rendering_tensors, placeholders

HERE = os.path.dirname(os.path.abspath(__file__))
UNREAD = ("dense_4", "conv2d_6", "conv2d_7", "dense_5", "conv2d_8")  # of enc_down, in the published code


def published_tensors():
    with open(os.path.join(HERE, "golden", "checkpoint_market.json")) as file:
        return json.load(file)


def is_unread(name):
    return any(name.startswith(f"enc_down/{layer}/") for layer in UNREAD)


def market_config():
    return load_config(os.path.join(os.path.dirname(HERE), "market.yaml"))


def market_shapes():
    return Examples((128, 128, 3), (128, 128, 3), (64, 64, 24), (8,))


@pytest.fixture(scope="module")
def published_checkpoint(tmp_path_factory):
    """A checkpoint with exactly the names, types and shapes of the published code's; global_step is 1234."""
    prefix = str(tmp_path_factory.mktemp("published") / "model.ckpt-1234")
    with tf.Graph().as_default(), tf.Session() as session:
        variables = {}
        for name, (dtype, shape) in published_tensors().items():
            value = tf.fill(shape, tf.cast(1234 if name == "global_step" else fingerprint(name), dtype))
            # The name in the checkpoint is the Saver's; in this graph slots and variables may not clash.
            variables[name] = tf.Variable(value, name=name.replace("/", "_"))
        session.run(tf.global_variables_initializer())
        tf.train.Saver(variables).save(session, prefix)
    return prefix


def fingerprint(name):
    return (sum(map(ord, name)) % 977) / 977.0


@pytest.mark.slow
def test_a_published_checkpoint_loads_in_full_and_the_unread_tensors_do_not_matter(published_checkpoint, graph):
    config = market_config()
    loss_layers = dict(config, feature_layers=["input_1"], feature_weights=[1.0], gram_weights=[0.0])
    net = TrainingGraph(loss_layers, placeholders(market_shapes()), market_shapes(), {})
    wanted = {variable.op.name: [variable.dtype.base_dtype.name, variable.shape.as_list()]
              for variable in net.saved_variables()}
    published = published_tensors()
    assert wanted == {name: value for name, value in published.items() if not is_unread(name)}
    model = sum(int(np.prod(v.shape.as_list())) for v in net.model_variables)
    assert model == 47419270 - 1230848

    saver = CheckpointSaver(net.saved_variables())
    checkpoint = Checkpoint(find_checkpoint(published_checkpoint))
    assert checkpoint.step() == 1234
    with tf.Session() as session:
        saver.restore(session, checkpoint)
        assert session.run(net.step) == 1234
        some = [v for v in net.saved_variables() if v.op.name != "global_step"][::29]
        for variable, value in zip(some, session.run(some)):
            assert abs(np.ravel(value)[0] - fingerprint(variable.op.name)) < 1e-6
        net.restart_schedule(session)
        assert session.run(net.step) == 0


@pytest.mark.slow
def test_pictures_need_only_the_model_of_a_published_checkpoint(published_checkpoint, graph):
    config = market_config()
    make_rendering_tensors(config, market_shapes())
    saver = CheckpointSaver(tf.trainable_variables())
    with tf.Session() as session:
        saver.restore(session, Checkpoint(published_checkpoint))
        assert not session.run(tf.report_uninitialized_variables()).size


def save_variable(folder, step, name="a", shape=(2,), subfolder="checkpoints"):
    with tf.Graph().as_default(), tf.Session() as session:
        variable = tf.get_variable(name, shape)
        session.run(variable.initializer)
        return CheckpointSaver([variable]).save(session, str(folder / subfolder), step)


def test_the_newest_checkpoint_of_a_folder_is_found(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for step in (900, 1000, 90):
        save_variable(tmp_path, step)
    newest = str(tmp_path / "checkpoints" / "model.ckpt-1000")
    for path in (tmp_path, tmp_path / "checkpoints", newest, newest + ".index", newest + ".data-00000-of-00001"):
        assert find_checkpoint(str(path)) == newest


def test_an_unfinished_checkpoint_is_passed_over(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    save_variable(tmp_path, 10)
    (tmp_path / "checkpoints" / "model.ckpt-20.data-00000-of-00001").write_bytes(b"half")
    assert find_checkpoint(str(tmp_path)).endswith("model.ckpt-10")


@pytest.mark.parametrize("name", ["none", "empty", "empty/model.ckpt-3"])
def test_a_missing_checkpoint_is_named(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=f"--checkpoint: there is no checkpoint .*{name}.*expected"):
        find_checkpoint(str(tmp_path / name))


def test_the_first_variable_that_does_not_fit_is_named_with_both_shapes(tmp_path, graph):
    (tmp_path / "checkpoints").mkdir()
    checkpoint = Checkpoint(save_variable(tmp_path, 10, "net/V", (3, 4)))
    with pytest.raises(UserError, match=r"variable net/V has shape \[3, 4\] there; expected \[3, 5\]"):
        checkpoint.check_fits([tf.get_variable("net/V", (3, 5))])
    with pytest.raises(UserError, match=r"it has no variable net/b; expected one of shape \[5\]"):
        checkpoint.check_fits([tf.get_variable("net/b", (5,))])


def test_a_damaged_checkpoint_gives_one_line(tmp_path):
    prefix = tmp_path / "model.ckpt-1"
    (tmp_path / "model.ckpt-1.index").write_bytes(b"nothing")
    with pytest.raises(UserError, match="cannot be read as a checkpoint") as error:
        Checkpoint(find_checkpoint(str(prefix)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_checkpoint_without_its_data_gives_one_line(tmp_path, graph, damage):
    (tmp_path / "checkpoints").mkdir()
    prefix = save_variable(tmp_path, 10, "global_step", ())
    data = tmp_path / "checkpoints" / "model.ckpt-10.data-00000-of-00001"
    if damage == "missing":
        data.unlink()
    else:
        data.write_bytes(b"")
    with pytest.raises(UserError, match="cannot be read as a checkpoint") as error:
        Checkpoint(prefix).step()
    assert "\n" not in str(error.value)
    saver = CheckpointSaver([tf.get_variable("global_step", ())])
    with tf.Session() as session, pytest.raises(UserError, match="cannot be read as a checkpoint"):
        saver.restore(session, Checkpoint(prefix))


def test_the_newest_five_are_kept(tmp_path, graph):
    variable = tf.get_variable("a", ())
    saver = CheckpointSaver([variable])
    with tf.Session() as session:
        session.run(variable.initializer)
        for step in range(1, 8):
            assert saver.save(session, str(tmp_path), step) == str(tmp_path / (f"model.ckpt-{step}"))
    kept = sorted(path.name for path in tmp_path.iterdir() if path.name.endswith(".index"))
    assert kept == [f"model.ckpt-{step}.index" for step in range(3, 8)]
    assert (tmp_path / "model.ckpt-7.meta").exists()
