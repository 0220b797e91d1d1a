"""The pieces of the training loop, alone."""
import argparse
import os
import signal
import time

import pytest

from common.errors import UserError
from main import MAX_OVERFLOWS, FiniteCheck, StopSignal, command_to_go_on

FINE = {"loss": 1.0, "gradient_norm": 2.0}
OVERFLOW = {"loss": 1.0, "gradient_norm": float("inf")}


def test_gradients_may_overflow_where_the_loss_is_scaled_but_not_forever():
    check = FiniteCheck(may_overflow=True)
    for scalars in [OVERFLOW] * (MAX_OVERFLOWS - 1) + [FINE] + [OVERFLOW] * (MAX_OVERFLOWS - 1):
        check(0, scalars)
    with pytest.raises(UserError, match="gradient_norm is inf"):
        check(0, OVERFLOW)


@pytest.mark.parametrize("may_overflow", [False, True])
def test_a_loss_that_is_not_finite_ends_a_training(may_overflow):
    with pytest.raises(UserError, match="loss is nan in step 8"):
        FiniteCheck(may_overflow)(7, {"loss": float("nan"), "gradient_norm": 1.0})


def test_gradients_that_are_not_scaled_may_not_overflow():
    with pytest.raises(UserError, match="gradient_norm is inf in step 1"):
        FiniteCheck(may_overflow=False)(0, OVERFLOW)


def test_the_command_to_go_on_repeats_what_was_set():
    options = argparse.Namespace(config="my config.yaml", workers=2, set=[("seed", 3), ("gram_weights", [0.0, 0.1])],
                                 log_dir="my log")
    assert command_to_go_on(options, "my log/x") == (
        "python main.py --config 'my config.yaml' --set seed=3 --set 'gram_weights=[0.0, 0.1]' --log_dir 'my log' "
        "--workers 2 --checkpoint 'my log/x'")
    options = argparse.Namespace(config="my.yaml", workers=None, set=[], log_dir="log")
    assert command_to_go_on(options, "log/x") == "python main.py --config my.yaml --checkpoint log/x"


def test_signals_within_a_moment_are_one_and_a_later_one_stops_at_once(monkeypatch):
    """As when a group of processes is stopped, and what started them passes the signal on."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    with pytest.raises(KeyboardInterrupt), StopSignal() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        now[0] += 0.5
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.number == signal.SIGINT
        now[0] += 1
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
