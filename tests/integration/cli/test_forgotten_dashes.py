"""A `--` that was forgotten before the command of `run`: the error says where it belongs."""

from __future__ import annotations

import pytest

RUN = ["run", "email", "--org", "org-1"]
HINT = "put -- before the command: allocator run PLUGIN --org ORG -- COMMAND"


@pytest.mark.parametrize(
    "arguments",
    [
        ["node", "worker.js", "--plugin-path=./email"],
        ["node", "worker.js", "--port={port}"],
        ["node", "worker.js", "-v"],
        ["python", "-m", "worker"],
        ["node", "worker.js", "--ttl", "fast"],
    ],
)
def test_an_option_of_the_command_that_run_cannot_read_is_recognised(allocator, arguments: list[str]) -> None:
    refused = allocator(*RUN, *arguments)
    assert (refused.code, HINT in refused.err, len(refused.err.splitlines())) == (2, True, 1), refused.err


@pytest.mark.parametrize(
    "arguments",
    [["--no-such-option"], ["--port", "x", "--", "true"], ["--ttl", "fast", "--", "node", "w.js", "--port=1"]],
)
def test_a_mistake_of_another_kind_has_no_such_hint(allocator, arguments: list[str]) -> None:
    refused = allocator(*RUN, *arguments)
    assert (refused.code, HINT in refused.err) == (2, False), refused.err
