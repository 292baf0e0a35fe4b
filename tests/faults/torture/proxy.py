"""A network in between that can be bad: a TCP proxy that delays, swallows, half closes, cuts and repeats.

It runs in a thread of the conductor. What it repeats are whole commands that run a script: a copy goes to the server
over a connection of its own, a little later, and its answer is thrown away, as when a client that gave up had sent it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from typing import Self

CHUNK = 65_536
LONGEST_REPEAT_S = 0.8


class Proxy:
    """Passes connections on to a port of this machine.

    Attributes:
        delay_s: For how long each chunk is held up, each way.
        silent: Whether what arrives is swallowed, both ways, and connections stay open.
        repeats: The part of the script calls that are sent once more.
    """

    def __init__(self, upstream: int, port: int, seed: int) -> None:
        self.upstream = upstream
        self.port = port
        self.delay_s = 0.0
        self.silent = False
        self.repeats = 0.0
        self._rng = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._ready.wait(10):
            raise RuntimeError("the proxy did not start")
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def cut(self) -> None:
        """Reset all connections."""
        self._loop.call_soon_threadsafe(self._abort)

    def half_close(self) -> None:
        """Lose the server's side of all connections; the clients' sides stay open and are never answered."""
        self._loop.call_soon_threadsafe(self._lose_servers)

    def _abort(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    def _lose_servers(self) -> None:
        for writer in list(self._writers):
            if getattr(writer, "to_server", False):
                writer.half_open = True  # type: ignore[attr-defined]  # a mark of ours
                writer.transport.abort()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._accept, "127.0.0.1", self.port))
        self._ready.set()
        self._loop.run_forever()
        server.close()
        self._abort()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0.01))
        self._loop.close()

    async def _accept(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        try:
            from_server, to_server = await asyncio.open_connection("127.0.0.1", self.upstream)
        except OSError:
            to_client.transport.abort()
            return
        to_server.to_server = True  # type: ignore[attr-defined]  # as above
        pair = (to_client, to_server)
        self._writers.update(pair)
        try:
            await asyncio.gather(
                self._pump(from_client, to_server, repeats=True), self._pump(from_server, to_client, repeats=False)
            )
            if getattr(to_server, "half_open", False):
                while await from_client.read(CHUNK):
                    pass
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._writers.difference_update(pair)
            for writer in pair:
                writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, repeats: bool) -> None:
        with contextlib.suppress(OSError):
            while chunk := await reader.read(CHUNK):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                if self.silent:
                    continue
                if repeats and self.repeats and is_script_call(chunk) and self._rng.random() < self.repeats:
                    self._keep(self._repeat(chunk, self._rng.uniform(0.0, LONGEST_REPEAT_S)))
                writer.write(chunk)
                await writer.drain()
        if not any(getattr(one, "half_open", False) for one in (writer, reader)) and not writer.is_closing():
            with contextlib.suppress(OSError):
                writer.write_eof()

    def _keep(self, work: object) -> None:
        task = self._loop.create_task(work)  # type: ignore[arg-type]  # a coroutine
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _repeat(self, chunk: bytes, after_s: float) -> None:
        await asyncio.sleep(after_s)
        with contextlib.suppress(OSError, asyncio.TimeoutError):
            reader, writer = await asyncio.open_connection("127.0.0.1", self.upstream)
            writer.write(chunk)
            await asyncio.wait_for(reader.read(CHUNK), 1.0)
            writer.close()


def is_script_call(chunk: bytes) -> bool:
    """Return whether a chunk is one whole command that runs a script."""
    head, _, rest = chunk.partition(b"\r\n")
    if not head.startswith(b"*") or not head[1:].isdigit():
        return False
    arguments = []
    for _ in range(int(head[1:])):
        size, _, rest = rest.partition(b"\r\n")
        if not size.startswith(b"$") or not size[1:].isdigit() or len(rest) < int(size[1:]) + 2:
            return False
        arguments.append(rest[: int(size[1:])])
        rest = rest[int(size[1:]) + 2 :]
    return not rest and bool(arguments) and arguments[0].upper() in {b"EVALSHA", b"EVAL"}
