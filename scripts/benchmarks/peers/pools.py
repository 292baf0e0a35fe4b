"""redis-allocator: a pool in Redis. With the collection that its `malloc` makes, and its bare keys without."""

from __future__ import annotations

from typing import Any

from redis import Redis
from redis_allocator import RedisAllocator

from benchmarks.peers.contract import TTL_S, Client, Peer, Traits

PIPELINE = 1_000


class AllocatorPeer(Peer):
    """A pool of redis-allocator: a linked list of free ports in a hash."""

    name = "`redis-allocator` `malloc`"
    traits = Traits("yes", "yes, whole seconds", "by hand, without a proof of holding", "no", "no: refuses", "no",
                    "the port free for longest")  # fmt: skip

    def open(self) -> tuple[Any, Any]:
        """Return a connection and the pool."""
        redis: Any = Redis.from_url(self.url, protocol=2, decode_responses=True)
        return redis, RedisAllocator(redis, type(self).__name__, f"ports-{self.ports.size}")

    def prepare(self) -> None:
        redis, pool = self.open()
        ports = [str(port) for port in self.ports.shuffled()]
        for start in range(0, len(ports), PIPELINE):
            pool.extend(ports[start : start + PIPELINE])
        redis.close()

    def fill(self, count: int) -> None:
        redis, pool = self.open()
        if count > self.filled:
            pool.malloc_key(timeout=TTL_S)
            sha1, left = pool._malloc_script.sha, count - self.filled - 1  # noqa: SLF001  # filled in pipelines
            while left > 0:
                pipeline = redis.pipeline(transaction=False)
                for _ in range(min(left, PIPELINE)):
                    pipeline.evalsha(sha1, 0, TTL_S, "", TTL_S)
                left -= len(pipeline.execute())
        self.filled = count
        redis.close()

    def client(self, number: int) -> Client:
        return MallocClient(self, number)


class MallocClient(Client):
    """A client with the documented pair: `malloc`, which looks at five ports for expired leases first, and `free`."""

    def __init__(self, peer: AllocatorPeer, number: int) -> None:
        self.number = number
        self.redis, self.pool = peer.open()

    def claim(self, until: float) -> Any:  # noqa: ARG002  # one answer, however full
        return self.pool.malloc(timeout=TTL_S)

    def release(self, lease: Any) -> None:
        self.pool.free(lease)

    def close(self) -> None:
        self.redis.close()


class KeysPeer(AllocatorPeer):
    """The same pool without any collection: what is not given back is lost to it until somebody calls `gc`."""

    name = "`redis-allocator` `malloc_key`, no `gc`"
    traits = Traits("yes", "**no**: what expires is not handed out again", "by hand, without a proof of holding", "no",
                    "no: refuses", "no", "the port free for longest")  # fmt: skip

    def client(self, number: int) -> Client:
        return KeysClient(self, number)


class KeysClient(MallocClient):
    """A client with `malloc_key` and `free_keys`."""

    def claim(self, until: float) -> Any:  # noqa: ARG002  # as above
        return self.pool.malloc_key(timeout=TTL_S)

    def release(self, lease: Any) -> None:
        self.pool.free_keys(lease)


ALL: tuple[type[Peer], ...] = (AllocatorPeer, KeysPeer)
