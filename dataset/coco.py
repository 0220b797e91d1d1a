"""People of COCO's person keypoint annotations, as a square crop each."""
import collections
import os

import numpy as np

from common.errors import UserError, shown
from common.files import read_json
from dataset.boxes import as_jpeg, box_around, cut_box, shares_of
from dataset.builder import in_parallel, is_pixel
from dataset.index import is_file_name, leaves_folder, read_image

# COCO's order; left and right are the person's own.
JOINTS = ("cnose", "leye", "reye", "lear", "rear", "lshoulder", "rshoulder", "lelbow", "relbow", "lwrist", "rwrist",
          "lhip", "rhip", "lknee", "rknee", "lankle", "rankle")
NOT_LABELLED, HIDDEN, VISIBLE = 0, 1, 2

Person = collections.namedtuple("Person", "name joints points")
Person.__doc__ = """Somebody in a photo: name of the crop to be, and what joints_and_body returns."""


def add_people(builder, options):
    """Adds the people of the options' annotations; returns no further keys for the index."""
    for folder in options.images:
        if not os.path.isdir(folder):
            raise UserError(f"--images: there is no folder {shown(folder, 1000)}")
    if options.test_annotations is None:
        sources = [(options.annotations, None)]  # the builder chooses who is for tests
    else:
        sources = [(options.annotations, True), (options.test_annotations, False)]
    contents = [read_annotations(path) for path, _ in sources]  # faults show before the first crop is made
    for (photos, people), (_, train) in zip(contents, sources):
        add_photos(builder, photos, people, train=train, options=options)
    return {}


def read_annotations(path):
    """({photo id: file name}, {photo id: [annotation]}) of a COCO JSON file. Raises UserError."""
    data = read_json(path)
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
            found = shown(person["image_id"])
            raise UserError(f"{path}: annotations[{i}]: image_id: expected one of images, found {found}")
        people[person["image_id"]].append(person)
    return photos, people


def _is_name(name):
    return is_file_name(name) and not leaves_folder(name)


def _is_id(value):
    return isinstance(value, int) or is_file_name(value)


def _annotation_fault(person):
    """What is wrong with an annotation, or None."""
    if not isinstance(person, dict) or not all(_is_id(person.get(key)) for key in ("id", "image_id")):
        return f"expected id and image_id, found {shown(person)}"
    for key, length in (("keypoints", 3 * len(JOINTS)), ("bbox", 4)):
        value = person.get(key)
        if not isinstance(value, list) or len(value) != length or not all(is_pixel(v) for v in value):
            return f"{key}: expected {length} numbers, found {shown(value)}"
    return None


def add_photos(builder, photos, people, *, train, options):
    """Adds the people of each photo. train: None if the builder is to choose who is for tests."""
    jobs = []
    for photo, name in sorted(photos.items(), key=lambda item: (item[1], str(item[0]))):
        builder.images_seen += find_photo(name, options.images) is not None
        chosen = choose_people(builder, name, people[photo], options)
        if chosen:
            jobs.append((name, chosen))
    results = in_parallel(lambda job: cut_people(*job, options), jobs)
    for (crops, why), (name, chosen) in zip(results, jobs):
        if why is not None:
            for person in chosen:
                builder.leave_out(person.name, why)
        for person, (shares, jpeg) in zip(chosen, crops):
            builder.add(person.name, shares, train=train, group=name, jpeg=jpeg)


def choose_people(builder, photo, annotations, options):
    """[Person] of a photo that can be used; notes the others."""
    chosen = []
    for annotation in sorted(annotations, key=lambda annotation: str(annotation["id"])):
        name = f"{os.path.splitext(photo)[0]}_{annotation['id']}.jpg"
        joints, points = joints_and_body(annotation, options.keep_hidden)
        why = _why_not(builder, annotation, joints, points, min_size=options.min_size)
        if why:
            builder.leave_out(name, why)
        else:
            chosen.append(Person(name, joints, points))
    return chosen


def cut_people(photo, people, options):
    """([(joints in shares of the crop, JPEG)] of the people of a photo, None), or ([], why there are none)."""
    path = find_photo(photo, options.images)
    if path is None:
        return [], "without photo in --images"
    try:
        image = read_image(path)
    except UserError:
        return [], "in a photo that cannot be read"
    crops = []
    for person in people:
        on_photo = (person.joints >= 0).all(axis=1) & (person.joints < image.size).all(axis=1)
        joints = np.where(on_photo[:, np.newaxis], person.joints, -1)
        square = box_around(np.clip(person.points, 0, image.size), *image.size)
        crops.append((shares_of(joints, square), as_jpeg(cut_box(image, square, options.size))))
    return crops, None


def joints_and_body(annotation, keep_hidden):
    """joints (17, 2) in pixels of the photo, negative where missing; points (n, 2): all labelled joints and the box."""
    keypoints = np.array(annotation["keypoints"], np.float64).reshape(len(JOINTS), 3)
    xy, labels = keypoints[:, :2], keypoints[:, 2]
    seen = labels >= (HIDDEN if keep_hidden else VISIBLE)
    x, y, width, height = annotation["bbox"]
    points = np.concatenate([xy[labels != NOT_LABELLED], [(x, y), (x + width, y + height)]])
    return np.where(seen[:, np.newaxis], xy, -1), points


def _why_not(builder, annotation, joints, points, *, min_size):
    """Why somebody cannot be used, or None."""
    if annotation.get("iscrowd"):
        return "crowds"
    if (joints < 0).all():
        return "without visible joints"
    if not builder.has_torso(joints):
        return "hips or shoulders not seen"
    if np.ptp(points, axis=0).max() < min_size:
        return f"smaller than {min_size} pixels"
    return None


def find_photo(name, folders):
    """Path of a photo in the one of the folders that has it, or None. Raises UserError where several have it."""
    paths = {os.path.realpath(path): path for path in (os.path.join(folder, name) for folder in folders)
             if os.path.isfile(path)}
    if len(paths) > 1:
        found = " and ".join(shown(path, 500) for path in sorted(paths.values())[:2])
        raise UserError(f"--images: expected each photo in one of the folders, found {found}")
    return next(iter(paths.values()), None)
