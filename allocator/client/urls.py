"""Which Redis: the one that was named, or the embedded server of this user and host."""

from __future__ import annotations

import os
from pathlib import Path


def state_directory() -> Path:
    """Return where this user's state lives: `$XDG_STATE_HOME/allocator`, `~/.local/state/allocator` by default."""
    override = os.environ.get("ALLOCATOR_STATE_DIR")
    if override:
        return Path(override)
    home = os.environ.get("XDG_STATE_HOME")
    return (Path(home) if home else Path.home() / ".local" / "state") / "allocator"


def store_url(url: str | None) -> str:
    """Return `url`, or the URL of the embedded server, which is started when it does not run."""
    if url:
        return url
    from allocator.store.embedded import EmbeddedServer

    return EmbeddedServer(state_directory()).ensure()
