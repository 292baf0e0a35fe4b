"""Many workers under one supervisor: a lease each, one at a time when they are renewed, and none in another's way."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from typing import TYPE_CHECKING

import pytest
from supervised import PYTHON_WORKER, WAIT_S, Fleet, eventually, finish

from allocator.supervisor.restarts import LONGEST_PAUSE_S

if TYPE_CHECKING:
    from pathlib import Path

CHAOS_S = float(os.environ.get("ALLOCATOR_TEST_CHAOS_S", "6"))
SMALL = (
    "import http.server, sys\n"
    "class H(http.server.BaseHTTPRequestHandler):\n"
    "    def do_GET(self): self.send_response(200); self.end_headers()\n"
    "    def log_message(self, *_): pass\n"
    "http.server.HTTPServer(('127.0.0.1', int(sys.argv[1])), H).serve_forever()"
)


def test_replicas_have_a_lease_each_and_sighup_restarts_one_after_the_other(fleet: Fleet) -> None:
    process = fleet.run("--replicas", "3", "--health", "/health")
    eventually(lambda: [one.state for one in fleet.ports.leases()] == ["ready"] * 3)
    before = {one.instance: one for one in fleet.ports.leases()}
    assert sorted(before) == [0, 1, 2]
    process.send_signal(signal.SIGHUP)
    fewest = 3

    def all_again() -> bool:
        nonlocal fewest
        leases = fleet.ports.leases()
        fewest = min(fewest, sum(one.state == "ready" for one in leases))
        return all(one.restarts == 1 and one.state == "ready" for one in leases)

    eventually(all_again)
    assert fewest >= 2
    after = {one.instance: one for one in fleet.ports.leases()}
    assert {at: one.port for at, one in after.items()} == {at: one.port for at, one in before.items()}
    assert all(after[at].pid != before[at].pid for at in before)
    process.terminate()
    _, _, err = finish(process)
    assert "the rolling restart is complete" in err
    assert fleet.ports.leases() == []


def test_a_workers_file_runs_different_workers_whose_lines_carry_their_names(fleet: Fleet, tmp_path: Path) -> None:
    (tmp_path / "a.env").write_text("WORD=from-the-file\n")
    printer = f'["{sys.executable}", "-c", "import os; print(os.environ[\'WORD\'], os.environ[\'PORT\'])"]'
    (tmp_path / "Procfile.toml").write_text(
        f'[[worker]]\nplugin = "email"\norg = "o-1"\ncommand = {printer}\nenv_file = "a.env"\n'
        f'[[worker]]\nplugin = "stripe"\ncommand = {printer}\nenv = {{ WORD = "inline" }}\nreplicas = 2\n'
    )
    status, out, _ = finish(fleet.spawn("run", "--workers", "Procfile.toml", "--org", "o-2"))
    lines = sorted(line.rsplit(" ", 1)[0] for line in out.splitlines())
    assert status == 0
    assert lines == ["o-1/email#0 | from-the-file", "o-2/stripe#0 | inline", "o-2/stripe#1 | inline"]


def test_a_worker_that_fails_leaves_the_others_running_and_its_status_is_the_supervisors(
    fleet: Fleet, tmp_path: Path
) -> None:
    (tmp_path / "p.toml").write_text(
        '[[worker]]\nplugin = "bad"\norg = "o"\ncommand = ["sh", "-c", "exit 5"]\nrestart = "never"\n'
        f'[[worker]]\nplugin = "email"\norg = "o"\ncommand = {PYTHON_WORKER!r}\n'
    )
    process = fleet.spawn("run", "--workers", "p.toml")
    eventually(lambda: [(one.plugin, one.state) for one in fleet.ports.leases()] == [("email", "ready")])
    process.terminate()
    assert finish(process)[0] == 5


MISTAKES = {
    "a bad name": ('plugin = "e mail"\norg = "o"\ncommand = "true"', "p.toml:2: plugin: 'e mail' is not a valid"),
    "an unknown field": ('plugin = "e"\norg = "o"\ncomand = "true"', "p.toml:4: comand: 'comand' is not known"),
    "no command": ('plugin = "e"\norg = "o"', "p.toml:1: the worker has no command"),
    "a bad template": ('plugin = "e"\norg = "o"\ncommand = "x {prot}"', "p.toml:4: command: '{prot}' in the command"),
    "a bad duration": (
        'plugin = "e"\norg = "o"\nstop_timeout = "5"\ncommand = "true"',
        "p.toml:4: stop_timeout: '5' is",
    ),
    "a bad path": (
        'plugin = "e"\norg = "o"\ncommand = "true"\nhealth = "h"',
        "p.toml:5: health: 'h' is not a health path",
    ),
    "contiguous alone": (
        'plugin = "e"\norg = "o"\ncommand = "true"\ncontiguous = true',
        "p.toml:5: contiguous: only several ports can be contiguous",
    ),
    "no TOML": ("plugin = x\n", "p.toml: Invalid value (at line 2"),
    "twice the same": (
        'plugin = "e"\norg = "o"\ncommand = "true"\n[[worker]]\nplugin = "e"\norg = "o"\ncommand = "true"',
        "p.toml:5: o/e#0 is in line 1 already",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_workers_file_names_file_line_and_field_before_any_claim(
    fleet: Fleet, tmp_path: Path, name: str
) -> None:
    text, expected = MISTAKES[name]
    (tmp_path / "p.toml").write_text("[[worker]]\n" + text)
    status, _, err = finish(fleet.spawn("run", "--workers", "p.toml"))
    assert status == 78
    assert expected in err
    assert len(err.splitlines()) == 1
    assert "granted" not in fleet.events()


BAD_RUNS = {
    "no such command": (["--", "/nowhere/worker"], 127, "does not exist"),
    "no rights": (["--", "./plain"], 126, "make it executable"),
    "no interpreter": (["--", "./script"], 127, "its interpreter '/nowhere/sh' does not exist"),
    "a name without end": (["--", "x" * 10_000], 127, "does not exist"),
    "unknown template": (["--", "true", "{prot}"], 2, "'{prot}' in the command is not a template"),
    "a brace alone": (["--", "true", "{"], 2, "is not a template"),
    "a health path": (["--health", "health", "--", "true"], 2, "'health' is not a health path"),
    "a stop path": (["--stop-path", "x y", "--", "true"], 2, "is not a stop path"),
    "a policy": (["--restart", "sometimes", "--", "true"], 2, "choose never, on-failure or always"),
    "orphans": (["--orphan", "adopt", "--", "true"], 2, "choose kill or keep"),
    "replicas": (["--replicas", "0", "--", "true"], 2, "not a number of replicas"),
    "replicas of a port": (["--replicas", "2", "--port", "15000", "--", "true"], 2, "cannot share port 15000"),
    "an environment file": (["--env-file", "none.env", "--", "true"], 78, "none.env cannot be read"),
    "a line of one": (["--env-file", "bad.env", "--", "true"], 78, "bad.env:2: 'no assignment' is not NAME=value"),
    "no command": ([], 2, "there is no command to run"),
    "a workers file and a plugin": (["--workers", "p.toml"], 2, "--workers has what to run"),
}


@pytest.mark.parametrize("name", BAD_RUNS)
def test_what_cannot_be_run_is_refused_in_one_line_before_any_claim(fleet: Fleet, tmp_path: Path, name: str) -> None:
    arguments, expected, printed = BAD_RUNS[name]
    (tmp_path / "plain").write_text("not executable")
    (tmp_path / "script").write_text("#!/nowhere/sh -e\necho\n")
    (tmp_path / "script").chmod(0o755)
    (tmp_path / "bad.env").write_text("A=1\nno assignment\n")
    status, _, err = finish(fleet.spawn("run", "email", "--org", "org-1", *arguments))
    assert (status, printed in err, len(err.splitlines())) == (expected, True, 1), err
    assert "granted" not in fleet.events()


def test_44_workers_that_are_killed_at_random_keep_their_ports(fleet: Fleet) -> None:
    """Killed are the workers, not their supervisor; ALLOCATOR_TEST_CHAOS_S says for how many seconds."""
    arguments = ("--replicas", "44", "--health", "/", "--max-restarts", "1000000", "--health-interval", "500ms")
    fleet.run(*arguments, command=[sys.executable, "-S", "-c", SMALL, "{port}"], stderr=None, stdout=None)
    eventually(
        lambda: [one.state for one in fleet.ports.leases()] == ["ready"] * 44,
        "not every worker started",
        within_s=4 * WAIT_S,  # 44 interpreters, on a machine that may have other things to do
    )
    before = {one.instance: one.port for one in fleet.ports.leases()}
    rng, until, kills = random.Random(7), time.monotonic() + CHAOS_S, 0
    while time.monotonic() < until:
        leases = fleet.ports.leases()
        assert len({one.port for one in leases}) == len({one.worker for one in leases}) == 44
        victim = rng.choice(leases)
        try:
            os.kill(victim.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
        kills += 1
    # One that was killed often without a healthy minute pauses for up to half a minute before its next start.
    eventually(
        lambda: [one.state for one in fleet.ports.leases()] == ["ready"] * 44,
        "not every worker is ready again",
        within_s=LONGEST_PAUSE_S + WAIT_S,
    )
    print(f"{kills} workers were killed in {CHAOS_S:g} s, {sum(one.restarts for one in fleet.ports.leases())} restarts")
    assert {one.instance: one.port for one in fleet.ports.leases()} == before
    assert fleet.listening() == frozenset(before.values())
    assert "declined" not in fleet.events()
