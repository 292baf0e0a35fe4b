"""Starting and stopping the embedded server, each by one command at a time.

The rule of this file: a server is only launched by who holds both locks, and a wait ends with a clear sentence at
its deadline (seconds of the monotonic clock), never later.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from allocator.model.errors import StoreUnavailableError
from allocator.store.embedded import log, process
from allocator.store.embedded.reach import Conversation, Reach, ask_whether_ready, is_private, silent, text_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from allocator.store.embedded.process import FileLock
    from allocator.store.embedded.reach import ServerFiles

SILENCE_S = 1.5
"""How long a living server may have no socket before it counts as cut off: it opens one before it reads any data."""

FIRST_PAUSE_S = 0.002
LONGEST_PAUSE_S = 0.05
"""Seconds between two checks of one wait: 200 waiting processes with 20 checks a second leave the server its CPU."""


def start_once(server: ServerFiles, deadline: float) -> bool:
    """Start the server, or wait for the command that does; return whether it was this call that started it.

    Raises:
        ConfigurationError: The directory, the data in it or the disk cannot be used, or there is no server to run.
        StoreUnavailableError: No server answered in time.
    """
    with process.usable(server.data_dir):
        process.make_private(server.data_dir)
        with process.FileLock(server.data_dir / "start.lock") as starting:
            if not _become_starter(server, starting, deadline):
                return False
            process.make_private(server.socket.parent)
            with process.FileLock(server.data_dir / "server.lock") as alive:
                if not _wait_until_gone(server, alive, deadline):
                    return False
                process.end_abandoned_servers(alive.path, deadline)
                log_start = process.launch(server.data_dir, server.socket, server.log, alive)
            _wait_until_ready(server, log_start, deadline)
    return True


def stop_once(server: ServerFiles, deadline: float) -> bool:
    """Stop the server, wait for its end, remove its socket; return whether there was one.

    Raises:
        ConfigurationError: The directory cannot be used or is somebody else's.
        StoreUnavailableError: The server could not save, or did not end in time.
    """
    with process.usable(server.data_dir):
        if not server.data_dir.exists():
            return False
        process.make_private(server.data_dir)
        with process.FileLock(server.data_dir / "start.lock") as starting:
            _wait_for(starting.take, server, deadline, "another command is still starting or stopping it")
            with process.FileLock(server.data_dir / "server.lock") as alive:
                stopped = _shut_down(server, deadline)
                if not alive.take():
                    if not stopped:
                        process.end_cut_off_server(alive.path, server.socket)
                        stopped = True
                    _wait_for(alive.take, server, deadline, "it was asked to stop and still runs")
                _remove_socket(server)
    return stopped


def _become_starter(server: ServerFiles, starting: FileLock, deadline: float) -> bool:
    """Wait for the lock of whoever starts a server; return False when somebody else's server answers before."""
    answered = False

    def mine_or_answered() -> bool:
        nonlocal answered
        if starting.take():
            return True
        answered = ask_whether_ready(server.socket, server.log, deadline) is Reach.READY
        return answered

    _wait_for(mine_or_answered, server, deadline, "another command is still starting or stopping it")
    return not answered


def _wait_until_gone(server: ServerFiles, alive: FileLock, deadline: float) -> bool:
    """Wait until no server lives; return False when one lives and answers. One that nobody can reach is ended."""
    cut_off_from = min(time.monotonic() + SILENCE_S, deadline)
    answered = ended = False

    def free_or_answered() -> bool:
        nonlocal answered, ended
        reach = ask_whether_ready(server.socket, server.log, deadline)
        if reach is Reach.READY:
            answered = True
            return True
        if alive.take():
            return True
        if reach is Reach.ABSENT and not ended and time.monotonic() >= cut_off_from:
            process.end_cut_off_server(alive.path, server.socket)
            ended = True
        return False

    _wait_for(free_or_answered, server, deadline, "it lives and does not answer yet")
    return not answered


def _wait_until_ready(server: ServerFiles, log_start: int, deadline: float) -> None:
    def ready_or_dead() -> bool:
        if ask_whether_ready(server.socket, server.log, deadline) is Reach.READY:
            return True
        with process.FileLock(server.data_dir / "server.lock") as alive:
            if alive.take():
                raise log.diagnosis(server.data_dir, server.log, log_start)
        return False

    _wait_for(ready_or_dead, server, deadline, "it was started and does not answer yet")


def _shut_down(server: ServerFiles, deadline: float) -> bool:
    """Send SHUTDOWN SAVE and wait for the process; return False when there was nobody to send it to."""
    if not is_private(server.socket.parent):
        return False
    try:
        with Conversation(server.socket, deadline) as conversation, process.watched(conversation.peer_pid()) as watch:
            reply = conversation.ask(b"SHUTDOWN SAVE")
            if reply:
                raise StoreUnavailableError(
                    f"the embedded server could not save its data in {server.data_dir} and goes on ({text_of(reply)}; "
                    f"{log.last_line(server.log)}); fix that and stop it again"
                )
            process.wait_for_exit(watch, deadline)
    except TimeoutError:
        raise silent(server.socket, server.log) from None
    except (ConnectionError, FileNotFoundError):
        return False
    return True


def _remove_socket(server: ServerFiles) -> None:
    if is_private(server.socket.parent):
        server.socket.unlink(missing_ok=True)
        if server.socket.parent != server.data_dir:
            server.socket.parent.rmdir()


def _wait_for(condition: Callable[[], bool], server: ServerFiles, deadline: float, otherwise: str) -> None:
    """Check a condition repeatedly, at growing intervals, until it holds.

    Raises:
        StoreUnavailableError: The deadline has passed.
    """
    pause_s = FIRST_PAUSE_S
    while not condition():
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise StoreUnavailableError(
                f"the embedded server in {server.data_dir} did not get there in time: {otherwise} "
                f"({log.last_line(server.log)}); try again, or see {server.log}"
            )
        time.sleep(min(pause_s, left_s))
        pause_s = min(pause_s * 1.5, LONGEST_PAUSE_S)
