"""Checkpoints: finding them, checking that they fit before anything is restored, saving and restoring.

Names and shapes are those of the published code, so its checkpoints load; tensors nobody asks for are ignored.
"""
import collections
import glob
import json
import os
import re
import shutil

import tensorflow.compat.v1 as tf

from common.errors import UserError, reason, shown
from common.files import read_json

KEPT = 5
BEST = "best.json"  # in a folder of checkpoints
MAX_BEST = 10000  # bytes of it
# What TensorFlow's readers raise on damaged files, differently by version.
_READ_ERRORS = (tf.errors.OpError, ValueError, RuntimeError, IndexError)


def find_checkpoint(path, best=False):
    """The checkpoint prefix that `path` means: a prefix, or the newest in a `checkpoints` folder or a run folder.

    best: of a folder, the one with the best score instead. Raises UserError where there is none.
    """
    prefix = re.sub(r"\.(index|meta|data-\d+-of-\d+)$", "", path)
    if os.path.isfile(prefix + ".index"):
        if best:
            raise UserError(f"--best: expected --checkpoint to name a run folder, found one checkpoint, {path}")
        return prefix
    if not os.path.isdir(path):
        raise UserError(f"--checkpoint: there is no checkpoint {path}; expected a prefix such as "
                        "RUN/checkpoints/model.ckpt-1000, a folder of checkpoints, a run folder or a network file")
    for folder in (path, os.path.join(path, "checkpoints")):
        found = checkpoints_in(folder, "best" if best else "model.ckpt")
        if found:
            return found[max(found)]
    if best:
        raise UserError(f"--best: there is no best checkpoint in the folder {path}; a training keeps one if eval_freq "
                        "is above 0")
    raise UserError(f"--checkpoint: there is no checkpoint in the folder {path}; expected model.ckpt-<step>.index in "
                    "it or in its folder checkpoints")


def checkpoints_in(folder, stem="model.ckpt"):
    """{step: prefix} of the checkpoints <stem>-<step> in a folder, or of none where there is no folder.

    Raises UserError.
    """
    try:
        names = os.listdir(folder) if os.path.isdir(folder) else []
    except OSError as error:
        raise UserError(f"--checkpoint: {folder}: cannot be read: {error.strerror}")
    found = [re.fullmatch(re.escape(stem) + r"-(\d+)\.index", name) for name in names]
    return {int(match.group(1)): os.path.join(folder, match.group(0)[:-len(".index")]) for match in found if match}


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

    def save_aside(self, session, folder, stem, step):
        """Writes a checkpoint <folder>/<stem>-<step> that does not count among the newest few. Raises UserError."""
        prefix = os.path.join(folder, f"{stem}-{step}")
        try:
            self._saver.save(session, prefix, write_meta_graph=False, write_state=False)
        except (tf.errors.OpError, OSError, ValueError) as error:
            raise UserError(f"cannot write the checkpoint {prefix}: {reason(error)}")


class BestCheckpoint:
    """Keeps the checkpoint of the highest score as <folder>/best-<step>; best.json beside it says the score.

    saver: a CheckpointSaver. conditions: what scores must have in common to compare, a dict for JSON. step, score: of
    the best so far, or None.
    """

    def __init__(self, saver, session, folder, conditions):
        self._saver, self._session, self._folder, self._conditions = saver, session, folder, conditions
        self.step = self.score = None

    def carry_on(self, earlier, first_step):
        """Copies an earlier run's best checkpoint, an EarlierBest or None, if it is from first_step or before.

        Raises UserError.
        """
        if earlier is None or earlier.step > first_step or earlier.conditions != self._conditions:
            return
        try:
            for file in earlier.files:
                shutil.copyfile(file, os.path.join(self._folder, os.path.basename(file)))
        except OSError as error:
            raise UserError(f"cannot copy the checkpoint {earlier.files[0]}: {reason(error)}")
        self._note(earlier.step, earlier.score)

    def offer(self, step, score):
        """Saves the session's variables if every score so far was lower. Raises UserError."""
        if self.score is not None and score <= self.score:
            return
        self._saver.save_aside(self._session, self._folder, "best", step)
        self._note(step, score)

    def _note(self, step, score):
        """Says whose score is the best, then removes the one before: what a killed run leaves is always whole."""
        self.step, self.score = step, score
        path = os.path.join(self._folder, BEST)
        try:
            with open(path + ".part", "w", encoding="utf-8") as file:
                json.dump({"step": step, "score": score, "conditions": self._conditions}, file, indent=2)
            os.replace(path + ".part", path)
            for file in glob.glob(glob.escape(os.path.join(self._folder, "best-")) + "*"):
                if not os.path.basename(file).startswith(f"best-{step}."):
                    os.remove(file)
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {reason(error)}")


EarlierBest = collections.namedtuple("EarlierBest", "step score conditions files")


def read_best(checkpoint):
    """The EarlierBest that lies beside a Checkpoint, or None. Raises UserError where its best.json is damaged."""
    folder = os.path.dirname(checkpoint.prefix)
    path = os.path.join(folder, BEST)
    if not os.path.isfile(path):
        return None
    best = read_json(path, max_bytes=MAX_BEST)
    is_whole = isinstance(best, dict) and isinstance(best.get("step"), int) and isinstance(best.get("score"), float)
    if not is_whole:
        raise UserError(f"{path}: expected a step and a score, found {shown(best)}")
    files = glob.glob(glob.escape(os.path.join(folder, f"best-{best['step']}")) + ".*")
    return EarlierBest(best["step"], best["score"], best.get("conditions"), files) if files else None
