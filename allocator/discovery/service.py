"""`Service`: the next healthy worker, chosen here, without a call to Redis.

A worker that refused a connection is left out for a while, longer each time it happens again; when all are left out,
the one that was left out first is tried, for an answer may be wrong but no answer surely is.
"""

from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING, Self

from allocator.client.blocking import open_reader
from allocator.discovery.directory import Directory
from allocator.model.errors import NoWorkerError
from allocator.model.names import check_name, check_plugin

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from allocator.client.blocking import PortAllocator
    from allocator.model.endpoints import Endpoint
    from allocator.model.names import WorkerId

EJECT_FIRST_S = 1.0
EJECT_LONGEST_S = 30.0
_Key = tuple[str, int, int]


class Service:
    """The workers of one plugin and organisation, to send requests to in turn; safe for threads.

    Args:
        plugin: The service's plugin.
        org: The service's organisation.
        url: The Redis to ask; see `PortAllocator.from_url`. An embedded server is not started.
        pool: The pool; None for that of the settings.
        host: The name of this host, for `prefer_local`; None for that of the settings.
        prefer_local: Whether the workers of this host come first.
        directory: A directory to share with other services, in place of `url`, `pool` and `host`.
        clock: The monotonic clock, in seconds.
        rng: Chooses the worker to begin with, so that many clients do not begin with the same.

    Attributes:
        known: Whether its workers were read from Redis; from then on events update them.

    Raises:
        InvalidInputError: When a name is not valid.
    """

    def __init__(
        self,
        plugin: str,
        *,
        org: str,
        url: str | None = None,
        pool: str | None = None,
        host: str | None = None,
        prefer_local: bool = False,
        directory: Directory | None = None,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self.plugin = check_plugin(plugin)
        self.org = check_name("organisation", org)
        self._owned: PortAllocator | None = None
        if directory is None:
            self._owned = open_reader(url, pool=pool, host=host)
            directory = Directory(self._owned)
            host = self._owned.session.host
        self._directory = directory
        self._local = host if prefer_local else None
        self._clock = clock
        self._next = (rng or random.Random()).randrange(1 << 16)  # noqa: S311  # where to begin is no secret
        self._ejected: dict[_Key, tuple[float, float]] = {}
        self._lock = threading.Lock()
        self.known = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        away = f"; Redis is away, known {self.age_s:.0f} s ago" if self.age_s else ""
        return f"<Service {self.org}/{self.plugin}: {len(self.endpoints)} ready, {len(self._ejected)} left out{away}>"

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """All ready workers, as last known."""
        if not self.known:
            self._directory.add(self.plugin, self.org)
            self.known = True
        return self._directory.endpoints(self.plugin, self.org)

    @property
    def age_s(self) -> float:
        """The age of the known workers in seconds while Redis does not answer; 0.0 otherwise."""
        return self._directory.age_s

    def pick(self) -> Endpoint:
        """Return the worker whose turn it is.

        Raises:
            NoWorkerError: When none is ready.
            AllocatorError: At the first call only, when Redis cannot be read.
        """
        known = self.endpoints
        if not known:
            raise NoWorkerError(
                f"no worker of {self.org}/{self.plugin} is ready; "
                f"see 'allocator resolve {self.plugin} --org {self.org}' for the reason"
            )
        with self._lock:
            self._next += 1
            now = self._clock()
            usable = [one for one in known if self._ejected.get(_key(one), (0.0, 0.0))[0] <= now]
            if not usable:
                return min(known, key=lambda one: self._ejected[_key(one)][0])
            near = [one for one in usable if one.host == self._local]
            choice = near or usable
            return choice[self._next % len(choice)]

    def eject(self, endpoint: Endpoint) -> None:
        """Leave a worker out for a while: it refused a connection."""
        with self._lock:
            _, last_s = self._ejected.get(_key(endpoint), (0.0, 0.0))
            pause_s = min(max(EJECT_FIRST_S, 2 * last_s), EJECT_LONGEST_S)
            self._ejected[_key(endpoint)] = (self._clock() + pause_s, pause_s)
            present = {_key(one) for one in self.endpoints}
            self._ejected = {key: until for key, until in self._ejected.items() if key in present}

    def restore(self, endpoint: Endpoint) -> None:
        """Use a worker again, because it answered."""
        if self._ejected:
            with self._lock:
                self._ejected.pop(_key(endpoint), None)

    def changes(self, *, seconds: float | None = None) -> Iterator[tuple[str, Endpoint]]:
        """Yield `up` or `down` and a worker for each change, beginning with those that are ready now.

        Args:
            seconds: End after that many; None to go on until the service is closed.
        """
        deadline = None if seconds is None else self._clock() + seconds
        before: dict[tuple[str, WorkerId], Endpoint] = {}
        version = 0
        while True:
            now = {(str(one), one.worker): one for one in self.endpoints}  # a lease that is re-asserted is not a change
            yield from (("down", one) for address, one in before.items() if address not in now)
            yield from (("up", one) for address, one in now.items() if address not in before)
            before = now
            left = None if deadline is None else max(0.0, deadline - self._clock())
            newer = self._directory.wait_for_change(version, left)
            if newer == version:
                return
            version = newer

    def close(self) -> None:
        """Stop following, and close the connection if it is this service's own."""
        if self._owned is not None:
            self._directory.close()
            self._owned.close()


def _key(endpoint: Endpoint) -> _Key:
    return endpoint.host, endpoint.port, endpoint.fence
