"""Boxes around people, and what is cut out."""
import numpy as np
import pytest
from helpers import standing
from PIL import Image

from dataset.boxes import body, box_around, cut_box, has_torso, shares_of, torso_length
from dataset.index import J


def test_squares_are_shifted_into_the_photo_and_otherwise_filled_up():
    assert box_around([(0, 50), (100, 150)], 300, 200) == (0, 35, 130, 130)
    assert box_around([(250, 50), (300, 150)], 300, 200) == (170, 35, 130, 130)
    assert box_around([(100, 0), (150, 200)], 300, 200) == (0, -30, 260, 260)
    image = Image.fromarray(np.arange(200, dtype=np.uint8)[:, None, None].repeat(300, 1).repeat(3, 2))
    crop = cut_box(image, (0, -30, 260, 260), 260)
    assert crop.shape == (260, 260, 3) and abs(crop[130, 0, 0] - 100.) < 3
    assert crop[:28].max() < 3 and crop[232:].min() > 196
    panorama = Image.fromarray(np.zeros((10, 6000, 3), np.uint8))
    assert cut_box(panorama, box_around([(0, 0), (6000, 10)], 6000, 10), 64).shape == (64, 64, 3)


@pytest.mark.parametrize("aspect", [0.5, 1.0, 2.0])
def test_boxes_have_the_aspect_that_is_asked_for_and_hold_all_points(aspect):
    for points in ([(100, 100), (140, 300)], [(100, 100), (400, 140)], [(7, 7), (7, 7)]):
        x, y, width, height = box_around(points, aspect=aspect)
        assert abs(width - aspect * height) <= 1
        assert all(x <= px <= x + width and y <= py <= y + height for px, py in points)


def test_a_box_that_is_squeezed_shows_the_points_at_their_shares():
    pixels = np.zeros((200, 300, 3), np.uint8)
    pixels[80:84, 150:152] = 255
    box = box_around([(130, 40), (170, 160)], 300, 200, aspect=0.5)
    share = shares_of(np.array([(151.0, 82.0)]), box)[0]
    crop = cut_box(Image.fromarray(pixels), box, 64)
    y, x = np.argwhere(crop[..., 0] > 60).mean(axis=0) + 0.5
    np.testing.assert_allclose((x, y), 64 * share, atol=1)


def test_joints_outside_of_the_box_are_missing():
    joints = np.array([(10, 10), (-1, -1), (25, 10), (10, 41), (9.9, 20)], float)
    np.testing.assert_allclose(shares_of(joints, (10, 10, 20, 30)), [(0, 0), (-1, -1), (.75, 0), (-1, -1), (-1, -1)])


def test_a_body_reaches_above_the_nose():
    joints = standing().astype(float)
    assert has_torso(joints) and not has_torso(standing("lhip"))
    assert abs(torso_length(joints) - 0.25) < 1e-6
    neck, nose = 0.3, joints[J["cnose"], 1]
    np.testing.assert_allclose(body(joints)[:, 1].min(), neck + 2 * (nose - neck), rtol=1e-5)
    assert body(standing("cnose").astype(float))[:, 1].min() == pytest.approx(0.1)  # the eyes
