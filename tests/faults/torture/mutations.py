"""Bugs put in on purpose: a script's text, or what the actor asks its kernel, is changed in the actors alone.

Each names the rules of which at least one has to find it. A mutation whose text is not found any more is an error, so
that none can silently stop being one.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from hashlib import sha1
from typing import TYPE_CHECKING

from allocator.kernel import answers
from allocator.protocol import wire
from allocator.protocol.wire import Script

if TYPE_CHECKING:
    from collections.abc import Callable

TOKEN_OF_ENDING = "proof ~= ARGV[2 * i + 1]"
SCORES = "if #scores > 0 then"
MARKED = "call('HSET', tokens_key, port, mark .. grant)"


@dataclass(frozen=True, slots=True)
class Mutation:
    """One bug.

    Attributes:
        what: What is wrong, in words.
        found_by: The rules (their letters) that have to find it.
        edits: Script → pieces of its text and what stands in their address.
        patch: What else is done to the process, or None.
    """

    what: str
    found_by: frozenset[str]
    edits: dict[str, dict[str, str]]
    patch: Callable[[], None] | None = None


def _without_a_look_at_the_kernel() -> None:
    answers.listening_ports = lambda *_: frozenset()
    answers.prove_port = lambda *_: True


def _by_the_clients_clock() -> None:
    """The claimer's clock decides; one in three is ten seconds ahead."""
    known = wire.script

    def script(name: str) -> Script:
        one = known(name)
        now = time.time() + (10.0 if os.getpid() % 3 == 0 else 0.0)
        clock = f"{{ {int(now)}, {int(now % 1 * 1_000_000)} }}"
        return _changed(one, one.source.replace("read('TIME')", clock))

    wire.script = script


MUTATIONS = {
    "no-token-check-on-release": Mutation(
        "whoever knows the port ends its lease",
        frozenset("c"),
        {"end": {TOKEN_OF_ENDING: "false"}},
    ),
    "no-token-check-on-renew": Mutation(
        "whoever held the port renews what is there",
        frozenset("ac"),
        {
            "renew": {
                "find(grant, args[at + 3] .. ' ' .. token .. ' ', 1, true) == 1": "true",
            },
            "extend": {"find(grant, sub(proofs, (i - 1) * 50 + 1, i * 50), 1, true) == 1": "true"},
        },
    ),
    "ended-grants-unmarked": Mutation(
        "a renewal brings back what was released",
        frozenset("cf"),
        {"end": {MARKED: "local _ = grant"}},
    ),
    "client-clock": Mutation("the claimer's clock decides", frozenset("adf"), {}, _by_the_clients_clock),
    "fence-not-growing": Mutation(
        "a grant gets the last fence again",
        frozenset("b"),
        {
            "claim": {
                "if last_fence and (#last_fence ~= #fence or last_fence >= fence) then": "if last_fence then",
                "format('%.0f', math.max(tonumber(last_fence) or 0, now_us - 1) + 1)": "last_fence",
            }
        },
    ),
    "score-not-pushed": Mutation(
        "a renewal leaves the port's time as it was",
        frozenset("af"),
        {"renew": {SCORES: "if false then"}, "extend": {"      filled = filled + 2": ""}},
    ),
    "no-grace": Mutation(
        "a port is claimable as soon as its lease has run out",
        frozenset("af"),
        {
            "claim": {"now + ttl_ms + grace_ms, port)": "now + ttl_ms, port)"},
            "renew": {"now + ttl_ms + grace_ms": "now + ttl_ms"},
            "extend": {"now + ttl_ms + grace_ms": "now + ttl_ms"},
        },
    ),
    "leases-without-end": Mutation(
        "a lease has no TTL",
        frozenset("df"),
        {
            "claim": {
                "call('SET', base .. ':lease:' .. namespace .. ':' .. port, lease, 'PX', ttl_text)": (
                    "call('SET', base .. ':lease:' .. namespace .. ':' .. port, lease)"
                )
            },
            "renew": {"call('PEXPIRE', lease_keys[i], ttl_text)": "call('PERSIST', lease_keys[i])"},
            "extend": {
                "call('PEXPIRE', lease_prefix .. port, ttl_text) == 1": "call('PERSIST', lease_prefix .. port) >= 0"
            },
        },
    ),
    "line-not-heeded": Mutation(
        "whoever comes takes a port, whoever waits",
        frozenset("e"),
        {"claim": {"if ahead > 0 and not": "if false and not"}},
    ),
    "those-ahead-not-counted": Mutation(
        "one free port is enough to pass by all who wait",
        frozenset("e"),
        {"claim": {">= needs + needed\n": ">= needed\n"}},
    ),
    "last-come-first-served": Mutation(
        "the line is served from its end",
        frozenset("e"),
        {"wait": {"call('HINCRBY', namespace_key, 'seq', 1)": "call('HINCRBY', namespace_key, 'seq', -1)"}},
    ),
    "kernel-not-asked": Mutation(
        "listening sockets are neither avoided nor proven", frozenset("a"), {}, _without_a_look_at_the_kernel
    ),
    "index-not-cleared": Mutation(
        "a released lease stays in the index of its service",
        frozenset("f"),
        {"end": {"try('ZREM', service, member)": "0"}},
    ),
}


def apply(name: str | None) -> None:
    """Put a bug into this process.

    Raises:
        LookupError: When the bug's address is not there any more.
    """
    if name is None:
        return
    mutation = MUTATIONS[name]
    known = wire.script
    changed = {
        wanted: _changed(known(wanted), edited(known(wanted), edits)) for wanted, edits in mutation.edits.items()
    }

    def script(wanted: str) -> Script:
        return changed.get(wanted) or known(wanted)

    if changed:
        wire.script = script
    if mutation.patch:
        mutation.patch()


def edited(one: Script, edits: dict[str, str]) -> str:
    """Return a script's text with its edits.

    Raises:
        LookupError: When a piece is not there: the script has changed, and the mutation has to.
    """
    source = one.source
    for piece, other in edits.items():
        if piece not in source:
            raise LookupError(f"{one.name}.lua has no {piece!r} any more; fix the mutation")
        source = source.replace(piece, other)
    return source


def _changed(one: Script, source: str) -> Script:
    return Script(one.name, source, sha1(source.encode(), usedforsecurity=False).hexdigest())
