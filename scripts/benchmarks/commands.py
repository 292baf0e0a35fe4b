"""What a whole command takes, from exec to exit, beside `python -c 'import redis'`."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.table import Row, at_most, plain
from benchmarks.timing import Spread, ratios, seconds_for


def figures(binary: str | None, *, quick: bool) -> dict[str, Spread] | str:  # noqa: ARG001  # its own, embedded
    """Return what `claim` and `release` take as whole commands, or why that was not measured."""
    return command_times(3 if quick else 15)


def command_times(rounds: int) -> dict[str, Spread] | str:
    """Return the ratios of `claim` and `release` on a warm embedded server, or why there are none."""
    command = Path(sys.executable).with_name("allocator")
    if not command.exists():
        return "the command is not installed"
    with tempfile.TemporaryDirectory(prefix="bench-state-") as state:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ALLOCATOR_")}
        environment["XDG_STATE_HOME"] = state
        environment.pop("PYTHONDONTWRITEBYTECODE", None)  # as installed: modules are compiled once
        environment["PYTHONPYCACHEPREFIX"] = str(Path(state) / "compiled")

        def run(*arguments: str) -> str:
            done = subprocess.run(arguments, env=environment, cwd=state, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{' '.join(arguments)}: exit {done.returncode}: {done.stderr.strip()}")
            return done.stdout

        ports: list[str] = []
        try:
            ports += run(str(command), "claim", "email", "--org", "bench").split()  # starts the embedded server
            run(str(command), "release", ports.pop())
            steps = {
                "import": lambda: run(sys.executable, "-c", "import redis"),
                "version": lambda: run(str(command), "--version"),
                "claim": lambda: ports.extend(run(str(command), "claim", "email", "--org", "bench").split()),
                "release": lambda: run(str(command), "release", ports.pop()),
            }
            for step in steps.values():
                step()
            times: dict[str, list[float]] = {name: [] for name in steps}
            for _ in range(rounds):
                for name, step in steps.items():
                    times[name].append(seconds_for(step))
        finally:
            stop = [str(command), "embedded", "stop"]
            subprocess.run(stop, env=environment, cwd=state, capture_output=True, check=False)
    return {
        "import_ms": Spread.of([seconds * 1_000 for seconds in times["import"]]),
        "version": ratios(times["version"], times["import"]),
        "claim": ratios(times["claim"], times["import"]),
        "release": ratios(times["release"], times["import"]),
    }


def rows(found: dict[str, Spread] | str) -> list[Row]:
    """Return the lines of the table."""
    if isinstance(found, str):
        return [Row("`allocator claim`, `allocator release`", f"not measured: {found}", "")]
    return [
        plain("`python -c 'import redis'`, whole process", found["import_ms"], " ms"),
        at_most("`allocator --version`, whole process, beside that", found["version"], 0.45, digits=2),
        at_most("`allocator claim`, whole process, beside that", found["claim"], 0.65, digits=2),
        at_most("`allocator release`, whole process, beside that", found["release"], 0.65, digits=2),
    ]
