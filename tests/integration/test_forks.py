"""After a fork the leases are the parent's: a child's copies refuse, and end nothing."""

from __future__ import annotations

import asyncio
import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from allocator import AsyncPortAllocator, LeaseLostError, PortAllocator

if TYPE_CHECKING:
    from collections.abc import Callable

    from allocator import PoolSpec


def in_a_fork(action: Callable[[], object]) -> Any:
    """Run something in a forked child; return what it returned there, or the name and the text of its error."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            found: object = action()
        except BaseException as error:  # noqa: BLE001  # the child must not run the rest of the tests
            found = [type(error).__name__, str(error)]
        with contextlib.suppress(BaseException):
            os.write(writing, json.dumps(found).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        found = json.loads(answer.read())
    os.waitpid(child, 0)
    return found


def test_a_child_that_leaves_the_block_of_its_parent_releases_nothing(ports: PortAllocator) -> None:
    def leave() -> object:
        stack.close()
        ports.close()
        return "left"

    with contextlib.ExitStack() as stack:
        held = stack.enter_context(ports.hold("email", org="org-1"))
        assert in_a_fork(leave) == "left"
        assert [one.fence for one in ports.leases()] == [held.fence]
        assert not held.lost.is_set()
        assert ports.renew(held.lease)


def test_the_copy_in_a_child_states_at_once_whose_the_lease_is(ports: PortAllocator) -> None:
    with ports.hold("email", org="org-1") as held:
        is_lost, why = in_a_fork(lambda: [held.lost.is_set(), str(held.error)])
    assert is_lost
    assert f"stays with process {os.getpid()}, from which this one was forked; claim one here" in why


@pytest.mark.parametrize("method", ["release", "decline", "renew", "release_all"])
def test_what_a_child_does_with_its_copy_is_a_clear_error(ports: PortAllocator, method: str) -> None:
    lease = ports.claim("email", org="org-1")
    with ports.hold("stripe", org="org-1") as held:
        for copy in (lease, held):
            kind, sentence = in_a_fork(lambda copy=copy: getattr(ports, method)(copy))  # type: ignore[misc]  # its default
            assert kind == LeaseLostError.__name__
            assert f"stays with process {os.getpid()}" in sentence
        assert {one.fence for one in ports.leases()} == {lease.fence, held.fence}
    assert ports.release(ports.renew(lease)[0])


def test_a_child_claims_and_ends_leases_of_its_own(ports: PortAllocator) -> None:
    def own() -> object:
        with ports.hold("stripe", org="org-1") as mine:
            return [mine.lost.is_set(), len(ports.leases(plugin="stripe"))]

    with ports.hold("email", org="org-1") as held:
        assert in_a_fork(own) == [False, 1]
        assert [one.fence for one in ports.leases()] == [held.fence]


def _end(ports: PortAllocator, lease: Any, answers: Any) -> None:
    try:
        answers.put(ports.release(lease))
    except LeaseLostError as error:
        answers.put(str(error))


def test_a_process_of_multiprocessing_is_such_a_child(ports: PortAllocator, pool: PoolSpec) -> None:
    forks = multiprocessing.get_context("fork")
    answers = forks.Queue()
    lease = ports.claim("email", org="org-1")
    process = forks.Process(target=_end, args=(ports, lease, answers))
    process.start()
    assert "claim one here, after the fork" in answers.get(timeout=60)
    process.join()
    assert [one.port for one in ports.leases()] == [lease.port]


def test_heartbeats_of_the_parent_go_on_after_a_fork(ports: PortAllocator) -> None:
    with ports.hold("email", org="org-1", ttl="500ms") as held:
        in_a_fork(lambda: "nothing")
        threading.Event().wait(1.2)
        assert [one.fence for one in ports.leases()] == [held.fence]


LEFT_OPEN = """
import os, sys
from allocator import PortAllocator
ports = PortAllocator()
block = ports.hold("email", org="org-1", ttl="2s")
held = block.__enter__()
if "fork" in sys.argv and os.fork() == 0:
    sys.stdin.read()
    print(held.lost.is_set(), held.error, flush=True)
    os._exit(0)
"""


@pytest.mark.parametrize("how", ["", "fork"])
def test_a_program_ends_with_its_block_open_and_a_child_learns_whose_the_lease_is(
    redis_url: str, pool: PoolSpec, how: str
) -> None:
    settings = {"ALLOCATOR_REDIS_URL": redis_url, "ALLOCATOR_POOL": pool.name, "ALLOCATOR_HOST": "web-1"}
    program = subprocess.Popen(
        [sys.executable, "-c", LEFT_OPEN, how],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | settings,
    )  # fmt: skip
    assert program.wait(timeout=60) == 0
    out, err = program.communicate()
    assert err == ""
    assert ("True" in out and "claim one here, after the fork" in out) is bool(how)


def test_a_child_that_leaves_the_async_blocks_of_its_parent_releases_nothing(
    redis_url: str, pool: PoolSpec, ports: PortAllocator
) -> None:
    async def scenario() -> None:
        async with contextlib.AsyncExitStack() as stack:
            allocator = await stack.enter_async_context(AsyncPortAllocator.from_url(redis_url, pool=pool.name))
            held = await stack.enter_async_context(allocator.hold("email", org="org-1"))

            def leave() -> object:
                closing = stack.aclose()
                with contextlib.suppress(StopIteration):
                    closing.send(None)
                return "left"

            assert in_a_fork(leave) == "left"
            assert [one.fence for one in ports.leases()] == [held.fence]

    asyncio.run(scenario())
