"""The promises under faults, a round for each kind of Redis: `scripts/torture` goes on for as long as one likes."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from pathlib import Path

import pytest
from supervised import eventually

TORTURE = Path(__file__).parents[2] / "scripts" / "torture"


@pytest.mark.parametrize("topology", ["standalone", "sentinel", "cluster"])
def test_no_promise_is_broken_while_clients_servers_and_the_network_fail(topology: str) -> None:
    arguments = ["--topology", topology, "--round", "3", "--round-seconds", "15", "--seed", "5"]
    done = subprocess.run([TORTURE, *arguments], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "violations: 0" in done.stdout


def test_a_run_that_is_ended_takes_its_servers_and_its_files_along(tmp_path: Path) -> None:
    arguments = ["--calm", "--topology", "sentinel", "--round", "0", "--round-seconds", "60"]
    process = subprocess.Popen(
        [TORTURE, *arguments], env={**os.environ, "TMPDIR": str(tmp_path)}, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        eventually(lambda: list(tmp_path.glob("torture-*/actor-*.jsonl")), "no player wrote anything", within_s=60)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, errors) == (128 + signal.SIGTERM, "")
    eventually(lambda: not _started_in(tmp_path), "a process was left running")
    assert not list(tmp_path.iterdir())


def _started_in(directory: Path) -> list[int]:
    variable = f"TMPDIR={directory}\0".encode()
    found = []
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if variable in environment.read_bytes():
                found.append(int(environment.parent.name))
    return found
