"""Keys, members and fields under our prefix that another program wrote: everybody passes them over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from allocator.cli.checks.findings import Finding
from allocator.model.names import shown
from allocator.operations.foreign import strange_entries, strange_keys

if TYPE_CHECKING:
    from collections.abc import Iterator

    from allocator.cli.context import CliContext

MOST = 20
"""Findings of each kind that are shown; whoever writes a thousand keys is found by the first of them."""


def check_keys(context: CliContext) -> Iterator[Finding]:
    """Look for keys that no script of ours writes, and for strange entries in those of this pool."""
    names = context.allocator.store.key_names()
    strange = strange_keys(names)
    for name in strange[:MOST]:
        yield Finding(
            "keys", f"the key {shown(name)} is not portlease's", "move or delete it; see who may write: ACL LIST"
        )
    entries = context.allocator.run(strange_entries(context.pool, names))
    for entry in entries[:MOST]:
        yield Finding("keys", entry, "remove it; see who may write: ACL LIST")
    left = max(0, len(strange) - MOST) + max(0, len(entries) - MOST)
    if left:
        yield Finding("keys", f"{left} more keys and entries are not portlease's", "remove those that are named first")
