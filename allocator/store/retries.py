"""Repeating a command that Redis did not answer: with full jitter, within the caller's time limit."""

from __future__ import annotations

from typing import Any

from allocator.model.backoff import Backoff
from allocator.store.translate import is_transient

BACKOFF = Backoff(first=0.02, longest=0.5)


def transient_policy(timeout_s: float) -> dict[str, Any]:
    """Return the arguments of `tenacity.Retrying` or `AsyncRetrying` for one command.

    Args:
        timeout_s: The seconds that the first attempt left of the caller's limit; one more attempt without an answer
            may use them up.
    """
    from tenacity import retry_if_exception, stop_before_delay

    return {
        "retry": retry_if_exception(is_transient),
        "wait": lambda state: BACKOFF.pause(state.attempt_number),
        "stop": stop_before_delay(timeout_s),
        "reraise": True,
    }
