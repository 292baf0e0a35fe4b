"""Ctrl-C where a command must notice it."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

import pytest

from allocator.cli.app import interrupts_raised

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def interrupts_enabled() -> Iterator[None]:
    """Ctrl-C is heeded: whoever runs the tests in the background of a shell has it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


class Interrupted:
    """Is interrupted while it is destroyed, where Python raises nothing further."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_is_raised_and_the_handler_before_is_back_afterwards() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interrupts_raised():
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_that_falls_into_a_destructor_is_reported_all_the_same() -> None:
    with interrupts_raised() as came:
        Interrupted()
        assert came == [signal.SIGINT]


def test_where_ctrl_c_is_ignored_it_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interrupts_raised() as came:
        os.kill(os.getpid(), signal.SIGINT)
    assert came == []
