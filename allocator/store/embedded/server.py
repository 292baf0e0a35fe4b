"""The embedded server as the rest of the product sees it: `ensure`, `status`, `stop`.

Its fast path, a server that runs already, must stay so light that every command can afford it: one connection, one
PING, and no import of what only a start or a stop needs.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from allocator.model.errors import ConfigurationError
from allocator.model.values import Value
from allocator.store.direct import fields_of
from allocator.store.embedded.reach import (
    Conversation,
    Reach,
    ServerFiles,
    ask_whether_ready,
    is_private,
    silent,
    socket_path,
    socket_url,
)

if TYPE_CHECKING:
    from collections.abc import Callable

START_TIMEOUT_S = 5.0
"""How long a command waits for a server: what it would wait for an unreachable Redis too."""

STOP_TIMEOUT_S = 30.0
"""How long a server may take to write its data and end: longer than any disk it should run on needs."""


BUSY_PAUSE_S = 0.05
"""Between two questions to a server that reads its data."""


class EmbeddedStatus(Value, kw_only=True):
    """What the running embedded server reports of itself.

    Attributes:
        pid: Its process.
        version: Its kind and version: `valkey 9.1.2`.
        url: The URL that reaches it.
        socket: Its Unix socket.
        data_dir: Where its data, locks and log are.
        memory_bytes: What its data takes in memory.
        uptime_s: Since when it runs, in seconds.
        persistent: Whether its last writes reached its append-only file.
    """

    pid: int
    version: str
    url: str
    socket: Path
    data_dir: Path
    memory_bytes: int
    uptime_s: int
    persistent: bool


class EmbeddedServer:
    """The embedded server of one state directory: start it, ask it, stop it.

    Args:
        state_dir: The user's state directory; the server lives in `embedded` inside it.
        timeout_s: How long `ensure` may take, in seconds.

    Attributes:
        data_dir: Where the data, the locks and the log are.
        socket: The Unix socket; nobody needs to be listening on it.
        url: The URL of that socket.
        log: The server's log.

    Raises:
        ConfigurationError: The path cannot be one.
    """

    def __init__(self, state_dir: Path, *, timeout_s: float = START_TIMEOUT_S) -> None:
        if "\0" in str(state_dir):
            raise ConfigurationError("the state directory's path has a zero byte in it; correct ALLOCATOR_STATE_DIR")
        self.data_dir = Path(os.path.realpath(state_dir)) / "embedded"  # one server, by whichever path one came
        self.socket = socket_path(self.data_dir)
        self.url = socket_url(self.socket)
        self.log = self.data_dir / "server.log"
        self._files = ServerFiles(self.data_dir, self.socket, self.log)
        self._timeout_s = timeout_s

    def __repr__(self) -> str:
        return f"<EmbeddedServer of {self.data_dir} on {self.socket}>"

    def ensure(self, on_start: Callable[[EmbeddedStatus], None] | None = None) -> str:
        """Return the URL of the running server; start one when none answers.

        A server that stops a moment later is not noticed here: whoever loses it calls again.

        Args:
            on_start: Called once with the new server's status when it was this call that started it.

        Returns:
            A `unix://` URL.

        Raises:
            ConfigurationError: The directory, the data in it or the disk cannot be used, or there is no server to run.
            StoreUnavailableError: No server answered in time.
        """
        deadline = time.monotonic() + self._timeout_s
        if ask_whether_ready(self.socket, self.log, deadline) is Reach.READY:
            return self.url
        from allocator.store.embedded.life import start_once  # 15 ms that a running server spares

        if start_once(self._files, deadline) and on_start is not None:
            status = self.status()
            if status is not None:
                on_start(status)
        return self.url

    def running(self) -> str | None:
        """Return the URL of the server when one runs, or None; nothing is started.

        Raises:
            ConfigurationError: The directory cannot be used or is somebody else's.
            StoreUnavailableError: A server took the connection and then did not answer in time.
        """
        deadline = time.monotonic() + self._timeout_s
        reach = ask_whether_ready(self.socket, self.log, deadline)
        while reach is Reach.BUSY and time.monotonic() < deadline:
            time.sleep(BUSY_PAUSE_S)
            reach = ask_whether_ready(self.socket, self.log, deadline)
        return self.url if reach is Reach.READY else None

    def status(self) -> EmbeddedStatus | None:
        """Return what the running server reports of itself, or None when none answers.

        Raises:
            StoreUnavailableError: A server took the connection and then did not answer in time.
        """
        if not is_private(self.socket.parent):
            return None
        try:
            with Conversation(self.socket, time.monotonic() + self._timeout_s) as server:
                facts = fields_of(server.ask(b"INFO"))
                pid = server.peer_pid() or int(facts.get("process_id", "0"))
        except TimeoutError:
            raise silent(self.socket, self.log) from None
        except OSError:
            return None
        if "process_id" not in facts:
            return None
        kind = "valkey" if "valkey_version" in facts else "redis"
        return EmbeddedStatus(
            pid=pid,
            version=f"{kind} {facts.get(f'{kind}_version', 'of unknown version')}",
            url=self.url,
            socket=self.socket,
            data_dir=self.data_dir,
            memory_bytes=int(facts.get("used_memory", "0")),
            uptime_s=int(facts.get("uptime_in_seconds", "0")),
            persistent=facts.get("aof_enabled") == "1" and facts.get("aof_last_write_status") == "ok",
        )

    def stop(self) -> bool:
        """Save the data, end the server, wait until its process is gone, and remove its socket.

        Returns:
            Whether there was a server to stop.

        Raises:
            ConfigurationError: The directory cannot be used or is somebody else's.
            StoreUnavailableError: The server could not save, or did not end in time; it is left as it is.
        """
        from allocator.store.embedded.life import stop_once  # as above

        return stop_once(self._files, time.monotonic() + max(STOP_TIMEOUT_S, self._timeout_s))
