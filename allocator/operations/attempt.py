"""`ClaimRequest` and `Attempt`: what a claim asks for, and its state between two answers. Values, without any step.

A claim that is granted at the first answer calls no method of `Attempt`.

A field of a claim is declared here once, in `ClaimRequest`. The script's signature has it too, and whoever offers it:
the library's `ClaimArguments`, the options of `allocator claim`, the body of `POST /v1/leases`. Nothing else lists it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from allocator.model.encodings import sha256
from allocator.model.errors import (
    AllocatorError,
    CordonedError,
    ExhaustedError,
    HeldError,
    InvalidInputError,
    LimitError,
    PortRefusedError,
)
from allocator.model.names import WorkerId, check_name, port_variable, shown
from allocator.model.states import LeaseState
from allocator.model.values import Value, field, replace

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from allocator.model.leases import Lease
    from allocator.protocol.signatures.queue import Position

MAX_PORTS = 16
MAX_DECLINES = 5
"""Five strangers in a row on ports that looked free are not a race but a misconfigured host."""
MAX_OWN_HOLDERS = 20
"""How often one claim may find a lease of its own worker; other claims of that worker end within milliseconds."""


class ClaimRequest(Value, kw_only=True):
    """What a worker asks for.

    Attributes:
        pool: The pool to claim from.
        worker: Who the lease is for.
        names: The names of several ports, the worker's own first; empty for one.
        contiguous: Whether several ports have to follow each other.
        port: The port to claim and no other, or None for any.
        hint: The port that the environment names for this plugin, or None.
        ttl_ms: How long the lease lives without a heartbeat, or None for the pool's TTL.
        state: The state that the lease starts in.
        holder: The fields of the lease that its holder sets, by name (`HOLDER_FIELDS`).
        auto_instance: Whether the lowest free instance is taken in place of the worker's.
        priority: 0-9; a waiter with a higher priority is served first.
        wait_s: Time to wait for a port when none is free, in seconds.
        record: Whether the worker's row is written before the claim ends.
        token: The token to claim with; the same one claiming again gets the same lease. None makes a new one. Further
            ports have tokens that are made from it.
        ticket: The ticket of a waiter that is in the queue already, or an empty string.
        supersede_fence: Fence of this worker's lease whose process is proven dead on this very host, or None.
        pre_start: Whether the worker is known not to run, so that a listener on its port is another program.
        bound_already: Whether the worker itself listens on `port` already, so that the port is neither avoided nor
            proven; the caller has checked that.
    """

    pool: str
    worker: WorkerId
    names: tuple[str, ...] = ()
    contiguous: bool = False
    port: int | None = None
    hint: int | None = None
    ttl_ms: int | None = None
    state: LeaseState = LeaseState.STARTING
    holder: Mapping[str, Any] = field(default_factory=dict)
    auto_instance: bool = False
    priority: int = 0
    wait_s: float = 0.0
    record: bool = False
    token: str | None = field(default=None, repr=False)
    ticket: str = ""
    supersede_fence: int | None = None
    pre_start: bool = False
    bound_already: bool = False


def named_workers(worker: WorkerId, names: Sequence[str]) -> tuple[WorkerId, ...]:
    """Return the worker of each named port; the first is the worker itself.

    Raises:
        InvalidInputError: When a name is not valid or is given twice, two give one variable, or there are none or
            more than 16.
    """
    if not 1 <= len(names) <= MAX_PORTS or len(set(names)) != len(names):
        raise InvalidInputError(
            f"{shown(','.join(names))} does not name ports; give 1 to {MAX_PORTS} different names, as http,debug"
        )
    variables: dict[str, str] = {}
    for name in names:
        check_name("port", name)
        other = variables.setdefault(port_variable(name), name)
        if other != name:
            raise InvalidInputError(f"the ports {other} and {name} would both be {port_variable(name)}; rename one")
    return (worker, *(replace(worker, plugin=f"{worker.plugin}+{name}") for name in names[1:]))


def further_token(token: str, name: str) -> str:
    """Return the token of a further port: always the same for a token, so that a claim sent again has the same ones."""
    return sha256(f"{token} {name}".encode())[: len(token)]


class Waiting(Value):
    """A waiter in the queue, between two runs of the claim script.

    Attributes:
        request: What it asks for.
        ticket: The id of its position in the queue.
        condition: What it waits for, or what holds it back (see `JoinCall`).
        position: Where it stands, or None before it has joined.
        woken: Whether it was woken, by a push to its key, since it claimed last.
    """

    request: ClaimRequest
    ticket: str
    condition: str
    position: Position | None = None
    woken: bool = True

    @classmethod
    def of(cls, request: ClaimRequest, ticket: str) -> Waiting:
        """Return a waiter that has not joined yet."""
        return cls(request, ticket, wanted_condition(request))

    @property
    def behind(self) -> int:
        """How far it is from the front of the queue that it waits in, whichever that is."""
        return max(self.position.ahead, self.position.held) if self.position else 1

    @property
    def may_claim(self) -> bool:
        """Whether it is its turn, as far as it knows."""
        position = self.position
        return position is not None and position.ahead == 0 and (self.woken or position.held == 0)

    def condition_after(self, error: AllocatorError) -> str:
        """Return what it waits for after a claim that failed: something other than a port keeps nobody from one."""
        if isinstance(error, LimitError):
            return error.kind
        is_own = isinstance(error, HeldError) and error.holder and error.holder.worker == self.request.worker
        if is_own or (isinstance(error, HeldError) and self.request.port is None):
            return "worker"
        return wanted_condition(self.request)


def wanted_condition(request: ClaimRequest) -> str:
    """Return what a claim waits for, as the queue names it."""
    return "block" if request.contiguous else "one" if request.port else "any"


class Attempt(Value, kw_only=True):
    """How far a claim has come; each `after_…` returns the next attempt, or raises when there is none.

    Attributes:
        request: What is asked for.
        workers: Who each of the leases is for.
        tokens: The tokens to claim with, one for each.
        deadline: Until when to wait, in seconds of the caller's monotonic clock.
        is_new: Whether what the tokens hold was granted to this claim, which may then give it back.
        was_taken_up: Whether the tokens are those of an earlier claim that was not finished.
        superseded: Fence of the worker's lease whose processes are proven dead, or 0.
        has_seen_orphan: Whether a dead supervisor's worker was given the time to end.
        declines: How many ports were declined.
        refused: The ports that were refused, which are not tried again.
        own_holders: How many leases of the workers themselves stood in the way.
        waiting: The waiter, once the queue was joined.
    """

    request: ClaimRequest
    workers: tuple[WorkerId, ...]
    tokens: tuple[str, ...] = field(repr=False)
    deadline: float
    is_new: bool = True
    was_taken_up: bool = False
    superseded: int = 0
    has_seen_orphan: bool = False
    declines: int = 0
    refused: frozenset[int] = frozenset()
    own_holders: int = 0
    waiting: Waiting | None = None

    def after_refusal(self, error: AllocatorError) -> Attempt:
        """Claim another port after one that the kernel, or another worker's row, refused; `error` past the limit."""
        if self.request.port is not None or self.declines >= MAX_DECLINES:
            raise error
        declines = self.declines + isinstance(error, PortRefusedError)  # not where connections are closing
        refused = self.refused | {error.port or 0}
        return replace(self, declines=declines, refused=refused, is_new=True)

    def after_own(self, holder: Lease, token: str, error: HeldError) -> Attempt:
        """Claim with the token of a lease that one of the workers has; `error` when that goes on and on."""
        self._count_own(error)
        at = self.workers.index(holder.worker)
        tokens = (*self.tokens[:at], token, *self.tokens[at + 1 :])
        return replace(self, tokens=tokens, is_new=False, own_holders=self.own_holders + 1)

    def after_given_back(self, tokens: tuple[str, ...], error: HeldError) -> Attempt:
        """Claim all ports anew, after what the workers had was given back; `error` when that goes on and on."""
        self._count_own(error)
        return replace(self, tokens=tokens, is_new=True, own_holders=self.own_holders + 1)

    def after_death(self, holder: Lease, error: HeldError) -> Attempt:
        """Claim over a lease whose processes are proven dead; `error` when that was of no use."""
        self._count_own(error)
        if len(self.workers) == 1 and self.superseded == holder.fence:
            raise error
        fence = holder.fence if len(self.workers) == 1 else 0
        return replace(self, superseded=fence, own_holders=self.own_holders + 1)

    def _count_own(self, error: HeldError) -> None:
        if self.own_holders >= MAX_OWN_HOLDERS:
            raise error

    def may_wait_after(self, error: AllocatorError, now: float) -> bool:
        """Return whether a claim that failed so goes on in the queue: there is time, and waiting may help."""
        if now >= self.deadline:
            return False
        if isinstance(error, HeldError):
            return error.retry_after is not None
        return isinstance(error, ExhaustedError) and not isinstance(error, CordonedError)
