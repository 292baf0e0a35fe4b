"""Claims and releases as the benchmarks send them: the scripts of the product, without the operations around them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from allocator.model.states import LeaseState
from allocator.protocol.signatures.claim import ClaimCall, WantedPort
from allocator.protocol.signatures.end import EndCall, EndedLease
from allocator.protocol.wire import script

if TYPE_CHECKING:
    from allocator.protocol.wire import Call

IDENTITY = f"{'m' * 16} {'b' * 36} 4026531840"


def claim_call(
    pool: str,
    host: str,
    worker: str,
    token: str,
    *,
    ttl_ms: int,
    identity: str = IDENTITY,
    state: LeaseState = LeaseState.STARTING,
    ticket: str = "",
) -> ClaimCall:
    """Return a claim of one port."""
    wanted = (WantedPort(worker=worker, token=token),)
    return ClaimCall(
        pool=pool,
        namespace=host,
        host=host,
        ttl_ms=ttl_ms,
        state=state,
        identity=identity,
        wanted=wanted,
        ticket=ticket,
    )


def end_call(pool: str, host: str, port: int | bytes, token: str) -> EndCall:
    """Return a release of one lease."""
    return EndCall(pool=pool, namespace=host, leases=(EndedLease(port=int(port), token=token),))


def send(redis: Any, call: Call[Any]) -> Any:  # a client or a pipeline, and what it answers
    """Send a call whose script the server has; return the raw reply, or the pipeline."""
    one = call.encode()
    return redis.evalsha(script(one.script).sha1, len(one.keys), *one.keys, *one.args)


class Template:
    """A call that is encoded once and sent often, with other words in some places: the cost is the script's alone."""

    def __init__(self, call: Call[Any], *blanks: str | int) -> None:
        one = call.encode()
        self.arguments: list[str | int] = [script(one.script).sha1, len(one.keys), *one.keys, *one.args]
        self.addresses = [self.arguments.index(blank) for blank in blanks]

    def filled(self, *arguments: str | int | bytes) -> list[str | int]:
        """Return what follows `EVALSHA`, with these words in the places of the blanks."""
        for address, argument in zip(self.addresses, arguments, strict=True):
            self.arguments[address] = argument  # type: ignore[call-overload]  # a port as the server wrote it
        return self.arguments

    def send(self, redis: Any, *arguments: str | int | bytes) -> Any:  # as above
        """Send the call with these words in the places of the blanks."""
        return redis.evalsha(*self.filled(*arguments))


def load(redis: Any) -> None:  # a client
    """Make the server know the scripts of a pair."""
    for call in (claim_call("-", "-", "", "", ttl_ms=0), end_call("-", "-", 0, "")):
        redis.script_load(script(call.encode().script).source)


def port_of(reply: list[Any]) -> bytes:
    """Return the port in a claim's reply, without the cost of reading all of it."""
    if reply[0] != b"granted":
        raise SystemExit(f"a claim was answered {reply[0]!r}; the benchmark needs an idle server of its own")
    lease = next(name for name in reply if type(name) is bytes and name.startswith(b"{"))
    return lease.split(b'"port":', 1)[1].split(b",", 1)[0]
