"""The first command of the README, from a clone, as a newcomer runs it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from machines import NO_INDEX, Fleet, package_index

ROOT = Path(__file__).parents[2]
FLEET = [sys.executable, str(ROOT / "deploy/demo/fleet.py")]


@pytest.fixture
def environment() -> dict[str, str]:
    taken = []
    for port in range(5556, 5600):
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                taken.append(port)
    if len(taken) > 30:
        pytest.skip("other programs have the ports of the built-in pool")
    return os.environ | {"PYTHONPATH": str(ROOT)}


def left_running(directory: Path) -> list[str]:
    """Return the processes of a demonstration that are there a moment after it ended."""
    pause = threading.Event()
    for _ in range(100):
        if not processes_of(directory):
            return []
        pause.wait(0.05)
    return processes_of(directory)


def processes_of(directory: Path) -> list[str]:
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if str(directory).encode() in path.read_bytes():
                found.append(path.parent.name)
        except OSError:
            continue
    return found


@pytest.mark.alone("built-in pool")
def test_the_fleet_is_shown_and_nothing_is_left_running(environment: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(
        FLEET, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(re.findall(r"/health  200", done.stdout)) == 9
    assert len(set(re.findall(r"GET :(\d+)/health", done.stdout))) == 9
    assert re.search(r"started it again: healthy after .* on port \d+, the one it had", done.stdout)
    assert left_running(tmp_path) == []


@pytest.mark.alone("built-in pool")
def test_ctrl_c_in_the_middle_leaves_nothing_running(environment: dict[str, str], tmp_path: Path) -> None:
    with subprocess.Popen(
        FLEET, env=environment, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as demo:
        assert any("workers are healthy" in line for line in demo.stdout)
        demo.send_signal(signal.SIGINT)
        demo.communicate(timeout=60)
    assert demo.returncode == 130
    assert left_running(tmp_path) == []


@pytest.mark.alone("built-in pool")
def test_keep_leaves_it_running_until_stop(environment: dict[str, str], tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*FLEET, *arguments],
            env=environment,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    assert run("--keep").returncode == 0
    assert len(processes_of(tmp_path)) >= 18
    again = run()
    assert again.returncode != 0
    assert "already" in again.stderr
    assert run("--stop").returncode == 0
    assert left_running(tmp_path) == []


@pytest.mark.xdist_group("built-in pool")
def test_it_runs_from_a_clone_on_an_empty_machine(environment: dict[str, str], tmp_path: Path) -> None:
    """As the README shows it; nothing is there but the distribution's programs and a package index."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False).stdout
    if not names:
        pytest.skip("needs the files of a clone")
    with Fleet(tmp_path, ("newcomer",)) as fleet:
        machine = fleet.machines["newcomer"]
        for name in names.split("\0")[:-1]:
            target = machine.root / "home/portlease" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target)
        login = package_index() | {name: value for name, value in os.environ.items() if name.startswith("UV_")}
        try:
            done = machine.run("cd /home/portlease; scripts/quickstart", check=False, outside=True, login=login)
        except subprocess.TimeoutExpired:
            pytest.skip("the package index does not answer in time")
    if done.returncode and "workers" not in done.stdout and NO_INDEX.search(done.stderr):
        pytest.skip(f"no package index: {done.stderr.strip().splitlines()[-1]}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"started it again: healthy after .* on port \d+, the one it had", done.stdout)
