"""A port that somebody else has is declined and replaced; a stranger that answers on it is no health."""

from __future__ import annotations

import os
import re
import socket
from typing import TYPE_CHECKING

import pytest
from supervised import WORKERS, Fleet, eventually, finish

if TYPE_CHECKING:
    from pathlib import Path


def test_a_port_that_is_in_use_is_declined_and_another_one_is_tried(fleet: Fleet) -> None:
    message = 'echo "Error: listen EADDRINUSE: address already in use :::$PORT" >&2; exit 2'
    conflict = f"[ $PORT = {fleet.pool.first} ] && {{{{ {message}; }}}}; echo $PORT"
    status, out, err = finish(fleet.run(command=["sh", "-c", conflict]))
    assert (status, out) == (0, f"{fleet.pool.first + 1}\n")
    assert "trying another" in err
    assert fleet.events()[-4:] == ["granted", "declined", "granted", "released"]


def test_an_error_about_another_port_costs_no_port(fleet: Fleet) -> None:
    command = ["sh", "-c", "echo 'Error: listen EADDRINUSE: address already in use :::9229' >&2; exit 1"]
    status, _, _ = finish(fleet.run("--restart", "never", command=command))
    assert status == 1
    assert "declined" not in fleet.events()


@pytest.mark.parametrize("command", WORKERS)
def test_a_stranger_between_claim_and_bind_costs_one_port_only(
    fleet: Fleet, command: list[str], tmp_path: Path
) -> None:
    """The worker's command waits until the stranger has the port that was claimed for it."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    waiting = ["sh", "-c", f'[ $PORT != {fleet.pool.first} ] || cat {gate} >/dev/null; exec "$@"', "sh", *command]
    process = fleet.run("--health", "/health", command=waiting)
    fleet.started_lease(process)
    with socket.create_server(("", fleet.pool.first)), gate.open("w") as opened:
        opened.close()
        lease = fleet.lease()
    assert lease.port == fleet.pool.first + 1
    process.terminate()
    _, _, err = finish(process)
    assert f"port {fleet.pool.first} is in use by" in err
    assert f"pid {os.getpid()}" in err


def test_a_stranger_that_answers_is_no_health(fleet: Fleet, tmp_path: Path) -> None:
    """The worker never listens, and never ends: another process has its port and accepts connections."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    command = ["sh", "-c", f"[ $PORT != {fleet.pool.first} ] || cat {gate} >/dev/null; exec sleep 600"]
    fleet.started_lease(fleet.run(command=command))
    with socket.create_server(("", fleet.pool.first)), gate.open("w"):
        eventually(lambda: "declined" in fleet.events())
        assert "ready" not in [lease.state for lease in fleet.ports.leases()]
    eventually(lambda: [lease.port for lease in fleet.ports.leases()] == [fleet.pool.first + 1])


def test_an_explicit_port_that_a_process_has_names_that_process(fleet: Fleet) -> None:
    with socket.create_server(("127.0.0.1", fleet.pool.first)):
        status, _, err = finish(fleet.run("--port", str(fleet.pool.first)))
    assert status == 73
    assert f"pid {os.getpid()}" in err


def test_an_explicit_port_that_is_taken_after_the_claim_names_that_process(fleet: Fleet, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    command = ["sh", "-c", f"cat {gate}; echo 'listen EADDRINUSE' >&2; exit 2"]
    process = fleet.run("--port", str(fleet.pool.first), command=command)
    fleet.started_lease(process)
    with socket.create_server(("", fleet.pool.first)):
        gate.open("w").close()
        status, _, err = finish(process)
    assert status == 73
    assert re.search(rf"port {fleet.pool.first} on web-1 is in use by .*pid {os.getpid()}", err)
    assert fleet.ports.leases() == []


def test_too_many_strangers_in_a_row_end_it(fleet: Fleet) -> None:
    command = ["sh", "-c", "echo 'Address already in use' >&2; exit 2"]
    status, _, err = finish(fleet.run("--max-declines", "2", command=command))
    assert status == 73
    assert "3 ports in a row" in err
    assert fleet.events().count("declined") == 3


def test_a_stranger_on_the_port_of_a_worker_that_restarts_costs_it_that_port(fleet: Fleet, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    fails_first = f"[ $PORT != {fleet.pool.first} ] || {{{{ cat {gate}; exit 3; }}}}; echo serving on $PORT"
    process = fleet.run(command=["sh", "-c", fails_first])
    fleet.started_lease(process)
    with socket.create_server(("", fleet.pool.first)):
        gate.open("w").close()
        status, out, err = finish(process)
    assert (status, out) == (0, f"serving on {fleet.pool.first + 1}\n")
    assert "trying another" in err
