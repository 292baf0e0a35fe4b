"""The promise: a call goes over a connection of its own that is whole, whatever happened to it since the last call."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from redis import Redis
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as NoAnswerError

from allocator.store.blocking import lines_of
from allocator.store.lines import Lines

if TYPE_CHECKING:
    from allocator import PortAllocator
    from allocator.model.pools import PoolSpec


@pytest.fixture
def client(redis_url: str):
    with Redis.from_url(redis_url, protocol=2, socket_timeout=5, client_name="lines") as one:
        yield one


@pytest.fixture
def lines(client: Redis) -> Lines:
    found = lines_of(client)
    assert found
    return found


def test_one_connection_serves_one_call_after_the_other(lines: Lines) -> None:
    assert len({lines.ask("CLIENT", "ID") for _ in range(5)}) == 1


def test_an_error_answer_is_raised_and_spoils_nothing(lines: Lines) -> None:
    before = lines.ask("CLIENT", "ID")
    with pytest.raises(ResponseError, match="unknown command"):
        lines.ask("NO-SUCH-COMMAND")
    assert lines.ask("CLIENT", "ID") == before


def test_a_connection_that_the_server_has_closed_is_not_used_again(lines: Lines, client: Redis) -> None:
    before = lines.ask("CLIENT", "ID")
    assert client.client_kill_filter(_id=str(before)) == 1
    assert lines.ask("CLIENT", "ID") != before


def test_an_answer_that_comes_too_late_is_nobody_elses(redis_url: str) -> None:
    with Redis.from_url(redis_url, protocol=2, socket_timeout=0.05) as impatient:
        lines = Lines(impatient)
        with pytest.raises(NoAnswerError):
            lines.ask("BLPOP", "lines:nothing", 1)
        assert lines.ask("ECHO", "mine") == b"mine"


def test_threads_that_call_at_once_each_have_a_connection_and_their_own_answers(lines: Lines) -> None:
    together = threading.Barrier(8)

    def talk(number: int) -> list[bytes]:
        together.wait(10)
        return [lines.ask("ECHO", f"{number}-{at}") for at in range(50)]

    with ThreadPoolExecutor(8) as pool:
        for number, said in enumerate(pool.map(talk, range(8))):
            assert said == [f"{number}-{at}".encode() for at in range(50)]


def test_a_forked_process_makes_its_own_connection(lines: Lines) -> None:
    mine = lines.ask("CLIENT", "ID")
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, str(lines.ask("CLIENT", "ID")).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writing)
    with os.fdopen(reading) as said:
        assert int(said.read()) != mine
    assert lines.ask("CLIENT", "ID") == mine


def test_a_claim_after_the_server_has_closed_all_connections_is_like_any_other(
    ports: PortAllocator, pool: PoolSpec, client: Redis
) -> None:
    lease = ports.claim("email", org="org-1")
    for one in client.client_list():
        if one["name"] == "portlease":
            client.client_kill_filter(_id=one["id"])
    assert ports.release(lease) is True
    assert pool.first <= ports.claim("email", org="org-1").port <= pool.last
