"""What both allocators are: their methods as operations, with arguments, errors, spans and docstrings.

`PortAllocator` and `AsyncPortAllocator` add how an operation is driven, and nothing else. A new method is written here,
in `LeaseOperations`, and given to both with one line each. What a claim does not need is imported by the method that
does: a command pays for all that it loads.
"""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Self, TypeVar, Unpack

from allocator.client.heartbeats import E_, HeldLease, about
from allocator.client.policies import until_ready
from allocator.client.session import ClaimArguments, checked, library_settings, session_of
from allocator.model.durations import seconds_of
from allocator.model.errors import AllocatorError, ExhaustedError, InvalidInputError, LimitError, RecoveringError
from allocator.model.leases import Lease
from allocator.model.log import log
from allocator.model.names import WorkerId, check_flag, check_name, check_text
from allocator.model.values import replace
from allocator.operations import claim, end, renew
from allocator.operations.attempt import named_workers
from allocator.operations.context import pool_rules
from allocator.store.base import open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from allocator.client.counts import HolderCounts
    from allocator.client.runners import HeartbeatRunner
    from allocator.client.session import OnLost, Session, Tracer
    from allocator.kernel.answers import Answers
    from allocator.model.durations import Duration
    from allocator.model.endpoints import Endpoint
    from allocator.model.pools import PoolSpec
    from allocator.operations.attempt import ClaimRequest
    from allocator.operations.hosts import Spread
    from allocator.operations.listing import HostView
    from allocator.operations.steps import LeaseRecorder, Operation
    from allocator.store.base import BaseStore

P = ParamSpec("P")
T = TypeVar("T")
S = TypeVar("S", bound="BaseStore")


def naming_arguments(function: Callable[P, T]) -> Callable[P, T]:
    """Make a function raise an InvalidInputError when it is called with wrong arguments."""

    @wraps(function)
    def checking(*arguments: P.args, **named: P.kwargs) -> T:
        try:
            return function(*arguments, **named)
        except TypeError as error:
            from inspect import signature

            try:
                signature(function).bind(*arguments, **named)
            except TypeError as mismatch:
                raise wrong_arguments(function.__name__, mismatch) from None
            raise error from None

    return checking


def wrong_arguments(name: str, mismatch: TypeError) -> InvalidInputError:
    """Return the error for a call of a method with arguments that it does not have, or without one that it needs."""
    what = str(mismatch).partition("() ")[2] or str(mismatch)
    return InvalidInputError(f"{name}() {what}; see help(PortAllocator.{name})")


def _lease_of(given: Lease | HeldLease[Any]) -> Lease:
    lease = given.lease if isinstance(given, HeldLease) else given
    if not isinstance(lease, Lease):
        raise InvalidInputError(f"{type(given).__name__} is not a lease; give what claim() or hold() returned")
    return lease


class LeaseOperations(Generic[E_]):
    """The methods of an allocator, as operations.

    Args:
        session: Who this host is.
        heartbeats: Returns what renews the leases that are held.
    """

    def __init__(self, session: Session, heartbeats: Callable[[], HeartbeatRunner[E_]]) -> None:
        self.session = session
        self.heartbeats = heartbeats

    def claim(
        self, plugin: str, *, wait: Duration | None = None, record: bool = False, **arguments: Unpack[ClaimArguments]
    ) -> Operation[Lease]:
        """Lease a port for a worker.

        Args:
            plugin: The worker's plugin.
            wait: Time to wait for a port when none is free; None for not at all.
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
        (lease,) = yield from self._claimed(self.session.request(plugin, arguments, wait=wait, record=record))
        return lease

    def _claimed(self, request: ClaimRequest) -> Operation[tuple[Lease, ...]]:
        with self.session.span("claim", worker=request.worker) as span:
            leases = yield from claim.claim(self.session.context, request)
            span.granted(leases[0])
        return leases

    def claim_ports(
        self,
        plugin: str,
        names: Sequence[str],
        *,
        contiguous: bool = False,
        adjacent: bool = False,
        wait: Duration | None = None,
        **arguments: Unpack[ClaimArguments],
    ) -> Operation[dict[str, Lease]]:
        """Lease several ports for a worker, all or none, in one step.

        Args:
            plugin: The worker's plugin.
            names: What the ports are called; the first is the worker's own, the others' leases are those of
                `org/plugin+name#instance`. Give them back with one `release_all`.
            contiguous: Whether the numbers of the ports have to be consecutive.
            adjacent: The old name of `contiguous`, until version 0.3.
            wait: Time to wait in the queue; None for not at all. A claim for a block waits behind earlier
                claims for blocks, and delays no other claim.
            **arguments: See `ClaimArguments`; no port or hint. A token is that of the first port.

        Returns:
            The leases by name, in the order of the names.

        Raises:
            AllocatorError: As `claim`; nothing is leased then.
        """
        contiguous = contiguous or adjacent
        check_flag("contiguous", contiguous)
        if isinstance(names, str) or not all(isinstance(name, str) for name in names):
            raise InvalidInputError(f"names={names!r} is not a list of texts; give for example ['http', 'debug']")
        request = self.session.request(plugin, arguments, wait=wait, names=tuple(names), contiguous=contiguous)
        if not names:
            named_workers(request.worker, names)
        leases = yield from self._claimed(replace(request, port=None, hint=None))
        return dict(zip(names, leases, strict=True))

    def release_all(self, *leases: Lease | HeldLease[E_]) -> Operation[int]:
        """End leases together, in one step; return how many had not ended yet."""
        ended = self._to_end(leases)
        with self.session.span("release", *ended) as span:
            count = sum((yield from end.release(self.session.context, ended)))
            span.ended("released", done=count > 0)
        return count

    def renew(self, *leases: Lease | HeldLease[E_], rewrite: bool = False) -> Operation[list[Lease]]:
        """Renew leases: each ends one TTL from now.

        Args:
            *leases: The holder's copies, with their tokens; heartbeats renew what is held by themselves.
            rewrite: Whether their state, TTL and the holder's fields are written too.

        Raises:
            LeaseLostError: When one of them is lost; the others were extended all the same.
        """
        extended = [_lease_of(one) for one in leases]
        with self.session.span("renew", *extended) as span:
            outcomes = yield from renew.renew(self.session.context, extended, rewrite=rewrite)
            span.renewed(outcomes)
        return list(renew.renewed(outcomes))

    def release(self, lease: Lease | HeldLease[E_]) -> Operation[bool]:
        """End a lease, held or not; return False when it had ended already.

        Raises:
            HeldError: When someone else holds the port.
        """
        ended = self._to_end([lease])
        with self.session.span("release", *ended) as span:
            (done,) = yield from end.release(self.session.context, ended)
            return span.ended("released", done=done)

    def decline(self, lease: Lease | HeldLease[E_]) -> Operation[bool]:
        """End a lease because the kernel refuses its port, which goes into quarantine; otherwise as `release`."""
        ended = self._to_end([lease])
        with self.session.span("decline", *ended) as span:
            (done,) = yield from end.decline(self.session.context, ended)
            return span.ended("declined", done=done)

    def _to_end(self, leases: Sequence[Lease | HeldLease[E_]]) -> list[Lease]:
        """Return leases that are about to be ended, and stop renewing those that are held."""
        ended = [_lease_of(one) for one in leases]
        for one in leases:
            if isinstance(one, HeldLease):
                self.heartbeats().remove(one)
        return ended

    def end_held(self, *held: HeldLease[Any], declined: bool = False) -> Operation[None]:
        """End held leases in one step. A Redis that does not answer is logged: they then end by their TTL.

        Args:
            *held: The leases; those that are lost are only forgotten.
            declined: Whether the kernel refused their ports, which then go into quarantine.
        """
        for one in held:
            self.heartbeats().remove(one)
        leases = [one.lease for one in held if not one.lost.is_set()]
        if not leases:
            return
        operation, name = (end.decline, "decline") if declined else (end.release, "release")
        try:
            with self.session.span(name, *leases) as span:
                done = yield from operation(self.session.context, leases)
                span.ended(f"{name}d", done=any(done))
        except AllocatorError as error:
            for lease in leases:
                what = (lease.worker, lease.address, error)
                log.warning("the lease of %s on %s ends by its TTL: %s", *what, extra=about(lease))

    def leases(
        self, *, org: str | None = None, plugin: str | None = None, host: str | None = None
    ) -> Operation[list[Lease]]:
        """Return the live leases of the pool, without tokens, by host and port, filtered where asked."""
        from allocator.operations import listing

        found = yield from listing.leases(self.session.pool, host)
        return [lease for lease in found if org in {None, lease.org} and plugin in {None, lease.plugin}]

    def resolve(
        self, plugin: str, *, org: str, wait: Duration | None = None, prefer_local: bool = False
    ) -> Operation[Endpoint]:
        """Return the address of the next ready worker of a service; all callers on all hosts share one rotation.

        Args:
            plugin: The service's plugin.
            org: The service's organisation.
            wait: Time to wait for a worker when none is ready; None for not at all.
            prefer_local: Whether the workers of this host come first.

        Raises:
            NoWorkerError: When none was ready in time.
            InvalidInputError: When an argument cannot be right.
        """
        from allocator.operations import resolve

        pool, prefer = self.session.pool, self.session.host if check_flag("prefer_local", prefer_local) else None
        check_text("plugin", plugin)
        check_text("org", org)
        wait_s = 0.0 if wait is None else seconds_of(wait, "wait")

        def attempt() -> Operation[Endpoint]:
            return resolve.resolve(self.session.context, pool, plugin, org, prefer=prefer)

        return (yield from until_ready(self.session.context, pool, wait_s, attempt))

    def endpoints(self, plugin: str, *, org: str) -> Operation[list[Endpoint]]:
        """Return where all ready workers of a service are, by address."""
        from allocator.operations import resolve

        return (yield from resolve.endpoints(self.session.pool, check_text("plugin", plugin), check_text("org", org)))

    def register(self) -> Operation[str]:
        """Make this host and its address known in the pool; return `created`, `changed` or `unchanged`."""
        from allocator.operations import hosts

        return str((yield from hosts.register(self.session.context, self.session.pool)))

    def host_session(self, host: str) -> Operation[Session]:
        """Return settings that claim for another host without changing that host's identity."""
        from allocator.operations import listing

        identity = yield from listing.host_identity(self.session.pool, check_name("host", check_text("host", host)))
        return self.session.as_host(host, identity)

    def claim_anywhere(
        self, plugin: str, *, spread: Spread | None = None, **arguments: Unpack[ClaimArguments]
    ) -> Operation[Lease]:
        """Lease a port on the host of the pool that has most free ones, for a worker that somebody will start there.

        Args:
            plugin: The worker's plugin.
            spread: Whether hosts with fewest workers of the same `org` or `plugin` come first.
            **arguments: See `ClaimArguments`.

        Raises:
            ExhaustedError: When no registered host gives out a port.
            HeldError: When the worker has a lease already.
        """
        from allocator.operations import hosts

        given = checked(plugin, arguments)
        worker = WorkerId(given["org"], plugin, given.get("instance", 0))
        tried: frozenset[str] = frozenset()
        while True:
            placement = yield from hosts.place(self.session.pool, worker, spread=spread, without=tried)
            there = LeaseOperations((yield from self.host_session(placement.host)), self.heartbeats)
            try:
                return (yield from there.claim(plugin, **arguments))
            except (LimitError, RecoveringError):  # the same everywhere
                raise
            except ExhaustedError:  # it filled up meanwhile
                tried |= {placement.host}

    def hosts(self) -> Operation[list[HostView]]:
        """Return the hosts that have claimed in the pool."""
        from allocator.operations import listing

        return (yield from listing.hosts(self.session.pool))

    def pool(self) -> Operation[PoolSpec]:
        """Return the rules of the pool; a built-in pool that Redis does not have is made."""
        return (yield from pool_rules(self.session.context, self.session.pool, fresh=True))

    def apply_pool(self, pool: PoolSpec, *, by: str = "-") -> Operation[str]:
        """Define a pool or change its rules; return `created`, `changed` or `unchanged`.

        Args:
            pool: The pool.
            by: Who does it, for the pool's history.

        Raises:
            HeldError: When the scope would change while hosts use the pool.
        """
        from allocator.operations import pools

        return str((yield from pools.apply_pool(pool, by=by)))


class AllocatorBase(Generic[E_, S]):
    """What the allocators have beside operations: how they are made, which leases they hold.

    Args:
        store: The connection to Redis; None for that of the settings.
        session: Who this host is; None for that of the settings.
        recorder: Writes the rows of leases that are claimed with `record=True`, or None.
    """

    _store_class: type[S]
    _runner_class: type[HeartbeatRunner[E_]]
    _runner: HeartbeatRunner[E_] | None = None

    def __init__(
        self, store: S | None = None, session: Session | None = None, *, recorder: LeaseRecorder | None = None
    ) -> None:
        if store is None or session is None:
            settings = library_settings()
            store = store or open_store(self._store_class, settings)
            session = session or session_of(settings)
        self.store = store
        self.session = session
        self.recorder = recorder or session.recorder
        self.operations = LeaseOperations(session, lambda: self._heartbeats)

    @classmethod
    @naming_arguments
    def from_url(
        cls,
        url: str | None = None,
        *,
        pool: str | None = None,
        host: str | None = None,
        timeout: Duration | None = None,
        on_lost: OnLost = "keep",
        advertise: str | None = None,
        recorder: LeaseRecorder | None = None,
        tracer: Tracer | None = None,
    ) -> Self:
        """Return an allocator for the Redis at `url`.

        Args:
            url: `redis://`, `rediss://`, `unix://`, `redis+sentinel://` or `redis+cluster://`; None for the Redis of
                the settings (`ALLOCATOR_REDIS_URL`, `allocator.toml`), and where they name none for the embedded
                server of this user, which is started when it does not run.
            pool: The pool; None for that of the settings, `sdk-v2` unless set.
            host: The name of this host; None for that of the settings, the host name unless set.
            timeout: For how long Redis may be silent; None for that of the settings, 5 s unless set.
            on_lost: What holders do when Redis has not confirmed their lease in time: `keep` or `stop`. In a pool of
                scope `fleet` they always stop.
            advertise: The address under which others reach this host; None for that of the settings, that of the
                default route unless set.
            recorder: What `claim(…, record=True)` writes rows with: an `allocator.DatabaseRecorder`. It is not closed.
            tracer: Gets a span of all that is done with leases: an `allocator.OpenTelemetryTracer`; None for what
                `ALLOCATOR_TRACING` asks for.

        Raises:
            InvalidInputError: When an argument or a setting cannot be right.
            ConfigurationError: When a settings file cannot be used.
        """
        settings = library_settings(url, pool=pool, host=host, timeout=timeout, advertise=advertise)
        session = session_of(settings, on_lost=on_lost, tracer=tracer)
        return cls(open_store(cls._store_class, settings), session, recorder=recorder)

    def __repr__(self) -> str:
        held = 0 if self._runner is None else len(self._runner.held)
        return f"<{type(self).__name__} pool {self.session.pool} host {self.session.host} holding {held}>"

    @property
    def _heartbeats(self) -> HeartbeatRunner[E_]:
        """What renews the held leases; made once, when the first lease is held."""
        if self._runner is None:
            self.__dict__.setdefault("_runner", self._runner_class(self.session, self.run))
        assert self._runner is not None  # noqa: S101  # set above
        return self._runner

    @property
    def recorder(self) -> LeaseRecorder | None:
        """What writes the rows of leases that are claimed with `record=True`, or None."""
        return self.session.recorder

    @recorder.setter
    def recorder(self, recorder: LeaseRecorder | None) -> None:
        self.session.recorder = recorder

    @property
    def counts(self) -> dict[str, HolderCounts]:
        """What became of the leases that are held here, by pool; `HolderMetrics` shows it to Prometheus."""
        return self._heartbeats.counts

    def run(self, operation: Operation[Any], answers: Answers | None = None) -> Any:  # noqa: ANN401  # or what is awaited for it
        """Drive one operation to its end; `answers` are to its steps that are not for Redis, if others than usual."""
        raise NotImplementedError

    def start_heartbeats(self, lease: Lease) -> HeldLease[E_]:
        """Renew a claimed lease by heartbeats until `end_held`; in asyncio this needs a running event loop."""
        return self._heartbeats.add(lease)

    def update(self, held: HeldLease[E_], **fields: Any) -> None:  # noqa: ANN401  # those of HeldLease.set
        """Set the state of a held lease or what it shows of its worker; the heartbeats write it at once.

        Args:
            held: The lease.
            **fields: Its `state`, and what it shows of its worker (see `HolderFields`).

        Raises:
            ValueError: When the state is an ended one, or cannot follow the present one.
            InvalidInputError: When a field is of another type, or labels are not valid, or it is not a held lease.
        """
        if not isinstance(held, HeldLease):
            raise InvalidInputError(
                f"{type(held).__name__} is not a held lease; give what hold() or start_heartbeats() returned"
            )
        self._heartbeats.update(held, **fields)
