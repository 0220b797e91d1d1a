import hashlib
import os
import subprocess
import sys

import numpy as np
import pytest
from helpers import ROOT, exit_code, make_index

from dataset.index import Index, load_image
from dataset.toy import (
    BACKGROUND,
    JOINTS,
    POSES_PER_PERSON,
    TORSO,
    draw,
    index_joints,
    is_toy,
    make_data_set,
    make_person,
    make_pose,
    transfer_error,
)
from tools import make_toy


def digests(folder):
    return {str(path.relative_to(folder)): hashlib.md5(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*")) if path.is_file()}


def test_the_same_command_gives_the_same_bytes_and_another_seed_others(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        make_data_set(str(tmp_path / name), 2, 1, seed)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    assert len(digests(tmp_path / "a")) == 3 * 4 + 1
    others = digests(tmp_path / "c")
    different = [name for name, value in digests(tmp_path / "a").items() if others[name] != value]
    assert len(different) == 13


def test_the_index_is_one_and_held_out_people_are_in_the_test_split_alone(toy):
    index = Index(str(toy / "index.p"))
    people = np.array(index.extra["person"])
    assert len(people) == len(index.images) == 9 * POSES_PER_PERSON
    assert not set(people[index.train]) & set(people[~index.train])
    assert all(np.sum(people == person) == POSES_PER_PERSON for person in range(9))


def test_an_image_is_the_drawing_of_its_person_in_its_pose(toy):
    index = Index(str(toy / "index.p"))
    for i in (0, 7, 35):
        picture, mask = draw(make_person(1, index.extra["person"][i]), make_pose(1, i))
        np.testing.assert_array_equal(load_image(index.image_path(i), 64), picture)
        assert 0.1 < mask.mean() < 0.5 and (np.abs(picture[~mask].astype(int) - BACKGROUND) < 140).all()


def test_some_people_are_seen_from_behind_and_a_few_torsos_are_hidden():
    poses = [make_pose(0, i) for i in range(2000)]
    joints = np.stack([index_joints(pose) for pose in poses])
    behind = np.array([pose.from_behind for pose in poses])
    assert 0.1 < behind.mean() < 0.2
    assert (joints[behind][:, JOINTS.index("cnose")] < 0).all()
    torso = joints[:, [JOINTS.index(name) for name in TORSO]]
    assert 0.005 < (torso < 0).any(axis=(1, 2)).mean() < 0.05
    right, left = (joints[:, JOINTS.index(side + "shoulder"), 0] for side in "rl")
    seen = (right >= 0) & (left >= 0)
    np.testing.assert_array_equal((right < left)[seen], ~behind[seen])  # facing us, the right is on the image's left


def test_only_the_whole_index_in_order_is_the_toys(toy):
    index = Index(str(toy / "index.p"))
    assert is_toy(index.joints, index.extra)
    assert not is_toy(index.joints[::-1], index.extra)
    people = index.extra["person"]
    for other in ({}, {"toy_seed": 1}, {"toy_seed": 2, "person": people}, {"toy_seed": 1, "person": [1]}):
        assert not is_toy(index.joints, other)


def test_people_wear_different_things():
    people = [make_person(0, i) for i in range(500)]
    assert len({person.hair for person in people}) == 5 and len({person.skin for person in people}) == 3
    assert {person.pattern for person in people} == {"plain", "stripes", "halves"}
    assert {person.sleeves for person in people} == {"none", "short", "long"}
    assert {person.shorts for person in people} == {True, False}
    assert all(person.shirt != person.trousers for person in people)


def test_transfer_error_is_0_for_the_truth_and_that_of_the_answer_otherwise():
    people = [i // 4 for i in range(80)]
    usable = {"train": list(range(40)), "test": list(range(40, 80))}

    def truth(appearances, poses):
        return np.stack([draw(make_person(0, people[a]), make_pose(0, b))[0] / 127.5 - 1
                         for a, b in zip(appearances, poses)])
    errors = transfer_error(truth, people, usable, 0, n=20, n_mean=10)
    assert errors["transfer"] < 1e-6 and 0.2 < errors["mean_appearance"] < errors["wrong_person"]
    brighter = transfer_error(lambda a, b: np.minimum(truth(a, b) + 0.1, 1), people, usable, 0, n=20, n_mean=10)
    assert 0.05 < brighter["transfer"] <= 0.1 + 1e-6


def test_the_command_says_what_it_made_and_refuses_nonsense(tmp_path):
    command = [sys.executable, os.path.join(ROOT, "tools", "make_toy.py"), "--train", "1", "--test", "1"]
    done = subprocess.run(command + ["--out", "toy"], cwd=str(tmp_path), capture_output=True, text=True)
    assert done.returncode == 0 and "8 images of 2 people, 1 of them held out, are in toy\n" in done.stdout
    assert len(Index(str(tmp_path / "toy" / "index.p")).images) == 8
    (tmp_path / "file").write_text("")
    for options, words in ((["--train", "0"], "--train and --test must be 1 or more"),
                           (["--seed", "-1"], "--seed from 0 to 4294967295"),
                           (["--out", str(tmp_path / "file")], "--out: cannot write")):
        refused = subprocess.run(command + options, cwd=str(tmp_path), capture_output=True, text=True)
        assert refused.returncode == 2 and words in refused.stderr and refused.stderr.count("\n") == 1


@pytest.mark.parametrize("number", range(5))
def test_clothes_show(number):
    """The colours of shirt, trousers, skin and hair can be seen from the front."""
    person = make_person(0, number)
    front = next(pose for pose in (make_pose(0, i) for i in range(99)) if not pose.from_behind)
    picture, mask = draw(person, front)
    seen = {tuple(pixel) for pixel in picture[mask]}
    for colour in (person.shirt, person.trousers, person.skin, person.hair):
        assert min(np.abs(np.subtract(colour, pixel)).max() for pixel in seen) < 12


def test_a_toy_is_drawn_anew_but_not_over_another_data_set(tmp_path, capsys, monkeypatch):
    path = tmp_path / "index.p"
    make_index(tmp_path, n=2)
    before = path.read_bytes()
    command = ["--out", tmp_path, "--train", 1, "--test", 1]
    assert exit_code(make_toy, *command) == 2
    assert "expected a toy's folder or a new one, found another data set" in capsys.readouterr().err
    assert path.read_bytes() == before
    path.unlink()
    assert exit_code(make_toy, *command) == 0

    def stopped(*unused):
        raise KeyboardInterrupt

    monkeypatch.setitem(make_toy.KINDS, "people", (stopped, "people", ""))
    assert exit_code(make_toy, *command, "--seed", 1) == 130
    assert not path.exists()  # the joints of seed 0 beside pictures of seed 1
