"""What goes to stderr: progress bars, and nothing while TensorFlow is imported, which greets there."""
import contextlib
import os
import signal
import sys
import tempfile
import threading

from tqdm import tqdm

_stderr_lock = threading.RLock()  # two threads at it would leave the descriptor elsewhere


@contextlib.contextmanager
def quiet_stderr():
    """Keeps what is written to file descriptor 2 off the terminal, unless the block raises: then it is shown.

    One thread at a time. A missing TensorFlow and Ctrl-C end the program with one line and exit code 2 or 130.
    """
    with _stderr_lock:
        yield from _quiet()


def _quiet():
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if sys.stderr is None:  # closed by the caller
        sys.stderr = open(os.devnull, "w")
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as aside:
        os.dup2(aside.fileno(), 2)
        try:
            yield
        except ModuleNotFoundError as error:
            if error.name is None or error.name.split(".")[0] != "tensorflow":
                raise
            os.write(saved, b"error: TensorFlow is not installed; pip install -r requirements.txt installs it on "
                            b"Python 3.7 and 3.10 to 3.13\n")
            sys.exit(2)
        except KeyboardInterrupt:  # also while modules are imported, where nothing else would catch it
            os.write(saved, b"interrupted\n")
            sys.exit(128 + signal.SIGINT)
        except BaseException:
            aside.seek(0)
            os.write(saved, aside.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def progress_bar(items=None, **settings):
    """A tqdm bar; prints every ten seconds where stderr is no terminal."""
    return tqdm(items, mininterval=0.2 if sys.stderr.isatty() else 10, **settings)


def print_beside_bars(line):
    """Prints a line on stdout; bars on the same terminal step aside."""
    if sys.stderr.isatty():
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()
    else:
        print(line, flush=True)
