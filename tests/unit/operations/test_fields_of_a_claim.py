"""A field of a claim is declared once on each floor; encoders, checks and lists are made from that declaration."""

from __future__ import annotations

import ast
from dataclasses import fields
from pathlib import Path

import pytest

import allocator
from allocator.client.heartbeats import HolderFields
from allocator.client.session import ClaimArguments, ProcessFields
from allocator.model.leases import HOLDER_FIELDS, PROCESS_FIELDS
from allocator.operations.attempt import ClaimRequest
from allocator.protocol.signatures.claim import ClaimCall, WantedPort
from allocator.protocol.wire import Call

PACKAGE = Path(allocator.__file__).parent
FLOORS = ("client", "operations", "protocol")
SHARED = {"pool", "worker", "names", "port", "state", "token", "ticket", "ttl_ms", "record", "holder", "wait_s"}
"""Words that other things have as well: a lease has a port, a waiter a ticket."""


def declarations(floor: str, name: str) -> list[str]:
    """Return where a floor declares a field: in the body of a class, or in a list of names."""
    found = []
    for file in sorted((PACKAGE / floor).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ClassDef):
                found += [
                    f"{file.name}: {node.name}"
                    for one in node.body
                    if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name) and one.target.id == name
                ]
            names = [*getattr(node, "elts", []), *(getattr(node, "keys", []) if isinstance(node, ast.Dict) else [])]
            if len(names) > 1 and any(isinstance(one, ast.Constant) and one.value == name for one in names):
                found.append(f"{file.name}: a list of names in line {node.lineno}")
    return found


@pytest.mark.parametrize("name", [one.name for one in fields(ClaimRequest) if one.name not in SHARED])
@pytest.mark.parametrize("floor", FLOORS)
def test_a_field_of_a_claim_is_declared_once_on_a_floor(floor: str, name: str) -> None:
    assert len(declarations(floor, name)) <= 1, declarations(floor, name)


def test_every_argument_of_a_claim_becomes_a_part_of_the_request() -> None:
    request = {one.name for one in fields(ClaimRequest)}
    of_the_worker, of_the_holder = {"org", "instance"}, {"pid", "holder_pid", "labels"}
    assert set(ClaimArguments.__annotations__) - request == of_the_worker | of_the_holder | {"ttl"}
    assert of_the_holder <= set(HOLDER_FIELDS)


def test_what_a_holder_may_set_is_what_a_lease_declares() -> None:
    assert tuple(HolderFields.__annotations__) == HOLDER_FIELDS
    assert tuple(ProcessFields.__annotations__) == PROCESS_FIELDS


def test_the_script_is_sent_the_fields_of_its_signature_in_their_order() -> None:
    wanted = WantedPort(worker="o/email#0", token="0" * 32, extra={"pid": 1})
    given = {"host": "web-1", "ttl_ms": 2, "identity": "a b c", "alive_ms": 3, "hint": 4, "port": 5, "superseded": 6}
    call = ClaimCall(
        pool="p", **given, wanted=(wanted,), strangers=frozenset({8, 9}), ticket="t", contiguous=True, look_from=7
    )
    written = {"state": ["starting"], "wanted": [1, "o/email#0", "0" * 32, ',"pid":1'], "strangers": ["8-9"]}
    written |= {"contiguous": [1], "ticket": ["t"], "look_from": [7]}
    names = [one.name for one in fields(ClaimCall)][len(fields(Call)) :]
    assert list(call.arguments()) == [value for name in names for value in written.get(name, [given.get(name)])]
