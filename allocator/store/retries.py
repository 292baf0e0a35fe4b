"""How a command that Redis did not answer is sent again: full-jitter back-off within the caller's time limit.

Source: "full jitter" is from M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
"""

from __future__ import annotations

from typing import Any

from allocator.store.translate import is_transient

FIRST_S = 0.02
LONGEST_S = 0.5


def transient_policy(timeout_s: float) -> dict[str, Any]:
    """Return the arguments of `tenacity.Retrying` or `AsyncRetrying` for one command.

    Args:
        timeout_s: For how many seconds, what the first attempt left of the caller's limit; one more silent attempt
            may use it up.
    """
    from tenacity import retry_if_exception, stop_before_delay, wait_random_exponential

    return {
        "retry": retry_if_exception(is_transient),
        "wait": wait_random_exponential(multiplier=FIRST_S, max=LONGEST_S),
        "stop": stop_before_delay(timeout_s),
        "reraise": True,
    }
