"""Compares two folders of pictures of equal names, whoever made them.

    python tools/score.py REAL MADE
    python tools/score.py RUN/real RUN/reconstruction --joints
    python tools/score.py REAL MADE --fid --json

Names pair by the part before the extension. docs/evaluation.md explains the figures.
"""
import argparse
import collections
import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import numpy as np

from common.console import progress_bar, quiet_stderr

with quiet_stderr():
    import tensorflow.compat.v1 as tf

from common.errors import Parser, UserError, run, shown
from common.machine import set_up_tensorflow
from dataset.index import read_image
from dataset.photos import EXTENSIONS
from dataset.poses import Estimator
from inference.inception import Inception
from inference.metrics import (
    FLAT_WINDOW,
    PROTOCOLS,
    SPLITS,
    SSIM_WINDOW,
    frechet_distance,
    inception_score,
    similarities,
    ssim_flat51,
)
from inference.tables import JointFinder


def main(argv=None):
    """Prints the figures of two folders."""
    options = parse_options(argv)
    set_up_tensorflow()
    pairs = pair_files(options.real, options.made)
    results = {"n": len(pairs), "real": options.real, "made": options.made}
    results.update(compare(pairs, options))
    if options.json:
        print(json.dumps(dict(results, protocols={name: PROTOCOLS[name] for name in results if name in PROTOCOLS})))
        return
    for name, value in results.items():
        print(f"{name:16} {as_text(value)}")


def parse_options(argv):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("real", metavar="REAL", help="folder of real pictures")
    parser.add_argument("made", metavar="MADE", help="folder of made pictures of the same names and sizes")
    parser.add_argument("--joints", action="store_true", help="find joints in both, by MediaPipe, and compare them")
    parser.add_argument("--fid", action="store_true", help="Frechet Inception distance, and Inception Score of MADE")
    parser.add_argument("--inception", metavar="FILE",
                        help="--fid: inception-2015-12-05.tgz, which is downloaded otherwise")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser.parse_args(argv)


def pair_files(real, made):
    """[(path, path)] of the pictures of two folders. Raises UserError for those that do not pair."""
    found = []
    for folder in (real, made):
        if not os.path.isdir(folder):
            raise UserError(f"{shown(folder, 1000)}: there is no such folder")
        names = [name for name in sorted(os.listdir(folder)) if name.lower().endswith(EXTENSIONS)]
        found.append({os.path.splitext(name)[0]: os.path.join(folder, name) for name in names})
        if len(found[-1]) < len(names):
            twice, _ = collections.Counter(os.path.splitext(name)[0] for name in names).most_common(1)[0]
            raise UserError(f"{shown(folder, 1000)}: expected one picture of each name, found several called "
                            f"{shown(twice)}")
    alone = sorted(set(found[0]) ^ set(found[1]))
    if alone or not found[0]:
        what = f"{len(alone)} pictures without partner, such as {shown(alone[0])}" if alone else "no pictures"
        raise UserError(f"{shown(real, 500)} and {shown(made, 500)}: expected pictures of equal names, found {what}")
    return [(path, found[1][name]) for name, path in found[0].items()]


def compare(pairs, options):
    """{metric: figure} of pairs of paths."""
    if options.fid and len(pairs) < SPLITS:
        raise UserError(f"--fid: expected at least {SPLITS} pictures in each folder, found {len(pairs)}")
    inception = Inception(options.inception) if options.fid else None
    values, features, logits = {}, ([], []), []
    with Estimator() as estimator, tf.Graph().as_default(), tf.Session() as session:
        width, height = read_image(pairs[0][0]).size
        joints = JointFinder(estimator, width / height) if options.joints else None
        if joints and joints.why_not:
            raise UserError(f"--joints: {joints.why_not}")
        compare_two = Similarities(session)
        for paths in progress_bar(pairs, unit="pair"):
            real, made = (np.asarray(read_image(path)) for path in paths)
            if real.shape != made.shape:
                raise UserError(f"{shown(paths[1], 1000)}: expected {real.shape[1]} x {real.shape[0]} pixels, as in "
                                f"{shown(paths[0], 1000)}, found {made.shape[1]} x {made.shape[0]}")
            for name, value in compare_two(real, made).items():
                values.setdefault(name, []).append(value)
            if joints:
                joints.note(real, [("joints", made)])
            if inception:
                for of_folder, picture in zip(features, (real, made)):
                    found, scores = inception(picture[np.newaxis])
                    of_folder.append(found[0])
                logits.append(scores[0])
    results = {name: {"mean": float(np.mean(found)), "std": float(np.std(found)), "n": len(found)}
               for name, found in values.items()}
    if joints:
        results.update(joints.figures())
    if inception:
        results["fid"] = frechet_distance(*[np.stack(of_folder) for of_folder in features])
        results["inception_score"] = dict(zip(("mean", "std"), inception_score(np.stack(logits))))
    return results


class Similarities:
    """compare_two(real, made): {metric: figure} of two pictures (h, w, 3) uint8; those that small pictures allow."""

    def __init__(self, session):
        self._session = session
        self._pictures = [tf.placeholder(tf.uint8, (None, None, 3)) for _ in range(2)]
        real, made = (tf.cast(picture, tf.float32) for picture in self._pictures)
        self._metrics = similarities(real, made)

    def __call__(self, real, made):
        side = min(real.shape[:2])
        fetches = {name: tensor for name, tensor in self._metrics.items() if name != "ssim" or side >= SSIM_WINDOW}
        figures = self._session.run(fetches, dict(zip(self._pictures, (real, made))))
        if side >= FLAT_WINDOW:
            figures["ssim_flat51"] = ssim_flat51(real[np.newaxis], made[np.newaxis])[0]
        return figures


def as_text(value):
    """A figure as it is printed."""
    if not isinstance(value, dict):
        return f"{value:.4f}" if isinstance(value, float) else str(value)
    if "mean" in value:
        return f"{value['mean']:.4f} +- {value['std']:.4f}" + (f" ({value['n']})" if "n" in value else "")
    return ", ".join(f"{name} {found if found is None else round(found, 4)}" for name, found in value.items())


if __name__ == "__main__":
    sys.exit(run(main))
