"""The signatures of what only reads: `inspect` (the hosts of a pool, their ports) and `find` (where workers are)."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, ClassVar

from allocator.model.errors import ConfigurationError, InvalidInputError
from allocator.model.leases import error_line
from allocator.model.names import check_port
from allocator.model.values import Value, field
from allocator.protocol import wire
from allocator.protocol.keys import lease_key
from allocator.protocol.replies import Reply
from allocator.protocol.wire import Arguments, Call

if TYPE_CHECKING:
    from allocator.model.leases import Lease

_ADVERTISED = re.compile(r"\S+ \S+ \S+ !?")
_STRIKE = re.compile(r"strikes:(\d{1,5}) \d+ \d+ (\d{1,15})")


class InspectHostsCall(Call["tuple[str, ...]"], kw_only=True):
    """The call for a page of the namespaces of ports that a pool has: its hosts, and `*` in fleet scope.

    Attributes:
        offset: The index of the first one.
        count: The number of them.
    """

    script: ClassVar[str] = "inspect"
    first: ClassVar[Arguments] = ("hosts",)

    offset: int
    count: int

    def decode(self, raw: Any) -> tuple[str, ...]:  # noqa: ANN401  # as `Call.decode`
        """Return their names."""
        return tuple(wire.text(name) for name in wire.reply_list(raw)[::2])


class InspectHostCall(Call["KnownHost"], kw_only=True):
    """The call for a host's hash; the host is the call's `namespace`."""

    script: ClassVar[str] = "inspect"
    first: ClassVar[Arguments] = ("host",)

    def decode(self, raw: Any) -> KnownHost:  # noqa: ANN401  # as `Call.decode`
        """Return what is known of it."""
        fields = wire.fields_of(raw)
        identity = error_line(fields.get("identity", ""))
        strikes = (_STRIKE.match(f"{name} {value}") for name, value in fields.items())
        return KnownHost(
            identity=identity,
            address=wire.address(_ADVERTISED.sub("", identity)) if _ADVERTISED.match(identity) else "",
            cordoned=fields.get("cordon") == "1",
            draining=fields.get("drain") == "1",
            quarantines={int(strike[1]): float(strike[2]) for strike in strikes if strike},
        )


class KnownHost(Value, kw_only=True):
    """What Redis knows of a host.

    Attributes:
        identity: Machine, boot, network namespace, perhaps its address; an empty text for nothing.
        address: The address that it advertises; an empty text for none, and for what is not an address.
        cordoned: Whether it gives out no new ports.
        draining: Whether its workers are asked to stop.
        quarantines: Until when ports were last put into quarantine, in milliseconds of the server's clock.
    """

    identity: str
    address: str
    cordoned: bool
    draining: bool
    quarantines: dict[int, float]


class InspectMembersCall(Call["tuple[tuple[str, str], ...]"], kw_only=True):
    """The call for a page of the members of a sorted set, whatever another program put there.

    Attributes:
        suffix: The key, after that of the pool.
        offset: The index of the first one.
        count: How many, at most 512.
    """

    script: ClassVar[str] = "inspect"
    first: ClassVar[Arguments] = ("members",)

    suffix: str
    offset: int
    count: int

    def decode(self, raw: Any) -> tuple[tuple[str, str], ...]:  # noqa: ANN401  # as `Call.decode`
        """Return each member with its score."""
        texts = [wire.text(item) for item in wire.reply_list(raw)]
        return tuple(zip(texts[::2], texts[1::2], strict=True))


class KnownPorts(Value, kw_only=True):
    """A page of ports.

    Attributes:
        ports: Those that are ours.
        rows: How many rows the page has.
        reached_ms: The score of the last one.
        strange: What another program wrote where a port or a lease belongs, as text.
    """

    ports: tuple[KnownPort, ...]
    rows: int
    reached_ms: float
    strange: tuple[str, ...]


class InspectPortsCall(Call["KnownPorts"], kw_only=True):
    """The call for a page of the ports that are not claimable now, lowest score first.

    Attributes:
        from_ms: The lowest score.
        count: How many; ports of equal score beside them.
        before: Ports as they were read before, by number: a lease whose text is the same is not read again.
    """

    script: ClassVar[str] = "inspect"
    first: ClassVar[Arguments] = ("ports",)

    from_ms: int
    count: int
    before: dict[int, KnownPort] = field(default_factory=dict, repr=False, compare=False)

    def decode(self, raw: Any) -> KnownPorts:  # noqa: ANN401  # as `Call.decode`
        """Return the ports; what another program wrote among them is passed over and named."""
        reply = wire.reply_list(raw)
        now_ms = wire.number(reply[0])
        rows = [reply[at : at + 4] for at in range(1, len(reply), 4)]
        ports, strange = [], []
        for row in rows:
            try:
                ports.append(_port(self, row, now_ms, self.before))
            except (ConfigurationError, InvalidInputError) as error:
                strange.append(str(error))
        return KnownPorts(
            ports=tuple(ports),
            rows=len(rows),
            reached_ms=wire.number(rows[-1][1]) if rows else 0.0,
            strange=tuple(strange),
        )


class InspectPortCall(Call["KnownPort"], kw_only=True):
    """The call for one port.

    Attributes:
        port: Which one.
    """

    script: ClassVar[str] = "inspect"
    first: ClassVar[Arguments] = ("port",)

    port: int

    def decode(self, raw: Any) -> KnownPort:  # noqa: ANN401  # as `Call.decode`
        """Return the port."""
        reply = wire.reply_list(raw)
        return _port(self, reply[1:], wire.number(reply[0]), {})


class KnownPort(Value, kw_only=True):
    """What Redis knows of a port.

    Attributes:
        port: 1-65535.
        claimable_at_ms: From when it is claimable, by the server's clock; 0 when it was never used.
        claimable_in_ms: How long until then; 0 when it is claimable.
        lease: The live lease on it, without its token, or None.
        text: The lease as it stands in Redis.
    """

    port: int
    claimable_at_ms: float
    claimable_in_ms: float
    lease: Lease | None
    text: bytes | str = field(default="", repr=False, compare=False)


def _port(
    call: InspectPortsCall | InspectPortCall, row: list[Any], now_ms: float, before: dict[int, KnownPort]
) -> KnownPort:
    port_text, score_text, text, remaining = row
    port = check_port(wire.text(port_text))
    score_ms = wire.number(score_text) if score_text else 0.0
    lease, known = None, before.get(port)
    if text and known and known.lease and known.text == text:
        lease = wire.lease_until(known.lease, remaining_ms=wire.number(remaining), now_ms=now_ms)
    elif text:
        key = lease_key(call.pool, call.namespace, str(port))
        lease = wire.lease(call.pool, text, remaining_ms=wire.number(remaining), now_ms=now_ms, key=key)
    return KnownPort(
        port=port,
        claimable_at_ms=score_ms,
        claimable_in_ms=max(0.0, score_ms - now_ms) if score_text else 0.0,
        lease=lease,
        text=text,
    )


class NewestEventCall(Call[str], kw_only=True):
    """The call for the id of the pool's last event."""

    script: ClassVar[str] = "inspect"
    first: ClassVar[Arguments] = ("newest",)

    def decode(self, raw: Any) -> str:  # noqa: ANN401  # as `Call.decode`
        """Return it, `0-0` when the pool has none."""
        return wire.text(wire.reply_list(raw)[0])


class FindCall(Call["tuple[Whereabouts, ...]"], kw_only=True):
    """What asks where workers are, or how their last lease ended.

    Attributes:
        workers: At most 256.
    """

    script: ClassVar[str] = "find"

    workers: tuple[str, ...]

    def decode(self, raw: Any) -> tuple[Whereabouts, ...]:  # noqa: ANN401  # as `Call.decode`
        """Return what is known of each, in their order."""
        reply = wire.reply_list(raw)
        now_ms = wire.number(reply[0])
        return tuple(self._whereabouts(reply[at : at + 6], now_ms) for at in range(1, 6 * len(self.workers), 6))

    def _whereabouts(self, row: list[Any], now_ms: float) -> Whereabouts:
        host, port, fence, how, lease, remaining = row
        return Whereabouts(
            host=wire.text(host) or None,
            port=int(wire.number(port)) if port else None,
            fence=int(wire.number(fence)) if fence else 0,
            how=Reply(wire.text(how)),
            lease=wire.lease(self.pool, lease, remaining_ms=wire.number(remaining), now_ms=now_ms) if lease else None,
        )


class Whereabouts(Value):
    """What Redis knows of a worker.

    Attributes:
        host: Where its last lease is or was; None when Redis knows nothing of it.
        port: Which port that is.
        fence: The fence of that lease; 0 when Redis knows nothing of it.
        how: `live`, or how it ended: `released`, `declined`, `expired`, `replaced`; `unknown`.
        lease: The live lease, without its token, or None.
    """

    host: str | None
    port: int | None
    fence: int
    how: Reply
    lease: Lease | None

    def explains_end_of(self, fence: int | None) -> bool:
        """Return whether Redis knows that the lease with this fence has ended: a newer one is known, or its end."""
        if fence is None or fence > self.fence:
            return False
        return fence < self.fence or self.how not in {Reply.LIVE, Reply.UNKNOWN}
