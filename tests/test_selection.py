"""The people and poses that a user chooses."""
import time

import numpy as np
import pytest
from helpers import make_index, standing

from common.errors import UserError
from dataset import selection
from dataset.index import Index, J
from dataset.selection import Finder, unique_labels


def select(index, items, option):
    return Finder(index.path).select(items, option)


def numbers(chosen, index):
    """The numbers of the images that a selection took from the index."""
    return [index.images.index(member.name) for member in chosen.members]


@pytest.fixture
def index(tmp_path):
    """An index of eight images; number 4 shows no hip."""
    names = ["images/a.png", "images/b.png", "more/a.png", "more/c.1.png", "more/d.png", "more/7.png", "3.png", "a.png"]
    joints = [standing(cnose=(0.1 * i, 0.1)) for i in range(8)]
    joints[4] = standing("lhip")
    return Index(make_index(tmp_path, n=8, imgs=names, joints=joints))


@pytest.mark.parametrize("items, expected", [
    (["1"], [1]), (["b"], [1]), (["b.png"], [1]), (["images/b.png"], [1]), (["more/a"], [2]), (["c.1"], [3]),
    (["1", "0", "1"], [1, 0, 1]), (["1-3"], [1, 2, 3]), (["3-1"], [3, 2, 1]), (["3-5"], [3, 5]), (["more"], [2, 3, 5]),
    (["more/", "0"], [2, 3, 5, 0]), (["3-3"], [3]), (["a.png"], [7]), (["07"], [7]),
    (["3"], [3]), (["3.png"], [6]), (["7"], [7]), (["7.png"], [5]), (["more/7"], [5])])
def test_images_are_chosen_by_name_number_range_and_folder(index, items, expected):
    chosen = select(index, items, "--pose")
    assert [round(float(x) * 10) for x in chosen.joints[:, J["cnose"], 0]] == expected
    assert numbers(chosen, index) == expected
    assert len(set(chosen.labels)) == len(expected)


def test_digits_are_numbers_and_names_made_of_digits_need_their_extension(tmp_path):
    names = ["images/0002.jpg", "images/12.jpg", "images/1-2.jpg"]
    index = Index(make_index(tmp_path, n=3, imgs=names))
    chosen = select(index, ["0002", "01", "1-2", "0002.jpg", "1-2.jpg"], "--pose")
    assert numbers(chosen, index) == [2, 1, 1, 2, 0, 2]
    with pytest.raises(UserError, match="12: expected numbers from 0 to 2, .* or a name with its extension"):
        select(index, ["12"], "--pose")


@pytest.mark.parametrize("item, words", [
    ("a", "3 images of .* have this name; expected a path such as images/a.png"), ("8", "expected numbers from 0 to 7"),
    ("2-8", "expected numbers from 0 to 7"), pytest.param("9" * 5000, "expected numbers from 0 to 7", id="digits"),
    ("d", "expected an image that shows both hips and both shoulders"),
    ("4", "expected an image that shows both hips and both shoulders"), ("4-4", "expected images that show both hips"),
    ("images/bb.png", "did you mean images/b.png"), ("nowhere", "expected a file, a folder, or an image of"),
    ("", "expected a file")])
def test_images_that_are_not_there_are_refused(index, item, words):
    with pytest.raises(UserError, match="^--pose: .*" + words):
        select(index, [item], "--pose")


def test_a_wrong_name_among_very_many_gets_no_hint(index, monkeypatch):
    monkeypatch.setattr(selection, "MAX_COMPARED", 7)
    with pytest.raises(UserError, match="images/bb.png: expected a file.*index.p$"):
        select(index, ["images/bb.png"], "--pose")


def test_the_folder_of_another_data_set_gives_all_its_people(index, tmp_path):
    other = tmp_path / "dance"
    other.mkdir()
    make_index(other, n=3, joints=[standing(), standing("rhip"), standing(cnose=(0.9, 0.1))])
    chosen = select(index, ["1", str(other)], "--pose")
    assert len(chosen) == 3 and chosen.labels == ["b", "0", "2"]
    np.testing.assert_allclose(chosen.joints[2, J["cnose"]], (0.9, 0.1), rtol=1e-6)


def test_many_equal_names_take_no_longer():
    start = time.time()
    assert len(set(unique_labels(f"{i}/image.jpg" for i in range(30000)))) == 30000
    assert time.time() - start < 10


def test_labels_are_fit_for_files_and_differ():
    labels = unique_labels(["x/a.png", "y/a.png", "a_2.png", "/b c/\u00e9 .jpg", "../..", "n" * 300])
    assert labels[:3] == ["a", "a_2", "a_2_2"] and len(set(labels)) == 6
    assert all(0 < len(label) < 90 and "/" not in label and label.isascii() for label in labels)


def test_a_file_of_the_index_is_known_whatever_way_its_path_is_written(tmp_path):
    index = Index(make_index(tmp_path, n=2, imgs=["./images/0.png", "images//1.png"]))
    for number in range(2):
        chosen = select(index, [str(tmp_path / "images" / f"{number}.png"), index.images[number]], "--pose")
        assert numbers(chosen, index) == [number] * 2
