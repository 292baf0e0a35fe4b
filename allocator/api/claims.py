"""What the API does with leases on behalf of workers: on its own host, whose kernel it sees, and on any other.

A claim for the own host reads its listening sockets and proves the bind, as everywhere. For another host nothing can be
seen or proved from here: the port is leased as Redis has it, the answer has `proved: false`, and the worker must
decline it when its bind fails (`EADDRINUSE`) and claim again. May not live here: HTTP.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import TYPE_CHECKING, Unpack

from allocator.client.aio import AsyncPortAllocator
from allocator.client.session import Session
from allocator.model.errors import InvalidInputError
from allocator.model.leases import Lease
from allocator.model.names import WorkerId
from allocator.model.pools import FLEET_NAMESPACE
from allocator.model.states import LeaseState
from allocator.operations import listing
from allocator.operations.context import pool_rules
from allocator.operations.numbers import number_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol

    from allocator.client.session import ClaimArguments, ProcessFields
    from allocator.model.pools import PoolSpec
    from allocator.operations.listing import PortView

    class Custody(Protocol):
        """Whoever renews the leases of this host that are bound to a process, and releases them when it ends."""

        def confirm(self, lease: Lease) -> None:
            """Look after a lease from now on; again when it has another token or process."""

        def forget(self, lease: Lease) -> None:
            """Look after it no longer."""


MAX_POOLS = 64
"""Allocators that are kept ready, one a pool; more pools only cost a caller the making of one."""


class Claims:
    """The leases of all pools in one Redis, for whoever calls.

    Args:
        allocator: The connection, the pool that is meant where none is named, and which host is the own one.
        custody: Looks after the leases of this host that are bound to a process; None when nobody does.
    """

    def __init__(self, allocator: AsyncPortAllocator, custody: Custody | None = None) -> None:
        self.allocator = allocator
        self._custody = custody
        self._by_pool: OrderedDict[str, AsyncPortAllocator] = OrderedDict()

    @property
    def host(self) -> str:
        """The host whose kernel this is."""
        return self.allocator.session.host

    def pool(self, name: str | None) -> AsyncPortAllocator:
        """Return the allocator of a pool on the own host; the default pool for None."""
        if name in {None, self.allocator.session.pool}:
            return self.allocator
        assert name is not None  # noqa: S101  # excluded above
        if name not in self._by_pool:
            own = self.allocator.session
            session = Session(pool=name, host=own.host, answers=own.answers, clock=own.clock, rng=own.rng)
            self._by_pool[name] = AsyncPortAllocator(self.allocator.store, session)
            if len(self._by_pool) > MAX_POOLS:
                self._by_pool.popitem(last=False)
        self._by_pool.move_to_end(name)
        return self._by_pool[name]

    def known_pool(self, name: str | None) -> str:
        """Return a pool's name as a metric's label: the name of a pool that was used here, otherwise `other`."""
        known = self.allocator.session.pool
        if name in {None, known}:
            return known
        assert name is not None  # noqa: S101  # excluded above
        return name if name in self._by_pool and name in self._by_pool[name].session.context.rules else "other"

    async def claim(
        self,
        pool: str | None,
        host: str | None,
        plugin: str,
        *,
        wait: float,
        key: str | None = None,
        ports: Sequence[str] | None = None,
        contiguous: bool = False,
        **arguments: Unpack[ClaimArguments],
    ) -> tuple[list[Lease], bool]:
        """Lease a port on a host, or several.

        Args:
            pool: The pool, or None for the default one.
            host: The host, or None for the own one.
            plugin: The worker's plugin.
            wait: Time to wait for a port, in seconds.
            key: What an instance is chosen by, the same one again for this key on the host; None for as it is given.
            ports: The names of several ports, or None for one.
            contiguous: Whether several have to follow each other.
            **arguments: See `ClaimArguments`.

        Returns:
            The leases in the order of the names, and whether their ports were proved by a bind.

        Raises:
            AllocatorError: Whatever `AsyncPortAllocator.claim` raises.
        """
        at, is_here = self.pool(pool), host is None or host == self.host
        if host is not None and not is_here:
            at = await self._elsewhere(at, host)
        if key is not None:
            context, name = at.session.context, at.session.pool
            arguments["instance"] = await at.run(number_of(context, name, arguments["org"], plugin, key))
            arguments["auto_instance"] = False
        if ports is None:
            return [await at.claim(plugin, wait=wait, **arguments)], is_here
        several = await at.claim_ports(plugin, ports, contiguous=contiguous, wait=wait, **arguments)
        return list(several.values()), is_here

    async def _elsewhere(self, at: AsyncPortAllocator, host: str) -> AsyncPortAllocator:
        """Return an allocator that claims for another host and does not change that host's identity."""
        identity = await at.run(listing.host_identity(at.session.pool, host))
        return AsyncPortAllocator(at.store, at.session.as_host(host, identity))

    async def view(self, pool: str | None, host: str, port: int) -> PortView:
        """Return what Redis reports of a port of a host; in a pool of scope `fleet`, of that port on any host."""
        at = self.pool(pool)
        rules = await self.rules(at)
        view = await at.run(listing.port_view(at.session.pool, rules.namespace_of(host), port))
        if view.lease and view.lease.host != host:
            return replace(view, lease=None)
        return view

    async def rules(self, at: AsyncPortAllocator) -> PoolSpec:
        """Return the rules of a pool as they were read last."""
        return await at.run(pool_rules(at.session.context, at.session.pool))

    def process_fields(self, at: AsyncPortAllocator, host: str, pid: int) -> ProcessFields:
        """Return what a lease shows of its worker's process: on another host than the own one, its pid alone.

        Raises:
            InvalidInputError: When no such process lives on the own host.
        """
        return at.session.process_fields(pid=pid) if host == self.host else {"pid": pid}

    def process_fields_if_alive(self, at: AsyncPortAllocator, host: str, pid: int | None) -> ProcessFields:
        """Return the fields of a lease about its worker's process; none when the process has ended."""
        if pid is None:
            return {}
        try:
            return self.process_fields(at, host, pid)
        except InvalidInputError:
            return {}

    def begin_custody(self, lease: Lease) -> None:
        """Begin to renew a lease on its holder's behalf, once the holder has renewed it itself.

        A claim alone is not enough: if its answer never arrived, nobody would ever release the port.
        """
        if self._custody and lease.host == self.host and lease.pid is not None:
            self._custody.confirm(lease)

    def forget(self, lease: Lease) -> None:
        """Stop renewing a lease that has ended."""
        if self._custody and lease.host == self.host:
            self._custody.forget(lease)

    async def held(self, pool: str | None, host: str, port: int, token: str) -> Lease:
        """Return the lease of a port with the token that its holder gave; the scripts check the token."""
        view = await self.view(pool, host, port)
        return replace(view.lease or self.nominal(pool, host, port), token=token)

    def nominal(self, pool: str | None, host: str, port: int) -> Lease:
        """Return a stand-in for a lease that Redis does not have (any more): its host and port, and no real worker.

        It is enough to end one: the scripts go by port and token, and may still have to write that it expired.
        """
        return Lease(
            pool=self.pool(pool).session.pool,
            host=host,
            port=port,
            worker=WorkerId("unknown", "unknown"),
            state=LeaseState.STARTING,
            fence=0,
            ttl_ms=1,
            granted_at=0.0,
            expires_at=0.0,
        )

    async def page(
        self,
        pool: str | None,
        host: str | None,
        after: tuple[str, int],
        count: int,
        wanted: Callable[[Lease], bool],
    ) -> list[Lease]:
        """Return up to `count` live leases after a host and port, in order, reading only the hosts that are needed.

        Args:
            pool: The pool, or None for the default one.
            host: The only host, or None for all.
            after: Host and port behind which the page begins.
            count: How many leases at most.
            wanted: Which leases are meant.
        """
        at = self.pool(pool)
        name = at.session.pool
        found: list[Lease] = []
        for namespace in await at.run(listing.namespaces(name)):
            if namespace != FLEET_NAMESPACE and (namespace < after[0] or host not in {None, namespace}):
                continue
            views = await at.run(listing.ports(name, namespace))
            here = sorted((view.lease for view in views if view.lease), key=lambda lease: (lease.host, lease.port))
            found += [
                lease
                for lease in here
                if (lease.host, lease.port) > after and host in {None, lease.host} and wanted(lease)
            ]
            if len(found) >= count:
                break
        return found[:count]
