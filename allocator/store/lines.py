"""The connections to a single server over which scripts run, kept ready between calls.

The driver's pool hands out and takes back a connection at each command, counts both and asks twice who it belongs to:
more work than packing a claim and reading its answer. Here a thread takes the connection that was last used, and makes
another only when all are in use. What is kept is what the pool promises: a connection that the server has closed, or on
which something was left unread, is not used, and none is shared with a process that was forked.
"""

from __future__ import annotations

import os
from typing import Any

from hiredis import pack_command
from redis.exceptions import RedisError, ResponseError


class Lines:
    """Connections of one client; safe for threads.

    Args:
        client: A client of one server, whose retries are not wanted: a call is sent once.
    """

    def __init__(self, client: Any) -> None:  # noqa: ANN401  # redis-py's
        self._pool = client.connection_pool
        self._idle: list[Any] = []
        self._pid = os.getpid()

    def ask(self, *words: str | int) -> Any:  # noqa: ANN401  # a reply is whatever the server answers
        """Send a command and return its reply; what goes wrong is raised as the driver raises it."""
        line = self._take()
        try:
            line.send_packed_command((pack_command(words),))  # type: ignore[arg-type]  # its stub means tuples of one
            reply = line.read_response()
        except ResponseError:  # an answer like any other
            self._idle.append(line)
            raise
        except BaseException:
            self._drop(line)
            raise
        self._idle.append(line)
        return reply

    def _take(self) -> Any:  # noqa: ANN401  # redis-py's
        if self._pid != os.getpid():
            self._idle, self._pid = [], os.getpid()
        while self._idle:
            try:
                line = self._idle.pop()
            except IndexError:  # another thread had it
                break
            if _is_quiet(line):
                return line
            self._drop(line)
        return self._pool.get_connection()

    def _drop(self, line: Any) -> None:  # noqa: ANN401  # redis-py's
        line.disconnect()
        self._pool.release(line)


def _is_quiet(line: Any) -> bool:  # noqa: ANN401  # redis-py's
    """Return whether a connection is open and has nothing to read, as it has to be before a call."""
    try:
        return not line.can_read()
    except (RedisError, OSError):
        return False
