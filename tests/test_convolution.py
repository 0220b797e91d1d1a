import os
import platform
import subprocess
import sys

import numpy as np
import pytest
import tensorflow.compat.v1 as tf
from helpers import ROOT

from common import convolution


@pytest.mark.parametrize("conv2d, h, w, c, filters, is_direct", [
    (convolution.winograd, 8, 8, 128, 128, False), (convolution.winograd, 9, 6, 128, 160, False),
    (convolution.winograd, 3, 5, 160, 128, False), (convolution.winograd, 8, 8, 4, 128, True),
    (convolution.winograd, 2, 2, 256, 256, True),
    (convolution.winograd, 33, 32, 128, 128, True), (convolution.winograd, 33, 32, 256, 256, False),
    (convolution.forward_only, 5, 4, 3, 6, False), (convolution.forward_only, 1, 2, 7, 2, False)])
def test_values_and_gradients_are_those_of_tensorflow(graph, conv2d, h, w, c, filters, is_direct):
    random = np.random.RandomState(0)
    x = tf.constant(random.normal(size=(3, h, w, c)), tf.float32)
    kernel = tf.constant(random.normal(size=(3, 3, c, filters)), tf.float32)
    weights = tf.constant(random.normal(size=(3, h, w, filters)), tf.float32)
    results = []
    for y in (conv2d(x, kernel), convolution.direct(x, kernel)):
        results.append([y] + tf.gradients(tf.reduce_sum(weights * y), [x, kernel]))
    assert is_direct == (results[0][0].op.type == "Conv2D")
    assert results[0][0].shape.as_list() == [3, h, w, filters]
    with tf.Session(config=tf.ConfigProto(device_count={"GPU": 0})) as session:
        for found, expected in zip(*session.run(results)):
            assert np.max(np.abs(found - expected)) < 3e-5 * np.max(np.abs(expected))


def test_windows_may_be_those_of_any_number_of_maps(graph):
    random = np.random.RandomState(0)
    x = tf.placeholder(tf.float32, (None, 4, 4, 128))
    kernel = tf.constant(random.normal(size=(3, 3, 128, 128)), tf.float32)
    y = convolution.winograd(x, kernel)
    maps = random.normal(size=(2, 4, 4, 128))
    with tf.Session(config=tf.ConfigProto(device_count={"GPU": 0})) as session:
        both = session.run(y, {x: maps})
        np.testing.assert_allclose(session.run(y, {x: maps[1:]}), both[1:], rtol=1e-4, atol=1e-3)
        assert session.run(y, {x: maps[:0]}).shape == (0, 4, 4, 128)


@pytest.mark.parametrize("onednn, few, many", [
    (True, convolution.direct, convolution.winograd), (False, convolution.forward_only, convolution.forward_only)])
def test_the_machine_and_the_precision_choose(monkeypatch, onednn, few, many):
    monkeypatch.setattr(convolution, "has_gpu", lambda: False)
    monkeypatch.setattr(convolution, "has_onednn", lambda: onednn)
    assert convolution.make_conv2d("float32") is few
    assert convolution.make_conv2d("float32", many_channels=True) is many
    assert convolution.make_conv2d("mixed", many_channels=True) is convolution.direct
    monkeypatch.setattr(convolution, "has_gpu", lambda: True)
    assert convolution.make_conv2d("float32", many_channels=True) is convolution.direct


@pytest.mark.skipif(tf.__version__.startswith("1."), reason="1.15 cannot switch oneDNN on or off")
@pytest.mark.skipif(platform.machine() != "x86_64", reason="other processors keep TensorFlow's own choice")
@pytest.mark.parametrize("switch", [{}, {"TF_ENABLE_ONEDNN_OPTS": "0"}, {"TF_ENABLE_ONEDNN_OPTS": "1"}])
def test_onednn_is_used_unless_it_is_switched_off(switch):
    environment = {name: value for name, value in os.environ.items() if name != "TF_ENABLE_ONEDNN_OPTS"}
    found = subprocess.run(
        [sys.executable, "-c", "from common.machine import has_onednn; print(has_onednn())"], cwd=ROOT, check=True,
        env=dict(environment, **switch), stdout=subprocess.PIPE, text=True).stdout
    assert found.strip() == str("0" not in switch.values())
