"""Downloads of large files, kept in a cache."""
from common.errors import UserError, reason, shown


def download(url, sha256=None):
    """Path of a copy of the file at an http(s) URL, downloaded once, under a progress bar.

    sha256: what the file must have, in hexadecimal; None takes any. Raises UserError.
    """
    import pooch  # here, as it is slow to import
    import requests
    pooch.get_logger().setLevel("ERROR")
    try:
        return pooch.retrieve(url, None if sha256 is None else f"sha256:{sha256}", path=pooch.os_cache("vunet"),
                              progressbar=True)
    except requests.exceptions.ConnectionError:  # whose text is long and says little
        raise UserError(f"{shown(url, 1000)}: cannot be downloaded: the server cannot be reached")
    except requests.exceptions.RequestException as error:
        raise UserError(f"{shown(url, 1000)}: cannot be downloaded: {reason(error)}")
    except ValueError as error:  # another hash, or a URL of another kind
        raise UserError(f"{shown(url, 1000)}: {reason(error)}")
    except OSError as error:
        raise UserError(f"{shown(url, 1000)}: cannot be kept in {pooch.os_cache('vunet')}: {reason(error)}")
