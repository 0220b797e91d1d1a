"""People of one's own photos, one in each, with joints by MediaPipe's pose model, which needs no network and no GPU."""
import os

import numpy as np

from common.console import quiet_stderr
from common.errors import UserError, reason, shown
from dataset.builder import cut_square, files_below, square_around, with_progress
from dataset.index import read_image

# MediaPipe's numbers of the landmarks that are kept; left and right are the person's own.
LANDMARKS = {"cnose": 0, "leye": 2, "reye": 5, "lear": 7, "rear": 8, "lshoulder": 11, "rshoulder": 12, "lelbow": 13,
             "relbow": 14, "lwrist": 15, "rwrist": 16, "lhip": 23, "rhip": 24, "lknee": 25, "rknee": 26, "lankle": 27,
             "rankle": 28}
JOINTS = tuple(LANDMARKS)
J = {name: i for i, name in enumerate(JOINTS)}
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".ppm")
TO_CONVERT = (".heic", ".heif", ".tif", ".tiff")  # photos too, but not read
MIN_VISIBILITY = 0.5  # MediaPipe's estimate that a landmark is in the picture and not hidden
MIN_TORSO = 0.15  # in shares of the crop's side

INSTALL = ("photos needs MediaPipe (Python 3.9 to 3.12) in an environment of its own: python3.11 -m venv "
           ".venv-photos && .venv-photos/bin/pip install -r tools/requirements-photos.txt, and then "
           ".venv-photos/bin/python tools/make_index.py photos ...")


def add_people(builder, options):
    """Adds the person of each photo in options.photos and below; returns no further keys for the index."""
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
            if torso_length(joints) < MIN_TORSO * square[2]:
                why = f"torso smaller than {100 * MIN_TORSO:.0f} % of the crop"
        if why:
            builder.leave_out(name, why)
            continue
        shares = np.where(joints < 0, -1, (joints - square[:2]) / square[2])
        builder.add(name, shares, group=name, jpeg=cut_square(image, square, options.size))
    for line in builder.left_out_lines():
        print("left out: " + line)
    return {}


def find_photos(folder, builder):
    """Sorted paths of the photos in the folder and below. Raises UserError if there is none."""
    paths = files_below(folder, EXTENSIONS + TO_CONVERT, builder)
    if not paths:
        found = "none in it" if os.path.isdir(folder) else "no such folder"
        raise UserError(f"{shown(folder, 1000)}: expected a folder with photos ({' '.join(EXTENSIONS)}), found {found}")
    return paths


def load_estimator():
    """MediaPipe's pose model, the full one, which comes with its package. Raises UserError if that is not installed."""
    os.environ.setdefault("GLOG_minloglevel", "3")
    try:
        with quiet_stderr():
            from mediapipe.python.solutions.pose import Pose
            estimator = Pose(static_image_mode=True, model_complexity=1, min_detection_confidence=0.5)
            estimator.process(np.zeros((64, 64, 3), np.uint8))  # its first run prints a greeting
    except (ImportError, AttributeError) as error:
        raise UserError(f"{INSTALL} ({reason(error)})")
    return estimator


def find_joints(estimator, image):
    """joints (17, 2) in pixels of a PIL image, -1 where not seen; None if nobody is found."""
    with quiet_stderr():  # it logs warnings that no user can act on
        landmarks = estimator.process(np.asarray(image)).pose_landmarks
    if landmarks is None:
        return None
    found = np.array([(landmarks.landmark[i].x, landmarks.landmark[i].y, landmarks.landmark[i].visibility)
                      for i in LANDMARKS.values()])
    seen = (found[:, 2] >= MIN_VISIBILITY) & (found[:, :2] >= 0).all(axis=1) & (found[:, :2] < 1).all(axis=1)
    return np.where(seen[:, np.newaxis], found[:, :2] * image.size, -1)


def why_not(joints):
    """Why somebody with these joints cannot be used, or None."""
    if joints is None:
        return "no person found"
    if (joints[[J[side + name] for side in "lr" for name in ("hip", "shoulder")]] < 0).any():
        return "hips or shoulders not seen"
    return None


def body(joints):
    """Points (n, 2) around the body: the visible joints and, if the nose is one, the top of the head."""
    points = joints[(joints >= 0).all(axis=1)]
    nose = joints[J["cnose"]]
    if (nose >= 0).all():
        neck = (joints[J["lshoulder"]] + joints[J["rshoulder"]]) / 2
        points = np.concatenate([points, [neck + 2 * (nose - neck)]])  # as far above the nose as the neck is below it
    return points


def torso_length(joints):
    """Pixels from the middle of the shoulders to the middle of the hips."""
    shoulders, hips = [(joints[J["l" + name]] + joints[J["r" + name]]) / 2 for name in ("shoulder", "hip")]
    return np.linalg.norm(shoulders - hips)
