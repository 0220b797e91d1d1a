"""Joints of the people in photos: by MediaPipe's pose model, or from JSON files as OpenPose and DWPose write them.

    people = people_beside("me.jpg", image.size) or estimator(image)
    joints, why = choose(people)

Joints are (15, 2) float64 in pixels, in the order of JOINTS, -1 where they are not seen. Left and right are the
person's own.
"""
import math
import os
import sys
import threading

import numpy as np

from common.console import quiet_stderr
from common.errors import UserError, reason, shown
from common.files import read_json
from dataset.boxes import has_torso, torso_length
from dataset.index import JOINTS

# ---------------------------------------------------------------------------------------------- MediaPipe

# MediaPipe's numbers of our joints.
LANDMARKS = {"cnose": 0, "leye": 2, "reye": 5, "lshoulder": 11, "rshoulder": 12, "lelbow": 13, "relbow": 14,
             "lwrist": 15, "rwrist": 16, "lhip": 23, "rhip": 24, "lknee": 25, "rknee": 26, "lankle": 27, "rankle": 28}
MIN_VISIBILITY = 0.5  # MediaPipe's estimate that a landmark is in the picture and not hidden
MAX_PEOPLE = 10  # in one photo
MAX_SIDE = 1280  # pixels that MediaPipe gets to see; its networks look at 256

MODEL_VARIABLE = "VUNET_POSE_MODEL"
MODEL_URL = ("https://storage.googleapis.com/mediapipe-models/pose_landmarker/pose_landmarker_full/float16/1/"
             "pose_landmarker_full.task")
MODEL_SHA256 = "5134a3aad27a58b93da0088d431f366da362b44e3ccfbe3462b3827a839011b1"
INSTALL = "pip install --no-deps -r requirements-photos.txt"


class Estimator:
    """MediaPipe's pose model, loaded when it is first used; serves several threads.

    with Estimator() as find_joints:
        people = find_joints(image)
    """

    def __init__(self):
        self._lock = threading.RLock()
        self._mediapipe = None
        self._landmarkers = []  # those that no thread uses now
        self._path = self._failure = None
        self._has_found = False

    def __enter__(self):
        return self

    def __exit__(self, *unused):
        with quiet_stderr():
            for landmarker in self._landmarkers:
                landmarker.close()  # or it prints a traceback when Python ends

    def __call__(self, image):
        """The people in a PIL image. Raises UserError where the model or MediaPipe is missing."""
        with self._lock:
            self._mediapipe = mediapipe = self._mediapipe or _import_mediapipe()
        small = image
        if max(image.size) > MAX_SIDE:
            small = image.copy()
            small.thumbnail((MAX_SIDE, MAX_SIDE))
        landmarker = self._take(mediapipe)
        try:
            people = self._detect(landmarker, _as_image(mediapipe, np.asarray(small)))
        finally:
            with self._lock:
                self._landmarkers.append(landmarker)
        return [_to_pixels(landmarks, image.size) for landmarks in people]

    def _detect(self, landmarker, image):
        if self._has_found:
            return landmarker.detect(image).pose_landmarks
        with self._lock, quiet_stderr():  # MediaPipe warns where it first finds somebody, of what no user can change
            people = landmarker.detect(image).pose_landmarks
            self._has_found = bool(people)
            return people

    def _take(self, mediapipe):
        with self._lock:
            if self._landmarkers:
                return self._landmarkers.pop()
            if self._failure is None:
                try:
                    self._path = self._path or model_path()
                    return _load_landmarker(mediapipe, self._path)
                except UserError as error:
                    self._failure = error  # other threads need not try
            raise self._failure


def _as_image(mediapipe, pixels):
    return mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(pixels))


def _to_pixels(landmarks, size):
    ours = [landmarks[LANDMARKS[name]] for name in JOINTS]
    found = np.array([(landmark.x, landmark.y, landmark.visibility) for landmark in ours], float)
    xy = found[:, :2]
    seen = (found[:, 2] >= MIN_VISIBILITY) & (xy >= 0).all(axis=1) & (xy < 1).all(axis=1)
    return np.where(seen[:, np.newaxis], xy * size, -1)


def _import_mediapipe():
    """The module mediapipe. Raises UserError that says what to install."""
    if sys.version_info < (3, 10):
        raise UserError("joints in photos are found under Python 3.10 or newer, and this is Python "
                        "{}.{}; data sets that tools/make_index.py makes there, and OpenPose's JSON files, work "
                        "everywhere".format(*sys.version_info[:2]))
    try:
        with quiet_stderr():
            import mediapipe
            import mediapipe.tasks.python.vision  # noqa: F401 (not there in old versions)
    except ImportError as error:
        raise UserError(f"joints in photos are found by MediaPipe, which {INSTALL} installs ({reason(error)})")
    return mediapipe


def _load_landmarker(mediapipe, path):
    tasks = mediapipe.tasks
    try:
        with open(path, "rb") as file:
            model = file.read()
    except OSError as error:
        raise UserError(f"{path}: the pose model cannot be read: {error.strerror}")
    try:
        with quiet_stderr():
            return tasks.vision.PoseLandmarker.create_from_options(tasks.vision.PoseLandmarkerOptions(
                base_options=tasks.BaseOptions(model_asset_buffer=model), num_poses=MAX_PEOPLE))
    except OSError as error:  # a library of the system
        raise UserError(f"MediaPipe cannot start: {reason(error)}; on Debian, apt install libegl1 libgles2 gives what "
                        "it needs")
    except (ValueError, RuntimeError) as error:
        raise UserError(f"{path}: is no pose model that MediaPipe can use: {reason(error)}")


def model_path():
    """Path of the pose model: $VUNET_POSE_MODEL or, in pooch's cache, a file that is downloaded once.

    Raises UserError.
    """
    given = os.environ.get(MODEL_VARIABLE)
    if given:
        return given
    from common.downloads import download  # here, as most commands download nothing
    try:
        return download(MODEL_URL, f"sha256:{MODEL_SHA256}")
    except UserError as error:
        raise UserError(f"the pose model is needed once: {error}; {MODEL_VARIABLE} may name a copy of it")


# ---------------------------------------------------------------------------------------------- OpenPose

_COCO_18 = ("cnose", None, "rshoulder", "relbow", "rwrist", "lshoulder", "lelbow", "lwrist", "rhip", "rknee", "rankle",
            "lhip", "lknee", "lankle", "reye", "leye", None, None)
_BODY_25 = ("cnose", None, "rshoulder", "relbow", "rwrist", "lshoulder", "lelbow", "lwrist", None, "rhip", "rknee",
            "rankle", "lhip", "lknee", "lankle", "reye", "leye") + 8 * (None,)
OPENPOSE = {3 * len(names): [names.index(name) for name in JOINTS] for names in (_COCO_18, _BODY_25)}
MIN_CONFIDENCE = 0.05  # OpenPose draws no joint below
MAX_BYTES = 2**28  # of a JSON file
MAX_COORDINATE = 1e6  # pixels


def read_openpose(path, size=None):
    """The people of each frame of an OpenPose JSON file: [[joints]]; most files have one frame.

    size: (width, height) of the picture that the file belongs to, if there is one. Raises UserError.
    """
    data = read_json(path, max_bytes=MAX_BYTES)
    frames = data if isinstance(data, list) else [data]
    if not frames:
        raise UserError(f"{shown(path, 1000)}: expected OpenPose's people, found an empty list")
    return [_people_of_frame(frame, size, f"{shown(path, 1000)}: " + (f"[{i}]: " if len(frames) > 1 else ""))
            for i, frame in enumerate(frames)]


def _people_of_frame(frame, size, where):
    people = frame.get("people") if isinstance(frame, dict) else None
    if not isinstance(people, list):
        raise UserError(f"{where}expected a list of people, as OpenPose and DWPose write it, found {shown(frame)}")
    canvas = [frame.get(key) for key in ("canvas_width", "canvas_height")]
    if not all(_is_number(side) and side >= 1 for side in canvas):
        canvas = None
    joints = []
    for i, person in enumerate(people):
        points = person.get("pose_keypoints_2d") if isinstance(person, dict) else None
        if not isinstance(points, list) or len(points) not in OPENPOSE:
            raise UserError(f"{where}people[{i}]: pose_keypoints_2d: expected 18 or 25 times x, y and confidence, "
                            f"found {shown(points)}")
        fault = next((value for value in points if value is not None and not _is_number(value)), None)
        if fault is not None:
            raise UserError(f"{where}people[{i}]: pose_keypoints_2d: expected numbers, found {shown(fault)}")
        joints.append(_as_joints(points, canvas, size))
    return joints


def _is_number(value, low=-MAX_COORDINATE, high=MAX_COORDINATE):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= high  # not nan


def _as_joints(points, canvas, size):
    """Joints in pixels of the picture or, without one, of the canvas that they are on."""
    values = np.array([0.0 if value is None else value for value in points]).reshape(-1, 3)[OPENPOSE[len(points)]]
    xy, confidence = values[:, :2], values[:, 2]
    seen = (confidence >= MIN_CONFIDENCE) & (xy >= 0).all(axis=1) & (xy > 0).any(axis=1)
    are_shares = bool((xy <= 1).all())
    if are_shares:
        xy = xy * (size or canvas or (1000, 1000))  # without any size, the picture is taken for a square
    elif size and canvas:
        xy = xy * size / canvas
    if size:
        seen &= (xy < size).all(axis=1)
    return np.where(seen[:, np.newaxis], xy, -1)


def openpose_beside(path):
    """Path of the OpenPose JSON file beside an image, or None: a_keypoints.json or a.json for a.jpg."""
    stem = os.path.splitext(path)[0]
    return next((name for name in (stem + "_keypoints.json", stem + ".json") if os.path.isfile(name)), None)


def people_beside(path, size):
    """The people that the JSON file beside an image of this (width, height) has; None without one. Raises UserError."""
    beside = openpose_beside(path)
    return read_openpose(beside, size)[0] if beside else None


# ---------------------------------------------------------------------------------------------- plain JSON

def read_joints(value, name):
    """Joints (15, 2) float32, in shares of a picture, of a list from JSON, -1 where one is negative.

    name: what messages call it. Raises UserError, also where hips and shoulders are not all there.
    """
    is_list = isinstance(value, list) and len(value) == len(JOINTS)
    if not (is_list and all(isinstance(point, list) and len(point) == 2 for point in value)):
        raise UserError(f"{name}: expected {len(JOINTS)} pairs of numbers, found {shown(value)}")
    joints = np.array([[read_number(x, name, -10, 10) for x in point] for point in value], np.float32)
    joints[joints.min(axis=1) < 0] = -1
    if not has_torso(joints):
        raise UserError(f"{name}: expected both hips and both shoulders")
    return joints


def read_number(value, name, low, high):
    """A number from JSON, at least low and at most high. Raises UserError."""
    if not _is_number(value, low, high):
        raise UserError(f"{name}: expected a number from {low:g} to {high:g}, found {shown(value)}")
    return value


# ---------------------------------------------------------------------------------------------- whom to take

def is_usable(joints):
    """Whether joints in pixels show both hips and both shoulders, at different places."""
    return has_torso(joints) and torso_length(joints) >= 1


def choose(people, number=None):
    """(joints, None), or (None, why nobody can be taken): of these people the one with the largest torso.

    number: which one of several to take instead, counted from the left, starting at 1.
    """
    if not people:
        return None, "no person found"
    if number is not None and len(people) > 1:
        if number > len(people):
            return None, f"expected a person {number} from the left, found {len(people)}"
        joints = from_left(people)[number - 1]
        return (joints, None) if is_usable(joints) else (None, "hips or shoulders not seen")
    usable = [joints for joints in people if is_usable(joints)]
    if not usable:
        return None, "hips or shoulders not seen"
    return max(usable, key=torso_length), None


def from_left(people):
    """People in the order of the middles of what is seen of them."""
    def middle(joints):
        x = joints[joints[:, 0] >= 0, 0]
        return x.mean() if len(x) else math.inf
    return sorted(people, key=middle)
