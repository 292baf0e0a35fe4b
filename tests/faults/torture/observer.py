"""Looks at the server itself, once a second: what it has of each port, in one transaction."""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from typing import TYPE_CHECKING, Any

import redis

from allocator import AllocatorError

if TYPE_CHECKING:
    from torture.environment import Environment

PERIOD_S = 0.7
PATIENCE = 3
"""So often the pool may be missing after a loss of data before it is defined again: its holders restore it first."""

GRANT = re.compile(r"^([-~!]?)(\d+) \w+ \S+ (\S+)$")


def photograph(client: Any, pool: str, ports: range, host: str = "web-1") -> dict[str, Any]:
    """Return leases, grants and times of all ports as they are at one moment."""
    base = f"alloc:{{{pool}}}"
    pipeline = client.pipeline(transaction=True)
    pipeline.time()
    pipeline.hgetall(f"{base}:tokens:{host}")
    pipeline.zrange(f"{base}:ports:{host}", 0, -1, withscores=True)
    pipeline.mget([f"{base}:lease:{host}:{port}" for port in ports])
    for port in ports:
        pipeline.pttl(f"{base}:lease:{host}:{port}")
    began = time.monotonic()
    (seconds, us), grants, scores, leases, *left = pipeline.execute()
    found: dict[str, Any] = {"began": began, "ended": time.monotonic(), "now_ms": seconds * 1_000 + us / 1_000}
    found["leases"] = {
        str(port): {name: lease[name] for name in ("fence", "worker")} | {"left_ms": ms}
        for port, text, ms in zip(ports, leases, left, strict=True)
        if text and (lease := json.loads(text))
    }
    found["grants"] = {port.decode(): _grant(text.decode()) for port, text in grants.items()}
    found["scores"] = {port.decode(): score for port, score in scores}
    return found


def _grant(text: str) -> dict[str, Any]:
    match = GRANT.match(text)
    if match is None:
        raise ValueError(f"not a grant: {text}")
    return {"mark": match[1], "fence": int(match[2]), "worker": match[3]}


class Observer:
    """Takes photographs until it is notified to stop."""

    def __init__(self, arena: Environment) -> None:
        self._arena = arena
        self._declined: set[tuple[int, int]] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look_on, name="observer", daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        self._thread.join()

    def _look_on(self) -> None:
        missing = 0
        while not self._over.wait(PERIOD_S):
            self._arena.clients.tend(may_end=False)
            self._arena.clients.fill()
            with (
                contextlib.suppress(redis.RedisError, OSError, AllocatorError),
                self._arena.admin(timeout_s=1.0) as client,
            ):
                missing = self._look(client, missing)

    def _look(self, client: Any, missing: int) -> int:
        """Enter what is there; return how often in a row the pool was not."""
        pool = self._arena.pool
        self._arena.book.write("snapshot", **photograph(client, pool.name, range(pool.first, pool.last + 1)))
        declined = {
            (int(event[b"port"]), int(event[b"fence"]))
            for _, event in client.xrange(f"alloc:{{{pool.name}}}:events")
            if event[b"type"] == b"declined"
        }
        for port, fence in declined - self._declined:
            self._arena.book.write("declined", port=port, fence=fence)
        self._declined |= declined
        if client.exists(f"alloc:{{{pool.name}}}"):
            return 0
        if missing >= PATIENCE:
            self._arena.define_pool()
        return missing + 1
