"""What `deploy/` shows works: with the shell, npm, PM2 as npm installs it, and systemd's own checks."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from supervised import ROOT, Fleet, eventually, needs_node

from allocator.kernel.processes import process_table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEPLOY = ROOT / "deploy"
RUNNER = ROOT / "tests/workers/runner.mjs"


@pytest.fixture
def environment(fleet: Fleet) -> dict[str, str]:
    """The environment of a host on which an agent runs and `allocator` is on the path."""
    running = fleet.spawn("agent")
    assert any("looking after" in line for line in running.stderr)
    programs = fleet.state / "bin"
    programs.mkdir()
    program = programs / "allocator"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m allocator "$@"\n')
    program.chmod(0o755)
    return fleet.environment(PATH=f"{programs}{os.pathsep}{os.environ['PATH']}", HOME=str(fleet.state))


def test_a_shell_script_becomes_its_worker_and_has_the_same_port_again(
    fleet: Fleet, environment: dict[str, str]
) -> None:
    ports = []
    for _ in range(2):
        script = str(DEPLOY / "hooks/start-worker.sh")
        arguments = ["sh", script, "email", "org-1", "sh", "-c", "echo $PORT; exec sleep 600"]
        with subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, text=True) as worker:
            ports.append(int(worker.stdout.readline()))
            (lease,) = fleet.ports.leases()
            assert (lease.pid, lease.port) == (worker.pid, ports[-1])
            worker.kill()
        eventually(lambda: not fleet.ports.leases())
    assert ports[0] == ports[1]


def test_a_hook_ties_the_lease_to_the_script_that_called_it(fleet: Fleet, environment: dict[str, str]) -> None:
    hook = DEPLOY / "hooks/claim-port.sh"
    with subprocess.Popen(
        ["sh", "-c", f"PORT=$({hook} email org-1); echo $PORT; read wait"],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as script:  # fmt: skip
        port = int(script.stdout.readline())
        (lease,) = fleet.ports.leases()
        assert (lease.pid, lease.port) == (script.pid, port)
        script.stdin.close()
    eventually(lambda: not fleet.ports.leases())


@needs_node
@pytest.mark.skipif(not shutil.which("npm"), reason="needs npm")
def test_an_npm_prestart_claims_for_npm_itself(fleet: Fleet, environment: dict[str, str], tmp_path: Path) -> None:
    project = tmp_path / "project"
    project.mkdir()
    shutil.copy(DEPLOY / "hooks/package.json", project)
    shutil.copy(RUNNER, project / "worker.mjs")
    with subprocess.Popen(
        ["npm", "start", "--silent"], cwd=project, env=environment | {"ORG_ID": "org-1"},
        stdout=subprocess.DEVNULL, start_new_session=True,
    ) as npm:  # fmt: skip
        (lease,) = eventually(fleet.ports.leases)
        assert lease.pid == npm.pid
        listener = fleet.listener(lease.port)
        assert process_table()[listener].group == npm.pid
        os.killpg(npm.pid, signal.SIGTERM)
    eventually(lambda: not fleet.ports.leases())


@pytest.fixture(scope="session")
def pm2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """PM2 as npm installs it, or a skip where it cannot be had."""
    if not shutil.which("npm"):
        pytest.skip("needs npm")
    address = tmp_path_factory.mktemp("pm2")
    arguments = ["npm", "install", "--no-audit", "--no-fund", "--prefix", str(address), "pm2@6"]
    try:
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=300, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("PM2 cannot be installed: the registry does not answer")
    if done.returncode:
        pytest.skip(f"PM2 cannot be installed: {done.stderr.strip().splitlines()[-1:]}")
    return address / "node_modules/.bin/pm2"


@pytest.fixture
def managed(
    fleet: Fleet, environment: dict[str, str], pm2: Path, tmp_path: Path
) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """PM2 with the example's workers running; what calls it."""
    project = fleet.state / "project"  # PM2 takes a script that its directory has for the program of that name
    for plugin in ("email", "stripe"):
        (project / "plugins/core" / plugin).mkdir(parents=True)
    variables = environment | {"PM2_HOME": str(tmp_path / "pm2-home"), "PLUGIN_RUNNER": str(RUNNER)}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(pm2), *arguments], env=variables, cwd=project, capture_output=True, text=True, timeout=60, check=False
        )

    try:
        started = run("start", str(DEPLOY / "pm2/ecosystem.config.cjs"))
        assert started.returncode == 0, started.stdout + started.stderr
        yield run
    finally:
        run("kill")


@needs_node
def test_pm2_runs_its_workers_on_leased_ports_and_gets_them_again(
    fleet: Fleet, managed: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    def both() -> dict[str, object] | None:
        leases = {one.plugin: one for one in fleet.ports.leases()}
        listening = fleet.listening()
        return leases if len(leases) == 2 and all(one.port in listening for one in leases.values()) else None

    before = eventually(both, "the workers of PM2 did not start")
    managed("restart", "all")

    def again() -> dict[str, object] | None:
        leases = both()
        return leases if leases and all(leases[name].pid != before[name].pid for name in leases) else None

    after = eventually(again, "the workers of PM2 did not start again")
    assert {name: one.port for name, one in after.items()} == {name: one.port for name, one in before.items()}
    managed("delete", "all")
    eventually(lambda: not fleet.ports.leases())


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
@pytest.mark.parametrize("unit", sorted((DEPLOY / "systemd").glob("*.service")), ids=lambda path: path.name)
def test_systemd_finds_nothing_wrong_with_the_units(unit: Path, tmp_path: Path) -> None:
    for each in unit.parent.glob("*.service"):
        shutil.copy(each, tmp_path)
    name = unit.name.replace("@.", "@org-123.")
    arguments = ["systemd-analyze", "verify", "--man=no", str(tmp_path / name)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert [line for line in done.stderr.splitlines() if str(tmp_path) in line or name in line] == []


EXPOSURE = {"allocator-agent": 3.0, "allocator-serve": 3.0}
"""How exposed a unit may be; those of plugins, whose programs are not ours, 5."""


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd-analyze")
@pytest.mark.parametrize("unit", sorted((DEPLOY / "systemd").glob("*.service")), ids=lambda path: path.name)
def test_a_unit_is_no_more_exposed_than_it_has_to_be(unit: Path) -> None:
    arguments = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze cannot judge a file; systemd 250 can")
    (level,) = re.findall(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert float(level) <= EXPOSURE.get(unit.stem, 5.0)


def test_a_restart_of_the_agent_restarts_no_worker() -> None:
    lines = [line for unit in (DEPLOY / "systemd").glob("*.service") for line in unit.read_text().splitlines()]
    about_the_agent = {line.partition("=")[0] for line in lines if re.match(r"\w+=.*allocator-agent\.service", line)}
    assert about_the_agent == {"After", "Wants"}


def test_the_agents_unit_may_write_where_its_guide_sends_it(tmp_path: Path) -> None:
    guide = (ROOT / "docs/how-to/run-the-agent.md").read_text()
    (override,) = re.findall(r"```ini\n(.*?)```", guide, re.DOTALL)
    unit = (DEPLOY / "systemd/allocator-agent.service").read_text()
    assert "ProtectHome=yes" in unit
    assert "ProtectHome=read-only" in override
    writable = [Path(path) for path in re.findall(r"^ReadWritePaths=(.*)$", override, re.MULTILINE)]
    directories = re.findall(r"--leases (\S+)", override)
    assert directories
    assert all(any(Path(one).is_relative_to(path) for path in writable) for one in directories)
    if shutil.which("systemd-analyze"):
        (tmp_path / "allocator-agent.service.d").mkdir()
        (tmp_path / "allocator-agent.service.d/override.conf").write_text(override)
        (tmp_path / "allocator-agent.service").write_text(unit)
        arguments = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "allocator-agent.service")]
        assert str(tmp_path) not in subprocess.run(arguments, capture_output=True, text=True, check=False).stderr
