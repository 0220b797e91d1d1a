"""Draws a toy data set: index.p, images/ and, of bags, shapes/. The same command always gives the same bytes.

    python tools/make_toy.py                to data/toy
    python tools/make_toy.py --kind bags    to data/toy_bags
"""
import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from common.errors import Parser, UserError, run, shown
from dataset import bags, toy
from dataset.pickles import load_plain

# What draws a kind, what its items are, and where they go by default.
KINDS = {"people": (toy.make_data_set, "people", "data/toy"),
         "bags": (bags.make_data_set, "looks of bags and shoes", "data/toy_bags")}


def main(argv=None):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", default="people", choices=sorted(KINDS), help="what to draw (people)")
    parser.add_argument("--out", metavar="DIR", help="where they go (data/toy or data/toy_bags)")
    parser.add_argument("--train", type=int, default=1500, metavar="N", help="people or looks to train on (1500)")
    parser.add_argument("--test", type=int, default=100, metavar="N", help="held-out ones (100)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="another seed draws others (0)")
    options = parser.parse_args(argv)
    if min(options.train, options.test) < 1 or not 0 <= options.seed < 2**32:
        parser.error(f"--train and --test must be 1 or more, --seed from 0 to {2**32 - 1}")
    make_data_set, what, out = KINDS[options.kind]
    out = options.out or out
    start_over(out)
    try:
        index = make_data_set(out, options.train, options.test, options.seed)
    except OSError as error:
        raise UserError(f"--out: cannot write {error.filename or out}: {error.strerror}")
    print(f"{len(index['imgs'])} images of {options.train + options.test} {what}, {options.test} of them held out, "
          f"are in {out}")


def start_over(folder):
    """Removes the index of a toy data set, which would not fit new images. Raises UserError where it is no toy's."""
    path = os.path.join(folder, "index.p")
    if not os.path.isfile(path):
        return
    index = load_plain(path)
    if not (isinstance(index, dict) and "toy_seed" in index):
        raise UserError(f"--out: {shown(folder, 1000)}: expected a toy's folder or a new one, found another data set")
    try:
        os.remove(path)
    except OSError as error:
        raise UserError(f"--out: {shown(path, 1000)}: cannot be removed: {error.strerror}")


if __name__ == "__main__":
    sys.exit(run(main))
