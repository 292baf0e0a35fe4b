"""A pool at a glance over HTTP: the index that `serve` keeps says what Redis has, within moments of each event."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import httpx
import pytest
from api_server import served

from allocator import AsyncPortAllocator, PortAllocator
from allocator.api.application import create_app
from allocator.model.states import LeaseState
from allocator.operations import listing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PATIENCE_S = 30


def until(look: Callable[[], object]) -> object:
    """Look until what is seen is true, and return it."""
    deadline = time.monotonic() + PATIENCE_S
    while not (found := look()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


class Hosts:
    """Hosts of a pool whose kernels are nobody's business."""

    def __init__(self, redis_url: str, pool: str) -> None:
        self._url, self._pool = redis_url, pool
        self._ports: dict[str, PortAllocator] = {}

    def __getitem__(self, name: str) -> PortAllocator:
        if name not in self._ports:
            self._ports[name] = PortAllocator.from_url(self._url, pool=self._pool, host=name)
        return self._ports[name]

    def close(self) -> None:
        for ports in self._ports.values():
            ports.close()


@pytest.fixture
def hosts(redis_url: str, pool) -> Iterator[Hosts]:
    found = Hosts(redis_url, pool.name)
    yield found
    found.close()


def set_to(ports: PortAllocator, lease, **arguments):
    (renewed,) = ports.renew(replace(lease, **arguments), rewrite=True)
    return renewed


def counts(http: httpx.Client) -> dict[str, int]:
    return http.get("/v1/fleet").json()["counts"]


def in_redis(ports: PortAllocator) -> Counter[str]:
    """Return how many ports of each status Redis has."""
    rules = ports.pool()
    found: Counter[str] = Counter()
    for namespace in ports.run(listing.port_namespaces(rules)):
        for view in ports.run(listing.ports(rules.name, namespace, quarantine=True)):
            found[str(view.lease.state) if view.lease else view.why] += 1
    return found


def test_the_index_states_what_redis_has_after_any_events(http, hosts, pool) -> None:
    rng = random.Random(7)
    before = hosts["web-9"].claim("slack", org="early")
    assert until(lambda: counts(http)["starting"] == 1)
    held = [(hosts["web-9"], before)]
    for number in range(60):
        ports = hosts[f"web-{rng.randrange(4)}"]
        what = rng.random()
        if what < 0.5 or not held:
            held.append((ports, ports.claim("email", org=f"org-{number}")))
            continue
        at, lease = held.pop(rng.randrange(len(held)))
        if what < 0.65:
            at.release(lease)
        elif what < 0.75:
            at.decline(lease)
        else:
            held.append((at, set_to(at, lease, state=rng.choice([LeaseState.READY, LeaseState.DEGRADED]))))

    def same() -> bool:
        shown = {status: count for status, count in counts(http).items() if count and status != "free"}
        return shown == dict(in_redis(hosts["web-9"]))

    assert until(same)
    fleet = http.get("/v1/fleet").json()
    assert fleet["live"] is True
    assert fleet["size"] == pool.size * len(fleet["hosts"])
    for host in fleet["hosts"]:
        letters = Counter(host["ports"])
        assert letters["."] == host["counts"]["free"]
        assert letters["r"] == host["counts"]["ready"]
        assert len(host["ports"]) == pool.size


def test_hosts_come_worst_first_and_page_by_page(http, hosts) -> None:
    hosts["web-1"].claim("email", org="org-1")
    failing = hosts["web-2"].claim("email", org="org-2")
    set_to(hosts["web-2"], failing, state=LeaseState.DEGRADED, last_error="connection refused")
    hosts["web-3"].claim("email", org="org-3")
    http.post("/v1/hosts/web-3/cordon")

    def rows() -> list[dict]:
        return http.get("/v1/fleet").json()["hosts"]

    assert until(
        lambda: [(row["name"], row["severity"]) for row in rows()] == [("web-2", 3), ("web-3", 1), ("web-1", 0)]
    )
    assert [row["cordoned"] for row in rows()] == [False, True, False]
    first = http.get("/v1/fleet", params={"limit": 2}).json()
    rest = http.get("/v1/fleet", params={"limit": 2, "offset": first["next"]}).json()
    assert [row["name"] for row in first["hosts"] + rest["hosts"]] == ["web-2", "web-3", "web-1"]
    assert (first["total"], rest["next"]) == (3, None)


def test_problems_state_what_is_wrong_since_when_and_what_to_do(http, hosts, pool) -> None:
    failing = hosts["web-2"].claim("email", org="org-17")
    set_to(hosts["web-2"], failing, state=LeaseState.DEGRADED, last_error="GET /health answered 500")
    hosts["web-1"].decline(hosts["web-1"].claim("stripe", org="org-1"))
    hosts["web-3"].claim("slack", org="org-3")
    http.post("/v1/hosts/web-3/drain")

    def found() -> dict[str, dict]:
        return {row["check"]: row for row in http.get("/v1/problems").json()["problems"]}

    assert until(lambda: {"degraded", "quarantine", "host"} <= found().keys())
    rows = http.get("/v1/problems").json()["problems"]
    assert [row["severity"] for row in rows] == sorted((row["severity"] for row in rows), reverse=True)
    degraded = found()["degraded"]
    assert "org-17/email#0" in degraded["what"]
    assert "GET /health answered 500" in degraded["what"]
    assert (degraded["host"], degraded["port"], degraded["worker"]) == ("web-2", failing.port, "org-17/email#0")
    assert degraded["command"] == f"allocator show {failing.port} --host web-2"
    assert degraded["since"] > "2020"
    assert found()["host"]["command"] == "allocator host uncordon web-3"
    assert found()["host"]["since"] > "2020"


def test_a_worker_that_ends_without_a_sign_is_a_problem_until_it_runs_again(http, hosts) -> None:
    hosts["web-4"].claim("email", org="org-1", ttl=0.3)

    def lost() -> list[str]:
        hosts["web-5"].leases()
        hosts["web-5"].run(listing.reap(hosts["web-5"].session.pool))
        return [row["what"] for row in http.get("/v1/problems").json()["problems"] if row["check"] == "lost"]

    assert until(lambda: lost() == ["org-1/email#0 of host web-4 stopped renewing and runs nowhere since"])
    hosts["web-5"].claim("email", org="org-1")
    assert until(lambda: lost() == [])


def test_a_search_finds_workers_by_all_that_their_leases_show(http, hosts) -> None:
    lease = hosts["web-1"].claim("email", org="org-17", instance=3, pid=None, labels={"version": "2.0-rc"})
    set_to(hosts["web-1"], lease, pid=4_242, state=LeaseState.DEGRADED, last_error="disk full")
    hosts["web-2"].claim("stripe", org="org-18")

    def ports_of(text: str) -> list[int]:
        return [one["port"] for one in http.get("/v1/search", params={"q": text}).json()["leases"]]

    for text in (
        "org-17",
        "org-17/email#3",
        "EMAIL degraded",
        f"web-1:{lease.port}",
        "pid:4242",
        "version=2.0",
        "disk",
    ):
        assert until(lambda text=text: ports_of(text) == [lease.port]), text
    assert ports_of("org-17 stripe") == []
    assert until(lambda: http.get("/v1/search", params={"q": "web-"}).json()["hosts"] == ["web-1", "web-2"])


def test_services_show_what_lacks_ready_workers_first(http, hosts) -> None:
    for number, state in enumerate([LeaseState.READY, LeaseState.READY, LeaseState.DEGRADED]):
        lease = hosts[f"web-{number}"].claim("email", org="org-1", instance=number)
        set_to(hosts[f"web-{number}"], lease, state=state)
    set_to(hosts["web-1"], hosts["web-1"].claim("stripe", org="org-1"), state=LeaseState.READY)

    def services() -> list[tuple[str, int, int]]:
        return [(one["plugin"], one["wanted"], one["ready"]) for one in http.get("/v1/services").json()["services"]]

    assert until(lambda: services() == [("email", 3, 2), ("stripe", 1, 1)])
    workers = http.get("/v1/services").json()["services"][0]["workers"]
    assert [(one["host"], one["instance"], one["state"]) for one in workers][2] == ("web-2", 2, "degraded")


def test_one_host_is_read_alone_however_many_there_are(redis_url: str, pool, hosts) -> None:
    application = create_app(AsyncPortAllocator.from_url(redis_url, pool=pool.name, host="web-99"))
    for number in range(12):
        hosts[f"web-{number}"].claim("email", org=f"org-{number}")
    calls: list[str] = []
    with served(application) as url, httpx.Client(base_url=url, timeout=20) as http:
        until(lambda: http.get("/v1/fleet").json()["total"] == 12)
        application.state.claims.allocator.store.on_call = lambda script, *_, **__: calls.append(script)
        assert http.get("/v1/hosts/web-3").json()["leases"] == 1
        assert http.get("/v1/hosts/nobody").status_code == 404
    assert len(calls) < 12


def test_the_overview_of_a_pool_that_nobody_defined_is_a_problem(http) -> None:
    for path in ("fleet", "problems", "services"):
        answer = http.get(f"/v1/{path}", params={"pool": "nowhere"})
        assert (answer.status_code, answer.json()["type"]) == (404, "urn:portlease:problem:pool-missing")


def test_it_states_that_it_is_not_live_while_redis_does_not_answer_and_catches_up() -> None:
    from servers import Server

    with Server() as server:
        server.ready()
        with PortAllocator.from_url(server.url, host="web-1") as ports:
            ports.claim("email", org="org-1")
            allocator = AsyncPortAllocator.from_url(server.url, host="web-7", timeout=0.5)
            with served(create_app(allocator)) as url, httpx.Client(base_url=url, timeout=20) as http:
                assert until(lambda: counts(http)["starting"] == 1)
                os.kill(server.process.pid, signal.SIGSTOP)
                assert until(lambda: http.get("/v1/fleet").json()["live"] is False)
                assert counts(http)["starting"] == 1
                os.kill(server.process.pid, signal.SIGCONT)
                assert until(lambda: http.get("/v1/fleet").json()["live"] is True)
                ports.claim("stripe", org="org-1")
                assert until(lambda: counts(http)["starting"] == 2)


def test_many_full_hosts_are_one_problem(http, hosts, pool) -> None:
    small = replace(pool, last=pool.first)
    hosts["web-0"].apply_pool(small)
    for number in range(7):
        hosts[f"web-{number}"].claim("email", org=f"org-{number}")
    found = until(lambda: [one for one in http.get("/v1/problems").json()["problems"] if "hosts" in one["what"]])
    assert [one["what"] for one in found] == ["7 of 7 hosts have no free port"]
    assert [one["check"] for one in http.get("/v1/problems").json()["problems"]] == ["full", "full"]


def test_a_search_gives_first_what_is_written_exactly_so_and_of_that_what_is_not_ready(http, hosts) -> None:
    set_to(hosts["web-0"], hosts["web-0"].claim("email", org="org-17"), state=LeaseState.READY)
    hosts["web-1"].claim("email", org="org-1")
    set_to(hosts["web-2"], hosts["web-2"].claim("email", org="org-1", instance=1), state=LeaseState.DEGRADED)
    set_to(hosts["web-3"], hosts["web-3"].claim("email", org="org-1", instance=2), state=LeaseState.READY)
    found = until(lambda: (body := http.get("/v1/search?q=org-1").json())["total"] == 4 and body)
    assert [one["host"] for one in found["leases"]] == ["web-1", "web-2", "web-3", "web-0"]


def test_samples_are_of_the_pool_that_is_asked_for(http, hosts, pool) -> None:
    hosts["web-0"].claim("email", org="org-1")
    (sample, *_) = until(lambda: http.get("/v1/samples", params={"pool": pool.name}).json())
    assert sample["size"] >= 0
    assert sample.keys() >= {"starting", "ready", "degraded", "draining", "resting", "restarts", "claims", "refused"}
    assert http.get("/v1/samples", params={"pool": "another"}).json() == []
