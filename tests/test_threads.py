"""Work ahead, in threads."""
import threading

import pytest

from common.threads import read_ahead


def test_results_come_in_order_and_the_next_chunk_is_worked_on_meanwhile():
    started = {item: threading.Event() for item in range(7)}

    def work(item):
        started[item].set()
        return 10 * item

    results = read_ahead(work, [[0, 1], [2, 3], [4, 5], [6]])
    assert next(results) == [0, 10]
    assert started[2].wait(10) and started[3].wait(10)  # before they are asked for
    assert not started[4].is_set()  # one chunk ahead, not all of them
    assert list(results) == [[20, 30], [40, 50], [60]]


def test_what_goes_wrong_is_raised_where_the_result_would_be():
    results = read_ahead(lambda item: 1 / item, [[1, 2], [0], [4]])
    assert next(results) == [1, 0.5]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_no_chunks_give_no_results():
    assert list(read_ahead(str, [])) == []
