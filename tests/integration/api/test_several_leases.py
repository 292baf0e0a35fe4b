"""Several ports in one claim over HTTP, and instances that are not named."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import httpx

    from allocator import PoolSpec

PORTS = {"plugin": "@hay/plugin-email", "org": "org-1", "ports": ["http", "debug", "metrics"]}


def tokens_of(answer: httpx.Response) -> list[str]:
    return answer.headers["Allocator-Token"].split(", ")


def test_several_ports_are_one_claim_and_leases_with_a_token_each(http: httpx.Client) -> None:
    answer = http.post("/v1/leases", json=PORTS | {"contiguous": True, "labels": {"team": "mail"}})
    assert answer.status_code == 201, answer.text
    first, tokens = answer.json(), tokens_of(answer)
    leases = [first, *first["further"]]
    assert [lease["plugin"] for lease in leases] == [
        "@hay/plugin-email",
        "@hay/plugin-email+debug",
        "@hay/plugin-email+metrics",
    ]
    assert [lease["port"] for lease in leases] == [first["port"], first["port"] + 1, first["port"] + 2]
    assert len(set(tokens)) == 3
    assert not [token for token in tokens if token in answer.text]
    for lease, token in zip(leases, tokens, strict=True):
        path, proof = f"/v1/leases/{lease['host']}/{lease['port']}", {"Allocator-Token": token}
        assert http.patch(path, json={"state": "ready"}, headers=proof).json()["state"] == "ready"
        assert http.delete(path, headers=proof).json() == {"ended": True}
    assert http.get("/v1/leases").json()["leases"] == []


def test_a_claim_of_several_ports_that_is_sent_again_has_the_same_leases_and_tokens(http: httpx.Client) -> None:
    mine = {"Allocator-Token": "0123456789abcdef" * 2}
    first, again = (http.post("/v1/leases", json=PORTS, headers=mine) for _ in range(2))
    assert tokens_of(first)[0] == mine["Allocator-Token"]
    assert tokens_of(again) == tokens_of(first)
    for one, other in zip(first.json()["further"], again.json()["further"], strict=True):
        assert (one["port"], one["fence"]) == (other["port"], other["fence"])


def test_all_ports_or_none(http: httpx.Client, pool: PoolSpec) -> None:
    for instance in range(pool.size - 2):
        assert http.post("/v1/leases", json={"plugin": "stripe", "org": "o", "instance": instance}).status_code == 201
    refused = http.post("/v1/leases", json=PORTS)
    assert refused.json()["type"].endswith(":exhausted")
    assert len(http.get("/v1/leases", params={"limit": 500}).json()["leases"]) == pool.size - 2


def test_an_automatic_instance_is_the_lowest_free_one_and_the_same_again_for_its_token(http: httpx.Client) -> None:
    auto = {"plugin": "email", "org": "org-1", "instance": "auto"}
    mine = {"Allocator-Token": "ab" * 16}
    first = http.post("/v1/leases", json=auto).json()
    second = http.post("/v1/leases", json=auto, headers=mine).json()
    third = http.post("/v1/leases", json=auto).json()
    assert [lease["instance"] for lease in (first, second, third)] == [0, 1, 2]
    again = http.post("/v1/leases", json=auto, headers=mine).json()
    assert (again["instance"], again["port"], again["fence"]) == (1, second["port"], second["fence"])
    http.delete(f"/v1/leases/{second['host']}/{second['port']}", headers=mine)
    assert http.post("/v1/leases", json=auto).json()["instance"] == 1


def test_a_key_has_its_instance_again_on_its_host(http: httpx.Client) -> None:
    def instance(key: str, **arguments: object) -> int:
        asked = {"plugin": "email", "org": "org-1", "instance": "auto", "key": key, **arguments}
        lease = http.post("/v1/leases", json=asked, headers={"Allocator-Token": "cd" * 16}).json()
        http.delete(f"/v1/leases/{lease['host']}/{lease['port']}", headers={"Allocator-Token": "cd" * 16})
        return int(lease["instance"])

    assert [instance("a"), instance("b"), instance("a"), instance("b", ports=["http", "debug"])] == [0, 1, 0, 1]
    assert instance("a", host="web-2") == 2


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ({"instance": "any"}, "body.instance: an instance is a whole number from 0 to"),
        ({"instance": -1}, "or auto"),
        ({"instance": "auto", "ports": ["http", "debug"]}, "a worker that has a number; give it as instance"),
        ({"ports": []}, "ports"),
        ({"ports": ["http", "http"]}, "different names"),
        ({"ports": ["a-b", "a.b"]}, "would both be PORT_A_B"),
        ({"ports": [f"p{number}" for number in range(17)]}, "ports"),
        ({"ports": ["http", "debug"], "port": 5556}, "ports and port do not go together"),
        ({"ports": ["http", "debug"], "hint": 5556}, "ports and hint do not go together"),
        ({"contiguous": True}, "contiguous goes with ports"),
        ({"key": "a"}, "key goes with the instance auto"),
        ({"instance": "auto", "key": "a/b"}, "body.key"),
    ],
)
def test_what_does_not_go_together_is_refused_by_the_names_of_its_fields(
    http: httpx.Client, body: dict, text: str
) -> None:
    refused = http.post("/v1/leases", json={"plugin": "email", "org": "org-1", **body})
    assert refused.status_code == 422
    assert text in refused.json()["detail"]
    assert "--" not in refused.json()["detail"]
    assert http.get("/v1/leases").json()["leases"] == []
