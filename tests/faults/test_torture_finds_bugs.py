"""The promise of the checker itself: bugs put into the product on purpose are found, each by a rule that is for it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from torture.mutations import MUTATIONS, edited

from allocator.protocol.wire import script

TORTURE = Path(__file__).parents[2] / "scripts" / "torture"
ALONE = ("--calm", "--round-seconds", "4", "--minutes", "4", "--seed", "3")


@pytest.mark.parametrize("name", sorted(MUTATIONS))
def test_a_bug_put_in_on_purpose_is_found(name: str) -> None:
    done = subprocess.run(
        [TORTURE, *ALONE, "--mutation", name], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
    )
    found = set(re.findall(r"^ +[\d,]+  ([a-z]): ", done.stdout, re.MULTILINE))
    assert done.returncode == 1, done.stdout + done.stderr
    assert found & MUTATIONS[name].found_by, done.stdout


@pytest.mark.parametrize("name", sorted(MUTATIONS))
def test_each_bug_still_has_its_line_in_the_scripts(name: str) -> None:
    for wanted, edits in MUTATIONS[name].edits.items():
        for piece, other in edits.items():
            assert edited(script(wanted), {piece: other}) != script(wanted).source


def test_a_mutation_whose_text_is_gone_is_an_error() -> None:
    with pytest.raises(LookupError, match="fix the mutation"):
        edited(script("claim"), {"no such text": ""})
