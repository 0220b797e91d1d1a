"""Draws the curves of runs, of training and validation, as one PNG.

    python tools/plot_run.py log/2018-06-18T12-00-00 log/2018-06-19T12-00-00 --out curves.png
"""
import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from common.errors import Parser, run
from training.curves import name_runs, read_curves, save_curves


def main(argv=None):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders")
    parser.add_argument("--out", default="curves.png", metavar="FILE", help="the picture to write (curves.png)")
    options = parser.parse_args(argv)
    save_curves({name: read_curves(folder) for name, folder in name_runs(options.runs).items()}, options.out)
    print(f"the curves are in {options.out}")


if __name__ == "__main__":
    sys.exit(run(main))
