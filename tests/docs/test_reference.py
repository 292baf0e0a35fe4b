"""The reference is what the code says, and every command shows how it is used."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from allocator.cli.app import run_command

ROOT = Path(__file__).parents[2]
REFERENCE = runpy.run_path(str(ROOT / "scripts/reference"))


def test_the_written_reference_is_what_the_code_states() -> None:
    arguments = [sys.executable, str(ROOT / "scripts/reference"), "--check"]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}run scripts/reference"


@pytest.mark.parametrize(("path", "command"), [pytest.param(*one, id=one[0]) for one in REFERENCE["commands"]()])
def test_every_command_has_an_example_and_explains_its_options(path: str, command: object) -> None:
    text = REFERENCE["help_of"](path, command)
    assert re.search(r"^\s*(Example: |allocator )", text, re.MULTILINE), text
    assert path.removeprefix("allocator ") in text.partition("Example")[2]
    for option in command.params:
        assert getattr(option, "help", None) or option.param_type_name == "argument" or option.name == "help"


@pytest.mark.parametrize("path", [path for path, _ in REFERENCE["with_groups"]()])
def test_the_written_help_is_what_is_printed(
    path: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "dumb")
    assert run_command([*path.split()[1:], "--help"]) == 0
    page = (ROOT / "docs/reference/command-line.md").read_text()
    assert f"## {path}\n\n```text\n{capsys.readouterr().out.rstrip()}\n```\n" in page


def test_the_manual_is_well_formed() -> None:
    if shutil.which("mandoc") is None:
        pytest.skip("mandoc is not installed; the package mandoc of the distribution has it")
    arguments = ["mandoc", "-T", "lint", "-W", "error", str(ROOT / "deploy/wheel/share/man/man1/allocator.1")]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_the_commands(shell: str) -> None:
    import os

    variables = {"bash": ("allocator re", "1"), "zsh": ("allocator re", "1"), "fish": ("allocator re", "1")}
    typed, at = variables[shell]
    environment = {**os.environ, "_ALLOCATOR_COMPLETE": f"complete_{shell}", "COMP_WORDS": typed, "COMP_CWORD": at}
    environment |= {"_TYPER_COMPLETE_ARGS": typed, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    done = subprocess.run(
        [sys.executable, "-m", "allocator"], env=environment, capture_output=True, text=True, check=False
    )
    for name in ("renew", "release", "resolve", "reconcile"):
        assert name in done.stdout, done.stdout + done.stderr


def test_commands_stand_in_groups_and_no_sentence_is_cut(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert run_command(["--help"]) == 0
    text = capsys.readouterr().out
    for heading in ("For workers:", "For looking:", "For operators:", "For setting up:"):
        assert f"\n{heading}\n" in text
    assert "\nCommands:\n" not in text
    assert "..." not in text.replace("[ARGS]...", "")


@pytest.mark.parametrize(("path", "command"), [pytest.param(*one, id=one[0]) for one in REFERENCE["commands"]()])
def test_every_option_shows_what_goes_there(path: str, command: object) -> None:
    text = REFERENCE["help_of"](path, command)
    bare = re.findall(r"^  (--\S+) TEXT\b", text, re.MULTILINE)
    assert set(bare) <= {"--reason"}
