"""People of COCO's person keypoint annotations, a square crop each."""
import collections
import json
import os

import numpy as np

from common.errors import UserError, reason, shown
from dataset.builder import cut_square, in_parallel, square_around
from dataset.index import is_file_name, leaves_folder, read_image

# COCO's order; left and right are the person's own.
JOINTS = ("cnose", "leye", "reye", "lear", "rear", "lshoulder", "rshoulder", "lelbow", "relbow", "lwrist", "rwrist",
          "lhip", "rhip", "lknee", "rknee", "lankle", "rankle")
NOT_LABELLED, HIDDEN, VISIBLE = 0, 1, 2


def add_people(builder, options):
    """Takes in the people of options.annotations and, for tests, of options.test_annotations."""
    for folder in options.images:
        if not os.path.isdir(folder):
            raise UserError(f"--images: there is no folder {shown(folder, 1000)}")
    sources = [(options.annotations, None if options.test_annotations is None else True)]
    if options.test_annotations is not None:
        sources.append((options.test_annotations, False))
    read = [read_annotations(path) + (train,) for path, train in sources]
    for photos, people, train in read:
        add_photos(builder, photos, people, train, options)


def read_annotations(path):
    """(file names by photo id, annotations by photo id) of a COCO JSON file. Raises UserError."""
    try:
        with open(path, encoding="utf-8") as file:
            data = json.load(file)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not JSON: {reason(error)}")
    if not isinstance(data, dict) or not all(isinstance(data.get(key), list) for key in ("images", "annotations")):
        raise UserError(f"{path}: expected COCO's person_keypoints_*.json with the lists images and annotations")
    photos, people = {}, collections.defaultdict(list)
    for i, photo in enumerate(data["images"]):
        if not isinstance(photo, dict) or not _is_id(photo.get("id")) or not _is_name(photo.get("file_name")):
            raise UserError(f"{path}: images[{i}]: expected id and file_name, found {shown(photo)}")
        photos[photo["id"]] = photo["file_name"]
    for i, person in enumerate(data["annotations"]):
        fault = _annotation_fault(person)
        if fault:
            raise UserError(f"{path}: annotations[{i}]: {fault}")
        if person["image_id"] not in photos:
            raise UserError("{}: annotations[{}]: image_id: found {}, expected one of images".format(path, i, shown(person["image_id"])))
        people[person["image_id"]].append(person)
    return photos, people


def _is_name(name):
    return is_file_name(name) and not leaves_folder(name)


def _is_id(value):
    return isinstance(value, int) or is_file_name(value)


def _annotation_fault(person):
    if not isinstance(person, dict) or not all(_is_id(person.get(key)) for key in ("id", "image_id")):
        return f"expected id and image_id, found {shown(person)}"
    for key, length in (("keypoints", 3 * len(JOINTS)), ("bbox", 4)):
        value = person.get(key)
        if not isinstance(value, list) or len(value) != length or not all(_is_coordinate(v) for v in value):
            return f"{key}: expected {length} numbers, found {shown(value)}"


def _is_coordinate(value):
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e6  # not nan either


def add_photos(builder, photos, people, train, options):
    """Takes in the people of each photo; train None: to be split."""
    jobs = []
    for photo, name in sorted(photos.items(), key=lambda item: (item[1], str(item[0]))):
        builder.images_seen += find_photo(name, options.images) is not None
        chosen = []
        for person in sorted(people[photo], key=lambda person: str(person["id"])):
            joints, points = joints_and_body(person, options.keep_hidden)
            why = _why_not(builder, person, joints, points, options.min_size)
            if why:
                builder.leave_out(_crop_name(name, person), why)
            else:
                chosen.append((person, joints, points))
        if chosen:
            jobs.append((name, chosen))

    def cut(job):
        """The crops of a photo: [(name, joints in shares of the crop, JPEG)], or why there are none."""
        name, chosen = job
        path = find_photo(name, options.images)
        if path is None:
            return "without photo in --images"
        try:
            image = read_image(path)
        except UserError:
            return "in a photo that cannot be read"
        crops = []
        for person, joints, points in chosen:
            on_photo = (joints >= 0).all(axis=1) & (joints < image.size).all(axis=1)
            square = square_around(np.clip(points, 0, image.size), *image.size)
            shares = np.where(on_photo[:, np.newaxis], (joints - square[:2]) / square[2], -1)
            crops.append((_crop_name(name, person), shares, cut_square(image, square, options.size)))
        return crops

    for crops, (name, chosen) in zip(in_parallel(cut, jobs), jobs):
        if isinstance(crops, str):
            for person, _, _ in chosen:
                builder.leave_out(_crop_name(name, person), crops)
        else:
            for crop_name, joints, jpeg in crops:
                builder.add(crop_name, joints, train, group=name, jpeg=jpeg)


def joints_and_body(person, keep_hidden):
    """joints (17, 2) in pixels of the photo, negative where missing; points (n, 2): all labelled joints, the body's box."""
    keypoints = np.array(person["keypoints"], np.float64).reshape(len(JOINTS), 3)
    xy, labels = keypoints[:, :2], keypoints[:, 2]
    seen = labels >= (HIDDEN if keep_hidden else VISIBLE)
    x, y, width, height = person["bbox"]
    points = np.concatenate([xy[labels != NOT_LABELLED], [(x, y), (x + width, y + height)]])
    return np.where(seen[:, np.newaxis], xy, -1), points


def _why_not(builder, person, joints, points, min_size):
    if person.get("iscrowd"):
        return "crowds"
    if (joints < 0).all():
        return "without visible joints"
    if not builder.has_torso(joints):
        return "hips or shoulders not seen"
    if np.ptp(points, axis=0).max() < min_size:
        return f"smaller than {min_size} pixels"
    return None


def _crop_name(photo, person):
    return "{}_{}.jpg".format(os.path.splitext(photo)[0], person["id"])


def find_photo(name, folders):
    """Path of a photo in one of the folders, or None."""
    for folder in folders:
        path = os.path.join(folder, name)
        if os.path.isfile(path):
            return path
    return None
