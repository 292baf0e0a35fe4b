"""Several ports for one worker: all or none, in its words and its environment, given back together."""

from __future__ import annotations

import os
import socket
import sys
from typing import TYPE_CHECKING

import pytest
from supervised import Fleet, eventually, finish

if TYPE_CHECKING:
    from pathlib import Path

LISTEN = (
    "import os, socket, sys, time\n"
    "ports = [int(word) for word in sys.argv[1:]]\n"
    "assert ports == [int(os.environ[name]) for name in ('PORT_HTTP', 'PORT_DEBUG')], ports\n"
    "assert os.environ['PORT'] == os.environ['EMAIL_PLUGIN_PORT'] == os.environ['PORT_HTTP']\n"
    "servers = [socket.create_server(('', port)) for port in ports]\n"
    "time.sleep(600)"
)
OPTIONS = ("--ports", "http,debug")
WORKER = [sys.executable, "-c", LISTEN, "{port.http}", "{port.debug}"]


def by_plugin(fleet: Fleet) -> dict[str, int]:
    return {one.plugin: one.port for one in fleet.ports.leases()}


def test_each_port_has_its_template_its_variable_and_its_lease_and_all_are_given_back(fleet: Fleet) -> None:
    process = fleet.run(*OPTIONS, command=WORKER)
    eventually(lambda: [one.state for one in fleet.ports.leases()] == ["ready"] * 2)
    ports = by_plugin(fleet)
    assert sorted(ports) == ["email", "email+debug"]
    assert fleet.listening() == frozenset(ports.values())
    process.terminate()
    finish(process)
    assert fleet.ports.leases() == []
    assert fleet.events()[-2:] == ["released", "released"]


def test_a_stranger_on_one_of_the_ports_costs_that_port_and_the_worker_gets_others(
    fleet: Fleet, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    waiting = f'[ -e started ] || {{{{ touch started; cat {gate} >/dev/null; }}}}; exec "$@"'
    process = fleet.run(*OPTIONS, command=["sh", "-c", waiting, "sh", *WORKER])
    fleet.started_lease(process)
    before = by_plugin(fleet)
    with socket.create_server(("", before["email+debug"])):
        gate.open("w").close()
        eventually(lambda: [one.state for one in fleet.ports.leases()] == ["ready"] * 2)
        after = by_plugin(fleet)
    assert before["email+debug"] not in after.values()
    assert after["email"] == before["email"], "a port that was not refused is free for its worker at once"
    assert fleet.events().count("declined") == 1


def test_a_killed_supervisor_that_is_started_again_has_all_ports_at_once(fleet: Fleet) -> None:
    first = fleet.run(*OPTIONS, "--ttl", "10m", command=WORKER)
    eventually(lambda: [one.state for one in fleet.ports.leases()] == ["ready"] * 2)
    before, fences = by_plugin(fleet), {one.fence for one in fleet.ports.leases()}
    first.kill()
    first.wait()
    fleet.run(*OPTIONS, "--ttl", "10m", command=WORKER)
    eventually(
        lambda: [one.state for one in fleet.ports.leases() if one.fence not in fences] == ["ready"] * 2,
        "the second supervisor's worker never became ready",
    )
    assert by_plugin(fleet) == before


def test_the_ports_that_a_hook_claimed_are_taken_over(fleet: Fleet) -> None:
    status, out, _ = finish(fleet.spawn("claim", "email", "--org", "org-1", *OPTIONS, "--contiguous"))
    assert status == 0
    fleet.run(*OPTIONS, command=WORKER)
    eventually(lambda: [one.state for one in fleet.ports.leases()] == ["ready"] * 2)
    ports = by_plugin(fleet)
    assert out == f"http={ports['email']}\ndebug={ports['email+debug']}\n"
    assert fleet.events().count("granted") == 2


def test_when_one_of_the_leases_is_lost_the_worker_stops_and_the_others_are_released(fleet: Fleet) -> None:
    process = fleet.run(*OPTIONS, "--ttl", "1s", command=WORKER)
    eventually(lambda: [one.state for one in fleet.ports.leases()] == ["ready"] * 2)
    (debug,) = [one for one in fleet.ports.leases() if one.plugin == "email+debug"]
    thief = fleet.ports.claim("email+debug", org="org-1", supersede_fence=debug.fence, ttl=60)
    status, _, err = finish(process)
    assert status == 73
    assert "email+debug" in err
    eventually(lambda: [one.fence for one in fleet.ports.leases()] == [thief.fence])
    assert fleet.events()[-1] == "released"
    assert not fleet.listening()


def test_each_socket_can_be_passed(fleet: Fleet) -> None:
    show = (
        "import os, socket\n"
        "for fd, name in enumerate(os.environ['LISTEN_FDNAMES'].split(':'), 3):\n"
        "    s = socket.socket(fileno=fd); print(name, s.getsockname()[1], s.getsockopt(socket.SOL_SOCKET, 30))"
    )
    _, out, _ = finish(fleet.run(*OPTIONS, "--contiguous", "--listen-fd", command=[sys.executable, "-c", show]))
    first = fleet.pool.first
    assert out == f"http {first} 1\ndebug {first + 1} 1\n"


MISTAKES = {
    "an unknown name": (["--ports", "http", "--", "true", "{port.debug}"], "'{port.debug}' in the command is not a"),
    "one without names": (["--", "true", "{port.http}"], "'{port.http}' in the command is not a template"),
    "twice the same": (["--ports", "http,http", "--", "true"], "does not name ports"),
    "an explicit port": (["--ports", "http,debug", "--port", "15000", "--", "true"], "cannot be one explicit port"),
    "contiguous alone": (["--contiguous", "--", "true"], "only several ports can be contiguous"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_ports_that_cannot_be_are_refused_before_any_claim(fleet: Fleet, name: str) -> None:
    arguments, printed = MISTAKES[name]
    status, _, err = finish(fleet.spawn("run", "email", "--org", "org-1", *arguments))
    assert (status, printed in err, len(err.splitlines())) == (2, True, 1), err
    assert "granted" not in fleet.events()


def test_a_workers_file_names_the_ports_of_a_worker(fleet: Fleet, tmp_path: Path) -> None:
    show = f'["{sys.executable}", "-c", "import sys; print(*sys.argv[1:])", "{{port}}", "{{port.debug}}"]'
    text = f'[[worker]]\nplugin = "email"\norg = "o"\nports = ["http", "debug"]\nadjacent = true\ncommand = {show}\n'
    (tmp_path / "p.toml").write_text(text)
    status, out, err = finish(fleet.spawn("run", "--workers", "p.toml"))
    assert (status, out) == (0, f"{fleet.pool.first} {fleet.pool.first + 1}\n"), err
    (tmp_path / "p.toml").write_text(text.replace("{port.debug}", "{port.metrics}"))
    status, _, err = finish(fleet.spawn("run", "--workers", "p.toml"))
    assert status == 78
    assert "p.toml:6: command: '{port.metrics}' in the command is not a template" in err
