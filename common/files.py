"""Reading files of the user's."""
import json
import os

from common.errors import UserError, reason, shown


def read_json(path, name=None, max_bytes=2**32):
    """What a JSON file holds. name: what messages call it, by default its path.

    Raises UserError where it cannot be read, is no JSON or has more than max_bytes.
    """
    name = name or shown(path, 1000)
    try:
        size = os.path.getsize(path)
        if size > max_bytes:
            raise UserError(f"{name}: expected at most {max_bytes} bytes, found {size}")
        with open(path, encoding="utf-8-sig") as file:
            return json.load(file)
    except OSError as error:
        raise UserError(f"{name}: cannot be read: {error.strerror}")
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name}: is not JSON: {reason(error)}")
