"""The run folder: log, config, sources, TensorBoard events, pictures; and the grids that pictures are tiled into."""
import glob
import io
import os
import re
import shutil
import socket
import time

import numpy as np
import tensorflow.compat.v1 as tf
from PIL import Image

from common.console import print_beside_bars
from common.errors import UserError, discard_output, reason
from common.names import numbered
from training.config import dump_config

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# The folders that a run keeps a copy of.
SOURCES = ("", "ablations", "common", "dataset", "training", "inference", os.path.join("inference", "page"), "tools")


class Run:
    """A new folder <log_dir>/<date>T<time> for what one command leaves behind; log.txt says how the command ended.

    with Run("log", config) as run:
        run.say("training")

    silent: whether `say` only logs.

    Raises UserError, here and in every method, where the disk does not let it write.
    """

    def __init__(self, log_dir, config, silent=False):
        self._silent = silent
        self.folder = _make_folder(log_dir)
        try:
            self.checkpoints = os.path.join(self.folder, "checkpoints")
            self._log = open(os.path.join(self.folder, "log.txt"), "w", encoding="utf-8")
            with open(os.path.join(self.folder, "config.yaml"), "w", encoding="utf-8") as file:
                file.write(dump_config(config))
            _copy_sources(os.path.join(self.folder, "source"))
            self._events = _EventWriter(self.folder)
        except (OSError, tf.errors.OpError) as error:
            raise self._cannot_write(error)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        try:
            if error is not None:
                self.log(how_it_ended(error))
            self._log.close()
            self._events.close()
        except (UserError, OSError, tf.errors.OpError):
            if error is None:
                raise  # else what went wrong before matters more

    def log(self, line):
        """Adds a line to log.txt."""
        try:
            self._log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
            self._log.flush()
        except OSError as error:
            raise self._cannot_write(error)

    def say(self, line):
        """Adds a line to log.txt and prints it."""
        self.log(line)
        if self._silent:
            return
        try:
            print_beside_bars(line)
        except BrokenPipeError:  # nobody reads on; the log has it
            discard_output()

    def scalars(self, step, values):
        """Scalars by name, into log.txt and TensorBoard's events."""
        for name in sorted(values):
            self.log(f"{name}: {values[name]}")
        self._add_summary([tf.Summary.Value(tag=grouped(name), simple_value=value)
                           for name, value in values.items()], step)

    def histogram(self, name, values, step):
        """The distribution of an array's values, those that are finite, in TensorBoard."""
        values = values[np.isfinite(values)].astype(np.float64)
        if not len(values):
            return
        counts, edges = np.histogram(values, bins=50)
        histogram = tf.HistogramProto(min=values.min(), max=values.max(), num=values.size, sum=values.sum(),
                                      sum_squares=(values**2).sum(), bucket_limit=edges[1:], bucket=counts)
        self._add_summary([tf.Summary.Value(tag=grouped(name), histo=histogram)], step)

    def picture(self, name, pixels, step=None):
        """Saves pixels (h, w, 3) uint8 as <name>.png or, with a step, as <name>_<step>.png and in TensorBoard.

        A name may say in which folder of the run.
        """
        png = io.BytesIO()
        Image.fromarray(pixels).save(png, "PNG")
        self.write(f"{name}.png" if step is None else f"{name}_{step:07}.png", png.getvalue())
        if step is not None:
            image = tf.Summary.Image(height=pixels.shape[0], width=pixels.shape[1], colorspace=3,
                                     encoded_image_string=png.getvalue())
            self._add_summary([tf.Summary.Value(tag=name, image=image)], step)

    def write(self, name, content):
        """Saves bytes as a file of the run."""
        try:
            with open(self.path(name), "wb") as file:
                file.write(content)
        except OSError as error:
            raise self._cannot_write(error)

    def path(self, name):
        """Path of a file of the run, in a folder that is there."""
        path = os.path.join(self.folder, name)
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        except OSError as error:
            raise self._cannot_write(error)
        return path

    def _add_summary(self, values, step):
        try:
            self._events.write(tf.Event(wall_time=time.time(), step=step, summary=tf.Summary(value=values)))
        except tf.errors.OpError as error:
            raise self._cannot_write(error)

    def _cannot_write(self, error):
        return UserError(f"{self.folder}: cannot write: {reason(error)}")


class _EventWriter:
    """TensorBoard's event file. tf.summary.FileWriter writes in a thread, where a full disk ends in a traceback."""

    def __init__(self, folder):
        name = f"events.out.tfevents.{int(time.time()):010}.{socket.gethostname()}"
        self._records = tf.python_io.TFRecordWriter(os.path.join(folder, name))
        self.write(tf.Event(wall_time=time.time(), file_version="brain.Event:2"))

    def write(self, event):
        self._records.write(event.SerializeToString())
        self._records.flush()

    def close(self):
        self._records.close()


def how_it_ended(error):
    """The line of log.txt for the exception that ended a command."""
    if isinstance(error, (KeyboardInterrupt, SystemExit)):
        return "interrupted"
    return f"ended by an error: {reason(error)}"


def grouped(name):
    """The tag under which TensorBoard shows a scalar beside its like: vgg_loss/vgg_loss_3_valid."""
    group = re.sub(r"(_\d+)?(_valid|_reconstruction|_transfer)?$", "", name)
    return f"{group}/{name}"


def _make_folder(log_dir):
    """A new folder with the time in its name. Raises UserError."""
    for name in numbered(time.strftime("%Y-%m-%dT%H-%M-%S"), "-"):  # runs may start in one second
        folder = os.path.join(log_dir, name)
        try:
            os.makedirs(os.path.join(folder, "checkpoints"))
            return folder
        except FileExistsError:
            if not os.path.isdir(folder):
                raise UserError(f"--log_dir: cannot make a folder in {log_dir}: it is no folder")
        except OSError as error:
            raise UserError(f"--log_dir: cannot make the folder {folder}: {error.strerror}")


def _copy_sources(target):
    for folder in SOURCES:
        for extension in ("py", "yaml", "md", "html", "css", "js"):
            for path in glob.glob(os.path.join(glob.escape(ROOT), folder, f"*.{extension}")):
                copy = os.path.join(target, os.path.relpath(path, ROOT))
                os.makedirs(os.path.dirname(copy), exist_ok=True)
                shutil.copyfile(path, copy)


def to_uint8(pictures):
    """Pictures in [-1, 1] as uint8, rounded; what lies outside is clipped, nan becomes grey."""
    return np.round((np.clip(np.where(np.isnan(pictures), 0, pictures), -1, 1) + 1) * 127.5).astype(np.uint8)


def tile(pictures, columns=None):
    """Pictures (N, h, w, 3) uint8 as one (rows h, columns w, 3), row by row; square unless columns are given."""
    n, h, w, _ = pictures.shape
    columns = columns or int(np.ceil(np.sqrt(n)))
    rows = -(-n // columns)
    canvas = np.zeros((rows * columns, h, w, 3), np.uint8)
    canvas[:n] = pictures
    return canvas.reshape(rows, columns, h, w, 3).transpose(0, 2, 1, 3, 4).reshape(rows * h, columns * w, 3)


def transfer_grid(sticks, appearances, cells):
    """The poses (m, h, w, 3) in the first row, the appearances (n, h, w, 3) in the first column, all uint8.

    cells (n, m, h, w, 3): cell (i, j) is appearance i in pose j.
    """
    corner = np.full_like(sticks[:1], 255)
    rows = [np.concatenate([corner, sticks])]
    rows += [np.concatenate([appearance[np.newaxis], row]) for appearance, row in zip(appearances, cells)]
    return tile(np.concatenate(rows), columns=len(sticks) + 1)
