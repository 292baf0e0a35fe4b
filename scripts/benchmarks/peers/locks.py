"""One lock per port, tried in turn: with plain commands, and with three libraries of locks."""

from __future__ import annotations

import logging
import secrets
from typing import Any

import redis_lock
from pottery import Redlock
from redis import Redis

from benchmarks.peers.contract import TTL_S, Client, Peer, Traits, TryingClient

PIPELINE = 1_000
GIVE = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) else return 0 end"
A_RANDOM_ONE = "a random port, then the next, until one is free"


class LockPeer(Peer):
    """Takes the key of a port. The range is known to the clients only."""

    key_prefix = ""

    def prepare(self) -> None:
        """Nothing has to be there."""

    def key(self, port: int) -> str:
        """Return the name of a port's lock, as it is given to the library."""
        return f"{type(self).__name__}:{self.ports.size}:{port}"

    def fill(self, count: int) -> None:
        redis: Any = Redis.from_url(self.url, protocol=2)
        wanted = self.ports.shuffled()[self.filled : count]
        for start in range(0, len(wanted), PIPELINE):
            pipeline = redis.pipeline(transaction=False)
            for port in wanted[start : start + PIPELINE]:
                pipeline.set(self.key_prefix + self.key(port), secrets.token_hex(16), px=TTL_S * 1_000)
            pipeline.execute()
        self.filled = count
        redis.close()


class LockClient(TryingClient):
    """Holds the connection; what is left to state is how a library takes one lock."""

    def __init__(self, peer: LockPeer, number: int) -> None:
        super().__init__(peer.ports, number)
        self.peer = peer
        self.redis: Any = Redis.from_url(peer.url, protocol=2)

    def close(self) -> None:
        self.redis.close()


class LibraryLockClient(LockClient):
    """A client of a library whose locks are objects with `acquire` and `release`."""

    def lock(self, key: str) -> Any:
        """Return the library's lock for a key."""
        raise NotImplementedError

    def acquire(self, lock: Any) -> bool:
        """Return whether the lock could be had at once."""
        raise NotImplementedError

    def take(self, port: int) -> Any:
        lock = self.lock(self.peer.key(port))
        return lock if self.acquire(lock) else None

    def release(self, lease: Any) -> None:
        lease.release()


class SetLoop(LockPeer):
    """A loop that people write: SET NX PX for a claim, compare-and-delete for a release."""

    name = "`SET NX PX` loop"
    traits = Traits("yes", "yes", "to be written", "no", "no", "no", A_RANDOM_ONE)

    def client(self, number: int) -> Client:
        return SetLoopClient(self, number)


class SetLoopClient(LockClient):
    """A client of the loop."""

    def __init__(self, peer: LockPeer, number: int) -> None:
        super().__init__(peer, number)
        self._give = self.redis.script_load(GIVE)

    def take(self, port: int) -> Any:
        key, token = self.peer.key(port), secrets.token_hex(16)
        return (key, token) if self.redis.set(key, token, px=TTL_S * 1_000, nx=True) else None

    def release(self, lease: Any) -> None:
        self.redis.evalsha(self._give, 1, *lease)


class RedisPyLock(LockPeer):
    """redis-py's Lock."""

    name = "redis-py `Lock`"
    traits = Traits("yes", "yes", "by hand (`extend`)", "no", "no: polls", "no", A_RANDOM_ONE)

    def client(self, number: int) -> Client:
        return RedisPyLockClient(self, number)


class RedisPyLockClient(LibraryLockClient):
    """A client of redis-py's Lock; a lease may be given back by another thread, so the token is not thread-local."""

    def lock(self, key: str) -> Any:
        return self.redis.lock(key, timeout=TTL_S, thread_local=False)

    def acquire(self, lock: Any) -> bool:
        return bool(lock.acquire(blocking=False))


class PythonRedisLock(LockPeer):
    """python-redis-lock."""

    name = "`python-redis-lock`"
    key_prefix = "lock:"
    traits = Traits("yes", "yes, whole seconds", "a thread for each lock", "no", "no: wakes one, who may be overtaken",
                    "no", A_RANDOM_ONE)  # fmt: skip

    def client(self, number: int) -> Client:
        logging.getLogger("redis_lock").setLevel(logging.ERROR)  # it warns at each lock that is taken
        return PythonRedisLockClient(self, number)


class PythonRedisLockClient(LibraryLockClient):
    """A client of python-redis-lock. Without its renewal: that would start a thread at each claim."""

    def lock(self, key: str) -> Any:
        return redis_lock.Lock(self.redis, key, expire=TTL_S)

    def acquire(self, lock: Any) -> bool:
        return bool(lock.acquire(blocking=False))


class PotteryRedlock(LockPeer):
    """pottery's Redlock, with one server: with three, all of its figures would be worse."""

    name = "`pottery` Redlock"
    key_prefix = "redlock:"
    traits = Traits("yes, several servers", "yes", "by hand, three times", "no", "no: polls", "no", A_RANDOM_ONE)

    def client(self, number: int) -> Client:
        return PotteryClient(self, number)


class PotteryClient(LibraryLockClient):
    """A client of pottery."""

    def lock(self, key: str) -> Any:
        return Redlock(key=key, masters={self.redis}, auto_release_time=TTL_S)

    def acquire(self, lock: Any) -> bool:
        return bool(lock.acquire(blocking=False))


ALL: tuple[type[LockPeer], ...] = (SetLoop, RedisPyLock, PythonRedisLock, PotteryRedlock)
