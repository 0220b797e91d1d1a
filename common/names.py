"""Names that are not taken yet."""
import itertools


def numbered(name, separator="_"):
    """Yields name, name_2, name_3 and so on, for a caller who takes the first that is free."""
    yield name
    for number in itertools.count(2):
        yield f"{name}{separator}{number}"
