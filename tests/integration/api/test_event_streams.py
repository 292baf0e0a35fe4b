"""Server-sent events: in order, once each, resumed by id, and a slow listener costs nobody else."""

from __future__ import annotations

import asyncio
import itertools
import json
import socket
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import pytest
from servers import client_of

from allocator.api import hub as hubs
from allocator.api.hub import Hub, identifier_of, position_of
from allocator.store.aio import AsyncStore
from allocator.store.blocking import Store

if TYPE_CHECKING:
    from collections.abc import Iterator


def read(http: httpx.Client, count: int, **parameters: Any) -> list[dict[str, Any]]:
    headers = parameters.pop("headers", None)
    with http.stream("GET", "/v1/events", params=parameters, headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        return list(itertools.islice(events_of(answer), count))


def events_of(answer: httpx.Response) -> Iterator[dict[str, Any]]:
    event: dict[str, Any] = {}
    for line in answer.iter_lines():
        name, _, value = line.partition(": ")
        if name in {"id", "event"}:
            event[name] = value
        elif name == "data":
            event["data"] = json.loads(value)
        elif not line and "event" in event:
            yield event
            event = {}
        elif not line:
            event = {}


def test_a_listener_hears_what_happens_from_now_on(http, worker) -> None:
    worker.claim("stripe", "org-0")
    with http.stream("GET", "/v1/events") as answer:
        heard = events_of(answer)
        lease = worker.claim("email", "org-1")
        http.delete(worker.path(lease), headers=worker.proof(lease))
        granted, released = next(heard), next(heard)
    assert (granted["event"], released["event"]) == ("granted", "released")
    about = {name: lease[name] for name in ("org", "plugin", "instance", "host", "port", "fence")}
    assert about.items() <= granted["data"].items()
    assert granted["data"]["id"] == granted["id"] < released["id"]
    assert not any(token in str((granted, released)) for token in worker.tokens.values())


def test_a_stream_is_resumed_behind_the_last_id_with_nothing_missed_and_nothing_twice(http, worker) -> None:
    leases = [worker.claim(instance=instance) for instance in range(6)]
    everything = read(http, 7, after="1-0")
    assert everything[0]["event"] == "gap"
    ports = [event["data"]["port"] for event in everything[1:]]
    assert ports == [0, *[lease["port"] for lease in leases][:5]]
    resumed = read(http, 3, headers={"Last-Event-ID": everything[3]["id"]})
    assert [event["id"] for event in resumed[:3]] == [event["id"] for event in everything[4:7]]


def test_an_id_that_is_none_is_a_problem(http) -> None:
    for after in ("x", "1", "1-2-3", "-1-0", "1-" + "9" * 40):
        answer = http.get("/v1/events", params={"after": after})
        assert (answer.status_code, answer.json()["type"]) == (422, "urn:portlease:problem:invalid-input")


def test_the_history_of_a_port_is_in_order(http, worker) -> None:
    lease = worker.claim()
    worker.claim("stripe")
    http.patch(worker.path(lease), json={"state": "ready"}, headers=worker.proof(lease))
    http.delete(worker.path(lease), headers=worker.proof(lease))
    history = http.get(worker.path(lease, "/events")).json()
    assert [(event["type"], event.get("state")) for event in history] == [
        ("granted", None),
        ("changed", "ready"),
        ("released", None),
    ]
    assert {event["port"] for event in history} == {lease["port"]}


def test_a_history_states_from_when_on_it_is_whole(http, worker) -> None:
    lease = worker.claim()
    http.patch(worker.path(lease), json={"state": "ready"}, headers=worker.proof(lease))
    whole = http.get(worker.path(lease, "/events"))
    assert whole.headers["events-since"] <= whole.json()[0]["at"]
    cut = http.get(worker.path(lease, "/events"), params={"limit": 1})
    assert [cut.headers["events-since"]] == [event["at"] for event in cut.json()]


def test_a_listener_that_reads_nothing_costs_others_nothing(url, http, worker) -> None:
    address = urlsplit(url)
    with socket.create_connection((address.hostname, address.port)) as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        slow.sendall(b"GET /v1/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        with http.stream("GET", "/v1/events") as answer:
            heard = events_of(answer)
            for _ in range(100):
                lease = worker.claim()
                http.delete(worker.path(lease), headers=worker.proof(lease))
                assert [next(heard)["event"], next(heard)["event"]] == ["granted", "released"]


def add_events(store: Store, stream: str, count: int) -> list[str]:
    client = client_of(store)
    fields = {"type": "granted", "host": "web-1", "port": 5556, "worker": "o/p#0", "fence": 1}
    return [client.xadd(stream, fields, maxlen=100_000).decode() for _ in range(count)]


@pytest.fixture
def stream_store(redis_url: str, pool) -> Iterator[tuple[Store, str, str]]:
    store = Store.open(redis_url)
    yield store, f"alloc:{{{pool.name}}}:events", pool.name
    store.close()


def test_one_that_falls_behind_the_memory_reads_on_from_redis(redis_url, stream_store, monkeypatch) -> None:
    monkeypatch.setattr(hubs, "MAX_EVENTS", 8)
    store, stream, pool = stream_store

    async def follow() -> tuple[list[str], list[str]]:
        connection = AsyncStore.open(redis_url)
        hub = Hub(connection, pool)
        await hub.start()
        position, seen = hub.position, []
        written = add_events(store, stream, 30)
        while len(seen) < 30:
            found = await hub.after(position)
            if not found:
                await hub.wait(5)
                continue
            seen += [identifier_of(event.position) for event in found]
            position = found[-1].position
            if len(seen) == 30 and len(written) < 60:
                written += add_events(store, stream, 30)
                await hub.wait(5)
                while hub.position < position_of(written[-1]):
                    await hub.wait(5)
                while len(seen) < 60:
                    found = await hub.after(position)
                    seen += [identifier_of(event.position) for event in found]
                    position = found[-1].position
        await hub.close()
        await connection.close()
        return written, seen

    written, seen = asyncio.run(follow())
    assert seen == written


def test_events_go_on_when_redis_comes_back(tmp_path) -> None:
    from api_server import served
    from servers import Server, wait_until

    from allocator import AsyncPortAllocator
    from allocator.api.application import create_app

    with Server("--appendonly", "yes") as server:
        server.ready()
        application = create_app(AsyncPortAllocator.from_url(server.url, host="web-1", timeout=0.5))
        with served(application) as url, httpx.Client(base_url=url, timeout=30) as http:
            http.post("/v1/leases", json={"plugin": "email", "org": "org-1"}).raise_for_status()
            with http.stream("GET", "/v1/events") as answer:
                heard = events_of(answer)
                server.process.terminate()
                server.process.wait()
                assert next(heard)["event"] == "away"
                settings = ["--port", str(server.port), "--appendonly", "yes", "--dir", str(server.directory)]
                with Server(*settings) as back:
                    back.port = server.port
                    wait_until(lambda: back.client().ping(), "no server")
                    assert next(heard)["event"] == "back"
                    http.post("/v1/leases", json={"plugin": "stripe", "org": "org-1"}).raise_for_status()
                    assert next(heard)["data"]["plugin"] == "stripe"
