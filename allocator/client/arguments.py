"""The arguments of `claim` and `hold`, once for the blocking and the async allocator."""

from __future__ import annotations

from typing import TYPE_CHECKING, NotRequired, Required, TypedDict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from allocator.model.leases import Lease
    from allocator.operations.renew import RenewOutcome


class ProcessWords(TypedDict, total=False):
    """What a lease says of the processes that it is tied to; see `Lease`."""

    pid: int
    pid_started: int
    holder_pid: int
    holder_started: int
    boot: str
    namespaces: str


class ClaimArguments(TypedDict):
    """What may be said of a claim beside its plugin.

    Attributes:
        org: The organisation's id.
        instance: Which worker of this plugin and organisation; 0 unless given.
        port: The only port that will do.
        hint: The port to prefer where nothing else decides (the environment's).
        ttl: How long the lease lives without a heartbeat, in seconds.
        labels: Up to 16 free words.
        pid: The process that the lease is tied to, on this host.
        holder_pid: The process that looks after it, on this host.
        auto_instance: Whether the lowest free instance is taken.
        priority: 0-9: who waits with a higher one comes first.
        token: The token of a lease that may be held already: it is then returned, renewed.
        supersede_fence: Fence of this worker's lease whose process is proven dead on this very host.
    """

    org: Required[str]
    instance: NotRequired[int]
    port: NotRequired[int | None]
    hint: NotRequired[int | None]
    ttl: NotRequired[float | None]
    labels: NotRequired[Mapping[str, str] | None]
    pid: NotRequired[int | None]
    holder_pid: NotRequired[int | None]
    auto_instance: NotRequired[bool]
    priority: NotRequired[int]
    token: NotRequired[str | None]
    supersede_fence: NotRequired[int | None]


def check_renewed(outcomes: list[RenewOutcome]) -> list[Lease]:
    """Return the renewed leases.

    Raises:
        LeaseLostError: The first loss among them.
    """
    for outcome in outcomes:
        if outcome.lost:
            raise outcome.lost
    return [outcome.lease for outcome in outcomes]
