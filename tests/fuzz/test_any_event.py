"""Anything in a pool's event stream and history: every reader goes on, and shows it on one line or as valid JSON."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import redis
from fuzzing import accepted, any_bytes, any_text, examples, run
from hypothesis import example, given
from hypothesis import strategies as st

from allocator import AsyncPortAllocator, PoolSpec, PortAllocator
from allocator.api.application import create_app
from allocator.api.hub import Hub, PoolEvent, identifier_of
from allocator.database.watcher import Watch
from allocator.discovery.directory import Directory
from allocator.model.errors import AllocatorError
from allocator.protocol.keys import events_key, history_key

if TYPE_CHECKING:
    from collections.abc import Iterator

SPEC = PoolSpec(name="strange-events", first=16_000, last=16_010, cooldown_ms=0)
STREAM, HISTORY = events_key(SPEC.name), history_key(SPEC.name)

FIELD = st.sampled_from(
    [b"type", b"host", b"port", b"worker", b"fence", b"state", b"id", b"at", b"org", b"version", b"rules"]
)
VALUE = st.one_of(
    st.sampled_from([b"granted", b"web-1", b"16000", b"org-1/email#0", b"a\nevent: granted\ndata: x", b"pool",
                     b"registered", b"\xff", b"", b"9" * 5_000, "٣".encode(), b"o/p#99999999", SPEC.rules.encode()]),
    any_bytes(),
)  # fmt: skip
IDS = st.integers(1, 2**64 - 2) | st.sampled_from([1, 1_700_000_000_000, 32_503_680_000_001, 10**18, 2**64 - 2])
ENTRIES = st.lists(
    st.tuples(IDS, st.dictionaries(FIELD | any_bytes(), VALUE, min_size=1, max_size=6)), min_size=1, max_size=4,
    unique_by=lambda entry: entry[0],
)  # fmt: skip


@pytest.fixture(scope="module")
def ports(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PortAllocator]:
    own = {"ALLOCATOR_REDIS_URL": redis_url, "ALLOCATOR_POOL": SPEC.name, "ALLOCATOR_HOST": "web-1",
           "ALLOCATOR_STATE_DIR": str(tmp_path_factory.mktemp("state"))}  # fmt: skip
    with (
        PortAllocator.from_url(redis_url, pool=SPEC.name, host="web-1") as allocator,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in own.items():
            patch.setenv(name, value)
        allocator.apply_pool(SPEC)
        yield allocator


@pytest.fixture(scope="module")
def client(redis_url: str) -> redis.Redis:
    return redis.Redis.from_url(redis_url)


def written(client: redis.Redis, stream: str, entries: Any) -> list[str]:
    client.delete(stream)
    in_order = sorted(entries, key=lambda entry: entry[0])
    return [client.xadd(stream, fields, id=f"{at}-0").decode() for at, fields in in_order]


TOO_LATE = [(2**64 - 2, {b"type": b"granted", b"worker": b"org-1/email#0"})]
NO_TEXT = [(1, {b"\xff\xfe": b"\xff"})]
A_FRAME = [(1, {b"type": b"a\nevent: granted\ndata: {}\n\n", b"id": b"7", b"at": b"never"})]


@given(entries=ENTRIES)
@example(entries=TOO_LATE)
@example(entries=NO_TEXT)
@example(entries=A_FRAME)
@examples(25)
def test_commands_print_any_event_on_a_line(ports: PortAllocator, client: redis.Redis, entries: Any) -> None:
    identifiers = written(client, STREAM, entries)
    code, out, messages = run(["events"])
    assert (code, messages) == (0, "")
    assert len(out.splitlines()) == len(identifiers)
    assert out.replace("\n", "").isprintable()
    code, out, messages = run(["events", "--format", "json"])
    assert [json.loads(line)["id"] for line in out.splitlines()] == identifiers
    assert run(["top", "--once"])[0] == 0
    assert run(["who", "16000"])[0] == 0


@given(entries=ENTRIES)
@example(entries=TOO_LATE)
@example(entries=NO_TEXT)
@example(entries=[(1, {name.encode(): value.encode() for name, value in SPEC.as_fields().items()})])
@examples(20)
def test_the_history_of_a_pool_is_printed_or_refused(ports: PortAllocator, client: redis.Redis, entries: Any) -> None:
    written(client, HISTORY, entries)
    code, out, messages = run(["pool", "history", SPEC.name])
    assert code in {0, 78}, messages
    assert (out + messages).replace("\n", "").isprintable()
    assert messages.count("\n") <= 1


@given(entries=ENTRIES)
@example(entries=TOO_LATE)
@example(entries=NO_TEXT)
@example(entries=A_FRAME)
@examples(20)
def test_the_hub_and_the_history_of_a_port_go_on_behind_any_event(
    redis_url: str, ports: PortAllocator, client: redis.Redis, entries: Any
) -> None:
    identifiers = written(client, STREAM, entries)

    async def read() -> None:
        async with AsyncPortAllocator.from_url(redis_url, pool=SPEC.name, host="web-1") as allocator:
            hub = Hub(allocator.store, SPEC.name)
            await hub.start()
            events = await hub.after((0, 0))
            assert [identifier_of(one.position) for one in events] == identifiers
            for one in events:
                lines = one.frame.decode().split("\n")
                assert [line.partition(":")[0] for line in lines] == ["id", "event", "data", "", ""]
                assert json.loads(lines[2].removeprefix("data: "))["id"] == identifier_of(one.position)
            transport = httpx.ASGITransport(create_app(allocator), raise_app_exceptions=True)
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
                answer = await http.get("/v1/leases/web-1/16000/events")
                assert answer.status_code == 200, answer.text
            await hub.close()

    with asyncio.Runner() as runner:
        runner.run(read())


@given(entries=ENTRIES)
@example(entries=TOO_LATE)
@example(entries=NO_TEXT)
@examples(20)
def test_the_directory_and_the_reconcilers_watch_go_on_behind_any_event(
    ports: PortAllocator, client: redis.Redis, entries: Any
) -> None:
    identifiers = written(client, STREAM, entries)
    settled: list[Any] = []
    reconciler: Any = SimpleNamespace(
        allocator=ports,
        rows=SimpleNamespace(pool=SPEC.name),
        settle=lambda workers, report: settled.append((workers, report)),
    )
    watch = Watch(reconciler, every_s=1.0, report=print)
    watch._see_to_events()
    assert watch._cursor == identifiers[-1]
    directory = Directory(ports, whole_pool=True)
    touched, cursor = directory._touched("0-0")
    assert cursor == identifiers[-1]
    assert touched is None or all(isinstance(name, tuple) for name in touched)


IDENTIFIERS = st.from_regex(r"[0-9]{1,20}-[0-9]{1,20}", fullmatch=True)


@given(identifier=IDENTIFIERS, fields=st.dictionaries(any_text(), any_text()))
@examples(80)
def test_any_fields_make_one_frame(identifier: str, fields: dict[str, str]) -> None:
    frame = accepted(lambda: PoolEvent(identifier, fields).frame)
    assert isinstance(frame, AllocatorError) or frame.count(b"\n") == 4
