"""A call of a script, as it goes to Redis."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ScriptCall:
    """Run a script; answered with its reply (nested lists of `bytes`, `str` and `int`).

    Attributes:
        script: Which script: the name of a file under `lua/`, without `.lua`.
        keys: Its KEYS, all with the hash tag of one pool.
        args: Its ARGV.
        replicas: How many replicas have to have what it wrote; answered with the reply and how many had it in time,
            where that is not 0.
    """

    script: str
    keys: tuple[str, ...]
    args: tuple[str | int, ...] = ()
    replicas: int = 0
