"""What a run prints: a line for each round, and a report at the end."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torture.rounds import Outcome

SHOWN = 5


def line_of(seed: int, outcome: Outcome) -> str:
    """Return one line about a round."""
    calls = sum(outcome.calls.values())
    unknown = sum(count for (_, result), count in outcome.calls.items() if result == "unknown")
    verdict = f"{len(outcome.violations)} VIOLATIONS in {outcome.history}" if outcome.violations else "no violation"
    return (
        f"seed {seed} round {outcome.number} ({outcome.kind}): {outcome.seconds:.0f} s, "
        f"{calls:,} calls ({unknown:,} unknown), "
        f"{outcome.leases:,} leases, {sum(outcome.faults.values())} faults of {len(outcome.faults)} kinds, {verdict}"
    )


def report(seed: int, seconds: float, outcomes: list[Outcome]) -> str:
    """Return the report of a whole run."""
    calls: Counter[tuple[str, str]] = Counter()
    faults: Counter[str] = Counter()
    for outcome in outcomes:
        calls.update(outcome.calls)
        faults.update(outcome.faults)
    lines = ["", f"seed {seed}: {seconds / 60:.1f} minutes, {len(outcomes)} rounds"]
    lines.append(f"leases granted: {sum(outcome.leases for outcome in outcomes):,}")
    lines.append("calls            ok   refused   unknown")
    lines += [
        f"  {op:9}" + "".join(f"{calls[op, result]:10,}" for result in ("ok", "refused", "unknown"))
        for op in sorted({op for op, _ in calls})
    ]
    lines.append(f"faults: {sum(faults.values()):,}")
    lines += [f"  {count:5,}  {name}" for name, count in faults.most_common()]
    violations = [(outcome, violation) for outcome in outcomes for violation in outcome.violations]
    rules = Counter(violation.rule for _, violation in violations)
    lines.append(f"violations: {len(violations)}")
    lines += [f"  {count:5,}  {rule}" for rule, count in rules.most_common()]
    for outcome, violation in violations[:SHOWN]:
        lines.append(f"round {outcome.number}, history in {outcome.history}; again with --round {outcome.number}")
        lines.append(f"  {violation}"[:3_000])
    return "\n".join(lines)
