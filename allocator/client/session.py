"""What both allocators share: who this host is, and how a caller's arguments become operations.

Nothing here waits: the blocking and the async allocator drive what this module makes.
"""

from __future__ import annotations

import os
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Unpack

from allocator.client.arguments import ClaimArguments, check_flag, check_text, checked, ttl_in_ms
from allocator.client.drivers import Answers, needed
from allocator.client.tracing import OFF
from allocator.kernel.identity import default_address, default_host, host_identity, running_s
from allocator.kernel.processes import boot_id, identify, namespaces
from allocator.model.durations import Duration, format_duration, seconds_of
from allocator.model.errors import InvalidInputError
from allocator.model.names import WorkerId, check_address, check_name
from allocator.model.pools import SDK_V2
from allocator.operations.attempt import ClaimRequest
from allocator.operations.context import Context

if TYPE_CHECKING:
    from collections.abc import Callable

    from allocator.client.arguments import ProcessWords, SeveralPorts
    from allocator.client.drivers import LeaseRecorder
    from allocator.client.tracing import Span, Tracer
    from allocator.model.leases import Lease

OnLost = Literal["keep", "stop"]
TOKEN_BYTES = 16


def new_token() -> str:
    """Return 128 random bits as 32 hexadecimal digits."""
    return os.urandom(TOKEN_BYTES).hex()  # what `secrets` does, which loads OpenSSL


@dataclass(slots=True, kw_only=True)
class Session:
    """The settings of one allocator.

    Attributes:
        pool: The pool that claims are made in.
        host: The name of this port namespace.
        on_lost: What a holder does when Redis has not confirmed its lease in time: `keep` its port (the kernel
            arbitrates) or `stop`.
        advertise: The address under which others reach this host; None for that of the default route.
        answers: Answers to the steps of operations that are not for Redis.
        clock: The monotonic clock, in seconds.
        rng: The source of jitter.
        identity: Which machine, boot and network namespace `host` is; None for those of this process.
        tracer: Is told what is done with leases, or None.
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
            name: That word.
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
        holder = self.process_words(pid=given.pop("pid", None), holder_pid=given.pop("holder_pid", None))
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

    def process_words(self, **pids: int | None) -> ProcessWords:
        """Return what a lease says of the processes of this host that it is tied to.

        Args:
            **pids: `pid` and `holder_pid`; those that are None are left out.

        Raises:
            InvalidInputError: When no such process lives.
            ConfigurationError: When it is hidden from this user.
        """
        words: ProcessWords = {}
        for name, pid in pids.items():
            if pid is None:
                continue
            if self.identity is not None:  # another host's process: nothing can be seen of it from here
                words |= {name: pid}  # type: ignore[misc]  # two literal names
                continue
            process = identify(pid)
            if process is None:
                raise InvalidInputError(f"{pid} is not the pid of a living process; give one of this host")
            started = "pid_started" if name == "pid" else "holder_started"
            words |= {name: pid, started: process.start_time, "boot": boot_id(), "namespaces": namespaces()}  # type: ignore[misc]  # two literal names
        return words

    def stops_in_doubt(self, pool: str) -> bool:
        """Return whether a holder stops when Redis has not confirmed its lease in time.

        In a pool whose ports are unique over the fleet it always does: the kernel of one host cannot arbitrate.
        """
        rules = self.context.rules.get(pool)
        return self.on_lost == "stop" or (rules is not None and rules.scope == "fleet")


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


def doubt_message(where: str, overdue_s: float) -> str:
    """Return the words for a lease whose deadline passed unconfirmed."""
    return f"{where} could not be renewed and its time passed {format_duration(overdue_s * 1_000)} ago"
