"""Checkpoints: finding them, checking that they fit before anything is restored, saving and restoring.

Names and shapes are those of the published code, so its checkpoints load; tensors nobody asks for are ignored.
"""
import os
import re

import tensorflow.compat.v1 as tf

from common.errors import UserError, reason, shown

KEPT = 5
# What TensorFlow's readers raise on damaged files, differently by version.
_READ_ERRORS = (tf.errors.OpError, ValueError, RuntimeError, IndexError)


def find_checkpoint(path):
    """The checkpoint prefix that `path` means: a prefix, or the newest in a `checkpoints` folder or a run folder.

    Raises UserError where there is none.
    """
    prefix = re.sub(r"\.(index|meta|data-\d+-of-\d+)$", "", path)
    if os.path.isfile(prefix + ".index"):
        return prefix
    if not os.path.isdir(path):
        raise UserError(f"--checkpoint: there is no checkpoint {path}; expected a prefix such as "
                        "RUN/checkpoints/model.ckpt-1000, a folder of checkpoints, a run folder or a network file")
    for folder in (path, os.path.join(path, "checkpoints")):
        try:
            names = os.listdir(folder) if os.path.isdir(folder) else []
        except OSError as error:
            raise UserError(f"--checkpoint: {folder}: cannot be read: {error.strerror}")
        found = [re.fullmatch(r"model\.ckpt-(\d+)\.index", name) for name in names]
        steps = [int(match.group(1)) for match in found if match]
        if steps:
            return os.path.join(folder, f"model.ckpt-{max(steps)}")
    raise UserError(f"--checkpoint: there is no checkpoint in the folder {path}; expected model.ckpt-<step>.index in "
                    "it or in its folder checkpoints")


class Checkpoint:
    """A checkpoint to read. name: what messages call it, by default its prefix.

    Raises UserError where the files are damaged.
    """

    def __init__(self, prefix, name=None):
        self.prefix, self.name = prefix, name or prefix
        try:
            self._reader = tf.train.NewCheckpointReader(prefix)
            self.shapes = self._reader.get_variable_to_shape_map()
        except _READ_ERRORS as error:
            raise self.unreadable(error)

    def step(self):
        """The number of training steps behind the checkpoint."""
        if "global_step" not in self.shapes:
            raise UserError(f"{self.name}: has no global_step; expected a checkpoint of training")
        try:
            step = self._reader.get_tensor("global_step")
        except _READ_ERRORS as error:
            raise self.unreadable(error)
        if step.shape or step.dtype.kind not in "iu" or not 0 <= step < 2**31:
            raise UserError(f"{self.name}: global_step: expected a whole number, found {shown(step)}")
        return int(step)

    def has_moments(self):
        """Whether a training can go on from it; a network file holds no moments of Adam."""
        return any(name.endswith("/Adam") for name in self.shapes)

    def check_fits(self, variables):
        """Raises UserError, naming the first variable that the checkpoint lacks or holds in another shape."""
        for variable in variables:
            name, shape = variable.op.name, variable.shape.as_list()
            if name not in self.shapes:
                raise UserError(f"{self.name}: is of another config: it has no variable {name}; expected one of "
                                f"shape {shape}")
            if self.shapes[name] != shape:
                raise UserError(f"{self.name}: is of another config: variable {name} has shape {self.shapes[name]} "
                                f"there; expected {shape}")

    def unreadable(self, error):
        """The UserError that says why the checkpoint cannot be read."""
        return UserError(f"{self.name}: cannot be read as a checkpoint: {reason(error)}")


class CheckpointSaver:
    """Saves variables as <folder>/model.ckpt-<step> and keeps the newest few."""

    def __init__(self, variables):
        self._variables = variables
        self._saver = tf.train.Saver(variables, max_to_keep=KEPT)

    def restore(self, session, checkpoint):
        """Puts the values of a Checkpoint into the session. Raises UserError where it does not fit."""
        checkpoint.check_fits(self._variables)
        try:
            self._saver.restore(session, checkpoint.prefix)
        except _READ_ERRORS as error:
            raise checkpoint.unreadable(error)

    def save(self, session, folder, step):
        """Writes a checkpoint unless it is there, and returns its prefix.

        TensorFlow writes aside and renames, so a failure leaves the earlier checkpoints whole. Raises UserError.
        """
        prefix = os.path.join(folder, f"model.ckpt-{step}")
        if os.path.isfile(prefix + ".index"):
            return prefix
        try:
            return self._saver.save(session, os.path.join(folder, "model.ckpt"), global_step=step)
        except (tf.errors.OpError, OSError, ValueError) as error:
            raise UserError(f"cannot write the checkpoint {prefix}: {reason(error)}")
