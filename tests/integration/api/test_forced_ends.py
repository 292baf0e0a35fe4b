"""What an operator ends over HTTP that somebody else holds: a lease, or all of a host that is gone for good."""

from __future__ import annotations

from typing import TYPE_CHECKING

from allocator import PortAllocator

if TYPE_CHECKING:
    from allocator import PoolSpec


def test_a_lease_is_ended_by_force_and_its_holder_learns_it(worker, http, ports: PortAllocator) -> None:
    lease = worker.claim("email", "org-1")
    path = worker.path(lease) + "/end"
    assert http.post(path, json={}).status_code == 422
    assert http.post(path, json={"reason": "  "}).status_code == 422
    assert http.post(path, json={"reason": "web-1 burnt"}).json() == {"ended": True}
    assert http.post(path, json={"reason": "again"}).json() == {"ended": False}
    event = http.get(f"{worker.path(lease)}/events").json()[-1]
    assert (event["type"], event["by"], event["reason"]) == ("released", "local", "web-1 burnt")
    lost = http.patch(
        worker.path(lease),
        json={"holder_copy": {name: lease[name] for name in ("org", "plugin", "fence")}},
        headers=worker.proof(lease),
    )
    assert lost.status_code == 409
    assert "was ended by an operator; stop this worker" in lost.json()["detail"]
    assert ports.leases() == []


def test_a_host_that_is_gone_is_forgotten_with_its_leases(
    worker, http, ports: PortAllocator, redis_url: str, pool: PoolSpec
) -> None:
    with PortAllocator.from_url(redis_url, pool=pool.name, host="web-7") as other:
        other.claim("email", org="org-1", ttl="1h")
        other.claim("slack", org="org-1", ttl="1h")
    kept = worker.claim("email", "org-2")
    assert http.post("/v1/hosts/web-9/forget", json={"reason": "gone"}).status_code == 404
    assert http.post("/v1/hosts/web-7/forget", json={"reason": "gone"}).json() == {"host": "web-7", "ended": 2}
    assert [lease.port for lease in ports.leases()] == [kept["port"]]
    assert [host["name"] for host in http.get("/v1/hosts").json()] == ["web-1"]
