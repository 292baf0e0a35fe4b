"""What all fuzzing shares: how many examples, what wild input looks like, and what a refusal has to look like.

`ALLOCATOR_TEST_PROFILE=quick` tries a few, `long` hundreds of times as many.
"""

from __future__ import annotations

import contextlib
import io
import os
import string
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from allocator.model.errors import AllocatorError

if TYPE_CHECKING:
    from collections.abc import Callable

SCALES = {"quick": 0.05, "default": 1.0, "long": 500.0}
SCALE = SCALES.get(os.environ.get("ALLOCATOR_TEST_PROFILE", "default"), 1.0)

LONGEST_MESSAGE = 1_500
"""A sentence with the longest names twice in it; whatever was given is quoted in 40 characters."""

HUGE = 10_000
AWKWARD = (
    "", " ", "\0", "\n", "\r\n", "\x1b[2J", "\x7f", "\u2028", "\u202e", "\ufeff", "\udcff", "é",
    "\U0001f986", "\U0001d7d8", "\u00b2", "\u0663", "\uff11",
    "*", "?", "[a]", "{", "}", "{}", "{p}", ":", "#", "/", "%", "%00", "%s", "$(id)", "`id`", "'", '"', "\\", ";", "&",
    "--", "-", "-1", "-0", "0", "00", "1e3", "1e400", "-1e400", "inf", "nan", "0x10", "1_000", "+1", " 1", "1 ", "1.5",
    "65536", "2147483648", "9223372036854775807", "9223372036854775808", "99999999999999999999999", "None",
    "null", "true",
    "..", "../..", "~", "/dev/null", "a" * 128, "a" * 129, "x" * HUGE, "9" * HUGE, "[" * HUGE,
)  # fmt: skip
"""What has broken programs: control and wildcard characters, digits that are none, limits of numbers, sizes."""


def examples(number: int) -> settings:
    """Return the settings of a fuzzing test that tries `number` examples by default."""
    return settings(
        max_examples=max(2, round(number * SCALE)),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        print_blob=False,
    )


def any_text(**sizes: int) -> st.SearchStrategy[str]:
    """Any text: surrogates, controls and what is awkward more often than chance has it."""
    return st.one_of(st.sampled_from(AWKWARD), st.text(st.characters(), **sizes), st.text(string.printable, **sizes))


def argument_text() -> st.SearchStrategy[str]:
    """Any text that a process can be given as an argument or a variable: no zero byte."""
    return any_text(max_size=60).map(lambda text: text.replace("\0", ""))


def any_bytes() -> st.SearchStrategy[bytes]:
    """Any bytes, those of awkward text among them."""
    return st.one_of(
        st.binary(max_size=200), any_text(max_size=60).map(lambda text: text.encode(errors="surrogatepass"))
    )


def any_json() -> st.SearchStrategy[Any]:
    """Any value that JSON has, and what Python's reader takes beside it (NaN, infinite numbers)."""
    leaves = st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.sampled_from([10**30, -(10**30), 1e308, 2**63]),
        st.floats(),
        any_text(),
    )
    return st.recursive(
        leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_text(), inner, max_size=4)
    )


def check_refusal(error: AllocatorError) -> None:
    """Assert that an error is one line that can be printed anywhere, of a bounded length, with an exit code."""
    message = str(error)
    assert message
    assert message.isprintable(), ascii(message)
    assert len(message) <= LONGEST_MESSAGE, f"{len(message)} characters: {message[:300]}"
    status = getattr(error, "status", error.exit_code)
    assert status in {2, 69, 73, 75, 78, 126, 127}, (status, message)


def accepted(call: Callable[[], Any]) -> Any:
    """Return what a call returns, or the error of ours that it refused with, checked; any other error is a failure."""
    try:
        return call()
    except AllocatorError as error:
        check_refusal(error)
        return error


_STATE_OF_ALL_KEYS = """
local found = {}
for _, key in ipairs(redis.call('KEYS', '*')) do
  found[#found + 1] = key
  local is_stream = redis.call('TYPE', key).ok == 'stream'
  local held = is_stream and cjson.encode(redis.call('XRANGE', key, '-', '+')) or redis.call('DUMP', key)
  found[#found + 1] = redis.sha1hex(held or '')
  found[#found + 1] = redis.call('PEXPIRETIME', key)
end
return found
"""


def state_of_all_keys(client: Any) -> dict[bytes, tuple[bytes, int]]:
    """Return what a server's keys hold and until when, those that have run out left out.

    A stream counts as what it holds: an entry that was taken back leaves its mark in nothing else.
    """
    found = client.eval(_STATE_OF_ALL_KEYS, 0)
    seconds, microseconds = client.time()
    now_ms = seconds * 1_000 + microseconds // 1_000
    rows = {found[at]: (found[at + 1], found[at + 2]) for at in range(0, len(found), 3)}
    return {key: value for key, value in rows.items() if value[1] < 0 or value[1] > now_ms}


def changed_keys(client: Any, before: dict[bytes, tuple[bytes, int]]) -> set[bytes]:
    """Return which keys hold something else than before, those left out whose time has come since."""
    after = state_of_all_keys(client)
    seconds, microseconds = client.time()
    now_ms = seconds * 1_000 + microseconds // 1_000
    over = {key for key, value in before.items() if 0 <= value[1] <= now_ms}
    return {key for key in before | after if key not in over and before.get(key) != after.get(key)}


def run(arguments: list[str], given: str = "[pool]\n") -> tuple[int, str, str]:
    """Run a command in this process as `main` does; return its exit code and what it wrote to both outputs."""
    from allocator.__main__ import status_of

    out, report = io.StringIO(), io.StringIO()
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(report),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr("sys.stdin", io.StringIO(given))
        try:
            code = status_of(arguments)
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else 1
    return code, out.getvalue(), report.getvalue()
