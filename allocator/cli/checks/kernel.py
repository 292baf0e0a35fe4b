"""Whether this host's kernel leaves the pool's ports alone, and lets a process hold as many sockets as they are."""

from __future__ import annotations

import resource
from typing import TYPE_CHECKING

from allocator.cli.checks.findings import Finding
from allocator.kernel.sockets import port_range_overlap, reserved_with

if TYPE_CHECKING:
    from collections.abc import Iterator

    from allocator.model.pools import PoolSpec

SPARE_FILES = 256
"""Descriptors that a supervisor needs beside those of its workers."""


def check_kernel(pool: PoolSpec) -> Iterator[Finding]:
    """Look at the ports of outgoing connections and at the limit of open files."""
    overlap = port_range_overlap(pool.first, pool.last)
    if overlap:
        what = f"outgoing connections may take ports {overlap[0]}-{overlap[1]} of the pool"
        value = reserved_with(pool.first, pool.last)
        yield Finding("ports", what, f"sysctl -w net.ipv4.ip_local_reserved_ports={value}")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = min(pool.size, 1_024) + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        fix = f"ulimit -n {wanted}" if hard == resource.RLIM_INFINITY or hard >= wanted else f"LimitNOFILE={wanted}"
        yield Finding("files", f"a process here may open {soft} files, few for a pool of {pool.size} ports", fix)
