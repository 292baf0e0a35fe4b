"""The signatures of `host`, what is done with a host as a whole, and of `place`: where there is room."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from allocator.model.values import Value
from allocator.protocol import wire
from allocator.protocol.replies import Reply
from allocator.protocol.wire import UNKNOWN_AGE_MS, Arguments, Call


class RegisterCall(Call[Reply], kw_only=True):
    """What makes a host known.

    Attributes:
        host: Its name.
        identity: What it is known by: machine, boot, network namespace and perhaps its address.
        alive_ms: For how long it has run: since its machine started, or its container.
    """

    script: ClassVar[str] = "host"
    first: ClassVar[Arguments] = ("register",)

    host: str
    identity: str
    alive_ms: int = UNKNOWN_AGE_MS

    def decode(self, raw: Any) -> Reply:  # noqa: ANN401  # as `Call.decode`
        """Return `created`, `changed`, `unchanged`, `host_conflict` or `no_pool`."""
        return Reply(wire.text(wire.reply_list(raw)[0]))


class CordonCall(Call[Reply], kw_only=True):
    """What makes a host give out no new ports, or give them out again.

    Attributes:
        what: What is done.
        host: Its name.
        ports: To uncordon: ports whose leases may be of this host, at most 256.
    """

    script: ClassVar[str] = "host"

    what: Literal["cordon", "uncordon"]
    host: str
    ports: tuple[int, ...] = ()

    def decode(self, raw: Any) -> Reply:  # noqa: ANN401  # as `Call.decode`
        """Return `changed`, `unchanged` or `unknown`."""
        return Reply(wire.text(wire.reply_list(raw)[0]))


class DrainCall(Call["int | None"], kw_only=True):
    """What empties a host.

    Attributes:
        host: Its name.
        ports: Ports whose leases may be of this host, at most 256.
    """

    script: ClassVar[str] = "host"
    first: ClassVar[Arguments] = ("drain",)

    host: str
    ports: tuple[int, ...] = ()

    def decode(self, raw: Any) -> int | None:  # noqa: ANN401  # as `Call.decode`
        """Return how many leases became draining by this call, or None when the pool knows no such host."""
        reply = wire.reply_list(raw)
        return None if wire.text(reply[0]) == Reply.UNKNOWN else int(wire.number(reply[1]))


class ForgetCall(Call[Reply], kw_only=True):
    """What removes a host from the pool.

    Attributes:
        host: Its name.
        by: Who forces it, if somebody does.
        reason: Why.
    """

    script: ClassVar[str] = "host"
    first: ClassVar[Arguments] = ("forget",)

    host: str
    by: str = ""
    reason: str = ""

    def decode(self, raw: Any) -> Reply:  # noqa: ANN401  # as `Call.decode`
        """Return `forgotten`, `unknown`, `busy` or `again`."""
        return Reply(wire.text(wire.reply_list(raw)[0]))


class PlaceCall(Call["tuple[Room, ...] | None"], kw_only=True):
    """The call for the room that hosts have.

    Attributes:
        offset: From which host on.
        count: How many hosts, at most 64.
        org: The organisation whose workers are counted, or `-`.
        plugin: The plugin whose workers are counted, or `-`.
    """

    script: ClassVar[str] = "place"

    offset: int
    count: int
    org: str = "-"
    plugin: str = "-"

    def decode(self, raw: Any) -> tuple[Room, ...] | None:  # noqa: ANN401  # as `Call.decode`
        """Return the hosts that give out ports, or None when there is none from there on."""
        reply = wire.reply_list(raw)
        if wire.text(reply[0]) == Reply.NONE:
            return None
        return tuple(
            Room(
                host=wire.text(reply[at]),
                leased=int(wire.number(reply[at + 1])),
                matching=int(wire.number(reply[at + 2])),
            )
            for at in range(1, len(reply), 3)
        )


class Room(Value, kw_only=True):
    """What a host has.

    Attributes:
        host: Its name.
        leased: How many of its ports are leased.
        matching: How many of them to workers of the kind that was asked for.
    """

    host: str
    leased: int
    matching: int
