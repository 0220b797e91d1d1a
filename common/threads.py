"""Work in threads, ahead of whoever takes the results."""
import collections
import multiprocessing.pool


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
