"""Work in threads: ahead of whoever takes the results, and one at a time."""
import collections
import contextlib
import multiprocessing.pool
import threading


def read_ahead(function, chunks, n_threads=None):
    """Yields [function(item) for item in chunk] for each chunk, while threads work on the next one.

    n_threads: by default the number of the machine's cores.
    """
    with multiprocessing.pool.ThreadPool(n_threads) as pool:
        pending = collections.deque()
        for chunk in chunks:
            pending.append(pool.map_async(function, chunk))
            if len(pending) > 1:
                yield pending.popleft().get()
        while pending:
            yield pending.popleft().get()


class Superseded(Exception):
    """A newer request of the same page has come."""


class Turns:
    """Lets one request at a time through; of the waiting ones of a page, only the newest.

    with turns.of("a page"):
        ...

    Raises Superseded in those that wait no longer.
    """

    def __init__(self):
        self._condition = threading.Condition()
        self._is_busy = False
        self._newest = {}  # of each page with requests that wait or have their turn

    @contextlib.contextmanager
    def of(self, name):
        ticket = object()
        with self._condition:
            self._newest[name] = ticket
            self._condition.notify_all()
            while self._is_busy and self._newest.get(name) is ticket:
                self._condition.wait()
            if self._newest.get(name) is not ticket:
                raise Superseded
            self._is_busy = True
        try:
            yield
        finally:
            with self._condition:
                self._is_busy = False
                if self._newest.get(name) is ticket:
                    del self._newest[name]
                self._condition.notify_all()
