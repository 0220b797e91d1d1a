"""Which images, and which pairs of images of one person, an evaluation looks at."""
import collections

import numpy as np

from common.errors import UserError, shown
from dataset.index import is_list
from inference.tables import APPEARANCES, POSES

MAX_POSES = 10  # of one person, that each image of the person is rendered in


def choose_items(index, n_images=None):
    """(numbers of test images, (P, 2) pairs of them, how many pairs of the index are left out): what is evaluated.

    n_images: the first so many of a fixed shuffle, and the pairs whose pose is one of these; None takes all.
    """
    numbers, (pairs, n_left_out) = index.usable("test"), find_pairs(index)
    if n_images is not None and n_images < len(numbers):
        numbers = np.sort(np.random.RandomState(0).permutation(numbers)[:n_images])
        pairs = pairs[np.isin(pairs[:, 1], numbers)]
    return numbers, pairs, n_left_out


def spread(numbers, n):
    """n of these numbers, or all, evenly spread."""
    return numbers[np.unique(np.linspace(0, len(numbers) - 1, n).round().astype(int))] if n < len(numbers) else numbers


def find_pairs(index):
    """((P, 2) int64, how many pairs are left out): usable test images of one person, from and to.

    They are the index's `pairs` or, without those, each image with others of the same `person`. Raises UserError where
    these are not what they should be.
    """
    usable = np.zeros(len(index.images), bool)
    usable[index.usable("test")] = True
    if "pairs" in index.extra:
        pairs = given_pairs(index)
        kept = pairs[usable[pairs].all(axis=1)]
        return kept, len(pairs) - len(kept)
    if "person" in index.extra:
        return pairs_of_one_person(index, np.flatnonzero(usable)), 0
    return np.zeros((0, 2), np.int64), 0


def given_pairs(index):
    """The index's `pairs`, (P, 2) int64. Raises UserError."""
    n, pairs = len(index.images), as_whole_numbers(index.extra["pairs"], n_columns=2)
    are_numbers_of_images = pairs is not None and ((pairs >= 0) & (pairs < n)).all()
    if not are_numbers_of_images:
        raise UserError(f"{index.path}: pairs: expected pairs of numbers from 0 to {n - 1}, "
                        f"found {shown(index.extra['pairs'])}")
    return pairs


def pairs_of_one_person(index, numbers):
    """Each of these images with the next ones of the same person, at most MAX_POSES, the last with the first again.

    (P, 2) int64. Raises UserError.
    """
    people = people_of(index)
    if people is None:
        raise UserError(f"{index.path}: person: expected {len(index.images)} whole numbers, found "
                        f"{shown(index.extra['person'])}")
    images = collections.defaultdict(list)
    for number in numbers:
        images[people[number]].append(number)
    pairs = []
    for of_one in images.values():
        n_poses = min(MAX_POSES, len(of_one) - 1)
        pairs += [(a, of_one[(i + k) % len(of_one)]) for i, a in enumerate(of_one) for k in range(1, n_poses + 1)]
    return np.array(pairs, np.int64).reshape(-1, 2)


def people_of(index):
    """The index's `person`, (N,) int64; None where it is missing or not a whole number for each image."""
    people = as_whole_numbers(index.extra.get("person"))
    return people if people is not None and len(people) == len(index.images) else None


def by_person(index, numbers):
    """These numbers of images, those of a person one after another; as they are where people are not known."""
    people = people_of(index)
    return numbers if people is None else numbers[np.argsort(people[numbers], kind="stable")]


def as_whole_numbers(values, n_columns=None):
    """Values of an index as (n,) int64 or, with n_columns, as (n, n_columns); None where they are something else."""
    shape = (-1, n_columns) if n_columns else (-1,)
    if isinstance(values, np.ndarray):
        fits = values.dtype.kind in "iu" and values.ndim == len(shape) and values.shape[1:] == shape[1:]
        return values.astype(np.int64).reshape(shape) if fits or not values.size else None
    if not is_list(values):
        return None
    rows = values if n_columns else [values]
    # Looked at before numpy is asked: lists that hold one another many times over would fill the memory.
    for row in rows:
        fits = is_list(row) and (n_columns is None or len(row) == n_columns)
        if not fits or not all(isinstance(value, (int, np.integer)) and abs(value) < 2**62 for value in row):
            return None
    return np.array(values, np.int64).reshape(shape)


def groups_of_people(index, numbers):
    """Groups of up to POSES test images: of one person each, and of different people; none if people are not known."""
    people = people_of(index)
    if people is None:
        return [], []
    images = collections.defaultdict(list)
    for number in numbers.tolist():
        images[people[number]].append(number)
    of_one = [group[:POSES] for group in images.values() if len(group) > 1][:APPEARANCES]
    firsts = [group[0] for group in images.values()]
    of_different = [firsts[start:start + POSES] for start in range(0, len(firsts) - POSES + 1, POSES)][:APPEARANCES]
    return of_one, of_different
