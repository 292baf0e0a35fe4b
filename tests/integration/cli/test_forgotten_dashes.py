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
        ["node", "worker.js", "--port", "5560"],
        ["--wait", "1s", "node", "worker.js", "--ttl=1h"],
        ["npm", "start", "--", "--port={port}"],
        ["npm", "start", "--help"],
    ],
)
def test_an_option_after_a_command_without_dashes_is_refused(allocator, arguments: list[str]) -> None:
    refused = allocator(*RUN, *arguments)
    assert (refused.code, HINT in refused.err, len(refused.err.splitlines())) == (2, True, 1), refused.err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--no-such-option"],
        ["--no-such-option", "node", "w.js"],
        ["--port", "x", "--", "true"],
        ["--ttl", "fast", "--", "node", "w.js", "--port=1"],
    ],
)
def test_a_mistake_of_another_kind_has_no_such_hint(allocator, arguments: list[str]) -> None:
    refused = allocator(*RUN, *arguments)
    assert (refused.code, HINT in refused.err) == (2, False), refused.err


def test_a_command_without_options_needs_no_dashes(allocator) -> None:
    assert allocator(*RUN, "--restart", "never", "true", "-").code == 0
    assert allocator("run", "email", "--instance", "1", "true", ALLOCATOR_ORG="org-1").code == 0


def test_a_command_with_its_options_and_no_organisation_shows_how_run_is_written(allocator) -> None:
    refused = allocator("run", "email", "npm", "start")
    assert (refused.code, refused.err.strip().endswith("allocator run PLUGIN --org ORG -- COMMAND")) == (2, True)
