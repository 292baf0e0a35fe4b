"""What leases cost in Redis: rates beside a bare lock, server time, memory."""

from __future__ import annotations

import itertools
import secrets
import time
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from redis import Redis

from allocator.client.blocking import drive
from allocator.kernel.answers import UnseenAnswers
from allocator.model.names import WorkerId
from allocator.model.pools import SDK_V2, PoolSpec
from allocator.operations.attempt import ClaimRequest
from allocator.operations.claim import claim
from allocator.operations.context import Context
from allocator.operations.end import release
from allocator.operations.pools import apply_pool
from allocator.operations.renew import renew
from allocator.store.blocking import Store
from benchmarks.timing import Spread, ratios, seconds_for, take_turns
from benchmarks.wire import IDENTITY, Template, claim_call, end_call, load, port_of, send

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from allocator.model.leases import Lease
    from allocator.operations.steps import Operation
    from allocator.protocol.signatures.claim import ClaimCall

HOST = "bench"
RETURNING = 100
"""Workers that take turns on the 44 ports, so that each returns to a port that others had since."""

SMALL = replace(SDK_V2, cooldown_ms=0)
WIDE = PoolSpec(name="wide", first=2_000, last=61_999, cooldown_ms=0, ttl_ms=3_600_000)
PIPELINE = 500

BARE_TAKE = "if redis.call('set', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 1 else return 0 end"
BARE_GIVE = "if redis.call('get', KEYS[1]) == ARGV[1] then return redis.call('del', KEYS[1]) else return 0 end"


class Bench:
    """One connection to one server, and the actions that are timed on it.

    Args:
        url: The server.
    """

    def __init__(self, url: str) -> None:
        self.store = Store.open(url)
        self.redis: Any = Redis.from_url(url, protocol=2)
        self.kernel = UnseenAnswers()
        self.context = Context(HOST, IDENTITY, time.monotonic, lambda: secrets.token_hex(16))
        self._take, self._give = self.redis.script_load(BARE_TAKE), self.redis.script_load(BARE_GIVE)
        load(self.redis)
        self._new = itertools.count()

    def run(self, operation: Operation[Any]) -> Any:
        """Run an operation as the client does, without asking the kernel."""
        return drive(operation, self.store, self.kernel)

    def reset(self) -> None:
        """Empty the server and define both pools."""
        self.redis.flushall()
        for pool in (SMALL, WIDE):
            self.run(apply_pool(pool))
            self.context.rules[pool.name] = pool

    def claim_call(self, pool: PoolSpec, worker: str, token: str) -> ClaimCall:
        """Return a claim of the one host."""
        return claim_call(pool.name, HOST, worker, token, ttl_ms=pool.ttl_ms)

    def bare_pairs(self, count: int) -> None:
        """Take and give back a bare lock, `count` times."""
        for at in range(count):
            key, token = f"port:{at % 44}", secrets.token_hex(16)
            self.redis.evalsha(self._take, 1, key, token, 30_000)
            self.redis.evalsha(self._give, 1, key, token)

    def script_pairs(self, pool: PoolSpec, count: int, *, new_workers: bool = False) -> None:
        """Send a claim and its release, `count` times; for workers that never claimed before, or for 100 in turn."""
        take = Template(self.claim_call(pool, "WORKER", "TOKEN"), "WORKER", "TOKEN")
        give = Template(end_call(pool.name, HOST, 65_536, "TOKEN"), 65_536, "TOKEN")
        for at in range(count):
            worker = f"org-{next(self._new)}/crm#0" if new_workers else f"org-{at % RETURNING}/email#0"
            token = secrets.token_hex(16)
            reply = take.send(self.redis, worker, token)
            give.send(self.redis, port_of(reply), token)

    def operation_pairs(self, count: int) -> None:
        """Claim and release through the operations, as `PortAllocator` does."""
        for at in range(count):
            leases = self.run(
                claim(self.context, ClaimRequest(pool=SMALL.name, worker=WorkerId(f"org-{at % RETURNING}", "email")))
            )
            self.run(release(self.context, leases))

    def claim_many(self, pool: PoolSpec, workers: Iterator[str], count: int) -> list[tuple[bytes, str]]:
        """Claim in one pipeline; return the ports with their tokens."""
        pipeline = self.redis.pipeline(transaction=False)
        tokens = [secrets.token_hex(16) for _ in range(count)]
        for worker, token in zip(workers, tokens, strict=False):
            send(pipeline, self.claim_call(pool, worker, token))
        return [(port_of(reply), token) for reply, token in zip(pipeline.execute(), tokens, strict=True)]

    def release_many(self, pool: PoolSpec, held: list[tuple[bytes, str]]) -> None:
        """Release one lease a call, in one pipeline."""
        pipeline = self.redis.pipeline(transaction=False)
        for port, token in held:
            send(pipeline, end_call(pool.name, HOST, port, token))
        pipeline.execute()

    def server_us(self, action: Callable[[], object]) -> float:
        """Return the server's time in microseconds for each script that `action` runs."""
        self.redis.config_resetstat()
        action()
        return float(self.redis.info("commandstats")["cmdstat_evalsha"]["usec_per_call"])

    def new_workers(self) -> Iterator[str]:
        """Yield workers that never claimed before."""
        while True:
            yield f"org-{next(self._new)}/crm#0"


def pair_rates(bench: Bench, rounds: int, pairs: int) -> dict[str, Any]:
    """Compare claim + release with a bare pair, pair by pair over one connection."""
    bench.reset()
    times = take_turns(
        {
            "bare": lambda: seconds_for(lambda: bench.bare_pairs(pairs)),
            "scripts": lambda: seconds_for(lambda: bench.script_pairs(SMALL, pairs)),
            "operations": lambda: seconds_for(lambda: bench.operation_pairs(pairs)),
        },
        rounds,
    )
    return {
        "bare_us": Spread.of([seconds / pairs * 1e6 for seconds in times["bare"]]),
        "scripts": ratios(times["bare"], times["scripts"]),
        "operations": ratios(times["bare"], times["operations"]),
    }


@dataclass(frozen=True)
class Fill:
    """What filling the wide pool showed: claims a second in pipelines, and memory for each lease."""

    claims_per_s: Spread
    bytes_per_lease: float
    leases: int


def fill(bench: Bench, leases: int) -> Fill:
    """Claim `leases` ports of the empty wide pool, each for another worker."""
    bench.reset()
    workers = bench.new_workers()
    bench.claim_many(WIDE, workers, 1)
    before = bench.redis.info("memory")["used_memory"]
    times = [seconds_for(lambda: bench.claim_many(WIDE, workers, PIPELINE)) for _ in range(leases // PIPELINE)]
    grown = bench.redis.info("memory")["used_memory"] - before
    return Fill(Spread.of([PIPELINE / seconds for seconds in times]), grown / leases, leases)


def full_pool(bench: Bench, rounds: int, pairs: int) -> dict[str, Any]:
    """Compare the wide pool, 95 % full, with the empty small one, for workers that never claimed before."""
    fill(bench, WIDE.size * 95 // 100)
    times = take_turns(
        {
            "small": lambda: seconds_for(lambda: bench.script_pairs(SMALL, pairs, new_workers=True)),
            "wide": lambda: seconds_for(lambda: bench.script_pairs(WIDE, pairs, new_workers=True)),
        },
        rounds,
    )
    return {"ratio": ratios(times["small"], times["wide"])}


def server_times(bench: Bench, rounds: int) -> dict[str, Spread]:
    """Return the server's microseconds: a bare script, claim and release alone and in pipelines, a lease's renewal."""
    bench.reset()
    held: list[tuple[bytes, str]] = []
    leases: list[Lease] = []

    def workers() -> Iterator[str]:
        return (f"org-{at}/email#0" for at in range(44))

    def claim_each() -> None:
        for worker in workers():
            token = secrets.token_hex(16)
            held.append((port_of(bench.store.call(bench.claim_call(SMALL, worker, token).encode())), token))

    def release_each() -> None:
        while held:
            bench.store.call(end_call(SMALL.name, HOST, *held.pop()).encode())

    def renew_all() -> None:
        for _ in range(10):
            bench.run(renew(bench.context, leases))

    def renewed() -> float:
        leases[:] = [
            bench.run(claim(bench.context, ClaimRequest(pool=SMALL.name, worker=WorkerId(f"org-{at}", "email"))))[0]
            for at in range(44)
        ]
        spent = bench.server_us(renew_all) / len(leases)
        bench.run(release(bench.context, leases))
        return spent

    names = ("bare", "claim", "release", "claim_pipelined", "release_pipelined", "renew")
    times: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        times["bare"].append(bench.server_us(lambda: bench.bare_pairs(44)))
        times["claim"].append(bench.server_us(claim_each))
        times["release"].append(bench.server_us(release_each))
        times["claim_pipelined"].append(bench.server_us(lambda: held.extend(bench.claim_many(SMALL, workers(), 44))))
        times["release_pipelined"].append(bench.server_us(lambda: bench.release_many(SMALL, held)))
        held.clear()
        times["renew"].append(renewed())
    return {name: Spread.of(values) for name, values in times.items()}
