"""Configurations: YAML files whose every key is known, present and of the right type and range."""
import argparse
import difflib
import os
import re

import yaml

from common.errors import UserError, reason, shown
from deeploss import LAYERS, smallest_picture

MAX_LENGTH = 100000  # characters of a file; what YAML makes of long numbers takes long
MIN_EVAL_SIZE = 16  # SSIM looks at windows of 11 pixels


class Key:
    """What a config key may hold: `kind` says so to the user, `fits` decides, and `default` None means required."""

    def __init__(self, kind, fits, default=None):
        self.kind, self.fits, self.default = kind, fits, default


def _is_integer(value, least, most=2**31 - 1):
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_number(value, least=0.0, most=1e38):
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return least <= value <= most  # false for nan; 1e38 is about where float32 ends


def _positive_integer(default=None):
    return Key("a positive whole number", lambda value: _is_integer(value, 1), default)


def _count(default=None):
    return Key("a whole number, 0 or more", lambda value: _is_integer(value, 0), default)


def _is_ramp(value):
    are_shares = isinstance(value, list) and len(value) == 2 and all(_is_number(share, most=1) for share in value)
    return are_shares and value[0] <= value[1]


_WEIGHTS = Key("a list of numbers, 0 or more",
               lambda value: isinstance(value, list) and bool(value) and all(_is_number(v) for v in value))

KEYS = {
    # data
    "data_index": Key("a path", lambda value: isinstance(value, str) and bool(value)),
    "allow_outside_images": Key("true or false", lambda value: isinstance(value, bool), False),
    "batch_size": _positive_integer(),
    "init_batches": _positive_integer(),
    "seed": Key("a whole number from 0 to 2147483647", lambda value: _is_integer(value, 0), 0),
    "shape": Key("joints or picture", lambda value: value in ("joints", "picture"), "joints"),
    "appearance": Key("parts, picture or none", lambda value: value in ("parts", "picture", "none"), "parts"),
    "appearance_jitter": Key("a number from 0 to 0.4", lambda value: _is_number(value, most=0.4), 0.0),
    # network
    "spatial_size": Key("a power of two, 4 or more",
                        lambda value: _is_integer(value, 4) and value & (value - 1) == 0),
    "box_factor": _count(),
    "bottleneck_factor": _count(),
    "n_filters": _positive_integer(32),
    "max_filters": _positive_integer(128),
    "drop_prob": Key("a number from 0 up to but not including 1",
                     lambda value: _is_number(value) and value < 1),
    # optimisation
    "lr": Key("a positive number", lambda value: _is_number(value) and value > 0),
    "lr_decay_begin": _count(),
    "lr_decay_end": _positive_integer(),
    "kl_weight_begin": Key("a number, 0 or more", _is_number, 1e-6),
    "kl_weight_end": Key("a number, 0 or more", _is_number, 1.0),
    "kl_ramp": Key("two shares of lr_decay_end, from 0 to 1, the smaller first", _is_ramp, [0.5, 0.75]),
    # speed
    "precision": Key("float32, mixed or auto", lambda value: value in ("float32", "mixed", "auto"), "float32"),
    "xla": Key("true or false", lambda value: isinstance(value, bool), False),
    "collectives": Key("auto, ring or nccl", lambda value: value in ("auto", "ring", "nccl"), "auto"),
    # perceptual loss
    "feature_layers": Key("a list of layers of VGG19", lambda value: isinstance(value, list) and bool(value)),
    "feature_weights": _WEIGHTS,
    "gram_weights": _WEIGHTS,
    "vgg_weights": Key("imagenet, random or a path", lambda value: isinstance(value, str) and bool(value), "imagenet"),
    # how often, in steps
    "log_freq": _positive_integer(),
    "ckpt_freq": _positive_integer(),
    "test_freq": _positive_integer(),
    "eval_freq": _count(0),
    "eval_images": _positive_integer(200),
}


def load_config(path, settings=None, name=None):
    """The config at `path` as a dict with every key of KEYS. Raises UserError with one line on the first fault.

    settings: {key: value} of --set, which replace what the file says. name: what messages call the file.
    """
    name = name or path
    if not os.path.isfile(path):
        raise UserError(f"--config: there is no file {path}")
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(MAX_LENGTH + 1)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{name}: cannot be read: {reason(error)}")
    if len(text) > MAX_LENGTH:
        raise UserError(f"{name}: expected a config, of at most {MAX_LENGTH} characters, found more")
    try:
        given = yaml.load(text, Loader=_Loader)
    except Exception as error:  # besides its own, PyYAML lets out what Python raises on odd scalars
        raise UserError(f"{name}: is not YAML: {reason(error)}")
    if not isinstance(given, dict):
        found = "nothing" if given is None else type(given).__name__
        raise UserError(f"{name}: expected a mapping of keys to values, found {found}")
    return check_config(name, given, settings or {})


def setting(text):
    """The type of the option --set: KEY=VALUE, the value in YAML, as the pair (key, value)."""
    key, equals, value = text.partition("=")
    if not key or not equals or len(text) > MAX_LENGTH:
        raise argparse.ArgumentTypeError(f"expected KEY=VALUE, found {shown(text)}")
    try:
        return key.strip(), yaml.load(value, Loader=_Loader)
    except Exception as error:
        raise argparse.ArgumentTypeError(f"{shown(text)}: the value is not YAML: {reason(error)}")


def check_config(path, given, settings):
    """The config with every key of KEYS. Raises UserError on the first fault.

    given: what the file at `path` says; settings: what --set says, which replaces it.
    """
    given = dict(given, **settings)
    config = {}
    for key in given:
        if key not in KEYS:
            raise UserError(f"{_origin(key, path, settings)}: unknown key {shown(key)}: {shown(given[key])}; "
                            f"{_close(key, KEYS) or 'expected one of ' + ', '.join(sorted(KEYS))}")
    for key, rule in KEYS.items():
        value = given.get(key, rule.default)
        if key not in given and value is None:
            raise UserError(f"{path}: missing key {key}: found nothing, expected {rule.kind}")
        if not rule.fits(value):
            raise UserError(f"{_origin(key, path, settings)}: {key}: {shown(value)}: expected {rule.kind}")
        config[key] = value
    for key, expected in _contradictions(config):
        raise UserError(f"{_origin(key, path, settings)}: {key}: {shown(config[key])}: expected {expected}")
    return config


def _origin(key, path, settings):
    return "--set" if key in settings else path


def _close(name, names):
    """A hint where a name is close to one that is known, or nothing."""
    close = difflib.get_close_matches(shown(name), list(names), n=1)
    return f"did you mean {close[0]}?" if close else ""


def _contradictions(config):
    """(key, what was expected) for each rule that ties keys together and does not hold."""
    size, layers = config["spatial_size"], config["feature_layers"]
    for layer in layers:
        if layer not in LAYERS:
            hint = _close(layer, LAYERS)
            yield "feature_layers", f"layers of VGG19, and {shown(layer)} is none{'; ' + hint if hint else ''}"
        elif size < smallest_picture(layer):
            yield "feature_layers", f"layers that pictures of spatial_size {size} reach, and {layer} is too deep"
    for key in ("feature_weights", "gram_weights"):
        if len(config[key]) != len(layers):
            yield key, f"as many as feature_layers, {len(layers)}, found {len(config[key])}"
    if config["appearance_jitter"] and config["appearance"] != "picture":
        yield "appearance_jitter", f"0 for appearance: {config['appearance']}, as only whole pictures are jittered"
    if not any(config["feature_weights"] + config["gram_weights"]):
        yield "feature_weights", "one weight or Gram weight above 0 at least, or nothing would be learnt"
    if config["lr_decay_begin"] >= config["lr_decay_end"]:
        yield "lr_decay_begin", f"less than lr_decay_end, {config['lr_decay_end']}"
    if config["eval_freq"] and size < MIN_EVAL_SIZE:
        yield "eval_freq", f"0 for spatial_size {size}, as SSIM needs pictures of {MIN_EVAL_SIZE} pixels"
    if config["n_filters"] > config["max_filters"]:
        yield "n_filters", f"at most max_filters, {config['max_filters']}"

    # Two latent scales, the coarsest of part crops and stick figure alike.
    max_bottleneck = size.bit_length() - 2
    bottleneck, box_factor = config["bottleneck_factor"], config["box_factor"]
    if bottleneck > max_bottleneck:
        yield "bottleneck_factor", f"at most {max_bottleneck} for spatial_size {size}"
    max_box_factor = max_bottleneck - bottleneck
    sizes = f"spatial_size {size} and bottleneck_factor {bottleneck}"
    if box_factor > max_box_factor:
        yield "box_factor", f"at most {max_box_factor} for {sizes}"
    crop_filters = config["n_filters"] * 2**min(box_factor, max_box_factor)
    if box_factor == max_box_factor and crop_filters > config["max_filters"]:
        # The crops' first scale, which max_filters does not bound, would be a latent scale of more channels than the
        # stick figure's there.
        yield "box_factor", f"at most {max_box_factor - 1} for {sizes}, or max_filters of {crop_filters}"


def dump_config(config):
    """The config as YAML text that load_config reads back."""
    return yaml.safe_dump(config, sort_keys=False, default_flow_style=None)


class _Loader(yaml.SafeLoader):
    """YAML 1.2's reading of numbers like 1e-3; no key twice; no merging of mappings, which a short file can use to
    fill the memory.
    """

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            key = key_node.value if isinstance(key_node, yaml.ScalarNode) else id(key_node)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key} stands there twice",
                                                        key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {k: [(tag, regexp) for tag, regexp in v if tag != "tag:yaml.org,2002:merge"]
                                   for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789"))
