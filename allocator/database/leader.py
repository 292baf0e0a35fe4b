"""Who leads the reconcilers of a pool: a lease of its own kind in Redis, whose fence every transaction enters in SQL.

What protects what. The lease keeps two reconcilers from doing the work twice. It cannot stop a leader that was paused
in the middle and goes on: that is what the fence in the database is for, which lets no transaction of an older leader
begin. And if both failed, each row still takes nothing older than the fence of its own lease.
"""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from allocator.client.session import new_token
from allocator.database.fenced import DeposedError
from allocator.model.errors import AllocatorError
from allocator.operations.lead import Leadership, give_up_leadership, take_leadership

if TYPE_CHECKING:
    from allocator.client.blocking import PortAllocator

TTL_MS = 10_000
"""Longer than a transaction that waits for a lock; a stand-by takes over within it."""

RENEW_PART = 1 / 3


@dataclass(slots=True)
class Leader:
    """A candidate for the leadership of one pool; it may lead or not.

    Attributes:
        allocator: Runs the script.
        ttl_ms: How long the leadership lives without a sign of life, in milliseconds.
        known_fence: The highest fence of a leader that was seen in the database.
        fence: The fence of its leadership, or None while it does not lead.
    """

    allocator: PortAllocator
    ttl_ms: int = TTL_MS
    known_fence: int = 0
    fence: int | None = None
    _token: str = field(default_factory=new_token, repr=False)
    _confirmed_at: float = 0.0

    @property
    def holder(self) -> str:
        """Who it is, as text that fit into a Redis key and a table."""
        host = re.sub(r"[^A-Za-z0-9._-]", "?", self.allocator.session.host)
        return f"{host} (pid {os.getpid()})"

    def take(self) -> Leadership:
        """Try to lead; return who does."""
        sent_at = self.allocator.session.clock()
        held = self.allocator.run(
            take_leadership(
                self.allocator.session.pool,
                token=self._token,
                ttl_ms=self.ttl_ms,
                holder=self.holder,
                known_fence=max(self.known_fence, self.fence or 0),
            )
        )
        self.fence = held.fence
        self._confirmed_at = sent_at
        return held

    def renew(self) -> int:
        """Go on leading, renewing when it is due; return the fence.

        Raises:
            DeposedError: When another leads since.
        """
        age_s = self.allocator.session.clock() - self._confirmed_at
        if self.fence is None or age_s * 1_000 >= self.ttl_ms * RENEW_PART:
            self.take()
        if self.fence is None:
            raise DeposedError
        return self.fence

    def step_down(self) -> None:
        """Lead no longer, also where Redis does not answer; what is taken next has a newer fence."""
        with contextlib.suppress(AllocatorError):
            self.give_up()
        self.fence = None

    def give_up(self) -> None:
        """Let another lead at once."""
        if self.fence is not None:
            self.fence = None
            self.allocator.run(give_up_leadership(self.allocator.session.pool, self._token))
