"""Several ports for one worker, all or none: each is a lease of its own, of the worker `org/plugin+name#instance`.

The first name's port is the worker's own. They are claimed in one script, and proved and given back together.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from allocator.model.errors import ConfigurationError, InvalidInputError, PortRefusedError
from allocator.model.names import check_name, port_variable, shown
from allocator.operations.claim import asked, listening_ports, not_copied, refusal
from allocator.operations.end import decline, release
from allocator.operations.pools import pool_rules
from allocator.operations.steps import DescribeListener, Operation, ProvePort
from allocator.protocol import decode
from allocator.protocol.calls import ScriptCall
from allocator.protocol.keys import script_keys
from allocator.protocol.replies import Reply
from allocator.protocol.signatures.claim import ClaimCall, Granted, Same, WantedPort

if TYPE_CHECKING:
    from collections.abc import Sequence

    from allocator.model.leases import Lease
    from allocator.model.names import WorkerId
    from allocator.operations.claim import ClaimRequest
    from allocator.operations.context import Context

MAX_PORTS = 16
MAX_ROUNDS = 300


def named_workers(worker: WorkerId, names: Sequence[str]) -> list[WorkerId]:
    """Return who holds each of a worker's named ports; the first is the worker itself.

    Raises:
        InvalidInputError: When a name is not valid or stands there twice, two give one variable, or there are none or
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
    return [worker, *(replace(worker, plugin=f"{worker.plugin}+{name}") for name in names[1:])]


def claim_several(
    context: Context, request: ClaimRequest, names: Sequence[str], *, adjacent: bool, tokens: Sequence[str]
) -> Operation[list[Lease]]:
    """Lease a port for each name, all or none: one attempt.

    Args:
        context: Who calls.
        request: What the worker asks for; its port and token are not looked at.
        names: The names of the ports.
        adjacent: Whether the ports have to follow each other.
        tokens: The tokens to claim with, one for each; the same ones claiming again get the same leases.

    Returns:
        The leases, in the order of the names.

    Raises:
        AllocatorError: As `claim`; nothing is leased then.
    """
    if request.auto_instance:
        raise InvalidInputError("several ports are claimed for a worker that has a number; give it with --instance")
    workers = named_workers(request.worker, names)
    pool = yield from pool_rules(context, request.pool)
    look_from = 0
    for _ in range(MAX_ROUNDS):
        listening = yield from listening_ports(context, pool)
        sent_at = context.clock()
        copies_wanted = int(pool.durability == "replica")
        call = ClaimCall(
            pool=pool.name,
            space=context.space(pool),
            host=context.host,
            ttl_ms=pool.check_ttl_ms(request.ttl_ms),
            state=request.state,
            identity=context.full_identity,
            alive_ms=context.alive_ms,
            wanted=tuple(
                WantedPort(worker=str(worker), token=token, extra=request.holder_words())
                for worker, token in zip(workers, tokens, strict=True)
            ),
            strangers=listening,
            ticket=request.ticket,
            contiguous=adjacent,
            look_from=look_from,
            replicas=copies_wanted,
        )
        reply, copies = yield from asked(call.encode())
        code = Reply(decode.text(reply[0]))
        if code in {Reply.NO_POOL, Reply.STALE_POOL}:
            pool = yield from pool_rules(context, request.pool, fresh=True)
        elif code is Reply.RECOVERING and decode.number(reply[1]) < 0:
            yield ScriptCall("recover", script_keys(pool.name))
        elif code is Reply.AGAIN:
            look_from = int(decode.number(reply[1]))
        else:
            break
    else:
        raise ConfigurationError(f"pool {pool.name} changes faster than it can be read; try again")
    if code not in {Reply.GRANTED, Reply.SAME}:
        raise (yield from refusal(context, pool, request, code, reply))
    answer = replace(call, replicas=0).decode(reply, sent_at=sent_at)
    leases = list(answer.leases) if isinstance(answer, Granted | Same) else []
    if code is Reply.SAME:
        return leases
    if copies < copies_wanted:
        yield from release(context, leases)
        raise not_copied(leases[0])
    return (yield from _proven(context, leases))


def _proven(context: Context, leases: list[Lease]) -> Operation[list[Lease]]:
    for lease in leases:
        free: bool = context.elsewhere or (yield ProvePort(lease.port))
        if free:
            continue
        who: str | None = yield DescribeListener(lease.port)
        yield from decline(context, [lease])
        yield from release(context, [one for one in leases if one is not lease])
        raise PortRefusedError(
            f"port {lease.port} on {lease.host} was granted, but {who or 'another process'} has it bound; "
            "it is in quarantine now: claim again to get other ports",
            host=lease.host,
            port=lease.port,
            worker=str(lease.worker),
            retry_after=0.0,
        )
    return leases
