"""Which Redis: the one that was named, or the embedded server of this user and host."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from allocator.model.settings import state_directory

if TYPE_CHECKING:
    from pathlib import Path


def store_url(url: str | None, state_dir: Path | None = None) -> str:
    """Return `url`, or the URL of the embedded server, which is started when it does not run."""
    if url:
        return url
    from allocator.store.embedded import EmbeddedServer

    return EmbeddedServer(state_dir or state_directory(os.environ)).ensure()
