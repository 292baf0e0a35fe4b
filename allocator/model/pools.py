"""The pool: a named port range with its policies, the built-in pools, and the form in which Redis stores it.

A pool is data in Redis, so that all hosts agree. Its hash has one field per policy and one field
`conventional:<plugin>` per plugin, so that a claim reads only the fields that it needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from allocator.model.durations import MAX_DURATION_MS, written_duration
from allocator.model.errors import ConfigurationError, InvalidInputError
from allocator.model.names import PORT_MAX, PORT_MIN, check_name, check_plugin_name
from allocator.model.values import Value, field

if TYPE_CHECKING:
    from collections.abc import Mapping

Scope = Literal["host", "fleet"]
Durability = Literal["none", "replica"]

FLEET_NAMESPACE = "*"
"""The namespace of a fleet-wide pool, in which a port is unique over all hosts; no host can have this name."""

MAX_CONVENTIONAL_PORTS = 1_024
"""Bounds the one loop of `claim` that grows with a pool: the search for an idle conventional port (spill)."""

TTL_FLOOR_MS = 100
"""Shortest TTL that any pool may allow: a heartbeat at half of it must survive a scheduler's hiccup."""


MAX_LIMIT = 4_096
"""Bounds the one loop of `claim` that grows with a limit: the count of the leases that it is about."""

_CONVENTIONAL_PREFIX = "conventional:"
_ORG_LIMIT_PREFIX = "limit:org:"
_PLUGIN_LIMIT_PREFIX = "limit:plugin:"
_LIMITS = ("max_per_org", "max_per_plugin", "max_instances")
_NUMBERS = ("first", "last", "ttl_ms", "ttl_min_ms", "ttl_max_ms", "grace_ms", "cooldown_ms")


class PoolSpec(Value, kw_only=True):
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
        bands: A range of ports for each plugin that has one, which nobody else gets, idle or not.
        max_per_org: How many leases an organisation may have in the pool; None for any number.
        max_per_plugin: How many leases a plugin may have in the pool, over all organisations.
        max_instances: How many workers of one plugin one organisation may have.
        org_limits: `max_per_org` for single organisations.
        plugin_limits: `max_per_plugin` for single plugins.
        durability: Whether a claim waits until a `replica` has the grant.
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
    bands: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    max_per_org: int | None = None
    max_per_plugin: int | None = None
    max_instances: int | None = None
    org_limits: Mapping[str, int] = field(default_factory=dict)
    plugin_limits: Mapping[str, int] = field(default_factory=dict)
    durability: Durability = "none"

    def __post_init__(self) -> None:
        check_name("pool", self.name)
        if not PORT_MIN <= self.first <= self.last <= PORT_MAX:
            raise InvalidInputError(
                f"pool {self.name}: {self.first}-{self.last} is not a port range; "
                f"give a first port not above the last, both from {PORT_MIN} to {PORT_MAX}"
            )
        self._check_times()
        self._check_conventional()
        self._check_limits()

    def _check_times(self) -> None:
        if not TTL_FLOOR_MS <= self.ttl_min_ms <= self.ttl_ms <= self.ttl_max_ms <= MAX_DURATION_MS:
            raise InvalidInputError(
                f"pool {self.name}: its TTLs (ttl_min {written_duration(self.ttl_min_ms)}, "
                f"ttl {written_duration(self.ttl_ms)}, ttl_max {written_duration(self.ttl_max_ms)}) "
                f"are out of order; keep {TTL_FLOOR_MS}ms <= ttl_min <= ttl <= ttl_max <= 30d"
            )
        for name, value in (("grace", self.grace_ms), ("cooldown", self.cooldown_ms)):
            if not 0 <= value <= MAX_DURATION_MS:
                raise InvalidInputError(f"pool {self.name}: {name} {value}ms is out of bounds; give 0s to 30d")

    def _check_conventional(self) -> None:
        owner: dict[int, str] = {}
        for plugin, ports in [*self.conventional.items(), *self._band_ports().items()]:
            check_plugin_name(plugin)
            for port in ports:
                if not self.first <= port <= self.last:
                    raise InvalidInputError(
                        f"pool {self.name}: port {port} of plugin {plugin} is outside {self.first}-{self.last}; "
                        "move it into the range"
                    )
                if port in owner and (owner[port] != plugin or port in self.conventional.get(plugin, ())):
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

    def _band_ports(self) -> dict[str, tuple[int, ...]]:
        return {plugin: tuple(range(first, last + 1)) for plugin, (first, last) in self.bands.items()}

    def _check_limits(self) -> None:
        named = [(name, getattr(self, name)) for name in _LIMITS]
        named += [(f"the limit of organisation {check_name('organisation', o)}", n) for o, n in self.org_limits.items()]
        named += [(f"the limit of plugin {check_plugin_name(p)}", n) for p, n in self.plugin_limits.items()]
        for name, value in named:
            if value is not None and not 0 <= value <= MAX_LIMIT:
                raise InvalidInputError(f"pool {self.name}: {name} {value} is out of bounds; give 0 to {MAX_LIMIT}")
        for plugin, (first, last) in self.bands.items():
            if first > last:
                raise InvalidInputError(
                    f"pool {self.name}: the band of {plugin} ends before it begins; write 5570-5579"
                )

    @property
    def has_limits(self) -> bool:
        """Whether leases have to be counted."""
        return bool(self.org_limits or self.plugin_limits or any(getattr(self, name) is not None for name in _LIMITS))

    @property
    def size(self) -> int:
        """The number of ports in the range."""
        return self.last - self.first + 1

    def __contains__(self, port: int) -> bool:
        return self.first <= port <= self.last

    def namespace_of(self, host: str) -> str:
        """Return where a port number of a host is unique: on the host itself, or in the whole fleet."""
        return FLEET_NAMESPACE if self.scope == "fleet" else host

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
        owned = [*self.conventional.values(), *self._band_ports().values()]
        for port in sorted(port for ports in owned for port in ports):
            if start < port:
                ranges.append((start, port - 1))
            start = port + 1
        if start <= self.last:
            ranges.append((start, self.last))
        return tuple(ranges)

    @property
    def rules(self) -> str:
        """The rules that every claim needs, in one field of the hash: a claim reads one field instead of nine."""
        pairs = [f"{name}={getattr(self, name)}" for name in _NUMBERS]
        pairs += [f"scope={self.scope}", f"spill={int(self.spill)}"]
        return " ".join([*pairs, "more=1"] if self.has_limits or self.bands else pairs)

    def as_fields(self) -> dict[str, str]:
        """Return the fields of the pool's hash, all but `fence` and `version`, which the scripts write."""
        fields = {
            "rules": self.rules,
            "dynamic": written_ranges(self.dynamic_ranges()),
            "reserved": ",".join(
                str(port) for port in sorted((p for ports in self.conventional.values() for p in ports), reverse=True)
            ),
        }
        bands = self._band_ports()
        for plugin in sorted({*self.conventional, *bands}):
            # A band is to its plugin what conventional ports are, and `reserved` (what may spill) leaves it out.
            if ports := (*self.conventional.get(plugin, ()), *bands.get(plugin, ())):
                fields[_CONVENTIONAL_PREFIX + plugin] = ",".join(map(str, ports))
        limits = {name: getattr(self, name) for name in _LIMITS}
        fields["limits"] = " ".join(f"{name}={value}" for name, value in limits.items() if value is not None)
        fields["bands"] = ",".join(f"{first}-{last}:{plugin}" for plugin, (first, last) in sorted(self.bands.items()))
        fields["durability"] = "" if self.durability == "none" else self.durability
        fields |= {_ORG_LIMIT_PREFIX + org: str(most) for org, most in sorted(self.org_limits.items())}
        fields |= {_PLUGIN_LIMIT_PREFIX + plugin: str(most) for plugin, most in sorted(self.plugin_limits.items())}
        return {name: value for name, value in fields.items() if value or name == "reserved"}

    @classmethod
    def from_fields(cls, name: str, fields: Mapping[str, str]) -> PoolSpec:
        """Read a pool from the fields of its hash.

        Raises:
            ConfigurationError: When a field is missing or garbled; it names the key.
        """
        try:
            rules = dict(pair.split("=") for pair in fields["rules"].split(" "))
            bands: dict[str, tuple[int, int]] = {}
            for band in filter(None, fields.get("bands", "").split(",")):
                ends, _, plugin = band.partition(":")
                first, _, last = ends.partition("-")
                bands[plugin] = int(first), int(last)
            limits = dict(pair.split("=") for pair in fields.get("limits", "").split())
            return cls(
                name=name,
                conventional=_conventional(fields, bands),
                bands=bands,
                org_limits=_numbers(fields, _ORG_LIMIT_PREFIX),
                plugin_limits=_numbers(fields, _PLUGIN_LIMIT_PREFIX),
                durability="replica" if fields.get("durability") == "replica" else "none",
                **{pair: int(limits[pair]) for pair in _LIMITS if pair in limits},
                scope="fleet" if rules["scope"] == "fleet" else "host",
                spill=rules["spill"] == "1",
                **{pair: int(rules[pair]) for pair in _NUMBERS},
            )
        except (KeyError, ValueError, InvalidInputError) as error:
            why = f"it has no {error}" if isinstance(error, KeyError) else "a rule of it is garbled"
            raise ConfigurationError(
                f"key alloc:{{{name}}} does not hold a pool ({why}); "
                "apply the pool file again with 'allocator pool apply FILE'"
            ) from error


def _conventional(fields: Mapping[str, str], bands: Mapping[str, tuple[int, int]]) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for key, value in fields.items():
        if not key.startswith(_CONVENTIONAL_PREFIX):
            continue
        plugin = key.removeprefix(_CONVENTIONAL_PREFIX)
        first, last = bands.get(plugin, (0, -1))
        if ports := tuple(port for port in map(int, value.split(",")) if not first <= port <= last):
            found[plugin] = ports
    return found


def _numbers(fields: Mapping[str, str], prefix: str) -> dict[str, int]:
    return {key.removeprefix(prefix): int(value) for key, value in fields.items() if key.startswith(prefix)}


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
