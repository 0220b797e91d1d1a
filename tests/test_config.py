import os

import pytest
import yaml

from common.errors import UserError
from training.config import KEYS, dump_config, load_config

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PUBLISHED = ["market", "market_retrain", "deepfashion", "deepfashion_retrain", "coco", "coco_retrain"]
REQUIRED = sorted(key for key, rule in KEYS.items() if rule.default is None)


@pytest.mark.parametrize("name", PUBLISHED + ["toy"])
def test_the_seven_configs_load_and_survive_being_saved(name, tmp_path):
    config = load_config(os.path.join(ROOT, name + ".yaml"))
    copy = tmp_path / "config.yaml"
    copy.write_text(dump_config(config))
    assert load_config(str(copy)) == config


def test_the_published_values():
    configs = {name: load_config(os.path.join(ROOT, name + ".yaml")) for name in PUBLISHED}
    market = configs["market"]
    published = {
        "spatial_size": 128, "box_factor": 1, "bottleneck_factor": 1, "n_filters": 32, "max_filters": 128,
        "batch_size": 16, "lr": 1e-3, "lr_decay_begin": 1000, "lr_decay_end": 100000, "drop_prob": .1,
        "kl_weight_begin": 1e-6, "kl_weight_end": 1.0, "kl_ramp": [0.5, 0.75], "vgg_weights": "imagenet",
        "eval_freq": 0, "shape": "joints", "appearance": "parts", "appearance_jitter": 0.0}
    assert {key: market[key] for key in published} == published

    def differences(a, b):
        return {key: configs[a][key] for key in KEYS if configs[a][key] != configs[b][key]}
    assert differences("deepfashion", "market") == {
        "data_index": "data/deepfashion/index.p", "batch_size": 8, "spatial_size": 256, "box_factor": 2,
        "bottleneck_factor": 2}
    assert differences("coco", "deepfashion") == {
        "data_index": "data/coco/index.p", "drop_prob": 0.0, "gram_weights": [0, .01, .01, .01, .01, .01]}
    assert differences("coco_retrain", "coco") == {
        "feature_weights": [2.0] * 6, "gram_weights": [0, .02, .02, .02, .02, .02]}
    assert differences("deepfashion_retrain", "deepfashion") == {"gram_weights": [.1] * 6}
    assert differences("market_retrain", "market") == {"gram_weights": [0, .05, .05, 0, 0, 0]}


def test_exponents_need_no_point(small_config):
    path = small_config()
    with open(path, "a") as file:
        file.write("kl_weight_end: 1e-3\n")
    assert load_config(path)["kl_weight_end"] == 1e-3


@pytest.mark.parametrize("key", REQUIRED)
def test_a_missing_key_is_named(small_config, key):
    with pytest.raises(UserError, match=f"missing key {key}: found nothing, expected a"):
        load_config(small_config(drop=[key]))


@pytest.mark.parametrize("changes, message", [
    ({"batchsize": 3}, "unknown key batchsize: 3; did you mean batch_size?"),
    ({"zzz": 3}, "unknown key zzz: 3; expected one of allow_outside_images, appearance, "),
    ({"batch_size": "16"}, "batch_size: 16: expected a positive whole number"),
    ({"batch_size": 0}, "batch_size: 0: expected a positive"), ({"batch_size": 2.0}, "batch_size: 2.0: expected"),
    ({"batch_size": True}, "batch_size: True: expected"), ({"batch_size": None}, "batch_size: None: expected"),
    ({"init_batches": -1}, "init_batches: -1"), ({"log_freq": 0}, "log_freq: 0"), ({"n_filters": 0}, "n_filters: 0"),
    ({"spatial_size": 100}, "spatial_size: 100: expected a power of two"), ({"spatial_size": -16}, "spatial_size: -16"),
    ({"spatial_size": 2}, "spatial_size: 2: expected a power of two, 4 or more"),
    ({"box_factor": 5}, "box_factor: 5: expected at most 1 for spatial_size 16 and bottleneck_factor 2"),
    ({"box_factor": -1}, "box_factor: -1"),
    ({"box_factor": 2, "bottleneck_factor": 1}, "box_factor: 2: expected at most 1 .* or max_filters of 16"),
    ({"bottleneck_factor": 4}, "bottleneck_factor: 4: expected at most 3 for spatial_size 16"),
    ({"n_filters": 16}, "n_filters: 16: expected at most max_filters, 8"),
    ({"lr": "fast"}, "lr: fast: expected a positive number"), ({"lr": 0}, "lr: 0"), ({"lr": float("nan")}, "lr: nan"),
    ({"lr": 10**400}, "lr: 10000"), ({"feature_weights": [10**400, 1]}, "feature_weights"),
    ({"drop_prob": 1.0}, "drop_prob: 1.0: expected a number from 0"), ({"seed": -1}, "seed: -1"),
    ({"kl_weight_end": -1}, "kl_weight_end: -1: expected a number, 0 or more"),
    ({"kl_weight_begin": "low"}, "kl_weight_begin: low: expected a number, 0 or more"),
    ({"kl_ramp": [0.5]}, r"kl_ramp: \[0.5\]: expected two shares of lr_decay_end"),
    ({"kl_ramp": [0.7, 0.5]}, r"kl_ramp: \[0.7, 0.5\]: expected two shares"), ({"kl_ramp": [0, 2]}, "kl_ramp"),
    ({"appearance_jitter": 0.5}, "appearance_jitter: 0.5: expected a number from 0 to 0.4"),
    ({"appearance_jitter": 0.1}, "appearance_jitter: 0.1: expected 0 for appearance: parts, as only whole pictures"),
    ({"eval_freq": 5, "spatial_size": 8}, "eval_freq: 5: expected 0 for spatial_size 8, as SSIM needs"),
    ({"feature_weights": [1.0]}, "feature_weights: .*expected as many as feature_layers, 2, found 1"),
    ({"gram_weights": [1.0] * 3}, "gram_weights: .*expected as many as feature_layers, 2, found 3"),
    ({"gram_weights": [1.0, "a"]}, "gram_weights: .*expected a list of numbers"),
    ({"gram_weights": 0.1}, "gram_weights: 0.1: expected a list"),
    ({"feature_weights": [-1.0, 1.0]}, "feature_weights"),
    ({"feature_weights": [0, 0], "gram_weights": [0, 0]}, "feature_weights: .*above 0"),
    ({"feature_layers": ["input_1", "block1_convv2"]}, "block1_convv2 is none; did you mean block1_conv2"),
    ({"feature_layers": ["input_1", 7]}, "feature_layers: .*7 is none"),
    ({"feature_layers": ["input_1", "block5_pool"]}, "feature_layers: .*block5_pool is too deep"),
    ({"feature_layers": "input_1"}, "feature_layers: input_1: expected a list"),
    ({"lr_decay_begin": 4}, "lr_decay_begin: 4: expected less than lr_decay_end, 4"),
    ({"lr_decay_begin": 9}, "lr_decay_begin: 9: expected less than lr_decay_end, 4"),
    ({"data_index": ""}, "data_index: : expected a path"), ({"vgg_weights": 3}, "vgg_weights: 3: expected imagenet")])
def test_every_fault_is_named_with_its_value_and_what_was_expected(small_config, changes, message):
    with pytest.raises(UserError, match=message) as error:
        load_config(small_config(**changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("content, message", [
    (b"a: [1", "is not YAML"), (b"- a\n- b", "expected a mapping of keys to values, found list"),
    (b"", "expected a mapping of keys to values, found nothing"), (b"text", "found str"),
    (b"\xff\xfe\x00", "config.yaml"), (b"!!python/object/apply:os.system ['true']", "is not YAML"),
    (b"batch_size: 1\nbatch_size: 2", "stands there twice"),
    pytest.param(b"[" * 5000, "is not YAML", id="depth"), (b"? [a]\n: 1", "is not YAML|unknown key"),
    (b"lr: !!map [1, 2]", "is not YAML"),
    (b"lr: !!int ''", "is not YAML"), (b"lr: !!bool x", "is not YAML"), (b"lr: !!timestamp x", "is not YAML")])
def test_files_that_are_no_config(tmp_path, content, message):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as error:
        load_config(str(path))
    assert "\n" not in str(error.value)


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="there is no file"):
        load_config(str(tmp_path / "none.yaml"))


@pytest.mark.parametrize("changes", [
    {"box_factor": 0, "bottleneck_factor": 0}, {"box_factor": 2, "bottleneck_factor": 1, "max_filters": 16},
    {"spatial_size": 4, "box_factor": 0, "bottleneck_factor": 1, "feature_layers": ["input_1", "block2_conv2"]}])
def test_extreme_sizes_that_fit_are_accepted_and_build(small_config, changes, graph):
    import tensorflow.compat.v1 as tf

    from nn import Pass
    from training.graphs import make_network
    config = load_config(small_config(**changes))
    size = config["spatial_size"]
    net = make_network(config)
    picture, _ = net.train(Pass("train"), tf.zeros((1, size, size, 3)),
                           tf.zeros((1, size >> config["box_factor"], size >> config["box_factor"], 24)))
    assert picture.picture.shape.as_list() == [1, size, size, 3]


def test_a_config_file_is_plain_yaml():
    for name in PUBLISHED:
        with open(os.path.join(ROOT, name + ".yaml")) as file:
            assert set(REQUIRED) == set(yaml.safe_load(file))
