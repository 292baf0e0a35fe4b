"""A pre-start hook and a program that listens on the port that its worker has."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Self

import pytest

if TYPE_CHECKING:
    from allocator import PoolSpec, PortAllocator
    from tests.integration.cli.conftest import Allocator

LISTEN = (
    "import socket, sys; one = socket.create_server(('', int(sys.argv[1]))); print('up', flush=True); sys.stdin.read()"
)
DEPLOY = Path(__file__).parents[3] / "deploy"


class Program:
    """A program that listens on a port until the end of the block."""

    def __init__(self, port: str, **variables: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", LISTEN, port],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | variables,
        )  # fmt: skip

    def __enter__(self) -> Self:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "up\n"
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.process.communicate()

    @property
    def pid(self) -> int:
        return self.process.pid


def test_before_a_start_a_port_that_a_stranger_listens_on_is_declined_and_another_one_claimed(
    allocator: Allocator, ports: PortAllocator
) -> None:
    first = allocator("claim", "email", "--org", "o").out.strip()
    with Program(first) as stranger:
        done = allocator("claim", "email", "--org", "o", "--pre-start")
        assert done.code == 0
        second = done.out.strip()
        assert second != first
        assert done.err.count("\n") == 1
        assert f"(pid {stranger.pid}" in done.err
        assert "left behind" not in done.err
        again = allocator("claim", "email", "--org", "o", "--pre-start")
        assert (again.code, again.out.strip(), again.err) == (0, second, "")
    assert [str(lease.port) for lease in ports.leases()] == [second]
    events = [fields for _, fields in ports.store.newest_events(f"alloc:{{{ports.session.pool}}}:events", 20)]
    assert [one["type"] for one in events if one["port"] == first] == ["granted", "declined"]


def test_the_worker_s_own_orphan_is_named_as_such(allocator: Allocator) -> None:
    first = allocator("claim", "email", "--org", "o").out.strip()
    with Program(first, EMAIL_PLUGIN_PORT=first) as orphan:
        done = allocator("claim", "email", "--org", "o", "--pre-start")
        assert done.out.strip() != first
        assert f"pid {orphan.pid}" in done.err
        assert "which an earlier start of o/email#0 left behind" in done.err


def test_without_the_option_the_same_port_is_printed_and_the_listener_named(allocator: Allocator) -> None:
    first = allocator("claim", "email", "--org", "o").out.strip()
    with Program(first) as stranger:
        done = allocator("claim", "email", "--org", "o")
        assert (done.code, done.out.strip()) == (0, first)
        assert done.err.count("\n") == 1
        assert f"(pid {stranger.pid}" in done.err
        assert "--pre-start" in done.err
    quiet = allocator("claim", "email", "--org", "o")
    assert (quiet.code, quiet.out.strip(), quiet.err) == (0, first, "")


def test_an_explicit_port_that_a_stranger_listens_on_is_an_error(allocator: Allocator, pool: PoolSpec) -> None:
    port = str(pool.first)
    assert allocator("claim", "email", "--org", "o", "--port", port).out.strip() == port
    with Program(port):
        done = allocator("claim", "email", "--org", "o", "--port", port, "--pre-start")
    assert done.code == 73
    assert "listens on it" in done.err


def test_several_ports_are_given_back_together_when_one_is_listened_on(
    allocator: Allocator, ports: PortAllocator
) -> None:
    names = ("--ports", "http,debug")
    arguments = allocator("claim", "email", "--org", "o", *names).out.split()
    with Program(arguments[1].partition("=")[2]):
        done = allocator("claim", "email", "--org", "o", "--pre-start", *names)
    assert done.code == 0
    assert arguments[1] not in done.out.split()
    assert len(ports.leases()) == 2


HOOKS = ["hooks/claim-port.sh", "hooks/start-worker.sh", "hooks/package.json", "systemd/plugin-email@.service",
         "kubernetes/worker-hook.yaml"]  # fmt: skip


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_that_claims_before_a_start_reports_it(hook: str) -> None:
    lines = [line for line in (DEPLOY / hook).read_text().splitlines() if "allocator claim" in line and "#" not in line]
    before = [line for line in lines if "ExecStartPost" not in line]
    assert before
    assert all("--pre-start" in line for line in before)
