"""`PortAllocator`: lease a port, keep it, give it back. Blocking; heartbeats run in one daemon thread."""

from __future__ import annotations

import contextlib
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack

from allocator.client import recording
from allocator.client.arguments import ClaimArguments, check_renewed
from allocator.client.beating import HeartbeatThread
from allocator.client.drivers import drive
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
from allocator.store.blocking import Store

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator, Sequence

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


class PortAllocator:
    """Hands out port leases of one pool on one host.

    Every method that asks Redis may raise StoreUnavailableError, when it does not answer in time, and
    ConfigurationError, when it cannot be used as it is; where the pool's rules are needed also PoolMissingError, when
    nobody has defined that pool.

    Args:
        store: The connection to Redis; `from_url` makes one.
        session: Who this host is.
        recorder: Writes the rows of leases that are claimed with `record=True`, or None.
    """

    def __init__(self, store: Store, session: Session, *, recorder: recording.LeaseRecorder | None = None) -> None:
        self.store = store
        self.session = session
        self.recorder = recorder
        self._heartbeats = HeartbeatThread(session, self.run)

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
        """Return an allocator for the Redis at `url`.

        Args:
            url: `redis://`, `rediss://`, `unix://`, `redis+sentinel://` or `redis+cluster://`; None for the embedded
                server of this user, which is started when it does not run.
            pool: The pool; None for `sdk-v2`.
            host: The name of this port namespace; None for the host name.
            timeout: For how many seconds Redis may be silent.
            on_lost: What holders do when Redis has not confirmed their lease in time: `keep` or `stop`. In a pool of
                scope `fleet` they always stop.
            advertise: The address under which others reach this host; None for that of the default route.
            recorder: What `claim(…, record=True)` writes rows with: an `allocator.DatabaseRecorder`. It is not closed.
            tracer: Is told what is done with leases: an `allocator.OpenTelemetryTracer`, or None.

        Raises:
            InvalidInputError: When an argument cannot be right.
        """
        session = make_session(pool, host, on_lost, advertise=advertise, tracer=tracer)
        if url:
            return cls(Store.open(url, timeout_s=timeout), session, recorder=recorder)
        return cls(Store.embedded(ensure_embedded, timeout_s=timeout), session, recorder=recorder)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<PortAllocator pool {self.session.pool} host {self.session.host} holding {len(self._heartbeats.held)}>"

    @property
    def counts(self) -> dict[str, HolderCounts]:
        """What became of the leases that are kept alive here, by pool; `HolderMetrics` shows it to Prometheus."""
        return self._heartbeats.counts

    def run(self, operation: Operation[T]) -> T:
        """Drive one operation of the protocol to its end."""
        return drive(operation, self.store, self.session.kernel)

    def claim(
        self, plugin: str, *, wait: float | None = None, record: bool = False, **arguments: Unpack[ClaimArguments]
    ) -> Lease:
        """Lease a port for a worker.

        Args:
            plugin: The worker's plugin.
            wait: For how many seconds to wait for a port when none is free; None for not at all.
            record: Whether the worker's row is in the database before this returns; a port whose place another
                worker's live row has is declined, and another one claimed.
            **arguments: See `ClaimArguments`.

        Raises:
            ExhaustedError: When no port was free in time.
            HeldError: When the worker or the explicit port is held by someone else.
            InvalidInputError: When an argument cannot be right.
            DatabaseUnavailableError: When the row could not be written; the lease was given back.
            LeaseLostError: When the row took so long to be written that the lease ran out and another has the port.
            StoreUnavailableError: When Redis did not answer in time; a lease that it may have granted ends by its TTL.
            ConfigurationError: When Redis or the database cannot be used as it is, or `record` has no recorder.
            PoolMissingError: When the pool is neither defined nor built in.
        """
        recorder = recording.needed(self.recorder) if record else None
        request = self.session.request(plugin, **arguments)
        patience = self.session.patience(wait, any_port=request.port is None)

        def attempt() -> Lease:
            if recorder is None:
                return self._granted(request, patience)
            held = self.run(recording.may_hold(self.session.context, request))
            lease = self._granted(request, patience)
            self._record(recorder, lease, new=not held)
            if not recording.is_fresh(lease, self.session.clock()):
                (lease,) = self.renew(lease)
            return lease

        with self.session.span("claim", worker=request.worker) as span:
            return span.granted(self._retried(attempt, patience, request.pool))

    def claim_ports(
        self,
        plugin: str,
        names: Sequence[str],
        *,
        adjacent: bool = False,
        wait: float | None = None,
        **arguments: Unpack[ClaimArguments],
    ) -> dict[str, Lease]:
        """Lease several ports for a worker, all or none, in one step.

        Args:
            plugin: The worker's plugin.
            names: What the ports are called; the first is the worker's own, the others' leases are those of
                `org/plugin+name#instance`. Give them back with one `release_all`.
            adjacent: Whether the ports have to follow each other.
            wait: For how many seconds to wait in line; None for not at all. Who waits for a block of adjacent ports
                stands behind those who wait for one before it, and holds back nobody else.
            **arguments: See `ClaimArguments`; no port, hint or token.

        Returns:
            The leases by name, in the order of the names.

        Raises:
            AllocatorError: As `claim`; nothing is leased then.
        """
        request = self.session.request(plugin, **arguments)
        tokens = [self.session.context.new_token() for _ in names]
        named_workers(request.worker, names)

        patience = self.session.patience(wait, any_port=True)

        def once(asked: ClaimRequest) -> Operation[list[Lease]]:
            return claim_several(self.session.context, asked, names, adjacent=adjacent, tokens=tokens)

        def attempt() -> list[Lease]:
            return self.run(claim_in_turn(self.session, request, once, patience, adjacent=adjacent))

        with self.session.span("claim", worker=request.worker) as span:
            leases = self._retried(attempt, patience, request.pool)
            span.granted(leases[0])
        return dict(zip(names, leases, strict=True))

    def release_all(self, *leases: Lease) -> int:
        """End leases together, in one step; return how many had not ended yet."""
        with self.session.span("release", *leases) as span:
            count = sum(self.run(end.release(self.session.context, leases)))
            span.ended("released", done=count > 0)
        return count

    def _granted(self, request: ClaimRequest, patience: ClaimPatience) -> Lease:
        def once(asked: ClaimRequest) -> Operation[Lease]:
            return claiming.claim(self.session.context, asked)

        return self.run(claim_in_turn(self.session, request, once, patience))

    def _retried(self, attempt: Callable[[], T], patience: ClaimPatience, pool: str) -> T:
        """Try again as the policy says, woken by the events of the pool; an attempt that succeeds costs nothing."""
        stream, cursor = events_key(pool), ["0-0"]

        def wait_for_event(seconds: float) -> None:
            if seconds > 0:
                newer = self.store.wait_for_event(stream, cursor[0], seconds)
                cursor[0] = newer or cursor[0]

        try:
            return attempt()
        except AllocatorError as error:
            if not patience.worth_retrying(error):
                raise
        from tenacity import Retrying

        cursor[0] = self.run(listing.newest_event(pool))
        result: T = Retrying(**patience.policy(wait_for_event))(attempt)
        return result

    def _record(self, recorder: recording.LeaseRecorder, lease: Lease, *, new: bool) -> None:
        try:
            standing = recorder.record(lease)
            if standing and self.run(recording.has_ended(self.session.context, lease, standing)):
                standing = recorder.record(lease, over=standing)
        except AllocatorError:
            if new:
                with contextlib.suppress(AllocatorError):
                    self.release(lease)
            raise
        if standing is None:
            return
        if new:
            self.decline(lease)
            raise recording.refusal(lease, standing)
        raise HeldError(str(recording.refusal(lease, standing)), host=lease.host, port=lease.port)

    @contextmanager
    def hold(
        self, plugin: str, *, wait: float | None = None, record: bool = False, **arguments: Unpack[ClaimArguments]
    ) -> Iterator[HeldLease[threading.Event]]:
        """Claim a port, keep it alive by heartbeats, and release it at the end of the block; as `claim` else."""
        held = self.keep(self.claim(plugin, wait=wait, record=record, **arguments))
        try:
            yield held
        finally:
            self.let_go(held)

    def keep(self, lease: Lease) -> HeldLease[threading.Event]:
        """Keep a claimed lease alive by heartbeats until `let_go`."""
        return self._heartbeats.add(lease)

    def update(self, held: HeldLease[threading.Event], **words: Any) -> None:  # noqa: ANN401  # those of HeldLease.set
        """Set the state of a held lease or what it says of its worker; the heartbeat thread writes them at once.

        Args:
            held: The lease.
            **words: Its `state`, and what it says of its worker (see `HolderWords`).

        Raises:
            ValueError: When the state is an ended one, or cannot follow the present one.
            InvalidInputError: When a word is of another type, or labels are not valid.
        """
        self._heartbeats.update(held, **words)

    def let_go(self, *held: HeldLease[threading.Event], declined: bool = False) -> None:
        """End held leases in one step. A Redis that does not answer is logged: they then end by their TTL.

        Args:
            *held: The leases; those that are lost are only forgotten.
            declined: Whether the kernel refused their ports, which then go into quarantine.
        """
        for one in held:
            self._heartbeats.remove(one)
        leases = [one.lease for one in held if not one.lost.is_set()]
        if not leases:
            return
        operation, name = (end.decline, "decline") if declined else (end.release, "release")
        try:
            with self.session.span(name, *leases) as span:
                done = self.run(operation(self.session.context, leases))
                span.ended(f"{name}d", done=any(done))
        except AllocatorError as error:
            for lease in leases:
                words = (lease.worker, lease.address, error)
                log.warning("the lease of %s on %s ends by its TTL: %s", *words, extra=about(lease))

    def renew(self, *leases: Lease, rewrite: bool = False) -> list[Lease]:
        """Extend leases by their TTL from now.

        Args:
            *leases: The holder's copies, with their tokens.
            rewrite: Whether their state, TTL and what they say of their worker are written too.

        Raises:
            LeaseLostError: When one of them is lost; the others were extended all the same.
        """
        with self.session.span("renew", *leases) as span:
            outcomes = self.run(renew.renew(self.session.context, leases, rewrite=rewrite))
            span.renewed(outcomes)
        return check_renewed(outcomes)

    def release(self, lease: Lease) -> bool:
        """End a lease; return False when it had ended already.

        Raises:
            HeldError: When someone else holds the port.
        """
        with self.session.span("release", lease) as span:
            (done,) = self.run(end.release(self.session.context, [lease]))
            return span.ended("released", done=done)

    def decline(self, lease: Lease) -> bool:
        """End a lease because the kernel refuses its port, which goes into quarantine; as `release` else."""
        with self.session.span("decline", lease) as span:
            (done,) = self.run(end.decline(self.session.context, [lease]))
            return span.ended("declined", done=done)

    def leases(self, *, org: str | None = None, plugin: str | None = None, host: str | None = None) -> list[Lease]:
        """Return the live leases of the pool, without tokens, by host and port, filtered where asked."""
        found = self.run(listing.leases(self.session.pool, host))
        return [lease for lease in found if org in {None, lease.org} and plugin in {None, lease.plugin}]

    def resolve(self, plugin: str, *, org: str, wait: float | None = None, prefer_local: bool = False) -> Endpoint:
        """Return where the next ready worker of a service is: each in turn, whoever asks, from whatever host.

        Args:
            plugin: The service's plugin.
            org: The service's organisation.
            wait: For how many seconds to wait for a worker when none is ready; None for not at all.
            prefer_local: Whether the workers of this host come first.

        Raises:
            NoWorkerError: When none was ready in time.
            InvalidInputError: When an argument cannot be right.
        """
        pool, prefer = self.session.pool, self.session.host if prefer_local else None
        patience = self.session.patience(wait, any_port=True)
        return self._retried(lambda: self.run(resolving.resolve(pool, plugin, org, prefer=prefer)), patience, pool)

    def endpoints(self, plugin: str, *, org: str) -> list[Endpoint]:
        """Return where all ready workers of a service are, by address."""
        return self.run(resolving.endpoints(self.session.pool, plugin, org))

    def register(self) -> str:
        """Make this host and its address known in the pool; return `created`, `changed` or `unchanged`."""
        return str(self.run(hosts.register(self.session.context, self.session.pool)))

    def for_host(self, host: str) -> PortAllocator:
        """Return an allocator that claims for another host, over the same connection.

        Of that host's kernel nothing is seen: whoever starts the worker there finds out, and declines.
        """
        identity = self.run(listing.host_identity(self.session.pool, check_name("host", host)))
        return PortAllocator(self.store, self.session.as_host(host, identity), recorder=self.recorder)

    def claim_anywhere(
        self, plugin: str, *, spread: Spread | None = None, **arguments: Unpack[ClaimArguments]
    ) -> Lease:
        """Lease a port on the host of the pool that has most free ones, for a worker that somebody will start there.

        Args:
            plugin: The worker's plugin.
            spread: Whether hosts with fewest workers of the same `org` or `plugin` come first.
            **arguments: See `ClaimArguments`.

        Raises:
            ExhaustedError: When no registered host gives out a port.
            HeldError: When the worker has a lease already.
        """
        worker = WorkerId(arguments["org"], plugin, arguments.get("instance", 0))
        tried: frozenset[str] = frozenset()
        while True:
            placement = self.run(hosts.place(self.session.pool, worker, spread=spread, without=tried))
            try:
                return self.for_host(placement.host).claim(plugin, **arguments)
            except (LimitError, RecoveringError):  # the same everywhere
                raise
            except ExhaustedError:  # it filled up meanwhile
                tried |= {placement.host}

    def hosts(self) -> list[listing.HostView]:
        """Return the hosts that have claimed in the pool."""
        return self.run(listing.hosts(self.session.pool))

    def pool(self) -> PoolSpec:
        """Return the rules of the pool; a built-in pool that Redis does not have is made."""
        return self.run(pools.pool_rules(self.session.context, self.session.pool, fresh=True))

    def apply_pool(self, pool: PoolSpec, *, by: str = "-") -> str:
        """Define a pool or change its rules; return `created`, `changed` or `unchanged`.

        Args:
            pool: The pool.
            by: Who does it, for the pool's history.

        Raises:
            HeldError: When the scope would change while hosts use the pool.
        """
        return str(self.run(apply.apply_pool(pool, by=by)))

    def close(self) -> None:
        """Release the leases that are still held, stop the heartbeats, close the connection."""
        self.let_go(*self._heartbeats.held)
        self._heartbeats.close()
        self.store.close()
