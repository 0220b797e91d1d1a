"""Joints of people in photos: the pose model, where it is there, and OpenPose's JSON files."""
import glob
import json
import os
import sys

import numpy as np
import pytest
from helpers import ROOT, beside, openpose_points, save_openpose, standing

from common.errors import UserError
from dataset import poses
from dataset.index import JOINTS, J, read_image
from dataset.poses import Estimator, choose, people_beside, read_openpose

SHARED = os.path.join(os.path.dirname(ROOT), "shared", "data")
MODEL = os.environ.get(poses.MODEL_VARIABLE) or os.path.join(SHARED, "pose_landmarker_full.task")
PHOTOS = sorted(glob.glob(os.path.join(SHARED, "coco", "*2017", "*.jpg")))


def in_pixels(joints, width=100, height=200):
    return np.where(joints < 0, -1, joints.astype(float) * (width, height))


# ---------------------------------------------------------------------------------------------- OpenPose

@pytest.mark.parametrize("n_points", [18, 25])
def test_openposes_points_become_our_joints(tmp_path, n_points):
    joints = in_pixels(standing("lwrist"))
    (tmp_path / "a.json").write_text(json.dumps({"people": [{"pose_keypoints_2d": openpose_points(joints, n_points)}]}))
    (found,), = read_openpose(str(tmp_path / "a.json"))
    np.testing.assert_allclose(found, joints)


def test_the_order_of_openposes_points():
    for n_points, right_hip, left_eye in ((18, 8, 15), (25, 9, 16)):
        columns = dict(zip(JOINTS, poses.OPENPOSE[3 * n_points]))
        assert (columns["cnose"], columns["rshoulder"], columns["lwrist"]) == (0, 2, 7)
        assert (columns["rhip"], columns["leye"]) == (right_hip, left_eye)


def test_joints_follow_the_picture_that_they_are_beside(tmp_path):
    joints = in_pixels(standing("relbow"))
    on_canvas = save_openpose(tmp_path / "canvas.json", joints, canvas_width=100, canvas_height=200)
    as_shares = save_openpose(tmp_path / "shares.json", standing("relbow"))
    for path in (on_canvas, as_shares):
        (found,), = read_openpose(str(path), (300, 400))
        np.testing.assert_allclose(found, in_pixels(standing("relbow"), 300, 400))
    (found,), = read_openpose(str(on_canvas))
    np.testing.assert_allclose(found, joints)


def test_points_that_nobody_saw_are_missing(tmp_path):
    points = openpose_points(in_pixels(standing()))
    points[3 * 2:3 * 3] = [50, 50, 0.01]  # the right shoulder, not believed
    points[3 * 3:3 * 4] = [0, 0, 1]
    points[3 * 4:3 * 5] = [None, None, None]
    (tmp_path / "a.json").write_text(json.dumps({"people": [{"pose_keypoints_2d": points}]}))
    (found,), = read_openpose(str(tmp_path / "a.json"))
    assert (found[[J["rshoulder"], J["relbow"], J["rwrist"]]] == -1).all() and (found[J["lwrist"]] > 0).all()


@pytest.mark.parametrize("content, words", [
    ("", "is not JSON"), ("[" * 100000, "is not JSON"), ("[]", "found an empty list"),
    ("3", "expected a list of people"),
    ("{}", "expected a list of people"), ('{"people": 1}', "expected a list of people"),
    ('{"people": [1]}', "18 or 25 times x, y and confidence"),
    ('{"people": [{"pose_keypoints_2d": [1, 2, 3]}]}', "18 or 25 times"),
    (json.dumps({"people": [{"pose_keypoints_2d": 53 * [1] + ["x"]}]}), "expected numbers, found x"),
    (json.dumps({"people": [{"pose_keypoints_2d": 53 * [1] + [1e30]}]}), "expected numbers, found 1e"),
    ('{"people": [{"pose_keypoints_2d": [' + 53 * "1, " + "NaN]}]}", "expected numbers, found nan"),
    ('{"people": [{"pose_keypoints_2d": [' + 53 * "1, " + 400 * "9" + "]}]}", "expected numbers, found 9"),
    ('{"people": [{"pose_keypoints_2d": [' + 53 * "1, " + 5000 * "9" + "]}]}", "expected numbers|is not JSON")])
def test_json_files_that_are_none_of_openposes_are_refused(tmp_path, content, words):
    path = tmp_path / "a.json"
    path.write_text(content)
    with pytest.raises(UserError, match=words) as error:
        read_openpose(str(path))
    assert "a.json" in str(error.value) and "\n" not in str(error.value)


def test_a_file_beside_the_photo_spares_the_pose_model(tmp_path):
    save_openpose(tmp_path / "me_keypoints.json", in_pixels(standing()))
    people = people_beside(str(tmp_path / "me.jpg"), (100, 200))
    np.testing.assert_allclose(people[0], in_pixels(standing()))
    assert people_beside(str(tmp_path / "you.jpg"), (100, 200)) is None
    (small,) = people_beside(str(tmp_path / "me.jpg"), (50, 100))  # joints that are outside of it are not seen
    assert (small[J["lankle"]] == -1).all() and (small[J["reye"]] > 0).all()


# ---------------------------------------------------------------------------------------------- whom to take

def test_the_largest_torso_is_taken_or_a_number_from_the_left():
    left, right = in_pixels(beside(standing(), left=True)), in_pixels(beside(standing(), left=False)) * 2
    hidden = np.where(in_pixels(standing("lhip")) < 0, -1, in_pixels(standing("lhip")) * 0.1)
    assert choose([left, right])[0] is right and choose([left, right], 1)[0] is left
    assert choose([right, left], 2)[0] is right
    assert choose([]) == (None, "no person found")
    assert choose([hidden]) == (None, "hips or shoulders not seen")
    assert choose([hidden, left])[0] is left
    assert choose([left, hidden], 1) == (None, "hips or shoulders not seen")
    assert "expected a person 3 from the left, found 2" in choose([left, right], 3)[1]
    assert choose([left], 3)[0] is left  # of one person in a photo there is no choice
    assert choose([np.where(left < 0, -1, 7.0)]) == (None, "hips or shoulders not seen")


# ---------------------------------------------------------------------------------------------- the pose model

needs_model = pytest.mark.skipif(sys.version_info < (3, 10) or not os.path.isfile(MODEL) or not PHOTOS,
                                 reason="needs Python 3.10, MediaPipe's pose model and photos")


@needs_model
def test_people_are_found_where_the_annotations_have_them(monkeypatch):
    monkeypatch.setenv(poses.MODEL_VARIABLE, MODEL)
    with open(os.path.join(SHARED, "coco", "annotations", "person_keypoints_train2017.json")) as file:
        annotations = json.load(file)
    path, = [path for path in PHOTOS if path.endswith("000000234748.jpg")]
    person, = [person for person in annotations["annotations"] if person["image_id"] == 234748]
    points = np.array(person["keypoints"]).reshape(-1, 3)
    with Estimator() as estimator:
        joints, why = choose(estimator(read_image(path)))
        assert estimator(read_image(path).resize((64, 64))) is not None
    assert why is None
    for name, number in (("lshoulder", 5), ("rshoulder", 6), ("lhip", 11), ("rhip", 12), ("lknee", 13)):
        assert points[number, 2] > 0 and np.linalg.norm(joints[J[name]] - points[number, :2]) < 25, name


@needs_model
def test_a_damaged_model_is_named(tmp_path, monkeypatch):
    for content in (b"", b"no model"):
        (tmp_path / "model.task").write_bytes(content)
        monkeypatch.setenv(poses.MODEL_VARIABLE, str(tmp_path / "model.task"))
        with pytest.raises(UserError, match="model.task: is no pose model"), Estimator() as estimator:
            estimator(read_image(PHOTOS[0]))
    monkeypatch.setenv(poses.MODEL_VARIABLE, str(tmp_path / "none"))
    with pytest.raises(UserError, match="none: the pose model cannot be read"), Estimator() as estimator:
        estimator(read_image(PHOTOS[0]))


@pytest.mark.skipif(sys.version_info < (3, 10), reason="says another thing on older Pythons")
def test_without_model_and_network_a_line_says_what_to_do(monkeypatch):
    monkeypatch.delenv(poses.MODEL_VARIABLE, raising=False)
    monkeypatch.setattr(poses, "MODEL_URL", "http://127.0.0.1:9/none.task")
    with pytest.raises(UserError, match="the pose model is needed once: .*cannot be reached; VUNET_POSE_MODEL may"):
        poses.model_path()
