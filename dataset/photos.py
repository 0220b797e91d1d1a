"""One's own photos, a person each, joints by MediaPipe's pose model (which needs no network and no GPU)."""
import os

import numpy as np

from common.console import quiet_stderr
from common.errors import UserError, reason, shown
from dataset.builder import cut_square, files_below, square_around, with_progress
from dataset.index import read_image

# The landmarks of MediaPipe that are kept, by their number there; left and right are the person's own.
LANDMARKS = {"cnose": 0, "leye": 2, "reye": 5, "lear": 7, "rear": 8, "lshoulder": 11, "rshoulder": 12, "lelbow": 13,
             "relbow": 14, "lwrist": 15, "rwrist": 16, "lhip": 23, "rhip": 24, "lknee": 25, "rknee": 26, "lankle": 27,
             "rankle": 28}
JOINTS = tuple(LANDMARKS)
J = {name: i for i, name in enumerate(JOINTS)}
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm")
TO_CONVERT = (".heic", ".heif", ".tif", ".tiff")  # taken for photos, but not read
LEAST_VISIBILITY = 0.5  # MediaPipe's own estimate that a landmark is in the picture and not hidden
LEAST_TORSO = 0.15  # of the crop's side

INSTALL = ("photos needs MediaPipe (Python 3.9 to 3.12), which has an environment of its own: python3.11 -m venv "
           ".venv-photos && .venv-photos/bin/pip install -r tools/requirements-photos.txt, and then "
           ".venv-photos/bin/python tools/make_index.py photos ...")


def add_people(builder, options):
    """Takes in the person of each photo below options.photos."""
    paths = find_photos(options.photos, builder)
    builder.images_seen = len(paths)
    estimator = load_estimator()
    for path in with_progress(paths):
        name = os.path.relpath(path, options.photos)
        if name.lower().endswith(TO_CONVERT):
            builder.leave_out(name, "of another kind than JPEG and PNG; convert them")
            continue
        try:
            image = read_image(path)
        except UserError as error:
            builder.leave_out(name, "cannot be read", str(error))
            continue
        joints = find_joints(estimator, image)
        why = why_not(joints)
        if why is None:
            square = square_around(body(joints), *image.size)
            if torso_length(joints) < LEAST_TORSO * square[2]:
                why = "torso smaller than %.0f %% of the crop" % (100 * LEAST_TORSO)
        if why:
            builder.leave_out(name, why)
            continue
        shares = np.where(joints < 0, -1, (joints - square[:2]) / square[2])
        builder.add(name, shares, group=name, jpeg=cut_square(image, square, options.size))
    for line in builder.left_out_lines():
        print("left out: " + line)


def find_photos(folder, builder):
    """Sorted paths of the photos in the folder and below. Raises UserError where there is none."""
    paths = files_below(folder, EXTENSIONS + TO_CONVERT, builder)
    if not paths:
        raise UserError("{}: expected a folder with photos ({}), found {}".format(
            shown(folder, 1000), " ".join(EXTENSIONS), "none in it" if os.path.isdir(folder) else "no such folder"))
    return paths


def load_estimator():
    """MediaPipe's pose model; it is the full one, which its package holds. Raises UserError where it is not installed."""
    os.environ.setdefault("GLOG_minloglevel", "3")
    try:
        with quiet_stderr():
            from mediapipe.python.solutions.pose import Pose
            estimator = Pose(static_image_mode=True, model_complexity=1, min_detection_confidence=0.5)
            estimator.process(np.zeros((64, 64, 3), np.uint8))  # it greets while it starts
    except (ImportError, AttributeError) as error:
        raise UserError(f"{INSTALL} ({reason(error)})")
    return estimator


def find_joints(estimator, image):
    """joints (17, 2) in pixels of a PIL image, -1 where not seen; None where nobody is found."""
    with quiet_stderr():  # it logs warnings that are none of the user's business
        landmarks = estimator.process(np.asarray(image)).pose_landmarks
    if landmarks is None:
        return None
    found = np.array([(landmarks.landmark[i].x, landmarks.landmark[i].y, landmarks.landmark[i].visibility)
                      for i in LANDMARKS.values()])
    seen = (found[:, 2] >= LEAST_VISIBILITY) & (found[:, :2] >= 0).all(axis=1) & (found[:, :2] < 1).all(axis=1)
    return np.where(seen[:, np.newaxis], found[:, :2] * image.size, -1)


def why_not(joints):
    if joints is None:
        return "no person found"
    if (joints[[J[side + name] for side in "lr" for name in ("hip", "shoulder")]] < 0).any():
        return "hips or shoulders not seen"
    return None


def body(joints):
    """Points (n, 2) around the body: the joints, and the top of the head, which is no joint."""
    points = joints[(joints >= 0).all(axis=1)]
    nose = joints[J["cnose"]]
    if (nose >= 0).all():
        neck = (joints[J["lshoulder"]] + joints[J["rshoulder"]]) / 2
        points = np.concatenate([points, [neck + 2 * (nose - neck)]])  # as far above the nose as the neck is below
    return points


def torso_length(joints):
    """Pixels from the middle of the shoulders to the middle of the hips."""
    shoulders, hips = [(joints[J["l" + name]] + joints[J["r" + name]]) / 2 for name in ("shoulder", "hip")]
    return np.linalg.norm(shoulders - hips)
