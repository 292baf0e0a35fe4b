"""The command: measures, and writes one page in Markdown, with its plots and with the figures beside it as JSON."""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from ends import handle_signals

from benchmarks.page import PARTS, SOAK, facts, page, section


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, smaller pools and fleets")
    parser.add_argument("--out", type=Path, help="write the page there, the figures and the plots beside it")
    parser.add_argument("--server", help="the redis-server or valkey-server to measure")
    only = parser.add_argument_group("parts", "only these, printed; all but --soak (an hour) without one")
    for part in (*PARTS, SOAK):
        only.add_argument(f"--{part.name}", action="append_const", dest="parts", const=part, help=part.title)
    options = parser.parse_args()
    if options.out and options.parts:
        parser.error("a page is of a whole run: leave out either --out or the parts")
    handle_signals()
    parts = options.parts or PARTS
    figures: dict[str, Any] = {}
    for part in parts:
        began = time.perf_counter()
        figures[part.name] = part.figures(options.server, quick=options.quick)
        print(*section(part, figures[part.name]), "", sep="\n")
        print(f"({part.name}: {time.perf_counter() - began:.0f} s)", flush=True)
    if options.out:
        write(options.out, facts(options.server), figures)


def write(path: Path, machine: list[str], figures: dict[str, Any]) -> None:
    """Write the page, the figures as JSON beside it, and the plots that it shows."""
    from benchmarks import plots

    path.write_text(page(machine, figures), encoding="utf-8")
    found = json.dumps({"machine": machine, "figures": figures}, default=_plain, indent=1)
    path.with_suffix(".json").write_text(found + "\n", encoding="utf-8")
    images = path.parent / "images"
    images.mkdir(exist_ok=True)
    plots.write(figures, images)


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} has no place in JSON")
