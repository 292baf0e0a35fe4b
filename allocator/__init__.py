"""portlease: port leases for worker fleets, on Redis locks, checked against the kernel.

Lives here: the public names, loaded when they are first used, so that `import allocator` costs nothing.

```python
from allocator import PortAllocator

with PortAllocator.from_url("redis://localhost:6379/0") as ports:
    with ports.hold("email", org="org-123") as lease:
        serve(lease.port)
```
"""

from __future__ import annotations

TYPE_CHECKING = False  # not from `typing`: 10 ms in which Ctrl-C would find the command without its handler
if TYPE_CHECKING:
    from allocator.client.aio import AsyncPortAllocator
    from allocator.client.blocking import PortAllocator
    from allocator.client.counts import HolderMetrics
    from allocator.client.heartbeats import HeldLease
    from allocator.client.tracing import OpenTelemetryTracer
    from allocator.database.recorder import DatabaseRecorder
    from allocator.discovery.service import Service
    from allocator.discovery.transport import AsyncPluginTransport, PluginTransport, service_url
    from allocator.model.endpoints import Endpoint
    from allocator.model.errors import (
        AllocatorError,
        ConfigurationError,
        CordonedError,
        DatabaseUnavailableError,
        ExhaustedError,
        HeldError,
        HostConflictError,
        InvalidInputError,
        LeaseLostError,
        LimitError,
        NoWorkerError,
        PoolMissingError,
        PortRefusedError,
        RecoveringError,
        StoreUnavailableError,
    )
    from allocator.model.leases import Lease
    from allocator.model.names import WorkerId
    from allocator.model.pools import PoolSpec
    from allocator.model.states import LeaseState

__version__ = "0.1.0"
"""That of `pyproject.toml`, which a test compares: asking the installed package takes longer than a claim."""

_HOMES = {
    "allocator.client.aio": ("AsyncPortAllocator",),
    "allocator.client.blocking": ("PortAllocator",),
    "allocator.client.counts": ("HolderMetrics",),
    "allocator.client.heartbeats": ("HeldLease",),
    "allocator.client.tracing": ("OpenTelemetryTracer",),
    "allocator.database.recorder": ("DatabaseRecorder",),
    "allocator.discovery.service": ("Service",),
    "allocator.discovery.transport": ("AsyncPluginTransport", "PluginTransport", "service_url"),
    "allocator.model.endpoints": ("Endpoint",),
    "allocator.model.errors": (
        "AllocatorError",
        "ConfigurationError",
        "CordonedError",
        "DatabaseUnavailableError",
        "ExhaustedError",
        "HeldError",
        "HostConflictError",
        "InvalidInputError",
        "LeaseLostError",
        "LimitError",
        "NoWorkerError",
        "PoolMissingError",
        "PortRefusedError",
        "RecoveringError",
        "StoreUnavailableError",
    ),
    "allocator.model.leases": ("Lease",),
    "allocator.model.names": ("WorkerId",),
    "allocator.model.pools": ("PoolSpec",),
    "allocator.model.states": ("LeaseState",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [  # noqa: RUF022  # what a reader needs first stands first
    "PortAllocator",
    "AsyncPortAllocator",
    "DatabaseRecorder",
    "Service",
    "PluginTransport",
    "AsyncPluginTransport",
    "service_url",
    "HeldLease",
    "HolderMetrics",
    "OpenTelemetryTracer",
    "Endpoint",
    "Lease",
    "LeaseState",
    "PoolSpec",
    "WorkerId",
    "AllocatorError",
    "ConfigurationError",
    "CordonedError",
    "DatabaseUnavailableError",
    "ExhaustedError",
    "HeldError",
    "HostConflictError",
    "InvalidInputError",
    "LeaseLostError",
    "LimitError",
    "NoWorkerError",
    "PoolMissingError",
    "PortRefusedError",
    "RecoveringError",
    "StoreUnavailableError",
]


def __getattr__(name: str) -> object:
    from importlib import import_module

    home = _HOME_OF.get(name)
    if home is None:
        raise AttributeError(f"module 'allocator' has no attribute {name!r}")
    return getattr(import_module(home), name)
