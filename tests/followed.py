"""Follows a claim: which of our files run functions, and which scripts are sent. Run as a child: it ends the process.

    python followed.py command claim email --org o      the command line
    python followed.py library URL POOL                 PortAllocator.claim, connected before
    python followed.py api URL POOL                     POST /v1/leases, after one that was not followed

The last line of standard error is one JSON object. Module and class bodies are not counted, and neither are
comprehensions, which newer Pythons run in place.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import allocator

if TYPE_CHECKING:
    from types import CodeType, FrameType

ROOT = str(Path(allocator.__file__).parent) + os.sep
FUNCTION = inspect.CO_OPTIMIZED | inspect.CO_NEWLOCALS
INLINED = {"<listcomp>", "<dictcomp>", "<setcomp>", "<genexpr>"}

ran: set[CodeType] = set()
scripts: list[str] = []


def follow(frame: FrameType, event: str, argument: object) -> None:
    """Note a call."""
    del argument
    if event == "call":
        ran.add(frame.f_code)


def begin() -> None:
    """Follow this thread and those that it starts."""
    from allocator.store.blocking import Store

    run = Store._evaluate

    def counted(self: Store, step: Any) -> Any:
        scripts.append(step.script)
        return run(self, step)

    Store._evaluate = counted  # type: ignore[method-assign]
    threading.setprofile(follow)
    sys.setprofile(follow)


def report() -> None:
    """Print what ran."""
    sys.setprofile(None)
    files = {
        code.co_filename.removeprefix(ROOT)
        for code in ran
        if code.co_filename.startswith(ROOT) and code.co_flags & FUNCTION == FUNCTION and code.co_name not in INLINED
    }
    print(json.dumps({"files": sorted(files), "scripts": scripts}), file=sys.stderr, flush=True)


def command(arguments: list[str]) -> None:
    """Run a command as `allocator` does."""
    from allocator.__main__ import main

    end = os._exit

    def reported(status: int) -> None:
        report()
        end(status)

    os._exit = reported  # type: ignore[assignment]
    sys.argv = ["allocator", *arguments]
    begin()
    main()


def library(url: str, pool: str) -> None:
    """Claim from a program that has claimed before."""
    from allocator import PortAllocator

    with PortAllocator.from_url(url, pool=pool) as ports:
        ports.claim("stripe", org="o")
        begin()
        ports.claim("email", org="o")
        report()


def api(url: str, pool: str) -> None:
    """Claim over HTTP, without the server around the application."""
    import asyncio

    import httpx

    from allocator import AsyncPortAllocator
    from allocator.api.application import create_app

    async def claim() -> None:
        async with AsyncPortAllocator.from_url(url, pool=pool) as ports:
            transport = httpx.ASGITransport(create_app(ports))
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as http:
                for plugin in ("stripe", "email"):
                    if plugin == "email":
                        begin()
                    answer = await http.post("/v1/leases", json={"plugin": plugin, "org": "o"})
                    assert answer.status_code == 201, answer.text
                report()

    asyncio.run(claim())


if __name__ == "__main__":
    what, *others = sys.argv[1:]
    if what == "command":
        command(others)
    else:
        {"library": library, "api": api}[what](*others)
