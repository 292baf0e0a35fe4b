"""The ends of many processes, waited for together: by pidfd where the kernel has it, otherwise by looking at each."""

from __future__ import annotations

import contextlib
import os
import select
from typing import TYPE_CHECKING

from allocator.kernel.identity import is_alive

if TYPE_CHECKING:
    from collections.abc import Hashable

    from allocator.kernel.identity import ProcessIdentity


class Exits:
    """Processes that are waited for, each under a key."""

    def __init__(self) -> None:
        self._poller = select.poll()
        self._by_descriptor: dict[int, Hashable] = {}
        self._descriptors: dict[Hashable, int] = {}
        self._looked_at: dict[Hashable, ProcessIdentity] = {}
        self._reader, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._poller.register(self._reader, select.POLLIN)

    def __repr__(self) -> str:
        return f"<Exits of {len(self._descriptors) + len(self._looked_at)} processes>"

    def add(self, key: Hashable, process: ProcessIdentity) -> bool:
        """Wait for a process too; return False when it has ended already."""
        try:
            descriptor = os.pidfd_open(process.pid)
        except ProcessLookupError:
            return False
        except (OSError, AttributeError):  # no pidfd here, or no descriptor left
            self._looked_at[key] = process
            return is_alive(process)
        # Asked after opening: from here on the descriptor is of the process that this answer is about.
        if not is_alive(process):
            os.close(descriptor)
            return False
        self._descriptors[key] = descriptor
        self._by_descriptor[descriptor] = key
        self._poller.register(descriptor, select.POLLIN)
        return True

    def remove(self, key: Hashable) -> None:
        """Stop waiting for it."""
        self._looked_at.pop(key, None)
        descriptor = self._descriptors.pop(key, None)
        if descriptor is not None:
            del self._by_descriptor[descriptor]
            self._poller.unregister(descriptor)
            os.close(descriptor)

    def wait(self, timeout_s: float) -> list[Hashable]:
        """Wait for at most so long, until a process ends or `wake`; return the keys of those that ended."""
        ready = self._poller.poll(max(0.0, timeout_s) * 1_000)
        ended = [self._by_descriptor[descriptor] for descriptor, _ in ready if descriptor in self._by_descriptor]
        with contextlib.suppress(BlockingIOError):
            os.read(self._reader, 64)
        return ended + [key for key, process in self._looked_at.items() if not is_alive(process)]

    def wake(self) -> None:
        """Let `wait` return; from any thread."""
        with contextlib.suppress(OSError):  # it is full: awake already; or closed: nobody waits any more
            os.write(self._writer, b"!")

    def close(self) -> None:
        """Stop waiting for all; the pipe stays open while the process lives, because `wake` may still be called."""
        for key in list(self._descriptors):
            self.remove(key)
