"""What a worker's last line of standard error becomes in its lease and in events, and how it is kept out of them."""

from __future__ import annotations

import sys

from supervised import Fleet, finish

from allocator.supervisor.output import last_message

CRASH = "import sys; sys.stderr.write('first\\n' + '\\x1b[31mtoken=\\ts3cret' + 'x' * 500 + '\\n\\n'); sys.exit(4)"


def test_the_last_line_is_kept_with_its_control_characters_shown_and_cut() -> None:
    assert last_message([b"first", b"\x1b[31mred\x07", b"", b"   "]) == r"\x1b[31mred\x07"
    assert last_message([b"x" * 201]) == "x" * 199 + "…"
    assert last_message([b"\xff"]) == r"\xff"
    assert last_message([]) == ""


def test_the_frames_of_a_trace_show_nothing() -> None:
    node = [b"Error: no such org", b"    at start (file:///w.mjs:1:7)", b"    at main", b"", b"Node.js v22.1.0"]
    assert last_message(node) == "Error: no such org"
    missing = [b"  throw err;", b"  ^", b"", b"Error: Cannot find module './x'", b"Require stack:", b"- /srv/w.js"]
    properties = [
        b"    at node:internal/main/run:28:49 {",
        b"  code: 'MODULE_NOT_FOUND',",
        b"}",
        b"",
        b"Node.js v20.20.2",
    ]
    assert last_message(missing + properties) == "Error: Cannot find module './x'"
    refused = [
        b"Error: connect ECONNREFUSED 127.0.0.1:1",
        b"    at x:1:2",
        b"Emitted 'error' event on Socket instance at:",
    ]
    assert last_message(refused + properties) == "Error: connect ECONNREFUSED 127.0.0.1:1"
    assert last_message([*missing, *properties, b"{", b"  giving up"]) == "giving up"
    assert last_message([b"Traceback", b"    raise", b"    ^^^^^", b"ValueError: x"]) == "ValueError: x"


def error_events(fleet: Fleet) -> list[str]:
    stream = f"alloc:{{{fleet.pool.name}}}:events"
    return [one["error"] for _, one in fleet.ports.store.newest_events(stream, 50) if "error" in one]


def test_events_have_one_line_of_the_workers_output(fleet: Fleet) -> None:
    finish(fleet.run("--max-restarts", "1", command=[sys.executable, "-c", CRASH]))
    (error,) = error_events(fleet)
    assert error.startswith(r"exit code 4: \x1b[31mtoken=\ts3cret")
    assert len(error) <= len("exit code 4: ") + 200
    assert "first" not in error


def test_no_output_of_the_worker_is_in_events_where_that_is_asked_for(fleet: Fleet) -> None:
    process = fleet.run("--no-output-in-events", "--max-restarts", "1", command=[sys.executable, "-c", CRASH])
    finish(process)
    assert error_events(fleet) == ["exit code 4"]
