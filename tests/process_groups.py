"""Who is left of a process group: what tests ask after a worker has ended."""

from __future__ import annotations

from allocator.kernel.processes import process_table


def process_group_members(group: int) -> list[int]:
    """Return the living processes of a process group, zombies left out, in no order."""
    return [pid for pid, row in process_table().items() if row.group == group and row.alive]
