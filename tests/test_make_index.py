"""Data sets from annotations in the formats of the field, which these tests write themselves."""
import json
import os
import pickle
import signal
import subprocess
import sys
import time

import cv2
import numpy as np
import pytest
from helpers import ROOT, STANDING, beside, exit_code, save_openpose, standing
from PIL import Image

from dataset import coco, openpose
from dataset.builder import IndexBuilder
from dataset.index import JOINTS, Index, is_grey, load_image
from tools import check_index, make_index
from tools.check_index import suspicions


def save(path, width, height, pixels=None):
    os.makedirs(os.path.dirname(str(path)), exist_ok=True)
    if pixels is None:
        pixels = np.random.RandomState(0).randint(0, 256, (height, width, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(str(path), quality=95)
    return path


def run(*options):
    return exit_code(make_index, *options)


def point(index, number, name):
    return index.joints[number, JOINTS.index(name)]


# ---------------------------------------------------------------------------------------------- COCO

def coco_person(number, photo, box, labels=2, **changes):
    """An annotation of somebody standing in box (x, y, width, height); `changes` by joint: (x, y, v)."""
    keypoints = []
    for name in coco.JOINTS:
        x, y = STANDING.get(name, (None, None))
        known = (0, 0, 0) if x is None else (round(box[0] + x * box[2]), round(box[1] + y * box[3]), labels)
        keypoints += changes.pop(name, known)
    return dict({"id": number, "image_id": photo, "bbox": list(box), "keypoints": keypoints, "num_keypoints": 15,
                 "iscrowd": 0, "category_id": 1}, **changes)


@pytest.fixture
def coco_files(tmp_path):
    """Writes photos of 300 x 200 and their annotations; returns the options of make_index."""
    def write(people, test_people=None, n_photos=3):
        options = ["coco", "--images", tmp_path / "photos", "--out", tmp_path / "out"]
        for name, given in (("annotations", people), ("test-annotations", test_people)):
            if given is not None:
                ids = range(n_photos) if name == "annotations" else range(n_photos, n_photos + 2)
                for i in ids:
                    save(tmp_path / "photos" / (f"{i}.jpg"), 300, 200)
                path = tmp_path / (name + ".json")
                path.write_text(json.dumps({"images": [{"id": i, "file_name": f"{i}.jpg"} for i in ids],
                                            "annotations": given}))
                options += ["--" + name, path]
        return options
    return write


def test_coco_people_get_a_crop_each_with_their_joints(coco_files, tmp_path, capsys):
    box = (100, 20, 80, 160)
    options = coco_files([coco_person(5, 0, box)], [coco_person(6, 3, box)])
    assert run(*options) == 0
    index = Index(str(tmp_path / "out" / "index.p"))
    assert index.images == ["images/0_5.jpg", "images/3_6.jpg"] and list(index.train) == [True, False]
    side = round(1.3 * 160)  # larger than the photo's height: above and below, the edges are replicated
    left, top = 140 - side / 2, -4
    expected = (np.array([100 + .3 * 80, 20 + .4 * 160]) - (left, top)) / side
    np.testing.assert_allclose(point(index, 0, "relbow"), expected, atol=0.006)
    image = load_image(index.image_path(0), 256)
    assert Image.open(index.image_path(0)).size == (256, 256)
    photo = np.asarray(Image.open(str(tmp_path / "photos" / "0.jpg")).convert("RGB")).astype(float)
    around = np.pad(photo, ((4, 4), (0, 0), (0, 0)), mode="edge")[:, int(left):int(left) + side]
    resized = np.asarray(Image.fromarray(around.astype(np.uint8)).resize((256, 256), Image.BILINEAR))
    assert np.abs(image.astype(float) - resized).mean() < 8
    out = capsys.readouterr().out
    assert "5 images seen, 2 people kept: 1 for training, 1 for tests" in out and "rear 0 %" in out


def test_coco_left_and_right_are_the_persons_own(coco_files, tmp_path):
    assert run(*coco_files([coco_person(5, 0, (100, 20, 80, 160)), coco_person(6, 1, (10, 20, 80, 160))])) == 0
    index = Index(str(tmp_path / "out" / "index.p"))
    for number in range(2):  # people who face the camera have the right shoulder on the image's left
        for right, left in (("rshoulder", "lshoulder"), ("rhip", "lhip"), ("reye", "leye")):
            assert point(index, number, right)[0] < point(index, number, left)[0]


def test_coco_labels_say_what_is_missing(coco_files, tmp_path):
    # Hidden; not labelled; outside of the photo.
    changes = {"lwrist": (110, 30, 1), "rwrist": (0, 0, 0), "rknee": (400, 100, 2)}
    options = coco_files([coco_person(5, 0, (100, 20, 80, 160), **changes), coco_person(6, 1, (100, 20, 80, 160))])
    assert run(*options) == 0
    index = Index(str(tmp_path / "out" / "index.p"))
    for name in changes:
        assert (point(index, index.images.index("images/0_5.jpg"), name) == -1).all()
    assert run(*(options + ["--keep-hidden", "--overwrite"])) == 0
    index = Index(str(tmp_path / "out" / "index.p"))
    assert (point(index, index.images.index("images/0_5.jpg"), "lwrist") >= 0).all()


def test_coco_people_who_cannot_be_used_are_counted_and_named(coco_files, tmp_path, capsys):
    box = (100, 20, 80, 160)
    people = [coco_person(1, 0, box), coco_person(2, 1, box), coco_person(3, 0, (100, 20, 40, 79)),
              coco_person(4, 0, box, iscrowd=1), coco_person(5, 0, box, lhip=(0, 0, 0)),
              coco_person(6, 0, box, labels=1), coco_person(7, 2, box)]
    options = coco_files(people)
    (tmp_path / "photos" / "2.jpg").write_bytes(b"no photo")
    assert run(*options) == 0
    out = capsys.readouterr().out
    for reason in ("1 smaller than 80 pixels", "1 crowds", "1 hips or shoulders not seen", "1 without visible joints",
                   "1 in a photo that cannot be read"):
        assert reason in out
    left_out = (tmp_path / "out" / "left_out.txt").read_text()
    assert left_out.count("\n") == 5 and "0_3.jpg: smaller than 80 pixels" in left_out
    # Without annotations for tests, a share of the photos is kept for them.
    index = Index(str(tmp_path / "out" / "index.p"))
    assert sorted(index.train) == [False, True]


def test_coco_photos_of_one_name_in_two_folders_are_refused(coco_files, tmp_path, capsys):
    options = coco_files([coco_person(5, 0, (100, 20, 80, 160)), coco_person(6, 1, (100, 20, 80, 160))])
    (tmp_path / "more").mkdir()
    save(tmp_path / "more" / "1.jpg", 300, 200)
    at = options.index("--out")
    assert run(*(options[:at] + [tmp_path / "more"] + options[at:])) == 2
    error = capsys.readouterr().err
    assert "--images: expected each photo in one of the folders, found " in error and "more/1.jpg" in error
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------------- OpenPose's CSVs

def row(name, width=64, height=128, left=0, **changes):
    """A line of an annotation CSV: somebody standing, in an image of this size."""
    points = [(-1, -1) if STANDING.get(joint) is None else
              (int(STANDING[joint][0] * width) + left, int(STANDING[joint][1] * height)) for joint in openpose.JOINTS]
    points = [changes.get(joint, xy) for joint, xy in zip(openpose.JOINTS, points)]
    return f"{name}: {[y for _, y in points]}: {[x for x, _ in points]}"


@pytest.fixture
def openpose_files(tmp_path):
    """Writes CSVs; returns the options of make_index."""
    def write(train, test, pairs=None):
        options = ["openpose", "--images", tmp_path / "images", "--out", tmp_path / "out"]
        for name, lines, header in (("annotations", train, openpose.HEADER),
                                    ("test-annotations", test, openpose.HEADER), ("pairs", pairs, "from,to")):
            if lines is not None:
                path = tmp_path / (name + ".csv")
                path.write_text("\n".join([header] + lines) + "\n")
                options += ["--" + name, path]
        return options
    return write


def test_market_rows_become_people(openpose_files, tmp_path, capsys):
    for folder, name in (("train", "1.jpg"), ("train", "2.jpg"), ("test", "-1_c1.jpg"), ("test", "lonely.jpg")):
        save(tmp_path / "images" / folder / name, 64, 128)
    train = [row("1.jpg", cnose=(0, 0)), row("2.jpg"), row("gone.jpg"), row("1.jpg")]
    pairs = ["1.jpg,2.jpg", "2.jpg,-1_c1.jpg", "1.jpg,gone.jpg", "1.jpg,never.jpg"]
    assert run(*openpose_files(train, [row("-1_c1.jpg", lwrist=(-1, -1))], pairs)) == 0
    index = Index(str(tmp_path / "out" / "index.p"))
    assert index.images == ["images/1.jpg", "images/2.jpg", "images/-1_c1.jpg"]
    assert list(index.train) == [True, True, False]
    np.testing.assert_allclose(point(index, 0, "cnose"), (0, 0))  # 0 is a place, -1 is none
    assert (point(index, 2, "lwrist") == -1).all()
    np.testing.assert_allclose(point(index, 1, "relbow"), (19 / 64., 51 / 128.))
    for right, left in (("reye", "leye"), ("rhip", "lhip")):
        assert point(index, 1, right)[0] < point(index, 1, left)[0]
    assert not suspicions(np.repeat(index.joints[1:2], 10, axis=0))
    np.testing.assert_array_equal(index.extra["pairs"], [[0, 1], [1, 2]])
    with open(index.image_path(0), "rb") as copy:
        assert copy.read() == (tmp_path / "images" / "train" / "1.jpg").read_bytes()
    out = capsys.readouterr().out
    for words in ("1 rows without image", "1 images without row", "1 rows of an image that had one",
                  "pairs: 2 of 4 kept; 1 have an image that no row names, 1 one that was left out"):
        assert words in out
    assert "gone.jpg: rows without image" in (tmp_path / "out" / "left_out.txt").read_text()


@pytest.mark.parametrize("path", [
    "img/WOMEN/Blouses_Shirts/id_00005537/05_4_full.jpg", "fasionWOMENBlouses_Shirtsid0000553705_4full.jpg",
    "fashionWOMENBlousesShirtsid0000553705_4full.png", "a/b/fasionWOMENBlousesShirtsid0000553705_4full.jpg"])
def test_deepfashions_images_are_found_in_every_spelling(openpose_files, tmp_path, path):
    for name in (path, path.replace("WOMEN", "MEN"), path.replace("0005537", "0005538")):
        save(tmp_path / "images" / name, 256, 256)
    names = [f"fasion{who}BlousesShirtsid0000553705_4full.jpg" for who in ("WOMEN", "MEN")]
    assert run(*openpose_files([row(names[0], 256, 256)], [row(names[1], 256, 256)])) == 0
    index = Index(str(tmp_path / "out" / "index.p"))
    extension = path[-4:]
    assert index.images == ["images/" + name[:-4] + extension for name in names]
    for number, source in enumerate((path, path.replace("WOMEN", "MEN"))):
        with open(index.image_path(number), "rb") as copy:
            assert copy.read() == (tmp_path / "images" / source).read_bytes()


def test_file_names_say_who_is_who(openpose_files, tmp_path):
    train = ["0002_c1s1_000451_03.jpg", "0002_c3s2_000001_00.jpg", "0007_c1s6_028546_01.jpg"]
    test = ["0000_c1s1_000151_01.jpg", "0000_c2s1_000151_01.jpg", "-1_c1s1_000401_03.jpg", "-1_c2s1_000401_03.jpg",
            "0003_c1s6_015996_00.jpg", "0003_c4s6_015996_00.jpg"]
    for name in train + test:
        save(tmp_path / "images" / name, 64, 128)
    assert run(*openpose_files([row(name) for name in train], [row(name) for name in test])) == 0
    index = Index(str(tmp_path / "out" / "index.p"))
    people = dict(zip([os.path.basename(image) for image in index.images], index.extra["person"].tolist()))
    assert people[train[0]] == people[train[1]] and people[test[4]] == people[test[5]]
    assert len(set(people.values())) == len(train + test) - 2


@pytest.mark.parametrize("name, person", [
    ("0002_c1s1_000451_03.jpg", "0002"), ("0000_c1s1_000151_01.jpg", None), ("-1_c1s1_000401_03.jpg", None),
    ("img/WOMEN/Dresses/id_00005537/05_4_full.jpg", "WOMENDressesid0000553705"),
    ("fasionMENDenimid0000008001_7additional.jpg", "MENDenimid0000008001"), ("1.jpg", None)])
def test_who_is_who_in_names(name, person):
    assert openpose.same_person(name) == person


@pytest.mark.parametrize("width, left, elbow", [
    (64, 0, 19 / 64.), (256, 0, 76 / 256.), (176, 0, 52 / 176.), (176, 40, 52 / 176.)])
def test_the_frame_of_the_coordinates_is_read_off_the_images(openpose_files, tmp_path, width, left, elbow):
    height = 128 if width == 64 else 256
    for name in "ab":
        save(tmp_path / "images" / (name + ".png"), width, height)
    assert run(*openpose_files([row("a.png", width, height, left)], [row("b.png", width, height, left)])) == 0
    index = Index(str(tmp_path / "out" / "index.p"))
    np.testing.assert_allclose(point(index, 0, "relbow")[0], elbow, atol=1e-6)


def test_of_images_of_one_name_those_in_the_folder_of_the_split_are_taken(openpose_files, tmp_path):
    pixels = {"boxes_by_hand": 10, "train": 200, "query": 90}
    for folder, value in pixels.items():
        save(tmp_path / "images" / folder / "1.png", 64, 128, np.full((128, 64, 3), value, np.uint8))
    save(tmp_path / "images" / "train" / "2.png", 64, 128)
    save(tmp_path / "images" / "test" / "3.png", 64, 128)
    assert run(*openpose_files([row("1.png"), row("2.png")], [row("3.png")])) == 0
    assert load_image(Index(str(tmp_path / "out" / "index.p")).image_path(0), 16)[0, 0, 0] == 200


@pytest.mark.parametrize("size, rows_size, words", [
    ((128, 256), (64, 128), "its images are 128 x 256; expected 64 x 128"),
    ((96, 192), (64, 128), "its images are 96 x 192"),
    ((64, 128), (256, 256), "its joints reach to (192, 243), and its images are 64 x 128"),
    ((256, 256), (64, 128), "its joints reach to (48, 121), and its images are 256 x 256")])
def test_annotations_of_other_images_are_refused(openpose_files, tmp_path, capsys, size, rows_size, words):
    for i in range(20):
        save(tmp_path / "images" / (f"{i}.png"), *size)
    rows = [row(f"{i}.png", *rows_size) for i in range(20)]
    assert run(*openpose_files(rows, rows[:1])) == 2
    assert "annotations.csv: " + words in capsys.readouterr().err
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


def test_narrow_coordinates_go_with_wide_images(openpose_files, tmp_path):
    for i in range(21):
        save(tmp_path / "images" / (f"{i}.png"), 256, 256)
    rows = [row(f"{i}.png", 176, 256) for i in range(21)]
    assert run(*openpose_files(rows[:20], [row("20.png", 256, 256)])) == 0
    index = Index(str(tmp_path / "out" / "index.p"))
    np.testing.assert_allclose(point(index, 0, "relbow")[0], (52 + 40) / 256.)
    np.testing.assert_allclose(point(index, 20, "relbow")[0], 76 / 256.)


def test_single_misfits_are_left_out_by_name(openpose_files, tmp_path, capsys):
    for i in range(22):
        save(tmp_path / "images" / (f"{i}.png"), *((100, 100) if i == 3 else (64, 128)))
    rows = [row(f"{i}.png", **({"lwrist": (64, 5)} if i == 5 else {})) for i in range(22)]
    assert run(*openpose_files(rows[:20], rows[20:])) == 0
    assert len(Index(str(tmp_path / "out" / "index.p")).images) == 20
    left_out = (tmp_path / "out" / "left_out.txt").read_text()
    assert "3.png: images of another size" in left_out and "5.png: rows with joints outside" in left_out


# ---------------------------------------------------------------------------------------------- photos and shapes

def drawing(dark, size=32):
    """A square of lines, black on white or white on black, (size, size, 3) uint8."""
    pixels = np.full((size, size, 3), 255 if dark else 0, np.uint8)
    cv2.rectangle(pixels, (8, 8), (24, 24), (0,) * 3 if dark else (255,) * 3, 1)
    return pixels


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("dark", [False, True])
def test_pairs_are_split(tmp_path, capsys, monkeypatch, side, dark):
    monkeypatch.chdir(str(tmp_path))
    red = np.full((32, 32, 3), (200, 30, 60), np.uint8)
    halves = [red, drawing(dark)] if side == "left" else [drawing(dark), red]
    for folder, n in (("train", 3), ("val", 2)):
        for i in range(n):
            save(tmp_path / folder / f"{i}_AB.png", 64, 32, np.concatenate(halves, axis=1))
    save(tmp_path / "train" / "square.png", 32, 32)
    (tmp_path / "train" / "broken.jpg").write_bytes(b"x")
    assert run("pairs", "--images", tmp_path / "train", "--test", tmp_path / "val", "--photo", side, "--out",
               tmp_path / "out") == 0
    index = Index(str(tmp_path / "out" / "index.p"))
    assert index.train.tolist() == [True] * 3 + [False] * 2 and index.black_on_white == dark
    np.testing.assert_allclose(index.image(0, 32), red, atol=4)
    np.testing.assert_array_equal(index.shape_image(4, 32), drawing(False))
    out = capsys.readouterr().out
    assert "1 images that are not two squares side by side" in out and "1 images that cannot be read" in out
    assert "5 images with shapes kept: 3 for training, 2 for tests" in out
    assert exit_code(check_index, tmp_path / "out" / "index.p") == 0
    assert f"shape images are grey, {5 * dark} of 5 mostly bright" in out


@pytest.mark.parametrize("size", [60, 100, 128, 150])
def test_colours_that_jpeg_carries_over_do_not_colour_the_lines(tmp_path, size):
    random = np.random.RandomState(0)
    for i in range(4):
        photo = random.randint(0, 256, (size, size, 3)).astype(np.uint8)
        lines = np.full((size, size, 3), 255, np.uint8)
        lines[size // 2] = 0
        save(tmp_path / "pairs" / f"{i}.jpg", 0, 0, np.concatenate([lines, photo], axis=1))
    assert run("pairs", "--images", tmp_path / "pairs", "--photo", "right", "--out", tmp_path / "out") == 0
    index = Index(str(tmp_path / "out" / "index.p"))
    assert index.black_on_white
    for i in range(4):
        shape = index.shape_image(i, size)
        assert is_grey(shape) and shape[size // 2].mean() > 150 and shape[:size // 3].mean() < 20


def test_test_images_below_the_others_are_for_tests_only(tmp_path):
    for name in ("a.png", "b.png", "val/c.png"):
        save(tmp_path / "all" / name, 64, 32, np.concatenate([drawing(True), drawing(True)], axis=1))
    assert run("pairs", "--images", tmp_path / "all", "--test", tmp_path / "all" / "val", "--photo", "left", "--out",
               tmp_path / "out") == 0
    assert Index(str(tmp_path / "out" / "index.p")).train.tolist() == [True, True, False]


def test_shapes_of_another_aspect_are_suspicious(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(str(tmp_path))
    save(tmp_path / "bags" / "a.png", 40, 60), save(tmp_path / "bags" / "b.png", 40, 60)
    assert run("edges", "--images", tmp_path / "bags", "--out", tmp_path / "out") == 0
    save(tmp_path / "out" / "shapes" / "a.png.png", 60, 40)
    assert exit_code(check_index, tmp_path / "out" / "index.p") == 0
    assert "shapes/a.png.png has another aspect than its image images/a.png" in capsys.readouterr().out


def test_a_wrong_black_on_white_is_suspicious(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(str(tmp_path))
    for i in range(6):
        save(tmp_path / "pairs" / f"{i}.png", 64, 32, np.concatenate([drawing(True), drawing(True)], axis=1))
    assert run("pairs", "--images", tmp_path / "pairs", "--photo", "left", "--out", tmp_path / "out") == 0
    path = tmp_path / "out" / "index.p"
    assert exit_code(check_index, path) == 0 and "mostly bright, where" not in capsys.readouterr().out
    data = dict(pickle.loads(path.read_bytes()), black_on_white=False)
    path.write_bytes(pickle.dumps(data))
    assert exit_code(check_index, path) == 0
    assert "100 % of 6 grey shape images are mostly bright" in capsys.readouterr().out


def test_edges_of_photos_are_found(tmp_path, capsys):
    photo = np.full((60, 40, 3), 250, np.uint8)
    photo[20:50, 10:30] = (180, 20, 40)
    for i in range(5):
        save(tmp_path / "bags" / f"{i}.png", 40, 60, photo)
    save(tmp_path / "bags" / "plain.png", 40, 60, np.full((60, 40, 3), 200, np.uint8))
    assert run("edges", "--images", tmp_path / "bags", "--size", 60, "--out", tmp_path / "out") == 0
    index = Index(str(tmp_path / "out" / "index.p"))
    assert len(index.images) == 5 and sorted(index.train.tolist()) == [False] + [True] * 4
    lines = np.asarray(Image.open(str(tmp_path / "out" / index.shapes[0])))
    assert lines.shape == (60, 40) and set(np.unique(lines)) == {0, 255}
    assert lines[35, 8:12].max() == 255 and lines[18:22, 20].max() == 255 and not lines[30:40, 15:25].any()
    assert "1 images without edges" in capsys.readouterr().out
    with open(str(tmp_path / "bags" / "0.png"), "rb") as source, open(index.image_path(0), "rb") as copy:
        assert source.read() == copy.read()


def test_long_paths_get_names_that_fit_and_hidden_folders_are_left_out(tmp_path):
    photo = np.zeros((40, 40, 3), np.uint8)
    photo[10:30, 10:30] = 255
    for folder in ("a" * 100 + "/" + "\u00e9" * 60 + "/" + "b" * 99, ".thumbnails", "short"):
        (tmp_path / "photos" / folder).mkdir(parents=True)
        save(tmp_path / "photos" / folder / "1.png", 40, 40, photo)
    assert run("edges", "--images", tmp_path / "photos", "--out", tmp_path / "out") == 0
    short, long = sorted(Index(str(tmp_path / "out" / "index.p")).images, key=len)
    assert short == "images/short_1.png" and long.endswith("\u00e9_" + "b" * 99 + "_1.png")


@pytest.mark.parametrize("options", [("edges",), ("pairs", "--photo", "left")])
def test_a_folder_without_images_is_named(tmp_path, capsys, options):
    (tmp_path / "empty").mkdir()
    for folder, found in ((tmp_path / "empty", "none in it"), (tmp_path / "none", "no such folder")):
        assert run(*options, "--images", folder, "--out", tmp_path / "out") == 2
        assert found in capsys.readouterr().err and not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------------- own photos

def save_photo(path, *people, width=200, height=200):
    """Writes a photo and the joints of the people in it, shares of the photo, beside it."""
    save(path, width, height)
    return save_openpose(path.parent / (path.stem + "_keypoints.json"),
                         *[np.where(joints < 0, -1, joints * (width, height)) for joints in people])


def test_photos_become_people_and_the_others_are_named(tmp_path, capsys):
    folder = tmp_path / "photos"
    for name in ("a.jpg", "below/a.jpg", "b.png"):
        save_photo(folder / name, beside(standing(), left=True))
    save_photo(folder / "nobody.jpg")
    save_photo(folder / "sitting.jpg", standing("lhip"))
    save_photo(folder / "bent.jpg", standing(lhip=(0.4, 0.35), rhip=(0.6, 0.35)))
    (folder / "c.jpg").write_bytes(b"no photo")
    (folder / "notes.txt").write_text("no photo either")
    (folder / "d.heic").write_bytes(b"")
    os.symlink(str(folder), str(folder / "below" / "loop"))
    assert run("photos", folder, "--out", tmp_path / "out", "--size", 64, "--test", 0.3) == 0
    index = Index(str(tmp_path / "out" / "index.p"))
    assert index.images == ["images/a.jpg", "images/b.jpg", "images/below_a.jpg"] and sum(index.train) == 2
    assert load_image(index.image_path(0), 64).shape == (64, 64, 3) and len(index.usable("test")) == 1
    assert all(point(index, i, "rshoulder")[0] < point(index, i, "lshoulder")[0] for i in range(3))
    out = capsys.readouterr().out
    for line in ("d.heic: of another kind than JPEG and PNG; convert them", "nobody.jpg: no person found",
                 "sitting.jpg: hips or shoulders not seen", "bent.jpg: torso smaller than 15 % of the crop"):
        assert f"left out: {line}\n" in out
    assert "8 images seen, 3 people kept" in out and "c.jpg: cannot be read as an image: " in out
    assert "show several people" not in out


def test_of_several_people_in_a_photo_the_largest_or_a_numbered_one_is_taken(tmp_path, capsys):
    small = beside(standing(), left=False) * 0.5 + (0.5, 0.5)
    for name in ("a.jpg", "b.jpg"):
        save_photo(tmp_path / "photos" / name, small, beside(standing(), left=True))
    save_photo(tmp_path / "photos" / "c.jpg", beside(standing(), left=True))
    assert run("photos", tmp_path / "photos", "--out", tmp_path / "first") == 0
    assert "2 photos show several people: the one with the largest torso was taken" in capsys.readouterr().out
    assert run("photos", tmp_path / "photos", "--out", tmp_path / "second", "--person", 2) == 0
    out = capsys.readouterr().out
    assert "2 photos show several people: person 2 from the left was taken" in out
    first, second = (Index(str(tmp_path / name / "index.p")) for name in ("first", "second"))
    assert len(first.images) == len(second.images) == 3  # where there is one person only, there is no choice
    assert run("photos", tmp_path / "photos", "--out", tmp_path / "third", "--person", 3) == 0
    assert "a.jpg: expected a person 3 from the left, found 2" in capsys.readouterr().out
    # The large one is cut along the photo's left edge, the small one along its right edge.
    assert point(first, 0, "cnose")[0] < 0.45 and point(second, 0, "cnose")[0] > 0.55


def test_photos_without_mediapipe_say_what_to_install(tmp_path, capsys, monkeypatch):
    save(tmp_path / "photos" / "a.jpg", 20, 20)
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    assert run("photos", tmp_path / "photos", "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err
    lines = [line for line in error.split("\n") if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in error
    if sys.version_info >= (3, 10):
        assert "pip install --no-deps -r requirements-photos.txt" in lines[0]
    else:
        assert "Python 3.10 or newer" in lines[0] and "work everywhere" in lines[0]
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


# ---------------------------------------------------------------------------------------------- the folder

def test_a_killed_run_leaves_no_index_and_the_next_one_starts_over(coco_files, tmp_path):
    options = coco_files([coco_person(i, i % 40, (100, 20, 80, 160)) for i in range(3000)], n_photos=40)
    command = [sys.executable, os.path.join(ROOT, "tools", "make_index.py")] + [str(option) for option in options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    images, end = tmp_path / "out.partial" / "images", time.time() + 60
    while time.time() < end and not (images.is_dir() and os.listdir(str(images))):
        time.sleep(0.01)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL and os.listdir(str(images))
    assert not (tmp_path / "out").exists()
    assert run(*coco_files([coco_person(1, 0, (100, 20, 80, 160)), coco_person(2, 1, (100, 20, 80, 160))])) == 0
    assert sorted(os.listdir(str(tmp_path / "out" / "images"))) == ["0_1.jpg", "1_2.jpg"]
    assert not (tmp_path / "out.partial").exists()


def test_nothing_is_lost_that_is_there_already(coco_files, tmp_path, capsys):
    options = coco_files([coco_person(1, 0, (100, 20, 80, 160)), coco_person(2, 1, (100, 20, 80, 160))])
    assert run(*options) == 0
    before = (tmp_path / "out" / "index.p").read_bytes()
    assert run(*options) == 2
    assert "--overwrite" in capsys.readouterr().err and (tmp_path / "out" / "index.p").read_bytes() == before
    (tmp_path / "out" / "diary.txt").write_text("mine")
    assert run(*(options + ["--overwrite"])) == 2
    assert (tmp_path / "out" / "diary.txt").read_text() == "mine"
    (tmp_path / "out" / "diary.txt").unlink()
    assert run(*(options + ["--overwrite"])) == 0
    assert not (tmp_path / "out.old").exists()
    (tmp_path / "out.partial").mkdir()
    (tmp_path / "out.partial" / "diary.txt").write_text("mine")
    assert run(*(options + ["--overwrite"])) == 2
    assert (tmp_path / "out.partial" / "diary.txt").exists() and "in the way" in capsys.readouterr().err


def test_images_of_equal_names_get_a_number(tmp_path):
    joints = [STANDING.get(joint, (-1, -1)) for joint in JOINTS]
    with IndexBuilder(str(tmp_path / "out"), JOINTS) as builder:
        for name in ("a.jpg", "a.png", "b/a.png", "a_2.gif", "a.webp"):
            assert builder.add(name, joints, jpeg=name.encode())
        builder.finish()
    index = Index(str(tmp_path / "out" / "index.p"))
    assert index.images == ["images/" + name for name in ("a.jpg", "a_2.jpg", "b_a.jpg", "a_2_2.jpg", "a_3.jpg")]
    assert (tmp_path / "out" / "images" / "a_3.jpg").read_bytes() == b"a.webp"


# ---------------------------------------------------------------------------------------------- bad input

@pytest.mark.parametrize("content, words", [
    ("no json", "is not JSON"), ("[1]", "expected COCO's"),
    ('{"images": [], "annotations": [{}]}', "annotations[0]: expected id"),
    ('{"images": [{"id": 1}], "annotations": []}', "images[0]: expected id and file_name"),
    ('{"images": [{"id": 1, "file_name": "../../secret.jpg"}], "annotations": []}',
     "images[0]: expected id and file_name"),
    ('{"images": [], "annotations": [{"id": 1, "image_id": 1, "keypoints": [1, 2], "bbox": [0, 0, 1, 1]}]}',
     "annotations[0]: keypoints: expected 51 numbers, found [1, 2]"),
    (json.dumps({"images": [], "annotations": [coco_person(1, 1, (0, 0, 9, 9))]}),
     "annotations[0]: image_id: expected one of images, found 1"),
    ('{"images": [{"id": "a\\u0000b", "file_name": "a.jpg"}], "annotations": []}',
     "images[0]: expected id and file_name"),
    ('{"images": [{"id": 1, "file_name": "\\ud800.jpg"}], "annotations": []}', "images[0]: expected id and file_name"),
    ('{"images": [], "annotations": []}', "no person could be used: there is no image"), (None, "No such file")])
def test_bad_coco_files_are_one_line(tmp_path, capsys, content, words):
    path = tmp_path / "bad.json"
    if content is not None:
        path.write_text(content)
    assert run("coco", "--annotations", path, "--images", tmp_path, "--out", tmp_path / "out") == 2
    error = capsys.readouterr().err.replace("0image [00:00, ?image/s]", "").replace("\r", "").lstrip("\n")
    assert words in error and error.count("\n") == 1 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("lines, words", [
    (["a.png"], "line 2: expected name: [18 y]: [18 x], found a.png"),
    (["a.png: [1]: [2]"], "line 2: expected a list of 18 numbers"),
    ([row("a.png"), row("b.png").replace("[", "(")], "line 3: expected a list of 18 numbers, found "),
    ([row("a.png").replace("-1", "NaN")], "line 2: expected a list of 18 numbers")])
def test_bad_csvs_name_the_line(openpose_files, tmp_path, capsys, lines, words):
    save(tmp_path / "images" / "a.png", 64, 128)
    assert run(*openpose_files(lines, [row("a.png")])) == 2
    error = capsys.readouterr().err
    assert "annotations.csv: " + words in error and error.count("\n") == 1


@pytest.mark.parametrize("content, found", [
    ("name,y,x\n", "name,y,x"), ("", "nothing"), (row("a.png") + "\n", "a.png: [")], ids=["other", "empty", "none"])
@pytest.mark.parametrize("name, header", [
    ("annotations", openpose.HEADER), ("test-annotations", openpose.HEADER), ("pairs", "from,to")])
def test_bad_headers_name_the_file_and_the_header(openpose_files, tmp_path, capsys, name, header, content, found):
    options = openpose_files([row("a.png")], [row("a.png")], ["a.png,a.png"])
    (tmp_path / (name + ".csv")).write_text(content)
    assert run(*options) == 2
    error = capsys.readouterr().err
    assert f"/{name}.csv: line 1: expected {header}, found {found}" in error and error.count("\n") == 1


def test_bad_pair_lists_name_the_line(openpose_files, tmp_path, capsys):
    save(tmp_path / "images" / "a.png", 64, 128)
    assert run(*openpose_files([row("a.png")], [row("a.png")], ["a.png,a.png", "", "a.png,b.png,c.png"])) == 2
    assert "pairs.csv: line 4: expected two image names, found a.png,b.png,c.png" in capsys.readouterr().err


def test_bad_options_are_one_line(capsys):
    photo_options = ["photos", "a", "--out", "b"]
    for options, words in ((photo_options + ["--size", "abc"], "--size: expected a whole number from 1 to 10000"),
                           (photo_options + ["--test", "10%"], "--test: expected a number between 0 and 1"),
                           (["openpose", "--test", "0.2"], "required"), (["photos", "a"], "--out"), ([], "required")):
        with pytest.raises(SystemExit) as end:
            run(*options)
        error = capsys.readouterr().err
        assert end.value.code == 2 and words in error and error.count("\n") == 1


def test_two_runs_do_not_make_the_same_data_set(tmp_path, capsys):
    save(tmp_path / "photos" / "a.jpg", 20, 20)
    with IndexBuilder(str(tmp_path / "out"), JOINTS):
        assert run("photos", tmp_path / "photos", "--out", tmp_path / "out") == 2
        assert "another run is making" in capsys.readouterr().err


def test_folders_that_are_not_there(openpose_files, tmp_path, capsys):
    assert run(*openpose_files([row("a.png")], [row("a.png")])) == 2
    assert "--images: there is no folder" in capsys.readouterr().err
    assert run("photos", tmp_path / "nowhere", "--out", tmp_path / "out") == 2
    assert "no such folder" in capsys.readouterr().err
    (tmp_path / "a.json").write_text('{"images": [], "annotations": []}')
    folders = [tmp_path, tmp_path / "no"]
    assert run("coco", "--annotations", tmp_path / "a.json", "--images", *folders, "--out", tmp_path / "out") == 2
    assert "--images: there is no folder" in capsys.readouterr().err
