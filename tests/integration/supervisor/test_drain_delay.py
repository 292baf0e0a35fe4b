"""A worker that is to end is `draining` first, for long enough that nobody is sent to it when it ends."""

from __future__ import annotations

import json
import signal
import sys
import threading
import time
import urllib.request

import pytest
from supervised import Fleet, eventually

from allocator.operations.hosts import drain

WORKER = """
import http.server, json, os, signal, sys, threading, time
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        time.sleep(0.01)
        self.send_response(200); self.send_header("Content-Length", "2"); self.end_headers(); self.wfile.write(b"ok")
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Handler)
def stop(*_):
    with open("stopped", "a") as file: file.write(f"{time.time()}\\n")
    threading.Thread(target=server.shutdown).start()
signal.signal(signal.SIGTERM, stop)
server.serve_forever()
server.server_close()
"""
DELAY_S = 1.0


def run(fleet: Fleet, *arguments: str, command: list[str] | None = None):
    """Run a worker under a supervisor without a terminal."""
    (fleet.state / "worker.py").write_text(WORKER)
    arguments = ("--drain-delay", f"{DELAY_S:g}s", "--health", "/", *arguments)
    return fleet.run(*arguments, command=command or [sys.executable, "worker.py"], start_new_session=True)


def stopped_at(fleet: Fleet) -> list[float]:
    file = fleet.state / "stopped"
    return [float(line) for line in file.read_text().splitlines()] if file.exists() else []


def drained_at(fleet: Fleet) -> float:
    """Wait until a lease is draining, and return when it became so."""
    fleet.lease("draining")
    stream = f"alloc:{{{fleet.pool.name}}}:events"
    events = fleet.ports.store.newest_events(stream, 100)
    return max(
        int(number.partition("-")[0]) / 1_000
        for number, one in events
        if one["type"] == "changed" and one["state"] == "draining"
    )


@pytest.mark.parametrize("how", ["SIGTERM", "SIGINT", "host drain"])
def test_a_worker_is_draining_for_the_delay_before_it_is_made_to_end(fleet: Fleet, how: str) -> None:
    process = run(fleet, *(("--ttl", "1s") if how == "host drain" else ()))
    lease = fleet.lease()
    if how.startswith("SIG"):
        process.send_signal(getattr(signal, how))
    else:
        fleet.ports.run(drain(fleet.pool.name, "web-1"))
    since = drained_at(fleet)
    assert urllib.request.urlopen(f"http://127.0.0.1:{lease.port}/").read() == b"ok", "it serves whoever comes late"
    process.wait(timeout=60)
    assert len(stopped_at(fleet)) == 1
    assert stopped_at(fleet)[0] - since >= DELAY_S - 0.05
    assert fleet.ports.leases() == []


def test_a_second_signal_does_not_wait_out_the_delay(fleet: Fleet) -> None:
    process = run(fleet, "--drain-delay", "10m")
    fleet.lease()
    process.terminate()
    fleet.lease("draining")
    process.terminate()
    process.wait(timeout=30)
    assert fleet.ports.leases() == []


def test_a_worker_that_nobody_was_sent_to_yet_ends_without_the_delay(fleet: Fleet) -> None:
    process = run(fleet, "--drain-delay", "10m", command=["sleep", "600"])
    fleet.lease("starting")
    process.terminate()
    process.wait(timeout=30)


def test_a_workers_file_states_the_delay_of_each(fleet: Fleet) -> None:
    (fleet.state / "worker.py").write_text(WORKER)
    (fleet.state / "workers.toml").write_text(
        f'[[worker]]\nplugin = "email"\norg = "org-1"\ncommand = {json.dumps([sys.executable, "worker.py"])}\n'
        f'health = "/"\ndrain_delay = "{DELAY_S:g}s"\n'
    )
    process = fleet.spawn("run", "--workers", "workers.toml")
    fleet.lease()
    process.terminate()
    since = drained_at(fleet)
    process.wait(timeout=60)
    assert stopped_at(fleet)[0] - since >= DELAY_S - 0.05


def test_replicas_are_restarted_one_by_one_and_a_reader_that_is_behind_never_fails(fleet: Fleet) -> None:
    """The reader learns of a change half of the delay later, as a proxy does that reloads."""
    process = run(fleet, "--replicas", "3")
    eventually(lambda: [one.state for one in fleet.ports.leases()] == ["ready"] * 3)
    before = {one.instance: (one.port, one.pid) for one in fleet.ports.leases()}
    known: list[tuple[float, list[int]]] = []
    answers, failures, most_away = 0, [], 0
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            ready = [one.port for one in fleet.ports.leases() if one.state == "ready"]
            known.append((time.monotonic(), ready))
            over.wait(0.05)

    watching = threading.Thread(target=watch)
    watching.start()
    process.send_signal(signal.SIGHUP)
    try:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            old = [ports for at, ports in known if at <= time.monotonic() - DELAY_S / 2]
            for port in old[-1] if old else ():
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).read()
                    answers += 1
                except OSError as error:
                    failures.append((port, error))
            most_away = max([most_away, *(3 - len(ports) for _, ports in known)])
            leases = fleet.ports.leases()
            if all(one.restarts == 1 and one.state == "ready" for one in leases) and len(leases) == 3:
                break
    finally:
        over.set()
        watching.join()
    print(f"{answers} requests, {len(failures)} failed")
    assert failures == []
    assert answers > 50
    assert most_away == 1
    after = {one.instance: (one.port, one.pid) for one in fleet.ports.leases()}
    assert {at: port for at, (port, _) in after.items()} == {at: port for at, (port, _) in before.items()}
    assert all(after[at][1] != before[at][1] for at in before)
