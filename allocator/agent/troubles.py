"""What does not work at the moment, each by what it concerns: one lease, one pool, one user's folder.

The rule of this file: a failure concerns what it is about and nothing else. That is tried again later and later, and
logged when it begins and once a minute, never each time.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING

from allocator.client.heartbeats import about
from allocator.model.errors import AllocatorError, StoreUnavailableError
from allocator.model.values import Value

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

    from allocator.model.leases import Lease

RETRY_S = 0.5
LONGEST_S = 30.0
LOG_EVERY_S = 60.0

log = logging.getLogger("allocator.agent")


class _Trouble(Value, frozen=False):
    text: str = ""
    count: int = 0
    again_at: float = 0.0
    logged_at: float = float("-inf")


class Troubles:
    """What failed last, and when it is due again."""

    def __init__(self) -> None:
        self._known: dict[Hashable, _Trouble] = {}

    def __repr__(self) -> str:
        return f"<Troubles with {len(self._known)}>"

    def is_due(self, key: Hashable, now: float) -> bool:
        """Return whether something may be tried now."""
        known = self._known.get(key)
        return known is None or now >= known.again_at

    @contextlib.contextmanager
    def concerning(self, key: Hashable, now: float, lease: Lease | None = None) -> Iterator[None]:
        """Log what fails inside the block as a failure of `key`; Redis that does not answer is its caller's."""
        try:
            yield
        except StoreUnavailableError:
            raise
        except AllocatorError as error:
            self.failed(key, error, now, lease)
        else:
            self._known.pop(key, None)

    def failed(self, key: Hashable, error: AllocatorError, now: float, lease: Lease | None = None) -> None:
        """Log a failure, and let it be due again later: at once for Redis, which is soon back."""
        known = self._known.setdefault(key, _Trouble())
        known.count += 1
        away = isinstance(error, StoreUnavailableError)
        known.again_at = now + (RETRY_S if away else min(RETRY_S * 2 ** min(known.count - 1, 8), LONGEST_S))
        if str(error) != known.text or now - known.logged_at >= LOG_EVERY_S:
            known.text, known.logged_at = str(error), now
            log.warning("%s; the agent goes on trying", error, extra=about(lease) if lease else None)

    def ended(self, key: Hashable) -> None:
        """Forget what failed: it works, or is gone."""
        self._known.pop(key, None)
