"""The demonstration: nine plugin workers of three organisations on leased ports, one killed, its port coming back.

Usage: fleet.py [--keep] | --stop. Everything it makes lives in the directory `.demo` of the working directory.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

if TYPE_CHECKING:
    from collections.abc import Callable

HERE = Path(__file__).parent
DEMO = Path.cwd() / ".demo"
ALLOCATOR = [sys.executable, "-m", "allocator"]
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("ALLOCATOR_")},
    "XDG_STATE_HOME": str(DEMO / "state"),
    "XDG_CONFIG_HOME": str(DEMO / "config"),
}
PLUGINS = ("email", "stripe", "zendesk")
ORGANISATIONS = ("org-123", "org-456", "org-789")
WAIT_S = 30.0
TTL = "5s"


def say(line: str = "") -> None:
    print(line, flush=True)


def allocator(*words: str) -> str:
    done = subprocess.run([*ALLOCATOR, *words], env=ENVIRONMENT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr.strip() or f"allocator {words[0]} ended with {done.returncode}")
    if done.stderr:
        say(done.stderr.strip())
    return done.stdout


def leases() -> dict[str, dict]:
    return {f"{one['org']}/{one['plugin']}": one for one in json.loads(allocator("ls", "--format", "json"))}


def start(plugin: str, org: str) -> subprocess.Popen:
    worker = [sys.executable, str(HERE / "worker.py"), f"--plugin-path={HERE / 'plugins' / plugin}"]
    command = [
        *ALLOCATOR,
        "run",
        plugin,
        "--org",
        org,
        "--ttl",
        TTL,
        "--health",
        "/health",
        "--",
        *worker,
        "--org-id={org}",
        "--port={port}",
    ]
    with (DEMO / f"{org}-{plugin}.log").open("ab") as log:
        return subprocess.Popen(command, env=ENVIRONMENT, stdout=log, stderr=log, start_new_session=True)


def healthy(lease: dict) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"http://127.0.0.1:{lease['port']}/health", timeout=2.0).status_code == 200
    return False


def wait_until(what: str, condition: Callable[[], bool]) -> float:
    began = time.monotonic()
    while time.monotonic() - began < WAIT_S:
        if condition():
            return time.monotonic() - began
        time.sleep(0.1)
    sys.exit(f"{what} did not happen within {WAIT_S:.0f} s; look into {DEMO}")


def server_runs() -> bool:
    status = [*ALLOCATOR, "embedded", "status"]  # commands that only read start no server: the first worker does
    return subprocess.run(status, env=ENVIRONMENT, capture_output=True, check=False).returncode == 0


def everyone_ready() -> bool:
    found = leases()
    return len(found) == len(PLUGINS) * len(ORGANISATIONS) and all(
        one["state"] == "ready" and healthy(one) for one in found.values()
    )


def restarted(victim: str) -> bool:
    lease = leases().get(victim)
    return lease is not None and lease["restarts"] == 1 and lease["state"] == "ready" and healthy(lease)


def kill_one() -> None:
    victim = "org-456/stripe"
    lease = leases()[victim]
    say(f"\nkill -9 {lease['pid']}  (the worker of {victim} on port {lease['port']})")
    os.kill(lease["pid"], signal.SIGKILL)
    took = wait_until("the restart", lambda: restarted(victim))
    port = leases()[victim]["port"]
    say(f"its supervisor started it again: healthy after {took:.1f} s on port {port}, the one it had")


def stop(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    for pid in pids:
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            try:
                if os.waitpid(pid, os.WNOHANG)[0]:
                    break
            except ChildProcessError:
                if not Path(f"/proc/{pid}").exists():
                    break
            time.sleep(0.05)
    if DEMO.exists():
        allocator("embedded", "stop")


def stop_kept() -> None:
    kept = DEMO / "supervisors.json"
    if not kept.exists():
        sys.exit("no demo was kept running here")
    known = json.loads(kept.read_text())
    ours = [pid for pid, words in known if _command_line(pid) == words]
    stop(ours)
    kept.unlink()
    say("the demo has been stopped")


def _command_line(pid: int) -> list[str] | None:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return None


def demonstrate(*, keep: bool) -> None:
    supervisors: dict[str, subprocess.Popen] = {}
    kept = False
    try:
        for org in ORGANISATIONS:
            for plugin in PLUGINS:
                supervisors[f"{org}/{plugin}"] = start(plugin, org)
        wait_until("the start of the embedded server", server_runs)
        took = wait_until("the start of all workers", everyone_ready)
        say(f"{len(supervisors)} workers are healthy after {took:.1f} s:\n")
        for name, lease in leases().items():
            reply = httpx.get(f"http://127.0.0.1:{lease['port']}/health", timeout=5.0)
            say(f"  GET :{lease['port']}/health  {reply.status_code}  {name}  {reply.text}")
        say("\n$ allocator ls")
        say(allocator("ls").rstrip())
        kill_one()
        say("\n$ allocator ls")
        say(allocator("ls").rstrip())
        if keep:
            pids = [one.pid for one in supervisors.values()]
            (DEMO / "supervisors.json").write_text(json.dumps([(pid, _command_line(pid)) for pid in pids]))
            kept = True
            say(f"\nIt goes on running. Look around:  XDG_STATE_HOME={DEMO / 'state'} .venv/bin/allocator ls")
            say("Stop it:                           scripts/quickstart --stop")
    finally:
        if not kept:
            stop([one.pid for one in supervisors.values()])
            say("\nAll workers and the embedded server have been stopped; nothing is left running.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--keep", action="store_true", help="leave the fleet running")
    parser.add_argument("--stop", action="store_true", help="stop a fleet that was left running")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if options.stop:
        stop_kept()
        return
    if (DEMO / "supervisors.json").exists():
        sys.exit("a demo runs here already; stop it with scripts/quickstart --stop")
    DEMO.mkdir(exist_ok=True)
    interrupts: list[int] = []

    def interrupt(number: int, _: object) -> None:
        # Remembered: where it falls into a destructor, Python says so and goes on.
        interrupts.append(number)
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    with contextlib.suppress(KeyboardInterrupt):
        demonstrate(keep=options.keep)
    if interrupts:
        sys.exit(130)


if __name__ == "__main__":
    main()
