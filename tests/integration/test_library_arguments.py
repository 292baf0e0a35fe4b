"""What the library's methods take: durations as seconds or text, and a wrong argument is an error that names it."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from typing import TYPE_CHECKING, Any

import pytest

from allocator import AsyncPortAllocator, InvalidInputError, PortAllocator

if TYPE_CHECKING:
    from collections.abc import Callable

    from allocator import PoolSpec

WRONG: dict[str, list[object]] = {
    "org": [7, b"org", "", None],
    "instance": [-1, 1.5, "0", True],
    "port": [0, 65_536, 5556.0, [5556]],
    "hint": ["x", -1],
    "ttl": ["3", "soon", [], -1, 0, float("nan"), True, "0s"],
    "labels": ["a=b", 3, {"a": 1}, {1: "a"}],
    "pid": ["me", -1, 1.0, 4_194_305],
    "holder_pid": ["me", 4_194_305],
    "auto_instance": ["yes", 1],
    "priority": [10, -1, "3", 1.0],
    "token": ["short", b"0" * 32, 7],
    "supersede_fence": ["1", -1],
    "wait": ["3", "soon", -1, [], float("nan")],
    "record": ["yes", 1],
    "plugin": [None, 3, b"email"],
    "orgg": ["org-1"],
    "ports": [["http"]],
}
CASES = [(name, value) for name, values in WRONG.items() for value in values]


def called(method: Callable[..., Any], name: str, value: object) -> Any:
    arguments = {"plugin": "email", "org": "org-1", name: value}
    return method(**arguments)


@pytest.mark.parametrize(("name", "value"), CASES, ids=[f"{name}={value!r}" for name, value in CASES])
def test_a_wrong_argument_of_a_claim_is_an_error_of_one_line(ports: PortAllocator, name: str, value: object) -> None:
    for method in (ports.claim, ports.hold, ports.claim_anywhere):
        if method == ports.claim_anywhere and (name in {"wait", "record"} or value == 4_194_305):
            continue
        with pytest.raises(InvalidInputError) as refused, contextlib.ExitStack() as stack:
            stack.enter_context(called(method, name, value))
        assert "\n" not in str(refused.value)
    assert ports.leases() == []


@pytest.mark.parametrize("name", ["ttl", "wait", "labels", "pid", "instance", "orgg", "record", "auto_instance"])
def test_the_async_face_refuses_the_same_with_the_same_text(
    redis_url: str, pool: PoolSpec, ports: PortAllocator, name: str
) -> None:
    async def refusal(value: object) -> str:
        async with AsyncPortAllocator.from_url(redis_url, pool=pool.name, host="web-1") as others:
            with pytest.raises(InvalidInputError) as refused:
                await called(others.claim, name, value)  # type: ignore[misc]
        return str(refused.value)

    for value in WRONG[name]:
        with pytest.raises(InvalidInputError) as refused:
            called(ports.claim, name, value)
        assert asyncio.run(refusal(value)) == str(refused.value)


def test_an_argument_that_is_missing_or_too_much_is_named(ports: PortAllocator) -> None:
    for call, text in (
        (lambda: ports.claim(org="org-1"), "claim() missing"),
        (lambda: ports.claim("email"), "a claim needs org"),
        (ports.hold, "hold() missing"),
        (ports.release, "release() missing"),
        (lambda: ports.leases(orgs="x"), "unexpected keyword argument 'orgs'"),
        (lambda: ports.resolve("email"), "resolve() missing"),
        (lambda: ports.claim_ports("email", "http", org="org-1"), "names="),
        (lambda: ports.claim_ports("email", [1], org="org-1"), "names="),
        (lambda: PortAllocator.from_url("redis://x", pol="x"), "unexpected keyword argument 'pol'"),
        (lambda: PortAllocator.from_url("redis://x", timeout="soon"), "timeout"),
        (lambda: PortAllocator.from_url("redis://x", timeout=0), "timeout"),
        (lambda: PortAllocator.from_url("redis://x", pool=7), "pool=7"),
        (lambda: PortAllocator.from_url("redis://x", host=7), "host=7"),
        (lambda: PortAllocator.from_url(7), "url=7"),
        (lambda: AsyncPortAllocator.from_url("redis://x", on_lost=[]), "policy"),
    ):
        with pytest.raises(InvalidInputError) as refused:
            call()
        assert text in str(refused.value)


@pytest.mark.parametrize("method", ["release", "decline", "renew", "release_all", "update"])
def test_what_is_no_lease_is_refused_by_name(ports: PortAllocator, method: str) -> None:
    for wrong in (5556, "o/email#0", None, {"token": "0" * 32}):
        with pytest.raises(InvalidInputError, match=rf"{type(wrong).__name__} is not a.* lease; give what"):
            getattr(ports, method)(wrong)


def test_a_held_lease_can_be_renewed_and_ended_before_its_block_is_over(ports: PortAllocator, redis_url: str) -> None:
    for end in (ports.release, ports.release_all, ports.decline):
        with ports.hold("email", org="o") as held:
            assert ports.renew(held)[0].port == held.port
            assert end(held)
            assert ports.leases() == []
            assert not held.lost.is_set()

    async def scenario() -> None:
        others = AsyncPortAllocator.from_url(redis_url, pool=ports.session.pool, host="web-2")
        async with others, others.hold("email", org="o") as held:
            assert (await others.renew(held))[0].port == held.port
            assert await others.release(held)
            assert await others.leases() == []

    asyncio.run(scenario())


def test_durations_are_seconds_or_text(redis_url: str, pool: PoolSpec, ports: PortAllocator) -> None:
    assert ports.claim("email", org="org-1", ttl="3s", wait="1s").ttl_ms == 3_000
    assert ports.claim("email", org="org-2", ttl=3).ttl_ms == 3_000
    assert ports.claim("email", org="org-3", ttl=1.5, wait=0).ttl_ms == 1_500
    with ports.hold("email", org="org-4", ttl="2s") as lease:
        assert lease.lease.ttl_ms == 2_000

    async def scenario() -> int:
        async with AsyncPortAllocator.from_url(redis_url, pool=pool.name, host="web-1", timeout="5s") as others:
            return (await others.claim("email", org="org-5", ttl="1.5s", wait="1s")).ttl_ms

    assert asyncio.run(scenario()) == 1_500


def test_both_faces_have_the_same_methods_with_the_same_arguments_and_docstrings() -> None:
    names = {name for name in vars(PortAllocator) if not name.startswith("_")}
    assert names == {name for name in vars(AsyncPortAllocator) if not name.startswith("_")}
    for name in names - {"run", "for_host", "close", "hold"}:
        blocking, awaited = getattr(PortAllocator, name), getattr(AsyncPortAllocator, name)
        assert inspect.getdoc(blocking) == inspect.getdoc(awaited) != None  # noqa: E711
        assert inspect.signature(blocking) == inspect.signature(awaited)
