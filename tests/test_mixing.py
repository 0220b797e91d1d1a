"""Appearance part by part, against the toy's truth."""
import argparse

import numpy as np
import pytest
from helpers import exit_code, only_run, standing
from PIL import Image

import main
from batches import PARTS
from dataset import toy
from inference.mixing import GROUPS, composite, mix_item, part_numbers, part_regions


def usable_poses(n):
    """Numbers of n toy poses that show hips and shoulders."""
    poses = ((k, toy.index_joints(toy.make_pose(0, k))) for k in range(10 * n))
    shown = [k for k, joints in poses if (joints[[toy.JOINTS.index(name) for name in toy.TORSO]] >= 0).all()]
    return shown[:n]


def test_parts_are_named_together_and_one_by_one():
    assert sorted(sum((part_numbers(name) for name in GROUPS), [])) == list(range(8))
    assert [part_numbers(part.replace(" ", "_")) for part in PARTS] == [[i] for i in range(8)]
    assert part_numbers("Left-Upper Arm") == [PARTS.index("left upper arm")] and part_numbers("tail") is None
    assert mix_item("head=a=b.png") == ([PARTS.index("head")], "a=b.png")
    for text in ("head", "head=", "tail=a.png", "=a.png", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="expected PART=IMAGE"):
            mix_item(text)


def test_regions_share_out_the_body_and_leave_the_background():
    regions = part_regions(standing(), 64)
    total = regions.sum(axis=0)
    assert regions.shape == (8, 64, 64) and (total <= 1 + 1e-5).all() and total[27, 32] > 0.99 and total[1, 1] < 0.01
    assert regions[PARTS.index("torso"), 27, 32] > 0.9
    without_arm = part_regions(standing("lelbow", "lwrist"), 64)
    assert without_arm[PARTS.index("left upper arm")].max() < 1e-6


@pytest.mark.parametrize("part", toy.PARTS)
def test_true_pictures_put_together_are_nearly_the_true_mixed_person(part):
    errors = {"mixed": [], "not": []}
    for k in usable_poses(40):
        wearer, giver, pose = toy.make_person(0, k), toy.make_person(0, k + 1), toy.make_pose(0, k)
        pictures = [toy.draw(person, pose)[0][np.newaxis] / 127.5 - 1 for person in (wearer, giver)]
        truth = toy.draw(wearer, pose, **{part: giver})[0] / 127.5 - 1
        mask = toy.part_masks(wearer, pose, **{part: giver})[part]
        joints = toy.index_joints(pose)[np.newaxis]
        mixed = composite(pictures[0], [(part_numbers(part), pictures[1])], joints)[0]
        errors["mixed"].append(np.abs(mixed - truth)[mask].mean())
        errors["not"].append(np.abs(pictures[0][0] - truth)[mask].mean())
    assert np.mean(errors["mixed"]) < 0.1 and np.mean(errors["mixed"]) < 0.25 * np.mean(errors["not"])


def test_the_order_of_the_parts_does_not_matter():
    random = np.random.RandomState(0)
    pictures, a, b = random.uniform(-1, 1, (3, 1, 64, 64, 3))
    joints = standing()[np.newaxis]
    one = composite(pictures, [([0], a), ([1], b)], joints)
    np.testing.assert_allclose(one, composite(pictures, [([1], b), ([0], a)], joints), atol=1e-12)
    np.testing.assert_array_equal(composite(pictures, [], joints), pictures)


def test_transfers_with_parts_of_others(trained, tmp_path):
    grids = []
    for i, mix in enumerate(([], ["--mix", "torso=1", "left_thigh=2"], ["--mix", "torso=0", "legs=0"])):
        log_dir = tmp_path / str(i)
        assert exit_code(main, "--mode", "transfer", "--checkpoint", trained[0], "--log_dir", log_dir,
                         "--appearance", 0, "--pose", 1, 2, *mix) == 0
        grids.append(np.asarray(Image.open(str(only_run(log_dir) / "transfer_0.png"))).astype(int))
    assert np.abs(grids[1] - grids[0]).max() > 0
    assert np.abs(grids[2] - grids[0]).max() <= 1  # of their own
