"""Long-running commands log a JSON object a line where nobody watches, and lines for people on a terminal."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from allocator import PoolSpec, PortAllocator

ABOUT = {"pool", "host", "port", "org", "plugin", "instance", "fence"}
LONG_RUNNING = {
    "run": ["run", "email", "--org", "org-1", "--", "sleep", "600"],
    "agent": ["agent"],
    "serve": ["serve", "--listen", "127.0.0.1:0"],
    "reconcile": ["reconcile", "--watch", "--every", "1h"],
    "export": ["export", "env", "--watch", "--out", "workers.env"],
}


@contextlib.contextmanager
def started(allocator, *arguments: str, stderr: int = subprocess.PIPE, **variables: str) -> Iterator[subprocess.Popen]:
    command = [sys.executable, "-m", "allocator", *arguments]
    environment = allocator.environment(**variables)
    with subprocess.Popen(command, env=environment, cwd=allocator.state, stderr=stderr, text=True) as process:
        try:
            yield process
        finally:
            process.terminate()


def line_about(process: subprocess.Popen, phrase: str) -> dict[str, Any]:
    """Read the log up to the line that says this; every line has to be an object."""
    for text in process.stderr:
        line = json.loads(text)
        assert {"at", "level", "logger", "message"} <= set(line)
        if phrase in line["message"]:
            return line
    raise AssertionError(f"the log ended without {phrase!r}")


@pytest.mark.parametrize("name", LONG_RUNNING)
def test_every_line_into_a_pipe_is_a_json_object(allocator, name: str) -> None:
    printed = {
        "run": "runs on",
        "agent": "looking after",
        "serve": "serving",
        "reconcile": "leading",
        "export": "written",
    }
    with started(allocator, *LONG_RUNNING[name]) as process:
        line_about(process, printed[name])
        process.terminate()
        rest = process.stderr.read()
    assert all(json.loads(line) for line in rest.splitlines())


@pytest.mark.parametrize("name", LONG_RUNNING)
def test_on_a_terminal_the_same_is_a_line_for_people(allocator, name: str) -> None:
    reader, writer = pty.openpty()
    with started(allocator, *LONG_RUNNING[name], stderr=writer), os.fdopen(reader, "rb") as seen:
        os.close(writer)
        line = seen.readline().decode()
    assert line[2] == line[5] == ":"
    assert not line.startswith("{")


def test_a_line_about_a_lease_states_whose_it_is(allocator, ports: PortAllocator, pool: PoolSpec) -> None:
    with started(allocator, *LONG_RUNNING["run"]) as process:
        line = line_about(process, "runs on")
        (lease,) = ports.leases()
        assert {name: line[name] for name in ABOUT} == {name: getattr(lease, name) for name in ABOUT}


def test_a_supervisor_reports_a_refusal_as_its_last_line(allocator) -> None:
    arguments = ["run", "email", "--org", "org-1", "--port", "1", "--", "true"]
    with started(allocator, *arguments) as process:
        line = json.loads(process.stderr.read())
    assert process.returncode == 2
    assert (line["level"], "1" in line["message"]) == ("error", True)


def test_an_agent_and_a_server_name_the_lease_of_each_event(allocator, ports: PortAllocator) -> None:
    with subprocess.Popen(["sleep", "600"]) as worker:
        try:
            port = int(allocator("claim", "email", "--org", "org-1", "--pid", str(worker.pid)).out)
            fence = ports.leases()[0].fence
            with started(allocator, *LONG_RUNNING["agent"]) as process:
                line_about(process, "looking after 1 leases")
                worker.kill()
                line = line_about(process, "has ended")
                assert (line["port"], line["fence"], line["org"], line["plugin"]) == (port, fence, "org-1", "email")
        finally:
            worker.kill()
    with started(allocator, *LONG_RUNNING["serve"]) as process:
        url = line_about(process, "serving")["message"].partition(" on ")[2].partition(";")[0]
        lease = httpx.post(f"{url}/v1/leases", json={"plugin": "email", "org": "org-2"}).json()
        line = line_about(process, "claimed")
        assert {name: line[name] for name in ABOUT} == {name: lease[name] for name in ABOUT}
        assert line["caller"] == "local"


def test_a_worker_that_fails_is_a_warning_and_one_that_is_given_up_an_error(allocator) -> None:
    arguments = ["run", "email", "--org", "org-1", "--max-restarts", "1", "--", "false"]
    with started(allocator, *arguments) as process:
        assert line_about(process, "runs on")["level"] == "info"
        assert line_about(process, "starting it again")["level"] == "warning"
        assert line_about(process, "is given up")["level"] == "error"
