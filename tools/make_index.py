"""Builds a data set, index.p and images/, from public annotations or from one's own photos.

    python tools/make_index.py coco --annotations person_keypoints_train2017.json \\
        --test-annotations person_keypoints_val2017.json --images train2017 val2017 --out data/coco
    python tools/make_index.py openpose --annotations market-annotation-train.csv \\
        --test-annotations market-annotation-test.csv --images Market-1501 --out data/market
    python tools/make_index.py photos PHOTOS --out data/mine

The data set appears when it is whole; a run that was stopped is started again. README, "Your own data".
"""
import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from common.errors import Parser, run, whole_number
from dataset import coco, openpose, photos
from dataset.builder import IndexBuilder

SOURCES = {"coco": coco, "openpose": openpose, "photos": photos}


def main(argv=None):
    """Builds one data set."""
    options = parse_options(argv)
    source = SOURCES[options.source]
    with IndexBuilder(options.out, source.JOINTS, options.overwrite) as builder:
        builder.finish(options.test, **(source.add_people(builder, options) or {}))


def parse_options(argv):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sources = parser.add_subparsers(dest="source", metavar="coco | openpose | photos")
    sources.required = True  # an argument of add_subparsers only from Python 3.7 on, and not honoured there

    coco_options = add_source(sources, "coco", "people of COCO's person keypoints, a square crop each")
    coco_options.add_argument("--annotations", required=True, metavar="JSON", help="person_keypoints_train2017.json")
    coco_options.add_argument("--test-annotations", metavar="JSON", help="person_keypoints_val2017.json; without, a share "
                              "of the photos is kept for tests")
    coco_options.add_argument("--images", required=True, nargs="+", metavar="DIR", help="where the photos are")
    coco_options.add_argument("--min-size", type=whole_number(10000), default=80, metavar="PIXELS",
                              help="leave out people whose longer side in the photo is smaller (80)")
    coco_options.add_argument("--keep-hidden", action="store_true",
                              help="joints that are labelled but hidden count as visible")
    openpose_options = add_source(sources, "openpose", "Market-1501 and DeepFashion with the field's annotation CSVs")
    openpose_options.add_argument("--annotations", required=True, metavar="CSV", help="market-annotation-train.csv, say")
    openpose_options.add_argument("--test-annotations", required=True, metavar="CSV")
    openpose_options.add_argument("--images", required=True, metavar="DIR", help="where the images are, there or below")
    openpose_options.add_argument("--pairs", metavar="CSV", help="pairs of images to keep in the index, for evaluation")
    photos_options = add_source(sources, "photos", "your own photos, one person each; joints are estimated")
    photos_options.add_argument("photos", metavar="DIR", help="folder of photos")

    for options in (coco_options, photos_options):
        options.add_argument("--size", type=whole_number(10000), default=256, metavar="PIXELS", help="side of the crops (256)")
        options.add_argument("--test", type=share, default=0.1, metavar="SHARE",
                             help="share of the photos for tests, where annotations do not say (0.1)")
    openpose_options.set_defaults(test=0.0)
    return parser.parse_args(argv)


def add_source(sources, name, text):
    options = sources.add_parser(name, help=text, description=text)
    options.add_argument("--out", required=True, metavar="DIR", help="a new folder for index.p and images/")
    options.add_argument("--overwrite", action="store_true", help="replace a data set that this tool made in --out")
    return options


def share(text):
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, found {text}")
    return value


if __name__ == "__main__":
    sys.exit(run(main))
