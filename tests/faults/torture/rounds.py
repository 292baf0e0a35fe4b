"""Plays rounds: sets the stage, does the faults of the schedule, lets all come to rest, and has the history checked."""

from __future__ import annotations

import contextlib
import ctypes
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from torture import settled
from torture.checker import check
from torture.environment import Environment, Setting
from torture.faults import NothingToDoError, database, groups, hosts, machine, network, processes, server
from torture.history import read_history
from torture.observer import Observer
from torture.schedule import plan

if TYPE_CHECKING:
    from postgres import Postgres

    from torture.faults import Fault
    from torture.schedule import Planned
    from torture.violations import Violation

CLONE_NEWNET, CLONE_NEWNS = 0x40000000, 0x00020000
FIRST_PORT, PORTS_APART, BLOCKS = 9_000, 50, 20
FAULTS: list[type[Fault]] = [
    *processes.FAULTS,
    *server.FAULTS,
    *network.FAULTS,
    *machine.FAULTS,
    *hosts.FAULTS,
    *database.FAULTS,
    *groups.FAULTS,
]


@dataclass(slots=True)
class Outcome:
    """What came of a round."""

    number: int
    kind: str
    seconds: float
    calls: Counter[tuple[str, str]]
    leases: int
    faults: Counter[str]
    violations: list[Violation]
    history: Path | None
    snapshots: int = 0
    notes: list[str] = field(default_factory=list)


def settle_in() -> Setting:
    """Take a network of our own where that is allowed, or a block of ports that no other run uses."""
    libc = ctypes.CDLL(None, use_errno=True)
    if hasattr(libc, "unshare") and libc.unshare(CLONE_NEWNET | CLONE_NEWNS) == 0:
        subprocess.run(["mount", "--make-rprivate", "/"], check=True)
        subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
        return Setting(FIRST_PORT, has_own_network=True)
    for block in range(BLOCKS):
        mark = socket.socket(socket.AF_UNIX)
        try:
            mark.bind(f"\0portlease-torture-{block}")
        except OSError:
            mark.close()
            continue
        _kept.append(mark)
        return Setting(FIRST_PORT + block * PORTS_APART, has_own_network=False)
    raise RuntimeError(f"{BLOCKS} runs are under way on this machine already")


_kept: list[socket.socket] = []


def run_round(
    setting: Setting,
    seed: int,
    number: int,
    seconds: float,
    *,
    mutation: str | None = None,
    calm: bool = False,
    postgres: Postgres | None = None,
    kind: str = "standalone",
) -> Outcome:
    """Play one round and check its history; the history is kept where it broke a rule."""
    began = time.monotonic()
    directory = Path(tempfile.mkdtemp(prefix=f"torture-{seed}-{number}-"))
    kinds = [processes.KillClient, processes.StopClient] if calm else FAULTS
    lossy = kind == "sentinel" or number % 2 == 1
    kinds = [fault for fault in kinds if kind in fault.topologies]
    with contextlib.ExitStack() as kept:
        kept.callback(shutil.rmtree, directory, ignore_errors=True)
        with Environment(
            directory, setting, seed * 1_000 + number, kind=kind, mutation=mutation, postgres=postgres
        ) as arena:
            arena.clients.fill()
            with Observer(arena):
                faults = _do_all(arena, plan(seed, number, seconds, kinds, lossy=lossy), seconds)
                arena.clients.fill()
                found_already = mutation is not None and check(read_history(directory))
                if not found_already:
                    settled.stand_still(arena)
            if not found_already:
                settled.leave(arena)
        history = read_history(directory)
        violations = check(history)
        grants = sum(item.get("code") == "granted" for call in history.calls for item in call.items)
        if violations:
            (directory / "violations.txt").write_text("\n".join(map(str, violations)))
            kept.pop_all()
    return Outcome(
        number,
        kind, time.monotonic() - began, history.counts, grants, faults, violations,
        directory if violations else None, len(history.snapshots),
    )  # fmt: skip


def _do_all(arena: Environment, planned: list[Planned], seconds: float) -> Counter[str]:
    """Do the faults of a schedule, each in a thread of its own; return how often each was done."""
    began = time.monotonic()
    done: Counter[str] = Counter()
    threads = []
    for one in planned:
        time.sleep(max(0.0, began + one.at_s - time.monotonic()))
        thread = threading.Thread(target=_do, args=(arena, one, done), name=one.kind.name, daemon=True)
        thread.start()
        threads.append(thread)
    time.sleep(max(0.0, began + seconds - time.monotonic()))
    for thread in threads:
        thread.join()
    return done


def _do(arena: Environment, planned: Planned, done: Counter[str]) -> None:
    fault = planned.kind(arena, planned.seed)
    began = time.monotonic()
    try:
        fault.does()
        arena.has_lost_data |= fault.loses_since is not None
        arena.has_repeated |= fault.repeats
        done[fault.counted_as] += 1
        time.sleep(planned.lasts_s)
        fault.undoes()
    except NothingToDoError:
        arena.has_lost_data |= fault.loses_since is not None
    except Exception:  # noqa: BLE001  # a fault that goes wrong is a fault of this suite, and has to be seen
        arena.book.write("crashed", actor=fault.name, error=traceback.format_exc())
    finally:
        arena.book.write(
            "fault", name=fault.name, began=began, ended=time.monotonic() + fault.echoes_s,
            loses_since=fault.loses_since, jump_s=fault.jump_s, holds_back=fault.holds_back, repeats=fault.repeats,
        )  # fmt: skip
