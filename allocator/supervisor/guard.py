"""The guard: a small shell that ends the workers' processes when the supervisor was killed.

The kernel's parent-death signal reaches a worker's first process only; a listener two processes below it would live
on with its port. The guard reads from a pipe that only the supervisor holds open: when the pipe ends without a
farewell, it kills the groups that were not forgotten, whatever was started with the supervision's mark in its
environment or is in its control group, and the strays that were reported to it. It must never end a group that was
forgotten.

It is not the workers' parent, so that they are the supervisor's own children, and a shell, because it only waits: a
second interpreter would cost nine megabytes.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from pathlib import Path

_SCRIPT = """
trap '' HUP INT QUIT TERM TSTP PIPE
mark=$1 control=$2 groups=' ' strays=' ' farewell=''
while read -r word what; do
    case $word in
        add) groups="$groups$what " ;;
        forget) groups="${groups%% $what *} ${groups#* $what }" ;;
        stray) strays="$strays$what " ;;
        found) strays="${strays%% $what *} ${strays#* $what }" ;;
        farewell) farewell=yes ;;
    esac
done
[ -z "$farewell" ] || exit 0
doomed=' ' grown=yes
while [ -n "$grown" ]; do
    grown=''
    for file in /proc/[0-9]*/stat; do
        read -r line < "$file" || continue
        pid=${line%% *}
        set -- ${line##*) }
        case $doomed in *" $pid "*) continue ;; esac
        case $groups$doomed$strays in
            *" $2 "* | *" $3 "* | *" $pid:${20} "*)
                kill -s STOP "$pid"
                doomed="$doomed$pid " grown=yes
                ;;
        esac
    done
done
for group in $groups; do kill -s KILL -- "-$group"; done
for pid in $doomed; do kill -s KILL "$pid"; done
if printf 'a\\0b' | grep -qzxF b; then
    marked() { grep -lzxF -e "$mark" /proc/[0-9]*/environ; }
else
    marked() {
        for file in /proc/[0-9]*/environ; do
            tr '\\0' '\\n' < "$file" | grep -qxF -e "$mark" && echo "$file"
        done
    }
fi
in_control() {
    [ -n "$control" ] || return 0
    while read -r pid; do
        read -r name < "/proc/$pid/comm" || continue
        case $name in valkey* | redis*) ;; *) echo "/proc/$pid/environ" ;; esac
    done < "$control/cgroup.procs"
}
tries=0
while [ $tries -lt 100 ]; do
    found=$(marked; in_control)
    [ -n "$found" ] || break
    for file in $found; do pid=${file#/proc/}; kill -s KILL "${pid%/environ}"; done
    tries=$((tries + 1))
    sleep 0.02
done
while [ -d "$control" ] && [ $tries -lt 100 ]; do
    rmdir "$control" || sleep 0.02
    tries=$((tries + 1))
done
"""
"""Groups are kept between single spaces; a group is forgotten once and only after it was added. A stray is its pid and
its start time, the 20th field of proc_pid_stat(5) after the name; the second is the parent, the third the group. What
is below any of them is found before the first is killed: later its parent is another one. Each is stopped when it is
found: one that forks on would be followed for ever. Not every grep knows `-z` (BusyBox). An embedded server that a
worker's command started is everybody's, and stays in the control group."""


class Guard:
    """The guard of one supervisor; it is started with the first worker, and again when somebody ended it.

    Args:
        mark: `NAME=value`, which only this supervisor's workers have in their environment.

    Attributes:
        group: The control group of the workers, or None where there is none.
    """

    def __init__(self, mark: str) -> None:
        self.group: Path | None = None
        self._mark = mark
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._writer = -1
        self._groups: set[int] = set()
        self._strays: set[tuple[int, int]] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        with self._lock:
            self._close()

    def __repr__(self) -> str:
        return f"<Guard of {len(self._groups)} groups>"

    @property
    def pid(self) -> int | None:
        """The guard's process, or None when it does not run."""
        return self._process.pid if self._process else None

    def ready(self) -> int:
        """Return the descriptor on which a new worker announces itself, before it becomes its command."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._start()
            return self._writer

    def added(self, group: int) -> None:
        """Note that a group has announced itself."""
        with self._lock:
            self._groups.add(group)

    def forget(self, group: int) -> None:
        """Note that a group is empty: its number may become somebody else's."""
        with self._lock:
            self._groups.discard(group)
            self._send("forget", group)

    def watch(self, strays: set[tuple[int, int]]) -> None:
        """Note processes, by pid and start time, that left their group; those that are known already cost nothing."""
        with self._lock:
            for pid, started in strays - self._strays:
                self._send("stray", f"{pid}:{started}")
            for pid, started in self._strays - strays:
                self._send("found", f"{pid}:{started}")
            self._strays = strays

    def _start(self) -> None:
        self._close()
        reader, self._writer = os.pipe2(os.O_CLOEXEC)
        self._process = subprocess.Popen(
            ["/bin/sh", "-c", _SCRIPT, "allocator-guard", self._mark, str(self.group or "")],
            stdin=reader,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        os.close(reader)
        for group in self._groups:
            self._send("add", group)
        for pid, started in self._strays:
            self._send("stray", f"{pid}:{started}")

    def _send(self, verb: str, what: object = "") -> None:
        if self._writer >= 0:
            with contextlib.suppress(BrokenPipeError):
                os.write(self._writer, announcement(verb, what))

    def _close(self) -> None:
        if self._process is None:
            return
        self._send("farewell")
        os.close(self._writer)
        self._writer = -1
        self._process.wait()
        self._process = None


def announcement(verb: str, what: object) -> bytes:
    """Return a line for the guard; written in one piece, for it is far shorter than a pipe's atomic size."""
    return f"{verb} {what}\n".encode()
