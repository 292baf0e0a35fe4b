"""A worker that does not listen, or not yet: started again in time, shown while it starts, and ready without a port."""

from __future__ import annotations

import json
import shlex
import sys

import pytest
from supervised import PYTHON_WORKER, Fleet, eventually, finish, is_running

NEVER = [sys.executable, "-S", "-c", "import time; time.sleep(600)"]


def test_a_worker_that_does_not_listen_in_time_is_started_again_on_its_port(fleet: Fleet) -> None:
    arguments = ("--start-timeout", "300ms", "--max-restarts", "1")
    status, _, err = finish(fleet.run(*arguments, command=NEVER))
    assert status
    assert f"it did not listen on port {fleet.pool.first} within 0.3 s" in err
    assert "given up" in err
    assert fleet.events().count("granted") == 1, "the port stays the same"


def test_it_is_reported_since_when_a_worker_starts(fleet: Fleet) -> None:
    fleet.run("--start-timeout", "0s", command=NEVER)
    lease = fleet.lease("starting")
    eventually(lambda: fleet.ports.leases()[0].started_at)
    out = finish(fleet.spawn("ls"))[1]
    assert "starting for " in out
    shown = finish(fleet.spawn("show", str(lease.port)))[1]
    assert "started_at" in shown
    assert f"starting org-1/email#0 on port {lease.port} since " in finish(fleet.spawn("doctor"))[1]
    found = json.loads(finish(fleet.spawn("doctor", "--format", "json"))[1])
    assert [(one["port"], one["restarts"]) for one in found["starting"]] == [(lease.port, 0)]


def test_doctor_shows_why_a_worker_starts_again(fleet: Fleet) -> None:
    fleet.run(
        "--max-restarts",
        "2",
        command=["sh", "-c", f"echo no key >&2; [ -e ran ] && exec {shlex.join(NEVER)}; >ran; exit 1"],
    )
    eventually(lambda: fleet.lease("starting").restarts)
    eventually(lambda: "restart 1: exit code 1: no key" in finish(fleet.spawn("doctor"))[1])


def test_doctor_names_a_worker_that_starts_for_too_long(fleet: Fleet) -> None:
    fleet.run("--start-timeout", "0s", command=NEVER)
    fleet.lease("starting")
    held = fleet.ports.claim("stripe", org="org-2")
    fleet.ports.renew(_started_long_ago(held), rewrite=True)
    out = finish(fleet.spawn("doctor"))[1]
    printed = f"org-2/stripe#0 on web-1:{held.port} has not become ready since 2001-09-09T01:46:40.000Z"
    assert printed in out
    assert "org-1/email#0 on web-1" not in out


def _started_long_ago(lease):
    from dataclasses import replace

    return replace(lease, started_at=1_000_000_000)


UDP = (
    "import os, socket, time\n"
    "one = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n"
    "one.bind(('127.0.0.1', int(os.environ['PORT'])))\n"
    "time.sleep(600)"
)
UNIX = (
    "import socket, time\none = socket.socket(socket.AF_UNIX)\none.bind('worker.sock')\none.listen()\ntime.sleep(600)"
)
CONSUMER = "import time\ntime.sleep(600)"


@pytest.mark.parametrize("code", [UDP, UNIX, CONSUMER], ids=["UDP", "a Unix socket", "a consumer"])
def test_a_worker_without_a_tcp_listener_is_ready_when_it_has_run_for_a_second(fleet: Fleet, code: str) -> None:
    fleet.run("--ready", "started", "--start-timeout", "3s", command=[sys.executable, "-S", "-c", code])
    assert fleet.lease().restarts == 0
    assert "nobody listens" not in finish(fleet.spawn("doctor"))[1]


def test_a_worker_that_ends_within_a_second_was_never_ready(fleet: Fleet) -> None:
    process = fleet.run("--ready", "started", "--restart", "never", command=["sh", "-c", "exit 3"])
    status, _, err = finish(process)
    assert status == 3
    assert "is ready" not in err


def test_a_start_cannot_be_asked_for_its_health(fleet: Fleet) -> None:
    status, _, err = finish(fleet.run("--ready", "started", "--health", "/health", command=NEVER))
    assert (status, "omit the health path" in err) == (2, True)


@pytest.mark.parametrize("how", ['"$@" & until curl -s $URL || nc -z 127.0.0.1 $PORT; do sleep 0.1; done', '"$@" &'])
def test_a_command_that_forks_into_the_background_learns_what_to_do(fleet: Fleet, how: str) -> None:
    from shutil import which

    if "nc" in how and not which("nc"):
        how = '"$@" & sleep 3'
    process = fleet.run(command=["sh", "-c", how, "sh", *PYTHON_WORKER])
    status, _, err = finish(process)
    assert status == 0
    line = next(line for line in err.splitlines() if "in the background" in line)
    pid = int(line.partition("left process ")[2].split()[0])
    assert "let the command stay in the foreground" in line
    assert not is_running(pid)
    assert fleet.ports.leases() == []
