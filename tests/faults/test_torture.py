"""The promises under faults, a round for each kind of Redis: `scripts/torture` goes on for as long as one likes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

TORTURE = Path(__file__).parents[2] / "scripts" / "torture"


@pytest.mark.parametrize("topology", ["standalone", "sentinel", "cluster"])
def test_no_promise_is_broken_while_clients_servers_and_the_network_fail(topology: str) -> None:
    words = ["--topology", topology, "--round", "3", "--round-seconds", "15", "--seed", "5"]
    done = subprocess.run([TORTURE, *words], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "violations: 0" in done.stdout
