"""The promise: a port that a stranger has is not offered; one that it takes in between is declined and replaced."""

from __future__ import annotations

import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Self

import pytest

from allocator import HeldError, PoolSpec, PortAllocator
from allocator.kernel import answers
from allocator.kernel.answers import Answers
from allocator.operations.steps import ReadListeners

if TYPE_CHECKING:
    from allocator.operations.steps import Step

STRANGER = """
import socket, sys
family, address, port = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
one = socket.socket(family)
if family == socket.AF_INET6: one.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
one.bind((address, port)); one.listen(); print("ready", flush=True); sys.stdin.read()
"""


class Stranger:
    def __init__(self, family: int, address: str, port: int) -> None:
        arguments = [sys.executable, "-c", STRANGER, str(int(family)), address, str(port)]
        self.process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout.readline() == b"ready\n"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.process.communicate()


class BlindAnswers(Answers):
    """Sees no listener, as in the moment before a stranger comes."""

    def answer(self, step: Step) -> object:
        return frozenset() if isinstance(step, ReadListeners) else super().answer(step)


ADDRESSES = [
    (socket.AF_INET, "0.0.0.0"),
    (socket.AF_INET, "127.0.0.1"),
    (socket.AF_INET, "127.0.0.2"),
    (socket.AF_INET6, "::"),
    (socket.AF_INET6, "::1"),
]


@pytest.mark.parametrize(("family", "address"), ADDRESSES)
def test_a_port_that_a_stranger_listens_on_is_never_offered(
    ports: PortAllocator, pool: PoolSpec, family: int, address: str
) -> None:
    with Stranger(family, address, pool.first):
        granted = {ports.claim("email", org=f"org-{number}").port for number in range(pool.size - 1)}
        assert granted == set(range(pool.first + 1, pool.last + 1))
        with pytest.raises(HeldError, match=r"python.* \(pid \d+, user .*\) listens on it"):
            ports.claim("email", org="last", port=pool.first)


@pytest.mark.parametrize(("family", "address"), ADDRESSES)
def test_a_stranger_between_claim_and_bind_costs_a_decline_and_another_port(
    ports: PortAllocator, pool: PoolSpec, family: int, address: str
) -> None:
    ports.session.answers = BlindAnswers()
    with Stranger(family, address, pool.first):
        lease = ports.claim("email", org="org-1")
    assert lease.port == pool.first + 1
    events = [fields for _, fields in ports.store.newest_events(f"alloc:{{{pool.name}}}:events", 10)]
    assert [fields["type"] for fields in events if fields["port"] == str(pool.first)] == ["granted", "declined"]
    with pytest.raises(HeldError, match="kept free for another") as refused:
        ports.claim("email", org="org-2", port=pool.first)
    assert 3 < refused.value.retry_after <= 5


# A listing that showed nobody is good enough for a second


def test_claims_of_one_second_read_the_listing_once_while_nobody_listens(
    ports: PortAllocator, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[tuple[int, int]] = []
    now = 1_000.0

    def counted(first: int, last: int) -> frozenset[int]:
        reads.append((first, last))
        return frozenset()

    monkeypatch.setattr(answers, "listening_ports", counted)
    monkeypatch.setattr(answers, "monotonic", lambda: now)
    for number in range(5):
        ports.claim("email", org=f"org-{number}")
    assert len(reads) == 1
    now += 1.0
    ports.claim("email", org="org-5")
    assert len(reads) == 2


def test_a_stranger_that_came_since_the_last_listing_is_found_by_the_proof(
    ports: PortAllocator, pool: PoolSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "monotonic", lambda: 1_000.0)  # the second never passes
    assert ports.claim("email", org="org-1").port == pool.first
    with Stranger(socket.AF_INET, "127.0.0.1", pool.first + 1):
        assert ports.claim("email", org="org-2").port == pool.first + 2
        assert ports.session.answers.answer(ReadListeners(pool.first, pool.last)) == {pool.first + 1}


def test_a_port_asked_for_by_its_number_is_looked_at_anew(
    ports: PortAllocator, pool: PoolSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "monotonic", lambda: 1_000.0)
    ports.claim("email", org="org-1")
    with (
        Stranger(socket.AF_INET, "127.0.0.1", pool.first + 1),
        pytest.raises(HeldError, match="listens on it"),
    ):
        ports.claim("email", org="org-2", port=pool.first + 1)
    assert ports.claim("email", org="org-2", port=pool.first + 1).port == pool.first + 1


def test_a_listener_that_is_gone_is_not_avoided_any_more(pool: PoolSpec) -> None:
    kernel, step = Answers(), ReadListeners(pool.first, pool.last)
    with Stranger(socket.AF_INET, "127.0.0.1", pool.first):
        assert kernel.answer(step) == {pool.first}
    assert kernel.answer(step) == frozenset()
