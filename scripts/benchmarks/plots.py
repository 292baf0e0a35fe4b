"""The plots: the same look for all, light, readable without colour, and the same bytes for the same figures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from benchmarks import growth
from benchmarks.peers import locks, ours, pools
from benchmarks.peers.measure import FILLS
from benchmarks.peers.tables import Cells

if TYPE_CHECKING:
    from pathlib import Path

    from benchmarks.peers.contract import Peer

LOOK = {
    "svg.hashsalt": "portlease",
    "svg.fonttype": "path",
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "figure.facecolor": "white",
    "axes.titlesize": 10,
    "legend.frameon": False,
}
OURS, SERVER, OTHER = "#1a5fb4", "#c64600", "#77767b"
SHOWN: tuple[tuple[type[Peer], str, str], ...] = (
    (ours.Scripts, "o", OURS),
    (ours.Library, "s", OURS),
    (pools.AllocatorPeer, "^", SERVER),
    (pools.KeysPeer, "v", SERVER),
    (locks.SetLoop, "x", OTHER),
    (locks.RedisPyLock, "+", OTHER),
    (locks.PythonRedisLock, "d", OTHER),
    (locks.PotteryRedlock, "*", OTHER),
)


def write(figures: dict[str, Any], directory: Path) -> None:
    """Write both plots as SVG."""
    import matplotlib as mpl

    mpl.use("svg")
    with mpl.rc_context(LOOK):
        draw_growth(figures["growth"], directory / "growth.svg")
        draw_peers(figures["peers"], directory / "peers.svg")


def draw_growth(found: dict[str, Any], path: Path) -> None:
    """Draw the four curves: the time as the client saw it and the server's, with their quartiles."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(2, 2, figsize=(9, 6), layout="constrained")
    for axis, (name, text) in zip(axes.flat, growth.NAMES.items(), strict=True):
        points = found[name]
        at = [max(int(one), 0.5) for one in points]
        for key, label, colour, marker in (
            ("us", "seen by the client", OURS, "o"),
            ("server_us", "server", SERVER, "s"),
        ):
            spreads = [point[key] for point in points.values()]
            axis.plot(at, [one.median for one in spreads], color=colour, marker=marker, markersize=4, label=label)
            axis.fill_between(at, [one.low for one in spreads], [one.high for one in spreads], color=colour, alpha=0.15)
        axis.set_xscale("log")
        if name == "waiters":
            axis.set_xticks(at, [f"{int(one):,}" for one in points])
            axis.minorticks_off()
        axis.set_ylim(bottom=0)
        axis.set_xlabel(text.partition(":")[0])
        axis.set_ylabel("µs, claim and release")
    axes.flat[0].legend(loc="lower right")
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    plt.close(figure)


def draw_peers(found: dict[str, Any], path: Path) -> None:
    """Draw the rates of one client against how full the pool is, for each size."""
    from matplotlib import pyplot as plt

    cells = Cells(found)
    figure, axes = plt.subplots(1, len(cells.sizes), figsize=(9, 4.2), layout="constrained", sharey=True)
    for axis, size in zip(axes, cells.sizes, strict=True):
        for kind, marker, colour in SHOWN:
            row = [(at, cell.rate.median) for at, fill in enumerate(FILLS)
                   if (cell := cells.get(size, fill, 1, kind)) and cell.rate and cell.rate.median > 0]  # fmt: skip
            label = kind.name.replace("`", "")
            style = "-" if kind.ours else "--"
            axis.plot(*zip(*row, strict=True), style, color=colour, marker=marker, markersize=5, label=label)
        axis.set_yscale("log")
        axis.set_xticks(range(len(FILLS)), ["empty", "50 % full", "95 % full", "full: refusals"])
        axis.set_title(f"{size:,} ports, 1 client")
    axes[0].set_ylabel("claims with releases a second")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    plt.close(figure)
