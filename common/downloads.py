"""Downloads of large files, kept in a cache."""
import os

from common.errors import UserError, reason, shown


def download(url, known_hash=None, folder=None):
    """Path of a copy of the file at an http(s) URL, downloaded once, under a progress bar.

    known_hash: what the file must have, such as "sha256:..." or "md5:..."; None takes any. folder: where it is kept, by
    its own name; None is the project's cache. Raises UserError.
    """
    import pooch  # here, as it is slow to import
    import requests
    pooch.get_logger().setLevel("ERROR")
    name = None if folder is None else os.path.basename(url)
    folder = folder or pooch.os_cache("vunet")
    try:
        return pooch.retrieve(url, known_hash, fname=name, path=folder, progressbar=True)
    except requests.exceptions.ConnectionError:  # whose text is long and says little
        raise UserError(f"{shown(url, 1000)}: cannot be downloaded: the server cannot be reached")
    except requests.exceptions.RequestException as error:
        raise UserError(f"{shown(url, 1000)}: cannot be downloaded: {reason(error)}")
    except ValueError as error:  # another hash, or a URL of another kind
        raise UserError(f"{shown(url, 1000)}: {reason(error)}")
    except OSError as error:
        raise UserError(f"{shown(url, 1000)}: cannot be kept in {folder}: {reason(error)}")
