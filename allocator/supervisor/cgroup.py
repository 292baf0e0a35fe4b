"""A control group for the workers of one supervisor, where cgroup v2 can be written: root, or a delegated group.

A process can leave its process group, its session and its environment, but not its control group: what is in it when
the supervisor was killed is a worker's. Elsewhere the guard ends what it knows of (see `guard`). No limit is set here.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def make_group(name: str) -> Path | None:
    """Make a group below this process's own one; None where that cannot be done.

    Source: cgroups(7), proc_pid_mountinfo(5).
    """
    own = _own_group()
    if own is None:
        return None
    path = own / f"allocator-{name}"
    try:
        path.mkdir()
    except OSError:
        return None
    if os.access(own / "cgroup.procs", os.W_OK) and os.access(path / "cgroup.procs", os.W_OK):
        return path
    remove_group(path)
    return None


def enter_group(path: Path) -> None:
    """Move this process there, as a child does before it becomes its command; what it starts begins there."""
    with contextlib.suppress(OSError):
        procs = os.open(path / "cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(procs, b"0")
        finally:
            os.close(procs)


def remove_group(path: Path) -> None:
    """Remove a group in which no process is left; one that has processes stays."""
    with contextlib.suppress(OSError):
        path.rmdir()


def _own_group() -> Path | None:
    try:
        groups = Path("/proc/self/cgroup").read_text().splitlines()
        mounts = [line.split() for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    except OSError:
        return None
    inside = next((line.removeprefix("0::") for line in groups if line.startswith("0::")), None)
    for parts in mounts:
        root, mount_point, file_system = parts[3], parts[4], parts[parts.index("-") + 1]
        if file_system == "cgroup2" and inside is not None and Path(inside).is_relative_to(root):
            return Path(mount_point) / Path(inside).relative_to(root)
    return None
