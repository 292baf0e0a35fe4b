"""SHA-1 and SHA-256 from modules of Python's own: `hashlib` loads OpenSSL for them, which takes longer than a claim.

They name things here (a script, a machine), and make the tokens of further ports from a worker's own token.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {"sha1": ("_sha1",), "sha256": ("_sha2", "_sha256")}
"""Where they are, by version of Python; a build of its own may have left them out."""


def sha1(data: bytes) -> str:
    """Return the SHA-1 of some bytes in hexadecimal digits."""
    return str(_function("sha1")(data, usedforsecurity=False).hexdigest())


def sha256(data: bytes) -> str:
    """Return the SHA-256 of some bytes in hexadecimal digits."""
    return str(_function("sha256")(data, usedforsecurity=False).hexdigest())


def _function(name: str) -> Any:  # noqa: ANN401  # a function of a module that has no types
    for home in _HOMES[name]:
        try:
            return getattr(import_module(home), name)
        except ImportError:
            continue
    return getattr(import_module("hashlib"), name)
