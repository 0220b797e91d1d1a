"""Builds a data set, index.p and images/, from public annotations, from your own photos, or from photos and edges.

    python tools/make_index.py coco --annotations person_keypoints_train2017.json \\
        --test-annotations person_keypoints_val2017.json --images train2017 val2017 --out data/coco
    python tools/make_index.py openpose --annotations market-annotation-train.csv \\
        --test-annotations market-annotation-test.csv --images Market-1501 --out data/market
    python tools/make_index.py photos PHOTOS --out data/mine
    python tools/make_index.py pairs --images edges2shoes/train --test edges2shoes/val --photo right --out data/shoes
    python tools/make_index.py edges --images BAGS --out data/bags

The data set appears once it is whole. A run that was stopped is simply started again. docs/data.md says more.
"""
import argparse
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from common.errors import Parser, run, shown, whole_number
from dataset import coco, openpose, pairs, photos
from dataset.builder import IndexBuilder

# The joints of a source's people, and what adds them; None: it has shape images instead.
SOURCES = {"coco": (coco.JOINTS, coco.add_people), "openpose": (openpose.JOINTS, openpose.add_people),
           "photos": (photos.JOINTS, photos.add_people), "pairs": (None, pairs.add_pairs),
           "edges": (None, pairs.add_edges)}


def main(argv=None):
    """Builds one data set."""
    options = parse_options(argv)
    joints, add = SOURCES[options.source]
    with IndexBuilder(options.out, joints, options.overwrite) as builder:
        further_keys = add(builder, options)
        builder.finish(options.test, **further_keys)


def parse_options(argv):
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sources = parser.add_subparsers(dest="source", required=True, metavar=" | ".join(SOURCES))

    options = add_source(sources, "coco", "people of COCO's person keypoints, as a square crop each")
    options.add_argument("--annotations", required=True, metavar="JSON", help="person_keypoints_train2017.json")
    options.add_argument("--test-annotations", metavar="JSON",
                         help="person_keypoints_val2017.json; without it, a share of the photos is kept for tests")
    options.add_argument("--images", required=True, nargs="+", metavar="DIR", help="where the photos are")
    options.add_argument("--min-size", type=whole_number(10000), default=80, metavar="PIXELS",
                         help="leave out people whose longer side in the photo is shorter (80)")
    options.add_argument("--keep-hidden", action="store_true", help="let joints that are labelled as hidden count")
    add_crop_options(options)

    options = add_source(sources, "openpose", "Market-1501 and DeepFashion with their published annotation CSVs")
    options.add_argument("--annotations", required=True, metavar="CSV", help="such as market-annotation-train.csv")
    options.add_argument("--test-annotations", required=True, metavar="CSV")
    options.add_argument("--images", required=True, metavar="DIR", help="a folder with the images, in it or below")
    options.add_argument("--pairs", metavar="CSV", help="pairs of images to keep in the index, for evaluation")
    options.set_defaults(test=0.0)

    options = add_source(sources, "photos", "your own photos, one person of each; joints are estimated")
    options.add_argument("photos", metavar="DIR", help="folder of photos")
    options.add_argument("--person", type=whole_number(1000), metavar="N",
                         help="of several people in a photo the one that is number N from the left; otherwise the one "
                              "with the largest torso is taken")
    add_crop_options(options)

    options = add_source(sources, "pairs", "pictures that show a photo and its shape side by side, as pix2pix has them")
    add_folders(options)
    options.add_argument("--photo", required=True, choices=("left", "right"), help="which half is the photo")

    options = add_source(sources, "edges", "photos, with their edges as shapes")
    add_folders(options)
    options.add_argument("--size", type=whole_number(10000), default=256, metavar="PIXELS",
                         help="longer side of the photos where edges are looked for (256)")
    return parser.parse_args(argv)


def add_source(sources, name, text):
    """The parser of a source's options, with those that all sources have."""
    options = sources.add_parser(name, help=text, description=text)
    options.add_argument("--out", required=True, metavar="DIR", help="a new folder for index.p and images/")
    options.add_argument("--overwrite", action="store_true", help="replace a data set of this tool in --out")
    return options


def add_folders(options):
    options.add_argument("--images", required=True, metavar="DIR", help="a folder with the images, in it or below")
    options.add_argument("--test", dest="test_images", metavar="DIR",
                         help="images for tests; without it, a tenth of the others is kept for them")
    options.set_defaults(test=0.1)


def add_crop_options(options):
    options.add_argument("--size", type=whole_number(10000), default=256, metavar="PIXELS",
                         help="side of the crops (256)")
    options.add_argument("--test", type=share, default=0.1, metavar="SHARE",
                         help="share of the photos for tests, if the annotations do not say (0.1)")


def share(text):
    """The type of an option that takes a number between 0 and 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, found {shown(text)}")
    return value


if __name__ == "__main__":
    sys.exit(run(main))
