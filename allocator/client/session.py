"""What an allocator is made of: who this host is, the arguments of its claims, and who traces what is done with leases.

Every face comes here with its settings: both allocators of the library, `Service` and the transports, and through them
commands, API and agent.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Mapping  # noqa: TC003  # read from a declaration at run time
from functools import cache
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    NotRequired,
    Protocol,
    Required,
    Self,
    TypedDict,
    TypeVar,
    Unpack,
    get_args,
    get_type_hints,
)

from allocator.kernel.answers import Answers
from allocator.kernel.identity import (
    boot_id,
    default_address,
    default_host,
    host_identity,
    identify,
    namespaces,
    running_s,
)
from allocator.model.durations import Duration, check_ttl, seconds_of, ttl_in_ms
from allocator.model.errors import InvalidInputError
from allocator.model.log import warn_once
from allocator.model.names import (
    WorkerId,
    check_address,
    check_flag,
    check_labels,
    check_name,
    check_number,
    check_port,
    check_priority,
    check_text,
    check_token,
    literal,
    shown,
)
from allocator.model.pools import SDK_V2
from allocator.model.settings import load_settings
from allocator.model.values import Value, field, replace
from allocator.operations.attempt import ClaimRequest
from allocator.operations.context import Context
from allocator.operations.steps import needed

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from allocator.model.leases import Lease
    from allocator.model.settings import Settings
    from allocator.operations.renew import RenewOutcome
    from allocator.operations.steps import LeaseRecorder
    from allocator.store.base import BaseStore

OnLost = Literal["keep", "stop"]
S = TypeVar("S", bound="BaseStore")
Outcomes = TypeVar("Outcomes", bound="Sequence[RenewOutcome]")
TOKEN_BYTES = 16


def new_token() -> str:
    """Return 128 random bits as 32 hexadecimal digits."""
    return os.urandom(TOKEN_BYTES).hex()  # what `secrets` does, which loads OpenSSL


class Span(Protocol):
    """One thing that is done with leases, from entering to leaving; this one tells nobody."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the span, with the error as its outcome."""
        return

    def granted(self, lease: Lease) -> Lease:
        """Take in the lease that a claim got; return it."""
        return lease

    def renewed(self, outcomes: Outcomes) -> Outcomes:
        """Take in what a renewal came to; return it."""
        return outcomes

    def ended(self, outcome: str, *, done: bool) -> bool:
        """Take in whether this call ended a lease, which is then `outcome`, or found it ended; return that."""
        del outcome
        return done


class _Unseen(Span):
    """A span that nobody records."""


OFF = _Unseen()


class Tracer(Protocol):
    """Makes spans of what an allocator does; `OpenTelemetryTracer` is one."""

    def span(self, name: str, pool: str, worker: WorkerId | None, leases: Sequence[Lease]) -> Span:
        """Return the span of something that is about to be done.

        Args:
            name: `claim`, `renew`, `release` or `decline`.
            pool: The pool.
            worker: Who claims, or None.
            leases: What is renewed or ended.
        """
        ...


class ProcessFields(TypedDict, total=False):
    """What a lease shows of the processes that it is bound to; see `Lease`."""

    pid: int
    pid_started: int
    holder_pid: int
    holder_started: int
    boot: str
    namespaces: str


class SeveralPorts(TypedDict, total=False):
    """The further arguments of a claim of several ports; see `ClaimRequest`."""

    names: tuple[str, ...]
    contiguous: bool


def checked(plugin: object, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Check the arguments of a claim and return them; those that are None are left out.

    Raises:
        InvalidInputError: When one of them cannot be right, is missing, or is not an argument of a claim.
    """
    checks = _checks()
    if unknown := sorted(arguments.keys() - checks.keys()):
        raise InvalidInputError(f"a claim has no argument {shown(unknown[0])}; it has {', '.join(checks)}")
    if arguments.get("org") is None:
        raise InvalidInputError("a claim needs org, the organisation's id; give for example org='org-123'")
    given = {name: checks[name](name, value) for name, value in arguments.items() if value is not None}
    return {"plugin": check_text("plugin", plugin), **given}


def _check_labels(name: str, labels: object) -> dict[str, str]:
    try:
        pairs = dict(labels)  # type: ignore[call-overload]  # a mapping, if the caller is right
    except (TypeError, ValueError):
        raise InvalidInputError(f"{name}={literal(labels)} is not a mapping; give a dict of texts") from None
    for key, value in pairs.items():
        check_text("a label's name", key)
        check_text(f"label {shown(key)}", value)
    return check_labels(pairs)


def _check_port(name: str, value: object) -> int:
    if isinstance(value, int | str):
        return check_port(value)
    raise InvalidInputError(f"{name}={literal(value)} is not a port; give a whole number")


def _check_priority(_name: str, value: object) -> int:
    return check_priority(value)


def _check_token(_name: str, value: object) -> str:
    return check_token(value)


class ClaimArguments(TypedDict):
    """The arguments of a claim beside its plugin, each with its type and with what checks it.

    Attributes:
        org: The organisation's id.
        instance: Which worker of this plugin and organisation; 0 unless given.
        port: The port to claim, and no other.
        hint: The port to prefer where nothing else decides (the environment's).
        ttl: How long the lease lives without a heartbeat: seconds, or text such as `"30s"`.
        labels: Up to 16 `name=value` pairs.
        pid: The process that the lease is bound to, on this host.
        holder_pid: The process that looks after it, on this host.
        auto_instance: Whether the lowest free instance is taken.
        priority: 0-9: who waits with a higher one comes first.
        token: The token of a lease that may be held already: it is then returned, renewed.
        pre_start: Whether the worker is not running now: when anybody listens on the port that it has, that is declined
            and another one claimed.
        supersede_fence: Fence of this worker's lease whose process is proven dead on this very host.
    """

    org: Required[Annotated[str, check_text]]
    instance: NotRequired[Annotated[int, check_number]]
    port: NotRequired[Annotated[int | None, _check_port]]
    hint: NotRequired[Annotated[int | None, _check_port]]
    ttl: NotRequired[Annotated[Duration | None, check_ttl]]
    labels: NotRequired[Annotated[Mapping[str, str] | None, _check_labels]]
    pid: NotRequired[Annotated[int | None, check_number]]
    holder_pid: NotRequired[Annotated[int | None, check_number]]
    auto_instance: NotRequired[Annotated[bool, check_flag]]
    priority: NotRequired[Annotated[int, _check_priority]]
    token: NotRequired[Annotated[str | None, _check_token]]
    pre_start: NotRequired[Annotated[bool, check_flag]]
    supersede_fence: NotRequired[Annotated[int | None, check_number]]


@cache
def _checks() -> dict[str, Callable[[str, Any], object]]:
    """Return the check of each argument, made from the declaration of `ClaimArguments`."""
    hints = get_type_hints(ClaimArguments, include_extras=True)
    return {name: get_args(get_args(hint)[0])[1] for name, hint in hints.items()}


class Session(Value, frozen=False, kw_only=True):
    """The settings of one allocator.

    Attributes:
        pool: The pool that claims are made in.
        host: The name of this host.
        on_lost: What a holder does when Redis has not confirmed its lease in time: `keep` its port (the kernel
            arbitrates) or `stop`.
        advertise: The address under which others reach this host; None for that of the default route.
        answers: Answers to the steps of operations that are not for Redis.
        clock: The monotonic clock, in seconds.
        rng: The source of jitter.
        identity: Which machine, boot and network namespace `host` is; None for those of this process.
        tracer: Gets a span of each action on leases, or None.
        recorder: Writes the rows of leases that are claimed with `record`, or None.
    """

    pool: str = SDK_V2.name
    host: str
    on_lost: OnLost = "keep"
    advertise: str | None = None
    answers: Answers = field(default_factory=Answers)
    clock: Callable[[], float] = time.monotonic
    rng: random.Random = field(default_factory=random.Random)
    identity: str | None = None
    tracer: Tracer | None = None
    recorder: LeaseRecorder | None = None
    _context: Context | None = None

    @property
    def context(self) -> Context:
        """Who calls: this host with its identity, which is read when it is first needed."""
        if self._context is None:
            identity = self.identity or str(host_identity())
            address = f"!{self.advertise}" if self.advertise else "" if self.identity else default_address()
            age_s = None if self.identity else running_s()
            began = None if age_s is None else self.clock() - age_s
            self._context = Context(self.host, identity, self.clock, new_token, address, began=began, rng=self.rng)
        return self._context

    def as_host(self, host: str, identity: str) -> Session:
        """Return the settings that claim for another host, whose kernel is not seen from here.

        Args:
            host: The other host.
            identity: Which machine it is known to be.
        """
        other = Session(
            pool=self.pool,
            host=host,
            answers=self.answers,
            clock=self.clock,
            rng=self.rng,
            identity=identity,
            tracer=self.tracer,
            recorder=self.recorder,
        )
        other.context.rules = self.context.rules
        other.context.elsewhere = True
        return other

    def span(self, name: str, *leases: Lease, worker: WorkerId | None = None) -> Span:
        """Return the span of what is about to be done: `claim`, `renew`, `release` or `decline`.

        Args:
            name: That name.
            *leases: What is renewed or ended.
            worker: Who claims.
        """
        if self.tracer is None:
            return OFF
        return self.tracer.span(name, leases[0].pool if leases else self.pool, worker, leases)

    def request(
        self,
        plugin: str,
        arguments: ClaimArguments,
        *,
        wait: Duration | None = None,
        record: bool = False,
        **several: Unpack[SeveralPorts],
    ) -> ClaimRequest:
        """Return the request that a caller's arguments make.

        Args:
            plugin: The worker's plugin.
            arguments: See `ClaimArguments`.
            wait: Time to wait for a port, or None.
            record: Whether the worker's row is written.
            **several: The names of several ports, and whether they follow each other.

        Raises:
            InvalidInputError: When one of them cannot be right.
            ConfigurationError: When rows are to be written and there is no recorder.
        """
        given = checked(plugin, arguments)
        ttl = given.pop("ttl", None)
        if check_flag("record", record):
            needed(self.recorder)
        holder = self.process_fields(pid=given.pop("pid", None), holder_pid=given.pop("holder_pid", None))
        return ClaimRequest(
            pool=self.pool,
            worker=WorkerId(given.pop("org"), given.pop("plugin"), given.pop("instance", 0)),
            ttl_ms=None if ttl is None else ttl_in_ms(ttl),
            holder={**holder, "labels": given.pop("labels", {})},
            wait_s=0.0 if wait is None else seconds_of(wait, "wait"),
            record=record,
            **several,
            **given,
        )

    def process_fields(self, **pids: int | None) -> ProcessFields:
        """Return what a lease shows of the processes of this host that it is bound to.

        Args:
            **pids: `pid` and `holder_pid`; those that are None are left out.

        Raises:
            InvalidInputError: When no such process lives.
            ConfigurationError: When it is hidden from this user.
        """
        fields: ProcessFields = {}
        for name, pid in pids.items():
            if pid is None:
                continue
            if self.identity is not None:  # another host's process: nothing can be seen of it from here
                fields |= {name: pid}  # type: ignore[misc]  # two literal names
                continue
            process = identify(pid)
            if process is None:
                raise InvalidInputError(f"{pid} is not the pid of a living process; give one of this host")
            started = "pid_started" if name == "pid" else "holder_started"
            fields |= {name: pid, started: process.start_time, "boot": boot_id(), "namespaces": namespaces()}  # type: ignore[misc]  # two literal names
        return fields

    def stops_in_doubt(self, pool: str) -> bool:
        """Return whether a holder stops when Redis has not confirmed its lease in time.

        In a pool whose ports are unique over the fleet it always does: the kernel of one host cannot arbitrate.
        """
        rules = self.context.rules.get(pool)
        return self.on_lost == "stop" or (rules is not None and rules.scope == "fleet")


def library_settings(
    url: str | None = None,
    *,
    pool: str | None = None,
    host: str | None = None,
    timeout: Duration | None = None,
    advertise: str | None = None,
) -> Settings:
    """Return the settings of a program that uses the library: its arguments are what flags are to a command.

    Raises:
        InvalidInputError: When an argument or a variable cannot be right.
        ConfigurationError: When a settings file cannot be used.
    """
    given = {"redis_url": url, "pool": pool, "host": host, "advertise": advertise}
    for name, value in given.items():
        if value is not None:
            check_text("url" if name == "redis_url" else name, value)
    settings = load_settings(given, os.environ)
    for refused in settings.refused:
        warn_once(refused)
    return settings if timeout is None else replace(settings, connect_timeout_ms=_timeout_ms(timeout))


def _timeout_ms(timeout: Duration) -> int:
    timeout_s = seconds_of(timeout, "timeout")
    if timeout_s == 0:
        raise InvalidInputError("timeout=0 leaves Redis no time to answer; give for example '5s'")
    return max(1, round(timeout_s * 1_000))


def session_of(settings: Settings, *, on_lost: OnLost = "keep", tracer: Tracer | None = None) -> Session:
    """Return the session that the settings make.

    Args:
        settings: The settings.
        on_lost: What holders do when Redis has not confirmed their lease in time.
        tracer: Receives what is done with leases; None for what the settings ask for.

    Raises:
        InvalidInputError: When the policy is not valid.
        ConfigurationError: When spans are asked for and OpenTelemetry is not installed.
    """
    if tracer is None and settings.tracing:
        from allocator.client.tracing import OpenTelemetryTracer

        tracer = OpenTelemetryTracer()
    return make_session(settings.pool, settings.host, on_lost, advertise=settings.advertise, tracer=tracer)


def make_session(
    pool: str | None,
    host: str | None,
    on_lost: OnLost,
    *,
    advertise: str | None = None,
    tracer: Tracer | None = None,
) -> Session:
    """Return the session of an allocator with these names, defaults where they are None.

    Raises:
        InvalidInputError: When a name, the address or the policy is not valid.
    """
    if on_lost not in ("keep", "stop"):  # not a set: whatever was given need not be hashable
        raise InvalidInputError(f"{on_lost!r} is not a policy for a lease in doubt; choose 'keep' or 'stop'")
    return Session(
        pool=check_name("pool", check_text("pool", pool or SDK_V2.name)),
        host=check_name("host", check_text("host", host)) if host is not None else default_host(),
        on_lost=on_lost,
        advertise=None if advertise is None else check_address(check_text("advertise", advertise)),
        tracer=tracer,
    )
