"""The bodies of the API, as Pydantic models: what a caller may send and what it gets. Times are RFC 3339 in UTC.

A model checks form only; what a pool allows, the operations decide. Unknown members of a request are refused, so that
a misspelt one is not silently without effect.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, Self, cast

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from allocator.model.durations import MAX_DURATION_MS
from allocator.model.leases import Lease
from allocator.model.names import MAX_INSTANCE, MAX_LABELS, MAX_NAME_LENGTH, MAX_PACKAGE_LENGTH, PORT_MAX, PORT_MIN
from allocator.model.states import LIVE_STATES, LeaseState
from allocator.operations.attempt import MAX_PORTS

if TYPE_CHECKING:
    from collections.abc import Sequence

_NAME = r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?"
NAME_PATTERN = f"^{_NAME}$"
_PLUGIN = rf"({_NAME}|@[a-z0-9][a-z0-9._-]*/[a-z0-9][a-z0-9._-]*)"
BASE_PLUGIN_PATTERN = f"^{_PLUGIN}$"
"""A plugin, with the name of an npm package (`@hay/plugin-email`) too."""
PLUGIN_PATTERN = rf"^{_PLUGIN}(\+{_NAME})?$"
"""A plugin, or a further port of its worker: `email+debug`. In a query the plus is written `%2B`."""
MAX_PLUGIN_LENGTH = MAX_PACKAGE_LENGTH + 1 + MAX_NAME_LENGTH
MAX_PID = 2**31 - 1
MAX_FENCE = 2**53 - 1
"""The largest whole number that JavaScript reads exactly; fences are microseconds and reach it in the year 2255."""
MAX_RESTARTS = 10**9
MAX_WAIT_S = 60.0
MAX_PAGE = 500

Name = Annotated[str, StringConstraints(min_length=1, max_length=MAX_NAME_LENGTH, pattern=NAME_PATTERN)]
BasePlugin = Annotated[str, StringConstraints(min_length=1, max_length=MAX_PACKAGE_LENGTH, pattern=BASE_PLUGIN_PATTERN)]
PluginName = Annotated[str, StringConstraints(min_length=1, max_length=MAX_PLUGIN_LENGTH, pattern=PLUGIN_PATTERN)]
Port = Annotated[int, Field(ge=PORT_MIN, le=PORT_MAX)]
Instance = Annotated[int, Field(ge=0, le=MAX_INSTANCE)]
TtlSeconds = Annotated[float, Field(gt=0, le=MAX_DURATION_MS / 1_000, allow_inf_nan=False)]
Labels = Annotated[dict[str, str], Field(max_length=MAX_LABELS)]


def _live(state: LeaseState) -> LeaseState:
    """Return a state that a lease can be in; an ended one is reached by release and decline only."""
    if state not in LIVE_STATES:
        known = ", ".join(sorted(LIVE_STATES))
        raise PydanticCustomError("live_state", "a live lease is one of {known}", {"known": known})
    return state


LiveState = Annotated[LeaseState, AfterValidator(_live), Field(json_schema_extra={"enum": sorted(LIVE_STATES)})]


def _number_or_auto(value: object, handler: ValidatorFunctionWrapHandler) -> int | str:
    """Return an instance or `auto`, with one error for what is neither."""
    try:
        return cast("int | str", handler(value))
    except ValidationError:
        known = {"most": MAX_INSTANCE}
        raise PydanticCustomError(
            "instance", "an instance is a whole number from 0 to {most}, or auto", known
        ) from None


class _Request(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ClaimBody(_Request):
    """What a worker asks for. `host` is where it will bind: this server's own host unless given."""

    plugin: BasePlugin
    org: Name
    instance: Annotated[
        Instance | Literal["auto"],
        WrapValidator(_number_or_auto),
        Field(description="`auto`: the lowest that no lease has."),
    ] = 0
    key: Annotated[Name | None, Field(description="With `auto`: the same instance for this host and key again.")] = None
    host: Name | None = None
    pool: Name | None = None
    ports: Annotated[
        list[Name] | None,
        Field(min_length=1, max_length=MAX_PORTS, description="Names of several ports, all or none; not with `port`."),
    ] = None
    contiguous: Annotated[bool, Field(description="Whether `ports` have to follow each other.")] = False
    port: Annotated[Port | None, Field(description="The only port that will do.")] = None
    hint: Annotated[Port | None, Field(description="The port to prefer where nothing else decides.")] = None
    ttl_s: TtlSeconds | None = None
    wait_s: Annotated[float, Field(ge=0, le=MAX_WAIT_S, description="How long to wait for a port.")] = 0.0
    pid: Annotated[int | None, Field(ge=1, le=MAX_PID)] = None
    labels: Labels = {}

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        """Refuse what only one port can have, or only several, and a key that has no instance to choose."""
        if self.key is not None and self.instance != "auto":
            raise PydanticCustomError("key", "key goes with the instance auto; add it, or leave key out")
        if self.ports is None and self.contiguous:
            raise PydanticCustomError("contiguous", 'contiguous goes with ports; name them, as ["http", "debug"]')
        for name in ("port", "hint"):
            if self.ports is not None and getattr(self, name) is not None:
                raise PydanticCustomError("several_ports", "ports and {name} do not go together", {"name": name})
        return self


class HolderCopy(BaseModel):
    """A lease as its holder knows it: the last answer of the API as it stands, or a part of it."""

    model_config = ConfigDict(extra="ignore")

    org: Name
    plugin: PluginName
    fence: Annotated[int, Field(ge=1, le=MAX_FENCE)]
    instance: Instance = 0
    state: LiveState = LeaseState.STARTING
    ttl_s: TtlSeconds | None = None
    pid: Annotated[int | None, Field(ge=1, le=MAX_PID)] = None
    labels: Labels = {}
    restarts: Annotated[int, Field(ge=0, le=MAX_RESTARTS)] = 0
    last_error: Annotated[str | None, Field(max_length=4_000)] = None


class RenewBody(_Request):
    """What becomes of a lease. All of it may be left out: the lease is then extended by its TTL.

    With `holder_copy`, a lease that Redis lost is re-asserted as its holder knows it; with `org`, `plugin`, `instance`
    and `fence` alone it comes back without the rest.
    """

    state: LiveState | None = None
    ttl_s: TtlSeconds | None = None
    pid: Annotated[int | None, Field(ge=1, le=MAX_PID)] = None
    labels: Labels | None = None
    restarts: Annotated[int | None, Field(ge=0, le=MAX_RESTARTS)] = None
    last_error: Annotated[str | None, Field(max_length=4_000, description="Kept as one line of 500 characters.")] = None
    org: Name | None = None
    plugin: PluginName | None = None
    instance: Instance = 0
    fence: Annotated[int | None, Field(ge=1, le=MAX_FENCE)] = None
    holder_copy: Annotated[
        HolderCopy | None, Field(description="The lease as its holder knows it; used only where Redis lost the lease.")
    ] = None

    def known_by_holder(self) -> HolderCopy | None:
        """Return what the holder knows of the lease, or None when it did not send enough to have it back."""
        if self.holder_copy is not None or self.org is None or self.plugin is None or self.fence is None:
            return self.holder_copy
        return HolderCopy(org=self.org, plugin=self.plugin, fence=self.fence, instance=self.instance)


class LeaseBody(BaseModel):
    """A live lease, without its token."""

    model_config = ConfigDict(extra="allow")

    pool: str
    host: str
    port: Port
    org: str
    plugin: str
    instance: int
    state: LeaseState
    fence: int
    ttl_s: float
    granted_at: str
    expires_at: str
    pid: int | None
    restarts: int
    started_at: str | None = None
    last_error: str | None
    labels: dict[str, str]

    @classmethod
    def of(cls, lease: Lease) -> LeaseBody:
        """Return a lease as a body."""
        return cls.model_validate(lease.as_json())


class ProcessBody(BaseModel):
    """The process of a worker, as its host sees it."""

    pid: int
    command: Annotated[str, Field(description="The program, without its arguments, which may hold secrets.")]
    started_at: str
    resident_bytes: int


class LeaseDetail(LeaseBody):
    """A live lease, and its process where that runs on the server's own host."""

    process: Annotated[ProcessBody | None, Field(description="null: another host, or no process is known.")] = None


class GrantBody(LeaseBody):
    """A lease that was just claimed; its token is in the header `Allocator-Token`."""

    proved: Annotated[bool, Field(description="Whether the port was bound for a test on the lease's own host.")]
    further: Annotated[list[LeaseBody], Field(description="The leases of the other `ports`, in their order.")]

    @classmethod
    def granted(cls, leases: Sequence[Lease], *, proved: bool) -> GrantBody:
        """Return what was claimed as a body: a lease, and those of the worker's further ports."""
        first, *others = (lease.as_json() for lease in leases)
        return cls.model_validate({**first, "proved": proved, "further": others})


class ForceBody(_Request):
    """Why an operator ends what somebody else holds; who does it is the name of the credential."""

    reason: Annotated[str, StringConstraints(min_length=1, max_length=500, strip_whitespace=True)]


class EndBody(BaseModel):
    """How a lease ended."""

    ended: Annotated[bool, Field(description="Whether this request ended it; false: it had ended already.")]


class LeasePage(BaseModel):
    """A page of leases, by host and port."""

    leases: list[LeaseBody]
    next: Annotated[str | None, Field(description="What to give as `after` for the next page; null: this is the last.")]


class PoolBody(BaseModel):
    """A pool and how full it is."""

    name: str
    first: Port
    last: Port
    size: int
    scope: str
    spill: bool
    ttl_s: float
    ttl_min_s: float
    ttl_max_s: float
    grace_s: float
    cooldown_s: float
    conventional: dict[str, list[int]]
    hosts: int
    leased: int
    served: Annotated[bool, Field(description="Whether it is the pool that is meant where none is named.")]


class HostBody(BaseModel):
    """A host of a pool."""

    name: str
    leases: int
    free: int
    cordoned: bool
    draining: bool
    address: Annotated[str | None, Field(description="What the host advertises for others to connect to.")]
    machine: str | None


class PortBody(BaseModel):
    """A port of a host that cannot be claimed now, and why."""

    port: Port
    status: Annotated[str, Field(description="leased, quarantined, cooling or stranger")]
    claimable_in_s: float | None
    lease: LeaseBody | None


class HostDetail(HostBody):
    """A host with its ports that are not free."""

    ports: list[PortBody]
    watched: Annotated[bool, Field(description="Whether this server sees the host's kernel, and so its strangers.")]


class DrainBody(BaseModel):
    """What a drain found."""

    host: str
    draining: Annotated[int, Field(description="Leases that became draining by this request.")]
    left: Annotated[int, Field(description="Leases that are still live on the host.")]


class ForgottenBody(BaseModel):
    """A host that the pool does not know any more."""

    host: str
    ended: Annotated[int, Field(description="Live leases that this request ended.")]


class CordonBody(BaseModel):
    """Whether a host gives out ports."""

    host: str
    cordoned: bool
    changed: bool


class EndpointBody(BaseModel):
    """Where a ready worker is."""

    address: str
    port: Port
    host: str
    org: str
    plugin: str
    instance: int
    fence: int


class EventBody(BaseModel):
    """One event: a transition of a lease, or a change of its pool."""

    model_config = ConfigDict(extra="allow")

    id: str
    at: str
    type: str
    host: str
    port: int
    worker: str


class ProblemBody(BaseModel):
    """RFC 9457 problem details; `type` is stable, `detail` states what happened and what to do."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    host: str | None = None
    port: int | None = None
    worker: str | None = None
    retry_after_s: float | None = None
    holder: dict[str, Any] | None = None
    errors: list[dict[str, str]] | None = None
