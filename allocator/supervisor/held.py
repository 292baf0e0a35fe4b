"""The leases of one worker: its own and those of its further ports, held, changed and released together."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from allocator.model.errors import AllocatorError, LeaseLostError
from allocator.operations.end import fail

if TYPE_CHECKING:
    import threading
    from collections.abc import Mapping

    from allocator.client.blocking import PortAllocator
    from allocator.client.heartbeats import HeldLease
    from allocator.model.leases import Lease
    from allocator.model.names import WorkerId

OWN = ""
"""What the port of a worker is called that has no names for its ports."""


class HeldPorts:
    """Leases that are renewed until `end_held`.

    Args:
        allocator: Renews them.
        leases: The leases by the names of their ports; the first is the worker's own.
    """

    def __init__(self, allocator: PortAllocator, leases: Mapping[str, Lease]) -> None:
        self._allocator = allocator
        self._held = {name: allocator.start_heartbeats(lease) for name, lease in leases.items()}

    def __repr__(self) -> str:
        return f"<HeldPorts {self.worker} on {self.where}>"

    @property
    def own(self) -> HeldLease[threading.Event]:
        """The worker's own lease."""
        return next(iter(self._held.values()))

    @property
    def worker(self) -> WorkerId:
        """Who holds them."""
        return self.own.worker

    @property
    def port(self) -> int:
        """The worker's own port."""
        return self.own.port

    @property
    def ports(self) -> dict[str, int]:
        """The ports by name, the worker's own first."""
        return {name: held.port for name, held in self._held.items()}

    @property
    def where(self) -> str:
        """Where it runs, for people: `web-1:5556`, or `web-1:5556 (http), 5557 (debug)`."""
        first, *others = self._held.items()
        named = [f"{held.port} ({name})" for name, held in others]
        return ", ".join([first[1].lease.address + (f" ({first[0]})" if others else ""), *named])

    @property
    def lost(self) -> LeaseLostError | None:
        """Why one of them is lost, or None while none is."""
        for held in self._held.values():
            if held.lost.is_set():
                return held.error or LeaseLostError(f"the lease of {held.worker} is lost")
        return None

    @property
    def draining(self) -> bool:
        """Whether the host is to be emptied."""
        return any(held.draining.is_set() for held in self._held.values())

    def update(self, **fields: object) -> None:
        """Set fields of all of them; see `HeldLease.set`.

        Raises:
            ValueError: When the state cannot follow the present one.
        """
        for held in self._held.values():
            self._allocator.update(held, **fields)

    def record(self, why: str) -> None:
        """Record what is wrong with the worker, as an event that outlives its lease, if Redis answers."""
        with contextlib.suppress(AllocatorError):
            self._allocator.run(fail(self._allocator.session.context, self.own.lease, why))

    def end_held(self, *, declined: int | None = None) -> None:
        """End all of them in one step.

        Args:
            declined: The port that the kernel refused, which goes into quarantine.
        """
        refused = [held for held in self._held.values() if held.port == declined]
        self._allocator.end_held(*refused, declined=True)
        self._allocator.end_held(*(held for held in self._held.values() if held not in refused))
