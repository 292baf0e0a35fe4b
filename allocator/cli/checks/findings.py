"""What a check finds, and how an error becomes one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from allocator.model.errors import AllocatorError
from allocator.model.values import Value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from allocator.model.problems import Problem


class Finding(Value):
    """Something that is wrong or risky.

    Attributes:
        check: What was looked at.
        what: What is wrong, with what.
        fix: What to do about it: a command wherever there is one.
    """

    check: str
    what: str
    fix: str


def finding_of_problem(problem: Problem) -> Finding:
    """Return the finding that a problem by the shared rules is."""
    return Finding(problem.check, problem.what, problem.command)


def finding_of(check: str, error: AllocatorError) -> Finding:
    """Return the finding that an error is: what it shows is wrong, and what it shows to do."""
    what, _, fix = str(error).rpartition("; ")
    return Finding(check, what, fix) if what else Finding(check, fix, "fix that, then run again: allocator doctor")


def patiently(check: str, look: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """Yield what a check finds; an error that ends it is its last finding.

    Args:
        check: What is looked at.
        look: Makes the check.
    """
    try:
        yield from look()
    except AllocatorError as error:
        yield finding_of(check, error)
