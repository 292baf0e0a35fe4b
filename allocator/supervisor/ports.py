"""How the supervisor recognises that a worker could not bind its port."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

SERVER_FAILED = 2
"""What a worker of the plugin SDK exits with when its HTTP server could not listen."""

_IN_USE = re.compile(rb"EADDRINUSE|address already in use", re.IGNORECASE)
_SOME_PORT = re.compile(rb":([0-9]{2,5})\b|\bport\W{0,3}([0-9]{2,5})\b", re.IGNORECASE)


def reports_in_use(lines: Iterable[bytes], port: int) -> bool:
    """Return whether a worker's standard error names this port as in use, not another one."""
    for line in lines:
        if _IN_USE.search(line):
            named = {int(one or other) for one, other in _SOME_PORT.findall(line)}
            if not named or port in named:
                return True
    return False
