"""The pool: a named port range with its policies, the built-in pools, and the form in which Redis keeps it.

A pool is data in Redis, so that all hosts agree. Its hash has one field per policy and one field
`conventional:<plugin>` per plugin, so that a claim reads only the fields that it needs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from allocator.model.durations import written_duration
from allocator.model.errors import ConfigurationError, InvalidInputError
from allocator.model.names import PORT_MAX, PORT_MIN, check_name

if TYPE_CHECKING:
    from collections.abc import Mapping

Scope = Literal["host", "fleet"]

MAX_CONVENTIONAL_PORTS = 1_024
"""Bounds the one loop of `claim` that grows with a pool: the search for an idle conventional port (spill)."""

TTL_FLOOR_MS = 100
"""Shortest TTL that any pool may allow: a heartbeat at half of it must survive a scheduler's hiccup."""

MAX_DURATION_MS = 30 * 86_400_000

_CONVENTIONAL_PREFIX = "conventional:"
_NUMBERS = ("first", "last", "ttl_ms", "ttl_min_ms", "ttl_max_ms", "grace_ms", "cooldown_ms")


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSpec:
    """The rules of a pool.

    Attributes:
        name: The pool's name.
        first: Lowest port of the range.
        last: Highest port of the range.
        conventional: The ports that belong to a plugin, by plugin; the rest of the range is dynamic.
        ttl_ms: TTL of a lease that asks for none, in milliseconds.
        ttl_min_ms: Shortest TTL that a lease may ask for.
        ttl_max_ms: Longest TTL that a lease may ask for.
        grace_ms: How long an expired port stays unclaimable.
        cooldown_ms: How long a released port stays unclaimable, except for the worker that released it.
        scope: Whether a port is unique per `host` or over the whole `fleet`.
        spill: Whether a claim may take other plugins' idle conventional ports when no dynamic one is left.
    """

    name: str
    first: int
    last: int
    conventional: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    ttl_ms: int = 30_000
    ttl_min_ms: int = 1_000
    ttl_max_ms: int = 86_400_000
    grace_ms: int = 5_000
    cooldown_ms: int = 1_000
    scope: Scope = "host"
    spill: bool = True

    def __post_init__(self) -> None:
        check_name("pool", self.name)
        if not PORT_MIN <= self.first <= self.last <= PORT_MAX:
            raise InvalidInputError(
                f"pool {self.name}: {self.first}-{self.last} is not a port range; "
                f"give a first port not above the last, both from {PORT_MIN} to {PORT_MAX}"
            )
        self._check_times()
        self._check_conventional()

    def _check_times(self) -> None:
        if not TTL_FLOOR_MS <= self.ttl_min_ms <= self.ttl_ms <= self.ttl_max_ms <= MAX_DURATION_MS:
            raise InvalidInputError(
                f"pool {self.name}: its TTLs (ttl_min {written_duration(self.ttl_min_ms)}, "
                f"ttl {written_duration(self.ttl_ms)}, ttl_max {written_duration(self.ttl_max_ms)}) "
                f"are out of order; keep {TTL_FLOOR_MS}ms <= ttl_min <= ttl <= ttl_max <= 30d"
            )
        for word, value in (("grace", self.grace_ms), ("cooldown", self.cooldown_ms)):
            if not 0 <= value <= MAX_DURATION_MS:
                raise InvalidInputError(f"pool {self.name}: {word} {value}ms is out of bounds; give 0s to 30d")

    def _check_conventional(self) -> None:
        owner: dict[int, str] = {}
        for plugin, ports in self.conventional.items():
            check_name("plugin", plugin)
            for port in ports:
                if not self.first <= port <= self.last:
                    raise InvalidInputError(
                        f"pool {self.name}: port {port} of plugin {plugin} is outside {self.first}-{self.last}; "
                        "move it into the range"
                    )
                if port in owner:
                    raise InvalidInputError(
                        f"pool {self.name}: port {port} belongs to both {owner[port]} and {plugin}; "
                        "give each plugin ports of its own"
                    )
                owner[port] = plugin
        if len(owner) > MAX_CONVENTIONAL_PORTS:
            raise InvalidInputError(
                f"pool {self.name}: {len(owner)} conventional ports are too many; "
                f"name at most {MAX_CONVENTIONAL_PORTS} and leave the rest dynamic"
            )

    @property
    def size(self) -> int:
        """How many ports the range has."""
        return self.last - self.first + 1

    def __contains__(self, port: int) -> bool:
        return self.first <= port <= self.last

    def check_ttl_ms(self, ttl_ms: int | None) -> int:
        """Return the TTL that a lease gets, in milliseconds.

        Raises:
            InvalidInputError: When the pool does not allow it.
        """
        if ttl_ms is None:
            return self.ttl_ms
        if not self.ttl_min_ms <= ttl_ms <= self.ttl_max_ms:
            raise InvalidInputError(
                f"a TTL of {written_duration(ttl_ms) if ttl_ms > 0 else f'{ttl_ms}ms'} is not allowed in pool "
                f"{self.name}; give {written_duration(self.ttl_min_ms)} to {written_duration(self.ttl_max_ms)}"
            )
        return ttl_ms

    def check_port(self, port: int) -> int:
        """Return `port` when it is of this pool.

        Raises:
            InvalidInputError: When it is not.
        """
        if port not in self:
            raise InvalidInputError(
                f"port {port} is outside pool {self.name} ({self.first}-{self.last}); give one of that range "
                "or another --pool"
            )
        return port

    def dynamic_ranges(self) -> tuple[tuple[int, int], ...]:
        """Return the ranges of ports that belong to no plugin, lowest first, both ends included."""
        ranges: list[tuple[int, int]] = []
        start = self.first
        for port in sorted(port for ports in self.conventional.values() for port in ports):
            if start < port:
                ranges.append((start, port - 1))
            start = port + 1
        if start <= self.last:
            ranges.append((start, self.last))
        return tuple(ranges)

    @property
    def rules(self) -> str:
        """What every claim goes by, in one field of its hash, so that a claim reads one instead of nine."""
        words = [f"{name}={getattr(self, name)}" for name in _NUMBERS]
        return " ".join([*words, f"scope={self.scope}", f"spill={int(self.spill)}"])

    def as_fields(self) -> dict[str, str]:
        """Return the fields of the pool's hash, all but `fence` and `version`, which the scripts keep."""
        fields = {
            "rules": self.rules,
            "dynamic": written_ranges(self.dynamic_ranges()),
            "reserved": ",".join(
                str(port) for port in sorted((p for ports in self.conventional.values() for p in ports), reverse=True)
            ),
        }
        for plugin, ports in sorted(self.conventional.items()):
            if ports:
                fields[_CONVENTIONAL_PREFIX + plugin] = ",".join(map(str, ports))
        return fields

    @classmethod
    def from_fields(cls, name: str, fields: Mapping[str, str]) -> PoolSpec:
        """Read a pool from the fields of its hash.

        Raises:
            ConfigurationError: When a field is missing or garbled; it names the key.
        """
        try:
            rules = dict(word.split("=") for word in fields["rules"].split(" "))
            return cls(
                name=name,
                conventional={
                    key.removeprefix(_CONVENTIONAL_PREFIX): tuple(int(port) for port in value.split(","))
                    for key, value in fields.items()
                    if key.startswith(_CONVENTIONAL_PREFIX)
                },
                scope="fleet" if rules["scope"] == "fleet" else "host",
                spill=rules["spill"] == "1",
                **{word: int(rules[word]) for word in _NUMBERS},
            )
        except (KeyError, ValueError, InvalidInputError) as error:
            raise ConfigurationError(
                f"key alloc:{{{name}}} does not hold a pool (its field {error} is missing or garbled); "
                "apply the pool file again with 'allocator pool apply FILE'"
            ) from error


def written_ranges(ranges: tuple[tuple[int, int], ...]) -> str:
    """Return ranges as `5569-5599,6000-6001`, a single port as `5569-5569`."""
    return ",".join(f"{first}-{last}" for first, last in ranges)


SDK_V2 = PoolSpec(
    name="sdk-v2",
    first=5556,
    last=5599,
    conventional={
        plugin: (5556 + offset,)
        for offset, plugin in enumerate(
            (
                "email",
                "stripe",
                "zendesk",
                "shopify",
                "woocommerce",
                "magento",
                "slack",
                "discord",
                "telegram",
                "whatsapp",
                "custom-1",
                "custom-2",
                "custom-3",
            )
        )
    },
)
"""The pool of the manual conventions: 44 ports, the first 13 of which belong to a plugin each."""

BUILT_IN: Mapping[str, PoolSpec] = {SDK_V2.name: SDK_V2}
"""Pools that the first claim creates; every other pool has to be applied from a file."""
