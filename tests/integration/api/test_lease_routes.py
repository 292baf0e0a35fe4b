"""A lease over HTTP: from the claim to its end, and what a caller is told when it cannot be had."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from typing import TYPE_CHECKING

import pytest
from servers import client_of

from allocator import PortAllocator
from allocator.model.states import ENDED_STATES
from allocator.store.blocking import Store

if TYPE_CHECKING:
    import httpx

    from allocator import PoolSpec

TYPE = "urn:portlease:problem:"


def problem(answer: httpx.Response, status: int, name: str) -> dict:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["type"] == TYPE + name
    assert body["status"] == status
    assert body["title"]
    assert body["detail"]
    return body


def test_a_lease_from_claim_to_release(worker, http, pool: PoolSpec) -> None:
    lease = worker.claim("email", "org-1", labels={"team": "mail"})
    assert lease["host"] == "web-1"
    assert pool.first <= lease["port"] <= pool.last
    assert lease["proved"] is True
    assert lease["state"] == "starting"
    shown = http.get(worker.path(lease)).json()
    assert {name: shown[name] for name in ("org", "plugin", "fence", "labels")} == {
        "org": "org-1",
        "plugin": "email",
        "fence": lease["fence"],
        "labels": {"team": "mail"},
    }
    ready = http.patch(
        worker.path(lease),
        json={"state": "ready", "pid": os.getpid(), "restarts": 2, "last_error": "boom\nagain"},
        headers=worker.proof(lease),
    ).json()
    assert (ready["state"], ready["pid"], ready["fence"]) == ("ready", os.getpid(), lease["fence"])
    plain = http.patch(worker.path(lease), headers=worker.proof(lease)).json()
    assert (plain["state"], plain["pid"]) == ("ready", os.getpid())
    assert (plain["restarts"], plain["last_error"]) == (2, "boom again")
    assert http.delete(worker.path(lease), headers=worker.proof(lease)).json() == {"ended": True}
    assert http.delete(worker.path(lease), headers=worker.proof(lease)).json() == {"ended": False}
    problem(http.get(worker.path(lease)), 404, "not-found")


def test_the_token_stands_in_a_header_and_in_no_body(worker, http) -> None:
    lease = worker.claim()
    token = worker.tokens[lease["host"], lease["port"]]
    bodies = [
        str(lease),
        http.get("/v1/leases").text,
        http.get(worker.path(lease)).text,
        http.get("/v1/hosts/web-1").text,
    ]
    bodies.append(http.patch(worker.path(lease), headers=worker.proof(lease)).text)
    assert [body for body in bodies if token in body] == []


def test_the_same_idempotency_key_gets_the_same_lease_and_another_claim_another(worker, http) -> None:
    once = {"Idempotency-Key": "deploy-7"}
    first = worker.claim("email", "org-1", headers=once)
    token = worker.tokens[first["host"], first["port"]]
    again = worker.claim("email", "org-1", headers=once)
    assert (again["port"], again["fence"]) == (first["port"], first["fence"])
    assert worker.tokens[first["host"], first["port"]] == token
    other = worker.claim("stripe", "org-1", headers=once)
    assert other["port"] != first["port"]
    refused = http.post("/v1/leases", json={"plugin": "email", "org": "org-1"}, headers={"Idempotency-Key": "deploy-8"})
    assert problem(refused, 409, "held")["holder"]["port"] == first["port"]


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("curl"), reason="needs root and curl, to be two users")
def test_the_idempotency_key_of_one_user_gets_another_user_nothing(url: str) -> None:
    def claim(uid: int) -> tuple[int, str]:
        """Return the status of one user's claim and the lease token that it got."""
        arguments = ["-sS", "-i", "-H", "Content-Type: application/json", "-H", "Idempotency-Key: deploy-7"]
        body = ["-d", '{"plugin": "email", "org": "org-1"}', f"{url}/v1/leases"]
        done = subprocess.run(
            ["curl", *arguments, *body], user=uid, check=True, capture_output=True, text=True, cwd="/"
        )
        token = re.search(r"(?im)^allocator-token: (\w+)", done.stdout)
        return int(done.stdout.split()[1]), token[1] if token else ""

    status, token = claim(65_534)
    assert (status, len(token)) == (201, 32)
    assert claim(65_534) == (201, token)
    assert claim(65_533) == (409, "")


def test_a_token_of_the_callers_own_gets_the_same_lease_again(worker) -> None:
    mine = {"Allocator-Token": "0123456789abcdef" * 2}
    first = worker.claim(headers=mine)
    assert worker.tokens[first["host"], first["port"]] == mine["Allocator-Token"]
    assert worker.claim(headers=mine)["fence"] == first["fence"]


def test_exhaustion_states_when_to_come_back(worker, http, pool: PoolSpec) -> None:
    for instance in range(pool.size):
        worker.claim(instance=instance)
    refused = http.post("/v1/leases", json={"plugin": "email", "org": "org-2"})
    body = problem(refused, 409, "exhausted")
    assert int(refused.headers["Retry-After"]) >= body["retry_after_s"] > 0


def test_a_wait_ends_when_a_port_is_given_back(worker, http, pool: PoolSpec) -> None:
    from concurrent.futures import ThreadPoolExecutor

    leases = [worker.claim(instance=instance) for instance in range(pool.size)]
    with ThreadPoolExecutor(1) as pool_of_one:
        waiting = pool_of_one.submit(worker.claim, "stripe", "org-2", wait_s=20)
        http.delete(worker.path(leases[7]), headers=worker.proof(leases[7]))
        assert waiting.result()["port"] == leases[7]["port"]


def test_who_waits_in_the_queue_is_counted(worker, http, pool: PoolSpec, ports: PortAllocator) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from supervised import eventually

    def waiters(count: int) -> bool:
        return f'allocator_waiters{{host="web-1",pool="{pool.name}"}} {count}.0' in http.get("/metrics").text

    leases = [worker.claim(instance=instance) for instance in range(pool.size)]
    assert waiters(0)
    with ThreadPoolExecutor(1) as one_more:
        waiting = one_more.submit(ports.claim, "stripe", org="org-2", wait=60)
        eventually(lambda: waiters(1), "nobody waits")
        http.delete(worker.path(leases[7]), headers=worker.proof(leases[7]))
        waiting.result()
    eventually(lambda: waiters(0), "somebody waits still")


def test_another_token_renews_releases_and_declines_nothing(worker, http) -> None:
    lease = worker.claim()
    wrong = {"Allocator-Token": "f" * 32}
    problem(http.patch(worker.path(lease), headers=wrong), 409, "lease-lost")
    problem(http.delete(worker.path(lease), headers=wrong), 409, "held")
    problem(http.post(worker.path(lease, "/decline"), headers=wrong), 409, "held")
    assert http.get(worker.path(lease)).json()["fence"] == lease["fence"]


def test_a_declined_port_goes_into_quarantine(worker, http) -> None:
    lease = worker.claim()
    assert http.post(worker.path(lease, "/decline"), headers=worker.proof(lease)).json() == {"ended": True}
    ports = {port["port"]: port["status"] for port in http.get("/v1/hosts/web-1").json()["ports"]}
    assert ports[lease["port"]] == "quarantined"
    assert worker.claim()["port"] != lease["port"]


def test_the_own_hosts_strangers_are_seen_and_avoided(worker, http, pool: PoolSpec) -> None:
    with socket.create_server(("127.0.0.1", pool.first)):
        lease = worker.claim()
        assert lease["port"] != pool.first
        detail = http.get("/v1/hosts/web-1").json()
        assert detail["watched"] is True
        assert {"port": pool.first, "status": "stranger", "claimable_in_s": None, "lease": None} in detail["ports"]


def test_a_claim_for_another_host_is_not_proved_here(worker, http, pool: PoolSpec) -> None:
    with socket.create_server(("127.0.0.1", pool.first)):
        lease = worker.claim(host="web-2")
    assert (lease["host"], lease["port"], lease["proved"]) == ("web-2", pool.first, False)
    assert http.get("/v1/hosts/web-2").json()["watched"] is False
    assert http.post(worker.path(lease, "/decline"), headers=worker.proof(lease)).json() == {"ended": True}
    assert worker.claim(host="web-2")["port"] != lease["port"]


def test_a_lease_that_redis_lost_comes_back_with_the_holders_fields(worker, http, redis_url: str, pool) -> None:
    lease = worker.claim()
    store = Store.open(redis_url)
    keys = list(client_of(store).scan_iter(match=f"alloc:{{{pool.name}}}*"))
    client_of(store).delete(*keys)
    store.close()
    with PortAllocator.from_url(redis_url, pool=pool.name, host="web-1") as ports:
        ports.apply_pool(pool)
    problem(http.patch(worker.path(lease), headers=worker.proof(lease)), 409, "lease-lost")
    fields = {name: lease[name] for name in ("org", "plugin", "instance", "fence")}
    back = http.patch(worker.path(lease), json={**fields, "state": "ready"}, headers=worker.proof(lease)).json()
    assert back["port"] == lease["port"]
    assert back["fence"] > lease["fence"]
    assert http.get(worker.path(lease)).json()["state"] == "ready"


def test_pages_hold_every_lease_once_and_filters_hold(worker, http) -> None:
    for instance in range(5):
        worker.claim("email", "org-1", instance=instance)
        worker.claim("stripe", "org-2", instance=instance, host="web-0")
    seen, after, pages = [], None, 0
    while True:
        page = http.get("/v1/leases", params={"limit": 3, **({"after": after} if after else {})}).json()
        seen += [(lease["host"], lease["port"]) for lease in page["leases"]]
        pages += 1
        after = page["next"]
        if after is None:
            break
    assert seen == sorted(set(seen))
    assert (len(seen), pages) == (10, 4)
    for query, count in (
        ({"org": "org-2"}, 5),
        ({"host": "web-1"}, 5),
        ({"plugin": "zendesk"}, 0),
        ({"state": "ready"}, 0),
    ):
        assert len(http.get("/v1/leases", params=query).json()["leases"]) == count


@pytest.mark.parametrize(
    ("method", "path", "status", "name"),
    [
        ("GET", "/v1/nothing", 404, "not-found"),
        ("PUT", "/v1/leases", 405, "method-not-allowed"),
        ("GET", "/v1/leases?limit=0", 422, "invalid-input"),
        ("GET", "/v1/leases/web-1/70000", 422, "invalid-input"),
        ("GET", "/v1/leases?pool=no-such-pool", 200, ""),
        ("GET", "/v1/hosts?pool=no-such-pool", 404, "pool-missing"),
        ("GET", "/v1/hosts/web-99", 404, "not-found"),
        ("POST", "/v1/hosts/web-99/cordon", 404, "not-found"),
    ],
)
def test_what_is_not_there_is_a_problem_with_a_stable_type(http, method, path, status, name) -> None:
    answer = http.request(method, path)
    if status == 200:
        assert answer.json() == {"leases": [], "next": None}
    else:
        problem(answer, status, name)


@pytest.mark.parametrize(
    ("method", "path", "allowed", "text"),
    [
        ("PUT", "/v1/leases", "GET, HEAD, POST", "use GET, HEAD or POST"),
        ("PUT", "/v1/leases/vm/7100", "GET, HEAD, PATCH, DELETE", "use GET, HEAD, PATCH or DELETE"),
        ("POST", "/v1/leases/vm/7100", "GET, HEAD, PATCH, DELETE", "use GET, HEAD, PATCH or DELETE"),
        ("GET", "/v1/leases/vm/7100/decline", "POST", "use POST"),
        ("NONSENSE", "/v1/pools", "GET, HEAD", "use GET or HEAD"),
        ("DELETE", "/", "GET, HEAD", "use GET or HEAD"),
        ("POST", "/openapi.json", "GET, HEAD", "use GET or HEAD"),
    ],
)
def test_a_405_names_every_method_of_its_path(http, method, path, allowed, text) -> None:
    answer = http.request(method, path)
    assert problem(answer, 405, "method-not-allowed")["detail"] == f"{method} is not allowed here; {text}"
    assert answer.headers["allow"] == allowed


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"plugin": "email"}',
        b'{"plugin": "e mail", "org": "o"}',
        b'{"plugin":"email","org":"o","x":1}',
    ],
)
def test_a_body_that_cannot_be_right_changes_nothing(http, body: bytes) -> None:
    answer = http.post("/v1/leases", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in {400, 422}
    problem(answer, answer.status_code, "bad-request" if answer.status_code == 400 else "invalid-input")
    assert http.get("/v1/leases").json()["leases"] == []


def test_a_wrong_token_is_not_repeated(worker, http) -> None:
    lease = worker.claim()
    answer = http.delete(worker.path(lease), headers={"Allocator-Token": "S3CRET-TYPED-WRONG"})
    problem(answer, 422, "invalid-input")
    assert "S3CRET" not in answer.text


def test_a_state_that_cannot_follow_is_refused(worker, http) -> None:
    lease = worker.claim()
    http.patch(worker.path(lease), json={"state": "draining"}, headers=worker.proof(lease))
    answer = http.patch(worker.path(lease), json={"state": "ready"}, headers=worker.proof(lease))
    assert "draining to ready" in problem(answer, 422, "invalid-input")["detail"]


@pytest.mark.parametrize("state", sorted(ENDED_STATES))
def test_a_live_lease_is_not_set_to_an_ended_state(worker, http, state) -> None:
    lease = worker.claim()
    answer = http.patch(worker.path(lease), json={"state": state, "labels": {"a": "b"}}, headers=worker.proof(lease))
    assert problem(answer, 422, "invalid-input")["errors"] == [
        {"where": "body.state", "what": "a live lease is one of degraded, draining, ready, starting"}
    ]
    shown = http.get(worker.path(lease)).json()
    assert (shown["state"], shown["labels"]) == ("starting", {})
    problem(http.get("/v1/leases", params={"state": ["ready", state]}), 422, "invalid-input")


def test_a_cordoned_host_gives_out_no_ports(worker, http) -> None:
    worker.claim()
    assert http.post("/v1/hosts/web-1/cordon").json() == {"host": "web-1", "cordoned": True, "changed": True}
    problem(http.post("/v1/leases", json={"plugin": "stripe", "org": "org-1"}), 409, "cordoned")
    assert http.post("/v1/hosts/web-1/cordon", params={"on": False}).json()["cordoned"] is False
    worker.claim("stripe")


def test_pools_and_hosts_state_how_full_they_are(worker, http, pool: PoolSpec) -> None:
    from supervised import eventually

    worker.claim()

    def counts() -> tuple[int, int, int]:
        mine = next(one for one in http.get("/v1/pools").json() if one["name"] == pool.name)
        return mine["size"], mine["leased"], mine["hosts"]

    eventually(lambda: counts() == (44, 1, 1))
    (host,) = http.get("/v1/hosts").json()
    assert (host["name"], host["leases"], host["free"], host["cordoned"]) == ("web-1", 1, 43, False)


def test_health_and_readiness(http) -> None:
    assert http.get("/healthz").json() == {"status": "ok"}
    assert http.get("/readyz").json() == {"status": "ok"}


def test_without_redis_it_is_alive_but_not_ready(tmp_path) -> None:
    import httpx
    from api_server import served

    from allocator import AsyncPortAllocator
    from allocator.api.application import create_app

    lost = AsyncPortAllocator.from_url(f"unix://{tmp_path}/none.sock", host="web-1", timeout=0.2)
    with served(create_app(lost)) as url, httpx.Client(base_url=url) as client:
        assert client.get("/healthz").status_code == 200
        answer = client.get("/readyz")
        problem(answer, 503, "store-unavailable")
        assert answer.headers["Retry-After"] == "1"
        problem(client.post("/v1/leases", json={"plugin": "email", "org": "o"}), 503, "store-unavailable")


def test_a_host_that_others_claimed_for_is_itself_once_it_comes(worker, http, redis_url: str, pool) -> None:
    worker.claim(host="web-2")
    with PortAllocator.from_url(redis_url, pool=pool.name, host="web-2") as its_own:
        own = its_own.claim("stripe", org="org-1")
    assert own.host == "web-2"
    later = worker.claim("zendesk", host="web-2")
    assert later["proved"] is False
    machine = {host["name"]: host["machine"] for host in http.get("/v1/hosts").json()}["web-2"]
    assert machine not in {None, "-"}


def test_the_next_ready_worker_of_a_service_and_the_targets_of_prometheus(worker, http) -> None:
    assert http.get("/v1/prometheus/targets").json() == []
    leases = [worker.claim(instance=instance) for instance in range(2)]
    problem(http.get("/v1/resolve/email/org-1"), 409, "none-ready")
    for lease in leases:
        http.patch(worker.path(lease), json={"state": "ready"}, headers=worker.proof(lease))
    ports = [http.get("/v1/resolve/email/org-1").json()["port"] for _ in range(4)]
    assert sorted(ports) == sorted(2 * [lease["port"] for lease in leases])
    assert ports[0] != ports[1]
    targets = http.get("/v1/prometheus/targets").json()
    assert {target["targets"][0].rpartition(":")[2] for target in targets} == {str(port) for port in ports}
    assert targets[0]["labels"]["plugin"] == "email"


def test_a_further_port_of_a_worker_is_resolved_filtered_and_re_asserted(http, ports: PortAllocator, pool) -> None:
    held = ports.claim_ports("email", ["http", "debug"], org="org-1")
    lease, path = held["debug"], f"/v1/leases/web-1/{held['debug'].port}"
    proof = {"Allocator-Token": lease.token or ""}
    assert http.patch(path, json={"state": "ready"}, headers=proof).status_code == 200
    for way in ("email%2Bdebug", "email+debug"):
        assert http.get(f"/v1/resolve/{way}/org-1").json()["port"] == lease.port
    for plugin, port in (("email+debug", lease.port), ("email", held["http"].port)):
        found = http.get("/v1/leases", params={"plugin": plugin}).json()["leases"]
        assert [(one["plugin"], one["port"]) for one in found] == [(plugin, port)]
    client_of(ports.store).delete(f"alloc:{{{pool.name}}}:lease:web-1:{lease.port}")
    fields = {"org": lease.org, "plugin": lease.plugin, "instance": lease.instance, "fence": lease.fence}
    assert http.patch(path, json=fields, headers=proof).json()["fence"] > lease.fence
    long = "p" * 128
    problem(http.get(f"/v1/resolve/{long}+{long}/org-1"), 409, "none-ready")
    for wrong in (f"{long}p", f"{long}p+a", f"email+{long}p", "email+", "+debug", "email+a+b", "email+-"):
        problem(http.get(f"/v1/resolve/{wrong}/org-1"), 422, "invalid-input")
        patched = http.patch("/v1/leases/web-1/9", json={**fields, "plugin": wrong}, headers=proof)
        problem(patched, 422, "invalid-input")


def test_a_drained_host_is_left_by_its_workers(worker, http) -> None:
    lease = worker.claim()
    assert http.post("/v1/hosts/web-1/drain").json() == {"host": "web-1", "draining": 1, "left": 1}
    assert http.get(worker.path(lease)).json()["state"] == "draining"
    assert http.get("/v1/hosts").json()[0]["draining"] is True
    problem(http.post("/v1/hosts/web-99/drain"), 404, "not-found")
    problem(http.post("/v1/leases", json={"plugin": "stripe", "org": "org-1"}), 409, "cordoned")
