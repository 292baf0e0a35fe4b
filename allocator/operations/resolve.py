"""Resolve: the address of the next ready worker of a service, or of all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from allocator.model.errors import NoWorkerError
from allocator.model.names import check_name, check_plugin
from allocator.model.states import LeaseState
from allocator.protocol.signatures.resolve import NoneReady, NoTurn, ResolveAllCall, ResolveCall
from allocator.protocol.wire import ask

if TYPE_CHECKING:
    from allocator.model.endpoints import Endpoint, Sighting
    from allocator.operations.context import Context
    from allocator.operations.steps import Operation

OWN_TURNS_S = 60.0
"""For this time a caller whose turn could not be written counts by itself, because Redis logs each refusal."""
MAX_PAGES = 1_000
"""Bounds a listing of a service to 1,024,000 workers, more than hosts and ports that a pool can have."""


def resolve(context: Context, pool: str, plugin: str, org: str, *, prefer: str | None = None) -> Operation[Endpoint]:
    """Return the address of the next ready worker of a service, strictly in turn over all callers.

    A caller that may only read goes through the workers by a count of its own, from a random one on.

    Args:
        context: Who calls.
        pool: The pool.
        plugin: The service's plugin.
        org: The service's organisation.
        prefer: The host whose workers come first, in turn among themselves; None for no preference.

    Raises:
        NoWorkerError: When none is ready; it shows whether there is none, or what state they are in.
        InvalidInputError: When a name is not valid.
    """
    _check_names(plugin, org)
    if context.clock() >= context.own_turns_until:
        found = yield from ask(ResolveCall(pool=pool, plugin=plugin, org=org, prefer=prefer or "-"))
        if isinstance(found, NoneReady):
            raise no_worker(pool, plugin, org, [found.starting, found.degraded, found.draining])
        if not isinstance(found, NoTurn):
            return found.workers[0].endpoint
        context.own_turns_until = context.clock() + OWN_TURNS_S
    return (yield from _own_turn(context, pool, plugin, org, prefer))


def _own_turn(context: Context, pool: str, plugin: str, org: str, prefer: str | None) -> Operation[Endpoint]:
    """Return the next ready worker by a count of this caller's own."""
    seen = yield from sightings(pool, plugin, org)
    ready = sorted(one.endpoint for one in seen if one.lease.state is LeaseState.READY)
    if not ready:
        states = [one.lease.state for one in seen]
        others = (LeaseState.STARTING, LeaseState.DEGRADED, LeaseState.DRAINING)
        raise no_worker(pool, plugin, org, [states.count(state) for state in others])
    choice = [one for one in ready if one.host == prefer] or ready
    service = f"{org}/{plugin}"
    turn = context.own_turns.get(service, int(context.new_token()[:8], 16))
    context.own_turns[service] = turn + 1
    return choice[turn % len(choice)]


def endpoints(pool: str, plugin: str, org: str) -> Operation[list[Endpoint]]:
    """Return the addresses of all ready workers of a service, in order; none when no worker is ready.

    Raises:
        InvalidInputError: When a name is not valid.
    """
    _check_names(plugin, org)
    seen = yield from sightings(pool, plugin, org)
    return sorted(one.endpoint for one in seen if one.lease.state is LeaseState.READY)


def sightings(pool: str, plugin: str, org: str) -> Operation[list[Sighting]]:
    """Return all workers of a service with their leases, in whatever state, by host and port.

    Raises:
        InvalidInputError: When a name is not valid.
    """
    _check_names(plugin, org)
    found: list[Sighting] = []
    offset = 0
    for _ in range(MAX_PAGES):
        page = yield from ask(ResolveAllCall(pool=pool, plugin=plugin, org=org, offset=offset))
        if isinstance(page, NoneReady):
            break
        found += page.workers
        if page.next_offset is None:
            break
        offset = page.next_offset
    by_address = {
        (one.lease.host, one.lease.port): one for one in found
    }  # a page may show one of the page before again
    return [by_address[address] for address in sorted(by_address)]


def _check_names(plugin: str, org: str) -> None:
    check_plugin(plugin)
    check_name("organisation", org)


def no_worker(pool: str, plugin: str, org: str, counts: list[int]) -> NoWorkerError:
    """Return the error for a service without a ready worker.

    Args:
        pool: The pool.
        plugin: The service's plugin.
        org: The service's organisation.
        counts: How many of its workers are starting, degraded, draining.
    """
    service, total = f"{org}/{plugin}", sum(counts)
    states = ("starting", "degraded", "draining")
    if not total:
        return NoWorkerError(
            f"no worker of {service} has a lease in pool {pool}; start one, or wait for it with --wait 10s"
        )
    summary = " and ".join(f"{count} {state}" for count, state in zip(counts, states, strict=True) if count)
    what = f"its only worker is {summary.partition(' ')[2]}" if total == 1 else f"of its {total} workers {summary}"
    return NoWorkerError(f"no worker of {service} is ready: {what}; wait with --wait 10s, or see 'allocator ls'")
