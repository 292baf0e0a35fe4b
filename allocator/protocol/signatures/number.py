"""The signature of `number`: the instance that a service has for a key."""

from __future__ import annotations

from typing import Any, ClassVar

from allocator.protocol import wire
from allocator.protocol.replies import NoPool, Reply
from allocator.protocol.wire import Call


class NumberCall(Call["int | NoPool"], kw_only=True):
    """The call for it.

    Attributes:
        org: The organisation.
        plugin: The plugin.
        key: What the instance is known by.
    """

    script: ClassVar[str] = "number"

    org: str
    plugin: str
    key: str

    def decode(self, raw: Any) -> int | NoPool:  # noqa: ANN401  # as `Call.decode`
        """Return the instance."""
        reply = wire.reply_list(raw)
        return NoPool() if wire.text(reply[0]) == Reply.NO_POOL else int(wire.number(reply[1]))
