"""The log of this package, for modules that every command loads: `logging` is imported when a line is written."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import logging


INFO, WARNING, ERROR = 20, 30, 40
"""The levels of `logging` by their numbers."""


class LateLog:
    """The logger `allocator`, looked up when it is first used."""

    def __getattr__(self, method: str) -> Any:  # noqa: ANN401  # whatever a logger has
        import logging

        return getattr(logging.getLogger("allocator"), method)


if TYPE_CHECKING:
    log = logging.getLogger("allocator")
else:
    log = LateLog()


@cache
def warn_once(sentence: str) -> None:
    """Write a warning that is written once, however often what it is about happens."""
    log.warning("%s", sentence)
