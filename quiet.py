"""Silence on stderr while a library is imported that greets there."""
import contextlib
import os
import sys
import tempfile


@contextlib.contextmanager
def quiet_stderr():
    """Keeps what is written to file descriptor 2 off the terminal, unless the block raises: then it is shown."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as aside:
        os.dup2(aside.fileno(), 2)
        try:
            yield
        except BaseException:
            aside.seek(0)
            os.write(saved, aside.read())
            raise
        finally:
            os.dup2(saved, 2)
            os.close(saved)
