"""The promises under faults, for half a minute: `scripts/torture` goes on for as long as one likes."""

from __future__ import annotations

import subprocess
from pathlib import Path

TORTURE = Path(__file__).parents[2] / "scripts" / "torture"


def test_no_promise_is_broken_while_clients_servers_and_the_network_fail() -> None:
    words = ["--minutes", "0.5", "--round-seconds", "20", "--round", "1", "--seed", "5"]
    done = subprocess.run([TORTURE, *words], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "violations: 0" in done.stdout
