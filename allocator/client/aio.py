"""`AsyncPortAllocator`: the same as `PortAllocator` for asyncio; heartbeats run in one task of the event loop."""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from allocator.client import recording
from allocator.client.arguments import ClaimArguments, check_renewed
from allocator.client.beating import HeartbeatTask
from allocator.client.drivers import drive_async
from allocator.client.heartbeats import HeldLease, about, log
from allocator.client.session import OnLost, Session, ensure_embedded, make_session
from allocator.client.turns import claim_in_turn
from allocator.model.errors import AllocatorError, ExhaustedError, HeldError, LimitError, RecoveringError
from allocator.model.names import WorkerId, check_name
from allocator.operations import apply, end, hosts, listing, pools, renew
from allocator.operations import claim as claiming
from allocator.operations import resolve as resolving
from allocator.operations.several import claim_several, named_workers
from allocator.protocol.keys import events_key
from allocator.store.aio import AsyncStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from allocator.client.counting import HolderCounts
    from allocator.client.policies import ClaimPatience
    from allocator.client.tracing import Tracer
    from allocator.model.endpoints import Endpoint
    from allocator.model.leases import Lease
    from allocator.model.pools import PoolSpec
    from allocator.operations.claim import ClaimRequest
    from allocator.operations.hosts import Spread
    from allocator.operations.steps import Operation

T = TypeVar("T")


class AsyncPortAllocator:
    """Hands out port leases of one pool on one host, for asyncio; methods and errors are those of `PortAllocator`.

    Args:
        store: The connection to Redis; `from_url` makes one.
        session: Who this host is.
        recorder: Writes the rows of leases that are claimed with `record=True`, or None.
    """

    def __init__(self, store: AsyncStore, session: Session, *, recorder: recording.LeaseRecorder | None = None) -> None:
        self.store = store
        self.session = session
        self.recorder = recorder
        self._heartbeats = HeartbeatTask(session, self.run)

    @classmethod
    def from_url(
        cls,
        url: str | None = None,
        *,
        pool: str | None = None,
        host: str | None = None,
        timeout: float = 5.0,
        on_lost: OnLost = "keep",
        advertise: str | None = None,
        recorder: recording.LeaseRecorder | None = None,
        tracer: Tracer | None = None,
    ) -> Self:
        """Return an allocator for the Redis at `url`; see `PortAllocator.from_url`."""
        session = make_session(pool, host, on_lost, advertise=advertise, tracer=tracer)
        if url:
            return cls(AsyncStore.open(url, timeout_s=timeout), session, recorder=recorder)
        return cls(AsyncStore.embedded(ensure_embedded, timeout_s=timeout), session, recorder=recorder)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        held = len(self._heartbeats.held)
        return f"<AsyncPortAllocator pool {self.session.pool} host {self.session.host} holding {held}>"

    @property
    def counts(self) -> dict[str, HolderCounts]:
        """What became of the leases that are kept alive here, by pool; `HolderMetrics` shows it to Prometheus."""
        return self._heartbeats.counts

    async def run(self, operation: Operation[T]) -> T:
        """Drive one operation of the protocol to its end."""
        return await drive_async(operation, self.store, self.session.kernel)

    async def claim(
        self, plugin: str, *, wait: float | None = None, record: bool = False, **arguments: Unpack[ClaimArguments]
    ) -> Lease:
        """Lease a port for a worker; see `PortAllocator.claim`."""
        recorder = recording.needed(self.recorder) if record else None
        request = self.session.request(plugin, **arguments)
        patience = self.session.patience(wait, any_port=request.port is None)

        async def attempt() -> Lease:
            if recorder is None:
                return await self._granted(request, patience)
            held = await self.run(recording.may_hold(self.session.context, request))
            lease = await self._granted(request, patience)
            await self._record(recorder, lease, new=not held)
            if not recording.is_fresh(lease, self.session.clock()):
                (lease,) = await self.renew(lease)
            return lease

        with self.session.span("claim", worker=request.worker) as span:
            return span.granted(await self._retried(attempt, patience, request.pool))

    async def claim_ports(
        self,
        plugin: str,
        names: Sequence[str],
        *,
        adjacent: bool = False,
        wait: float | None = None,
        **arguments: Unpack[ClaimArguments],
    ) -> dict[str, Lease]:
        """Lease several ports for a worker, all or none; see `PortAllocator.claim_ports`."""
        request = self.session.request(plugin, **arguments)
        tokens = [self.session.context.new_token() for _ in names]
        named_workers(request.worker, names)

        patience = self.session.patience(wait, any_port=True)

        def once(asked: ClaimRequest) -> Operation[list[Lease]]:
            return claim_several(self.session.context, asked, names, adjacent=adjacent, tokens=tokens)

        async def attempt() -> list[Lease]:
            return await self.run(claim_in_turn(self.session, request, once, patience, adjacent=adjacent))

        with self.session.span("claim", worker=request.worker) as span:
            leases = await self._retried(attempt, patience, request.pool)
            span.granted(leases[0])
        return dict(zip(names, leases, strict=True))

    async def release_all(self, *leases: Lease) -> int:
        """End leases together, in one step; return how many had not ended yet."""
        with self.session.span("release", *leases) as span:
            count = sum(await self.run(end.release(self.session.context, leases)))
            span.ended("released", done=count > 0)
        return count

    async def _granted(self, request: ClaimRequest, patience: ClaimPatience) -> Lease:
        def once(asked: ClaimRequest) -> Operation[Lease]:
            return claiming.claim(self.session.context, asked)

        return await self.run(claim_in_turn(self.session, request, once, patience))

    async def _retried(self, attempt: Callable[[], Awaitable[T]], patience: ClaimPatience, pool: str) -> T:
        """Try again as the policy says, woken by the events of the pool; an attempt that succeeds costs nothing."""
        stream, cursor = events_key(pool), ["0-0"]

        async def wait_for_event(seconds: float) -> None:
            if seconds > 0:
                newer = await self.store.wait_for_event(stream, cursor[0], seconds)
                cursor[0] = newer or cursor[0]

        try:
            return await attempt()
        except AllocatorError as error:
            if not patience.worth_retrying(error):
                raise
        from tenacity import AsyncRetrying

        async def again() -> T:  # tenacity awaits what a coroutine function returns, and no other awaitable
            return await attempt()

        cursor[0] = await self.run(listing.newest_event(pool))
        result: T = await AsyncRetrying(**patience.policy(wait_for_event))(again)
        return result

    async def _record(self, recorder: recording.LeaseRecorder, lease: Lease, *, new: bool) -> None:
        try:
            standing = await asyncio.to_thread(recorder.record, lease)
            ended = await self.run(recording.has_ended(self.session.context, lease, standing)) if standing else False
            if ended:
                standing = await asyncio.to_thread(recorder.record, lease, over=standing)
        except AllocatorError:
            if new:
                with contextlib.suppress(AllocatorError):
                    await self.release(lease)
            raise
        if standing is None:
            return
        if new:
            await self.decline(lease)
            raise recording.refusal(lease, standing)
        raise HeldError(str(recording.refusal(lease, standing)), host=lease.host, port=lease.port)

    @asynccontextmanager
    async def hold(
        self, plugin: str, *, wait: float | None = None, record: bool = False, **arguments: Unpack[ClaimArguments]
    ) -> AsyncIterator[HeldLease[asyncio.Event]]:
        """Claim a port, keep it alive by heartbeats, and release it at the end of the block."""
        held = self.keep(await self.claim(plugin, wait=wait, record=record, **arguments))
        try:
            yield held
        finally:
            await self.let_go(held)

    def keep(self, lease: Lease) -> HeldLease[asyncio.Event]:
        """Keep a claimed lease alive by heartbeats until `let_go`; needs a running event loop."""
        return self._heartbeats.add(lease)

    def update(self, held: HeldLease[asyncio.Event], **words: Any) -> None:  # noqa: ANN401  # those of HeldLease.set
        """Set the state of a held lease or what it says of its worker; the heartbeat task writes them at once."""
        self._heartbeats.update(held, **words)

    async def let_go(self, *held: HeldLease[asyncio.Event], declined: bool = False) -> None:
        """End held leases in one step; see `PortAllocator.let_go`."""
        for one in held:
            self._heartbeats.remove(one)
        leases = [one.lease for one in held if not one.lost.is_set()]
        if not leases:
            return
        operation, name = (end.decline, "decline") if declined else (end.release, "release")
        try:
            with self.session.span(name, *leases) as span:
                done = await self.run(operation(self.session.context, leases))
                span.ended(f"{name}d", done=any(done))
        except AllocatorError as error:
            for lease in leases:
                words = (lease.worker, lease.address, error)
                log.warning("the lease of %s on %s ends by its TTL: %s", *words, extra=about(lease))

    async def renew(self, *leases: Lease, rewrite: bool = False) -> list[Lease]:
        """Extend leases by their TTL from now; see `PortAllocator.renew`."""
        with self.session.span("renew", *leases) as span:
            outcomes = await self.run(renew.renew(self.session.context, leases, rewrite=rewrite))
            span.renewed(outcomes)
        return check_renewed(outcomes)

    async def release(self, lease: Lease) -> bool:
        """End a lease; return False when it had ended already."""
        with self.session.span("release", lease) as span:
            (done,) = await self.run(end.release(self.session.context, [lease]))
            return span.ended("released", done=done)

    async def decline(self, lease: Lease) -> bool:
        """End a lease because the kernel refuses its port, which goes into quarantine."""
        with self.session.span("decline", lease) as span:
            (done,) = await self.run(end.decline(self.session.context, [lease]))
            return span.ended("declined", done=done)

    async def leases(
        self, *, org: str | None = None, plugin: str | None = None, host: str | None = None
    ) -> list[Lease]:
        """Return the live leases of the pool, without tokens, by host and port, filtered where asked."""
        found = await self.run(listing.leases(self.session.pool, host))
        return [lease for lease in found if org in {None, lease.org} and plugin in {None, lease.plugin}]

    async def resolve(
        self, plugin: str, *, org: str, wait: float | None = None, prefer_local: bool = False
    ) -> Endpoint:
        """Return where the next ready worker of a service is; see `PortAllocator.resolve`."""
        pool, prefer = self.session.pool, self.session.host if prefer_local else None
        patience = self.session.patience(wait, any_port=True)
        return await self._retried(
            lambda: self.run(resolving.resolve(pool, plugin, org, prefer=prefer)), patience, pool
        )

    async def endpoints(self, plugin: str, *, org: str) -> list[Endpoint]:
        """Return where all ready workers of a service are, by address."""
        return await self.run(resolving.endpoints(self.session.pool, plugin, org))

    async def register(self) -> str:
        """Make this host and its address known in the pool; return `created`, `changed` or `unchanged`."""
        return str(await self.run(hosts.register(self.session.context, self.session.pool)))

    async def for_host(self, host: str) -> AsyncPortAllocator:
        """Return an allocator that claims for another host, over the same connection; see `PortAllocator.for_host`."""
        identity = await self.run(listing.host_identity(self.session.pool, check_name("host", host)))
        return AsyncPortAllocator(self.store, self.session.as_host(host, identity), recorder=self.recorder)

    async def claim_anywhere(
        self, plugin: str, *, spread: Spread | None = None, **arguments: Unpack[ClaimArguments]
    ) -> Lease:
        """Lease a port on the host of the pool that has most free ones; see `PortAllocator.claim_anywhere`."""
        worker = WorkerId(arguments["org"], plugin, arguments.get("instance", 0))
        tried: frozenset[str] = frozenset()
        while True:
            placement = await self.run(hosts.place(self.session.pool, worker, spread=spread, without=tried))
            try:
                return await (await self.for_host(placement.host)).claim(plugin, **arguments)
            except (LimitError, RecoveringError):  # the same everywhere
                raise
            except ExhaustedError:  # it filled up meanwhile
                tried |= {placement.host}

    async def hosts(self) -> list[listing.HostView]:
        """Return the hosts that have claimed in the pool."""
        return await self.run(listing.hosts(self.session.pool))

    async def pool(self) -> PoolSpec:
        """Return the rules of the pool; a built-in pool that Redis does not have is made."""
        return await self.run(pools.pool_rules(self.session.context, self.session.pool, fresh=True))

    async def apply_pool(self, pool: PoolSpec, *, by: str = "-") -> str:
        """Define a pool or change its rules; return `created`, `changed` or `unchanged`.

        Args:
            pool: The pool.
            by: Who does it, for the pool's history.

        Raises:
            HeldError: When the scope would change while hosts use the pool.
        """
        return str(await self.run(apply.apply_pool(pool, by=by)))

    async def close(self) -> None:
        """Release the leases that are still held, stop the heartbeats, close the connection."""
        await self.let_go(*self._heartbeats.held)
        await self._heartbeats.close()
        await self.store.close()
