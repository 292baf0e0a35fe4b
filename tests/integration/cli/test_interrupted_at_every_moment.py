"""Ctrl-C ends a command with 130 and without a traceback, at whatever moment after it has begun it is typed."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from allocator import PoolSpec, PortAllocator

BEGUN = "allocator.model.errors"
"""What `main` imports once it heeds Ctrl-C; `-X importtime` tells when that was imported, and what came after it."""

QUIET_S = 3.0
"""A command that has imported nothing for so long waits."""

COMMANDS = {
    "claim": ["claim", "email", "--org", "late", "--wait", "60s"],
    "resolve": ["resolve", "email", "--org", "nobody", "--wait", "60s"],
    "events": ["events", "--follow"],
    "run": ["run", "email", "--org", "late", "--wait", "60s", "--", "true"],
}


def interrupted(allocator, arguments: list[str], after_imports: int) -> int:
    """Interrupt a command once it has imported so many modules, or waits; return its status."""
    command = [sys.executable, "-X", "importtime", "-m", "allocator", *arguments]
    environment = allocator.environment()
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        text, seen = b"", 0
        while seen <= after_imports and select.select([process.stderr], [], [], QUIET_S if seen else 60)[0]:
            text += os.read(process.stderr.fileno(), 200)
            seen += BEGUN.encode() in text
        assert seen, text.decode()
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert b"Traceback" not in rest, rest.decode()
    return process.returncode


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("after_imports", [0, 3, 9, 27, 60, 1_000])
def test_ctrl_c_ends_a_command_with_130_while_it_starts_and_while_it_waits(
    allocator, pool: PoolSpec, ports: PortAllocator, name: str, after_imports: int
) -> None:
    for number in range(pool.size):
        ports.claim("email", org=f"org-{number}")
    assert interrupted(allocator, COMMANDS[name], after_imports) == 130
    assert len(ports.leases()) == pool.size
