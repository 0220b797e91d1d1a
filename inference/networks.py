"""Trained networks: where --checkpoint finds them, and the mode export, which puts one into a file.

A network file is a ZIP with config.yaml, network.json, README.md, samples.png and a SavedModel. The SavedModel's
variables are the only copy of the weights. This program reads them as a checkpoint and never runs a SavedModel, whose
graph could read and write files.
"""
import collections
import contextlib
import glob
import gzip
import hashlib
import io
import json
import os
import re
import tarfile
import tempfile
import zipfile

import numpy as np
import tensorflow.compat.v1 as tf
from PIL import Image

from batches import PARTS, make_loader, stick_figure
from common.downloads import download
from common.errors import UserError, reason, shown
from common.files import read_json
from common.machine import make_session
from dataset import bags, toy
from dataset.index import as_shape, open_index
from nn import Pass
from training.checkpoints import Checkpoint, CheckpointSaver, checkpoints_in, find_checkpoint
from training.config import dump_config, load_config
from training.graphs import make_network
from training.runs import tile, to_uint8

DETAILS = "network.json"  # in run folders and network files
VARIABLES = "saved_model/variables/variables"  # in a network file
MAX_BYTES = 2**32  # of an archive's files that are used
MAX_RATIO = 100  # of their size to the archive's
MAX_FILES = 100000
MAX_READ = 2**26  # bytes of an archive at a time
MAX_DETAILS = 100000
N_SAMPLES = 8
MIN_ASPECT, MAX_ASPECT = 0.05, 20.0


class Network(collections.namedtuple("Network", "name prefix folder")):
    """A trained network to read.

    name: as the user gave it. prefix: of its checkpoint. folder: where its config.yaml and network.json are, if it has
    any.
    """

    def config_path(self):
        """Path of its config. Raises UserError where it has none."""
        path = os.path.join(self.folder, "config.yaml")
        if not os.path.isfile(path):
            raise UserError(f"--config is needed: {self.name} is not in a run folder, which has a config.yaml")
        return os.path.relpath(path)

    def precision(self):
        """The precision of its own config; auto where it has none."""
        path = os.path.join(self.folder, "config.yaml")
        return load_config(path, {}, self.config_name())["precision"] if os.path.isfile(path) else "auto"

    def config_name(self):
        """What messages call its config."""
        in_archive = not os.path.exists(os.path.join(self.name, "config.yaml")) and self.name != self.prefix
        return f"{shown(self.name, 1000)}: config.yaml" if in_archive else None

    def checkpoint(self):
        """Its Checkpoint. Raises UserError."""
        return Checkpoint(self.prefix, self.name)

    def all_steps(self):
        """The Networks of all checkpoints of its run folder, the best one's too, by step. Raises UserError."""
        folder = os.path.dirname(self.prefix)
        prefixes = {**checkpoints_in(folder, "best"), **checkpoints_in(folder)}
        return [self._replace(name=prefixes[step], prefix=prefixes[step]) for step in sorted(prefixes)]

    def aspect(self, config):
        """Width / height of the pictures that it was trained on; of older runs as the index has them, or else 1."""
        path = os.path.join(self.folder, DETAILS)
        if os.path.isfile(path):
            return read_details(path, f"{self.name}: {DETAILS}")["aspect"]
        if os.path.isfile(config["data_index"]):
            return open_index(config).aspect()
        return 1.0

    def draws_lines(self):
        """Whether its shapes are line drawings, if they are pictures."""
        path = os.path.join(self.folder, DETAILS)
        return not os.path.isfile(path) or read_details(path, f"{self.name}: {DETAILS}").get("line_drawings", True)


def read_details(path, name):
    """The dict of a network.json. Raises UserError."""
    details = read_json(path, name, MAX_DETAILS)
    aspect = details.get("aspect") if isinstance(details, dict) else None
    is_number = isinstance(aspect, (int, float)) and not isinstance(aspect, bool)
    if not (is_number and MIN_ASPECT <= aspect <= MAX_ASPECT):
        raise UserError(f"{name}: aspect: expected a number from {MIN_ASPECT} to {MAX_ASPECT:g}, found {shown(aspect)}")
    lines = details.get("line_drawings", True)
    if not isinstance(lines, bool):
        raise UserError(f"{name}: line_drawings: expected true or false, found {shown(lines)}")
    return details


def details_of(index, config):
    """The bytes of a network.json."""
    details = {"aspect": round(index.aspect(), 4)}
    if config["shape"] == "picture":
        details["line_drawings"] = index.has_line_drawings()
    return json.dumps(details, indent=2).encode()


@contextlib.contextmanager
def open_network(name, best=False):
    """The Network of a checkpoint prefix, a folder of checkpoints, a run folder, a network file, or an http(s) URL.

    best: of a run's checkpoints, the one with the best score instead of the newest. Archives are unpacked into a folder
    that goes with the block. Raises UserError.
    """
    path = _fetch(name) if re.match(r"https?://", name) else name
    if not os.path.isfile(path) or re.search(r"\.(index|meta|data-\d+-of-\d+)$", path):
        prefix = find_checkpoint(path, best)
        yield Network(prefix, prefix, os.path.dirname(os.path.dirname(os.path.abspath(prefix))))
        return
    with tempfile.TemporaryDirectory(prefix="vunet-") as folder:
        yield Network(name, unpack(path, folder, name, best), folder)


def _fetch(name):
    """Path of a file from the network. name: its URL, with #sha256=... if the file is known."""
    url, _, fragment = name.partition("#")
    expected = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
    if fragment and not expected:
        raise UserError(f"--checkpoint: {shown(name, 1000)}: expected #sha256= and 64 hexadecimal digits")
    path = download(url, expected and f"sha256:{expected.group(1).lower()}")
    try:
        _open_archive(path).__exit__()
    except Exception as error:  # a page that asks for a password, say; not to be found in the cache again
        os.remove(path)
        raise UserError(f"{shown(url, 1000)}: {reason(error)}")
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(2**20), b""):
            digest.update(chunk)
    print(f"{url}: SHA-256 {digest.hexdigest()}, kept as {path}", flush=True)
    return path


# ---------------------------------------------------------------------------------------------- archives

def unpack(path, folder, name, best=False):
    """Copies what this program needs of an archive, perhaps a stranger's, into a folder; returns a checkpoint's prefix.

    Only a checkpoint, config.yaml and network.json leave it, under names of our own. Raises UserError.
    """
    try:
        with _open_archive(path) as archive:
            files = archive.files()
            prefix = _choose_prefix(files, best)
            levels = VARIABLES.count("/") + 1 if is_exported(prefix) else 2
            home = "".join(f"{folder}/" for folder in prefix.split("/")[:-levels])
            wanted = {file: f"checkpoints/network{file[len(prefix):]}" for file in files
                      if re.fullmatch(re.escape(prefix) + r"\.(index|data-\d{5}-of-\d{5})", file)}
            wanted.update({home + file: file for file in ("config.yaml", DETAILS) if home + file in files})
            _check_sizes({file: files[file] for file in wanted}, os.path.getsize(path))
            os.makedirs(os.path.join(folder, "checkpoints"))
            for file, target in wanted.items():
                _copy(archive, file, os.path.join(folder, target), files[file])
    except UserError as error:
        raise UserError(f"--checkpoint: {shown(name, 1000)}: {error}")
    except Exception as error:  # what libraries raise on damaged archives is many things
        raise UserError(f"--checkpoint: {shown(name, 1000)}: cannot be read: {reason(error)}")
    return os.path.join(folder, "checkpoints", "network")


def _open_archive(path):
    if zipfile.is_zipfile(path):
        return _Zip(path)
    with open(path, "rb") as file:
        start = file.read(512)
    if start[:2] == b"\x1f\x8b" or start[257:262] == b"ustar":
        return _Tar(path, is_compressed=start[:2] == b"\x1f\x8b")
    raise UserError("expected a checkpoint, a run folder, or a .zip or .tar.gz of one")


class _Zip:

    def __init__(self, path):
        self._zip = zipfile.ZipFile(path)

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self._zip.close()

    def files(self):
        """{name: size} of its files."""
        infos = self._zip.infolist()
        if len(infos) > MAX_FILES:
            raise UserError(f"expected at most {MAX_FILES} files, found {len(infos)}")
        return {info.filename: info.file_size for info in infos}

    def open(self, name):
        return self._zip.open(name)


class _Tar:

    def __init__(self, path, is_compressed):
        self._file = open(path, "rb")
        content = gzip.GzipFile(fileobj=self._file) if is_compressed else self._file
        self._tar = tarfile.open(fileobj=_Bounded(content), mode="r:")
        self._max_bytes = max(2**20, MAX_RATIO * os.path.getsize(path))

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        self._tar.close()
        self._file.close()

    def files(self):
        """{name: size} of its files; links are none."""
        self._members, total = {}, 0
        for i, member in enumerate(self._tar):
            total += member.size
            if i >= MAX_FILES or total > self._max_bytes:  # before a bomb is read on
                raise UserError(f"expected at most {MAX_FILES} files and {self._max_bytes} bytes in it, found more")
            if member.isreg():
                self._members[os.path.normpath(member.name)] = member
        return {name: member.size for name, member in self._members.items()}

    def open(self, name):
        return self._tar.extractfile(self._members[name])


class _Bounded:
    """A file whose reads are short, as tarfile reads headers of any length into the memory."""

    def __init__(self, file):
        self._file = file
        self.seek, self.tell, self.close = file.seek, file.tell, file.close

    def read(self, n=-1):
        if not 0 <= n <= MAX_READ:
            raise UserError(f"expected headers of at most {MAX_READ} bytes, found {n}")
        return self._file.read(n)


def _choose_prefix(files, best):
    """The prefix of the checkpoint among the names of files: a network file's, the newest of a run, or the only one.

    best: a run's best one.
    """
    prefixes = [file[:-len(".index")] for file in files
                if file.endswith(".index") and not file.startswith("__MACOSX/")]
    exported = [prefix for prefix in prefixes if is_exported(prefix)]
    if len(exported) == 1 and not best:
        return exported[0]
    stem = "best" if best else r"model\.ckpt"
    steps = {prefix: re.search(rf"(?:^|/){stem}-(\d{{1,12}})$", prefix) for prefix in prefixes}
    numbered = [prefix for prefix in prefixes if steps[prefix]]
    if numbered:
        return max(numbered, key=lambda prefix: int(steps[prefix].group(1)))
    if best:
        raise UserError("--best: there is no best checkpoint in it, best-<step>.index")
    if len(prefixes) != 1:
        raise UserError(f"expected one checkpoint in it, an .index file, found {len(prefixes)}")
    return prefixes[0]


def is_exported(prefix):
    """Whether a checkpoint's prefix in an archive is that of a network file."""
    return prefix == VARIABLES or prefix.endswith("/" + VARIABLES)


def _check_sizes(sizes, archive_size):
    total, most = sum(sizes.values()), min(MAX_BYTES, max(2**20, MAX_RATIO * archive_size))
    if total > most:
        raise UserError(f"expected a checkpoint of at most {most} bytes in it, found {total}")


def _copy(archive, name, path, size):
    """Copies one file of an archive, `size` bytes and no more."""
    with archive.open(name) as source, open(path, "wb") as target:
        left = size
        while left > 0:
            chunk = source.read(min(left, 2**20))
            if not chunk:
                raise UserError(f"{shown(name)}: expected {size} bytes, found {size - left}")
            target.write(chunk)
            left -= len(chunk)


# ---------------------------------------------------------------------------------------------- export

def export(options, config):
    """Writes the network as one file, options.out; nothing of the data set is in it."""
    if os.path.exists(options.out):
        raise UserError(f"--out: {options.out}: is there already; expected a new file")
    if not os.path.isdir(os.path.dirname(os.path.abspath(options.out))):
        raise UserError(f"--out: {options.out}: there is no such folder")
    metrics = _read_metrics(options.metrics) if options.metrics else None
    checkpoint, aspect = options.network.checkpoint(), options.network.aspect(config)
    part = options.out + ".part"
    try:
        with tempfile.TemporaryDirectory(prefix="vunet-") as folder:
            step, samples = _write_saved_model(config, checkpoint, os.path.join(folder, "saved_model"))
            details = {"aspect": round(aspect, 4), "step": step, "tensorflow": tf.__version__}
            if config["shape"] == "picture":
                details["line_drawings"] = options.network.draws_lines()
            contents = {"config.yaml": dump_config(without_paths(config)), DETAILS: json.dumps(details, indent=2),
                        "README.md": readme(config), "samples.png": samples}
            if metrics is not None:
                contents["metrics.json"] = metrics
            with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as archive:
                for name, content in contents.items():
                    archive.writestr(name, content)
                for name in sorted(glob.glob(os.path.join(folder, "saved_model", "**", "*.*"), recursive=True)):
                    archive.write(name, os.path.relpath(name, folder))
        os.replace(part, options.out)
    except (OSError, tf.errors.OpError) as error:
        raise UserError(f"--out: {options.out}: cannot be written: {reason(error)}")
    finally:
        with contextlib.suppress(OSError):
            os.remove(part)
    print(f"{options.out}: the network of step {step}, {os.path.getsize(options.out) / 2**20:.1f} MB")


def without_paths(config):
    """The config without what its paths say of the machine that it was trained on."""
    def shortened(path):
        is_outside = os.path.isabs(path) or os.path.normpath(path).startswith(os.pardir)
        return "/".join(path.split(os.sep)[-2:]) if is_outside else path
    return {key: shortened(value) if key in ("data_index", "vgg_weights") else value for key, value in config.items()}


def _read_metrics(path):
    """The figures of a metrics.json, as evaluate writes it, as JSON; no names of images. Raises UserError."""
    metrics = read_json(path, f"--metrics: {shown(path, 1000)}")
    if not isinstance(metrics, dict):
        raise UserError(f"--metrics: {shown(path, 1000)}: expected an object, as evaluate writes it")
    return json.dumps({key: value for key, value in metrics.items()
                       if key not in ("left_out", "config", "data_index", "checkpoint")}, indent=2)


def _write_saved_model(config, checkpoint, folder):
    """Writes a SavedModel; returns the step of the checkpoint, and samples from the prior as the bytes of a PNG."""
    net, seed = make_network(config), config["seed"]
    shapes, (appearance_name, shape_name) = make_loader(None, config).shapes(), input_names(config)
    with tf.Graph().as_default():
        appearance = tf.placeholder(tf.float32, (None,) + shapes.appearance, appearance_name)
        shape = tf.placeholder(tf.float32, (None,) + shapes.shape_image, shape_name)
        number = tf.placeholder_with_default(0, (), "number")
        means = net.posterior_means(Pass("encode", seed=seed), appearance)
        latents = [tf.placeholder(tf.float32, mean.shape, f"latent_{k}") for k, mean in enumerate(means)]
        picture = net.transfer(Pass("transfer", seed=seed, noise=0.0), shape, latents)
        samples = net.sample(Pass("sample", number, seed), shape)
        variables = tf.trainable_variables()
        step = tf.get_variable("global_step", (), tf.int32, trainable=False)
        saver = CheckpointSaver(variables)
        named = {f"latent_{k}": latent for k, latent in enumerate(latents)}
        signatures = {
            "render": _signature({**named, shape_name: shape}, {"picture": picture}),
            "sample": _signature({shape_name: shape, "number": number}, {"picture": samples})}
        if means:
            signatures["encode"] = _signature({appearance_name: appearance},
                                              {f"latent_{k}": mean for k, mean in enumerate(means)})
        with make_session(dict(config, precision="float32", xla=False)) as session:
            saver.restore(session, checkpoint)
            step.load(checkpoint.step() if "global_step" in checkpoint.shapes else 0, session)
            builder = tf.saved_model.Builder(folder)
            builder.add_meta_graph_and_variables(session, ["serve"], signatures, strip_default_attrs=True)
            builder.save()
            drawn = drawn_shapes(config)
            pictures = session.run(samples, {shape: drawn / 127.5 - 1})
            png = io.BytesIO()
            Image.fromarray(tile(np.concatenate([drawn, to_uint8(pictures)], axis=2))).save(png, "PNG")
            return int(session.run(step)), png.getvalue()


def input_names(config):
    """What the SavedModel calls the appearance and the shape."""
    return ("parts" if config["appearance"] == "parts" else "appearance",
            "stick" if config["shape"] == "joints" else "shape")


def drawn_shapes(config):
    """Shapes (N_SAMPLES, S, S, 3) uint8 of the toy's people or bags, which are nobody's."""
    size = config["spatial_size"]
    if config["shape"] == "joints":
        return np.stack([stick_figure(toy.index_joints(toy.make_pose(0, k)), size) for k in range(N_SAMPLES)])
    drawings = [bags.edges(bags.make_outline(0, k)) for k in range(N_SAMPLES)]
    return np.stack([as_shape(Image.fromarray(drawing).convert("RGB"), size, False) for drawing in drawings])


def _signature(inputs, outputs):
    return tf.saved_model.predict_signature_def(inputs, outputs)


def readme(config):
    """What a network file says of itself."""
    s = config["spatial_size"] // 2**config["box_factor"]
    appearance, shape = input_names(config)
    crops = (f"(N, {s}, {s}, {3 * len(PARTS)}): crops of body parts in [-1, 1], three channels each; 0 where a part is "
             f"missing. The parts, in this order: {', '.join(PARTS)}")
    shapes = {"joints": "stick figures in [-1, 1]; right limbs, left limbs and the torso are the three channels",
              "picture": "shape images in [-1, 1]; line drawings are white on black"}[config["shape"]]
    fields = dict(size=config["spatial_size"], shape=shape, shapes=shapes, tensorflow=tf.__version__)
    if config["appearance"] == "none":
        fields.update(encode="", latents="", what="- This network sees no appearance.\n",
                      code=f'picture = model.signatures["render"]({shape}={shape})["picture"]')
    else:
        what = crops if config["appearance"] == "parts" else f"(N, {s}, {s}, 3): whole pictures in [-1, 1]"
        fields.update(
            encode=f"| `encode` | `{appearance}` | `latent_0`, `latent_1`: the appearance |\n",
            latents="`latent_0`, `latent_1`; ", what=f"- `{appearance}` {what}.\n",
            code=f'latents = model.signatures["encode"]({appearance}={appearance})\n'
                 f'picture = model.signatures["render"]({shape}={shape}, **latents)["picture"]')
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "network_file.md"), encoding="utf-8") as file:
        return file.read().format(**fields)
