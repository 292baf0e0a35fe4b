"""`top`: the pool in a terminal, live, in the order and the terms of the status page.

It draws with nothing but the terminal's own sequences, so that it works over any ssh. Into a pipe, on a dumb terminal
or with `--once` it prints one picture and ends. May not live here: anything that changes a lease.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from allocator.cli.app import interrupts_raised
from allocator.cli.context import cli_context, seconds
from allocator.cli.options import ConfigOption, PoolOption, RedisOption  # noqa: TC001  # typer reads them
from allocator.kernel.outlets import PATIENCE_S, select_room
from allocator.model.errors import AllocatorError, InvalidInputError, printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from allocator.api.index import FleetIndex
    from allocator.cli.pictures import Look, Row
    from allocator.cli.watched import Past, WatchedPool

LEAST_COLUMNS, LEAST_ROWS = 20, 4
USUAL_COLUMNS, USUAL_ROWS = 120, 24
ESCAPE_S = 0.05
"""For how long the rest of a key's sequence may take to arrive."""
_NAMED_KEYS = {
    "up": (b"\x1b[A", b"\x1bOA", b"k"),
    "down": (b"\x1b[B", b"\x1bOB", b"j"),
    "page up": (b"\x1b[5~",),
    "page down": (b"\x1b[6~", b" "),
    "home": (b"\x1b[H", b"g"),
    "end": (b"\x1b[F", b"G"),
    "enter": (b"\r", b"\n", b"\x1b[C"),
    "back": (b"q", b"Q", b"\x1b", b"\x1b[D"),
    "filter": (b"/",),
    "erase": (b"\x7f", b"\x08"),
}
KEYS = {key: name for name, keys in _NAMED_KEYS.items() for key in keys}
WHILE_TYPING = {"up", "down", "enter", "erase"}
HELP = "arrows choose   enter opens   / filters   q back"


def register(application: typer.Typer) -> None:
    """Add the command."""
    application.command()(top)


def top(
    once: Annotated[
        bool, typer.Option("--once", help="Print the screen once and end, as when the output is a pipe.")
    ] = False,
    every: Annotated[str, typer.Option("--every", metavar="DURATION", help="Time between two updates.")] = "2s",
    pool: PoolOption = None,
    redis_url: RedisOption = None,
    config: ConfigOption = None,
) -> None:
    """Watch the pool in a terminal: problems, counters, and hosts, the worst first.

    Arrows choose a line, enter opens a host or a lease, / filters, q goes back and ends.

    Example: allocator top
    """
    from allocator.cli.watched import WatchedPool

    interval_s = seconds(every, "interval") or 0.0
    if interval_s < 0.1:
        raise InvalidInputError("an interval below 100ms only burdens Redis; give for example --every 2s")
    with cli_context(pool, None, redis_url, config, reads_only=True) as context:
        watched = WatchedPool(context.allocator, context.pool, interval_s, is_default=pool is None)
        if once or not is_capable():
            print_once(watched)
            return
        with interrupts_raised() as interrupts, full_screen() as resized:
            Screen(watched, interval_s, resized).run(interrupts)


def is_capable() -> bool:
    """Return whether there is a terminal whose cursor can be moved."""
    return sys.stdin.isatty() and sys.stdout.isatty() and os.environ.get("TERM", "dumb") not in {"dumb", ""}


def is_coloured() -> bool:
    """Return whether colours are wanted."""
    return not os.environ.get("NO_COLOR") and sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb"


def has_unicode() -> bool:
    """Return whether the terminal has more signs than those of ASCII."""
    return (sys.stdout.encoding or "").lower().replace("-", "") in {"utf8", "utf16"}


def terminal_size() -> tuple[int, int]:
    """Return columns and rows; of a pipe those that `COLUMNS` names, or the usual ones."""
    with contextlib.suppress(OSError, ValueError):
        size = os.get_terminal_size(sys.stdout.fileno())
        if size.columns and size.lines:
            return max(LEAST_COLUMNS, size.columns), max(LEAST_ROWS, size.lines)
    given = os.environ.get("COLUMNS", "")
    return max(LEAST_COLUMNS, int(given)) if given.isdecimal() and len(given) < 5 else USUAL_COLUMNS, USUAL_ROWS


def print_once(watched: WatchedPool) -> None:
    """Print the pool, all of it, each problem with what to do about it."""
    from allocator.cli.pictures import Look, cut, pool_rows, title

    index = watched.look()
    look = Look(terminal_size()[0], has_unicode(), watched.now)
    for one in (title(index, look, None), *pool_rows(index, look, [], most_problems=50)):
        print(cut(one.text, look.columns).rstrip())
        if one.hint:
            print(f"            {one.hint}"[: look.columns])


@contextlib.contextmanager
def full_screen() -> Iterator[int]:
    """Take the terminal over, and give it back as it was; gives a descriptor that is readable when its size changed.

    It is given back before the process is stopped by Ctrl-Z or ended by a signal, too.
    """
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    resized, changed = os.pipe()
    os.set_blocking(changed, False)

    def enter() -> None:
        tty.setcbreak(sys.stdin, termios.TCSANOW)
        _write("\x1b[?1049h\x1b[?25l")

    def leave() -> None:
        if select_room(1, PATIENCE_S):  # a terminal that was stopped (Ctrl-S) takes nothing
            _write("\x1b[0m\x1b[?25h\x1b[?1049l")
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)

    def on_resize(*_: object) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(changed, b".")

    def on_stop(*_: object) -> None:
        leave()
        os.kill(os.getpid(), signal.SIGSTOP)
        enter()
        on_resize()

    def on_end(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    handlers: dict[int, Callable[..., None]] = {
        signal.SIGWINCH: on_resize,
        signal.SIGTSTP: on_stop,
        signal.SIGTERM: on_end,
        signal.SIGHUP: on_end,
    }
    others = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        enter()
        yield resized
    finally:
        leave()
        for number, other in others.items():
            signal.signal(number, other)
        os.close(resized)
        os.close(changed)


def _write(text: str) -> None:
    """Write to the terminal itself: what a buffer still had would have to be written at the end, stopped or not."""
    left = text.encode(sys.stdout.encoding or "ascii", "replace")
    while left:
        select_room(1, None)
        with contextlib.suppress(BlockingIOError):
            left = left[os.write(1, left) :]


class Screen:
    """The terminal while `top` has it: what is open, what is chosen, and the loop that draws and takes keys.

    Args:
        watched: The pool.
        interval_s: How often it is looked at.
        resized: Readable when the terminal's size changed.
    """

    def __init__(self, watched: WatchedPool, interval_s: float, resized: int) -> None:
        self._watched = watched
        self._interval_s = interval_s
        self._resized = resized
        self._index: FleetIndex | None = None
        self._away: str | None = None
        self._opened: list[tuple[str, int | None]] = []
        self._chosen: list[int] = [0]
        self._typed = ""
        self._is_typing = False
        self._past: Past | None = None
        self._rows: list[Row] = []
        self._page = 1

    def __repr__(self) -> str:
        return f"<Screen of {self._watched!r}>"

    def run(self, interrupts: list[int]) -> None:
        """Draw and take keys until somebody ends it.

        Raises:
            KeyboardInterrupt: After Ctrl-C.
        """
        due = 0.0
        while not interrupts:
            if time.monotonic() >= due:
                self._look()
                due = time.monotonic() + self._interval_s
            self._draw()
            ready = select.select([sys.stdin, self._resized], [], [], max(0.0, due - time.monotonic()))[0]
            if self._resized in ready:
                os.read(self._resized, 4_096)
            if sys.stdin in ready and not self._take_keys():
                return
        raise KeyboardInterrupt

    def _look(self) -> None:
        try:
            self._index = self._watched.look()
            self._away = None
            if self._opened and self._opened[-1][1] is not None:
                self._past = self._watched.past_of(self._opened[-1][0], self._opened[-1][1])
        except AllocatorError as error:
            self._away = printable(str(error))

    def _take_keys(self) -> bool:
        """Take what was typed; False when that ends it."""
        typed = os.read(sys.stdin.fileno(), 1_024)
        if typed == b"\x1b" and select.select([sys.stdin], [], [], ESCAPE_S)[0]:
            typed += os.read(sys.stdin.fileno(), 1_024)
        if not typed:
            return False
        while typed:
            length = next((size for size in (4, 3, 1) if typed[:size] in KEYS and len(typed) >= size), 1)
            key, typed = typed[:length], typed[length:]
            if not self._take(KEYS.get(key, ""), key):
                return False
        return True

    def _take(self, name: str, key: bytes) -> bool:
        if self._is_typing and (name not in WHILE_TYPING or key in {b"j", b"k"}):
            if key == b"\x1b":
                self._is_typing, self._typed = False, ""
            elif key.isascii() and key.decode().isprintable():
                self._typed += key.decode()
            self._chosen[-1] = 0
        elif name == "erase" and self._is_typing:
            self._typed = self._typed[:-1]
        elif name == "enter" and self._is_typing:
            self._is_typing = False
        elif name == "filter":
            self._is_typing, self._opened, self._chosen = True, [], [0]
        elif name in {"back", "erase"}:
            return self._back()
        elif name == "enter":
            self._open()
        else:
            self._move({"up": -1, "down": 1, "page up": -self._page, "page down": self._page, "home": -10**6,
                        "end": 10**6}.get(name, 0))  # fmt: skip
        return True

    def _back(self) -> bool:
        if self._opened:
            self._opened.pop()
            self._chosen.pop()
        elif self._typed:
            self._typed = ""
        else:
            return False
        return True

    def _choices(self) -> list[int]:
        return [at for at, one in enumerate(self._rows) if one.host is not None or one.hint]

    def _move(self, by: int) -> None:
        self._chosen[-1] = max(0, min(self._chosen[-1] + by, len(self._choices()) - 1))

    def _open(self) -> None:
        choices = self._choices()
        if not choices:
            return
        one = self._rows[choices[min(self._chosen[-1], len(choices) - 1)]]
        if one.host is None or (self._opened and self._opened[-1] == (one.host, one.port)):
            return
        self._opened.append((one.host, one.port))
        self._chosen.append(0)
        self._past = None
        self._look()

    def _draw(self) -> None:
        from allocator.cli.pictures import Look, host_rows, lease_rows, pool_rows, title

        columns, rows = terminal_size()
        index = self._index
        if index is None:
            _write(f"\x1b[H{(self._away or 'reading')[:columns]}\x1b[K\x1b[J")
            return
        look = Look(columns, has_unicode(), self._watched.now)
        if not self._opened:
            self._rows = pool_rows(index, look, self._typed.lower().split(), most_problems=max(3, rows // 3))
        elif (port := self._opened[-1][1]) is None:
            self._rows = host_rows(index, self._opened[-1][0], look)
        else:
            self._rows = lease_rows(index, self._opened[-1][0], port, self._past, look)
        self._paint(title(index, look, self._away), look, rows)

    def _paint(self, head: Row, look: Look, rows: int) -> None:
        """Write the first line, as many rows as there is room for around the chosen one, and the last line."""
        self._page = max(1, rows - 3)
        choices = self._choices()
        at = choices[min(self._chosen[-1], len(choices) - 1)] if choices else self._chosen[-1]
        first = max(0, min(at - self._page // 2, len(self._rows) - self._page))
        coloured = is_coloured()
        lines = [painted(head, look.columns, coloured=coloured, chosen=False)]
        for number, one in enumerate(self._rows[first : first + self._page], first):
            lines.append(painted(one, look.columns, coloured=coloured, chosen=bool(choices) and number == at))
        lines += [""] * (rows - 1 - len(lines))
        hint = self._rows[at].hint if choices else ""
        foot = f"/{self._typed}_" if self._is_typing else hint or HELP
        if self._typed and not self._is_typing:
            foot = f"/{self._typed}   {foot}"
        lines.append(f"{foot[: look.columns - 1]}")
        _write("\x1b[H" + "\r\n".join(f"{line}\x1b[K" for line in lines) + "\x1b[J")


def painted(one: Row, columns: int, *, coloured: bool, chosen: bool) -> str:
    """Return a row as a terminal is sent it: cut to the width, coloured, the chosen one reversed."""
    from allocator.cli.pictures import cut, width_of

    left, found = columns, []
    for text, colour in one.parts:
        shown = cut(text, left)
        left -= width_of(shown)
        found.append(f"\x1b[{colour}m{shown}\x1b[0m" if coloured and colour != "0" and not chosen else shown)
        if left <= 0:
            break
    line = "".join(found)
    return f"\x1b[7m{line}\x1b[0m" if chosen else line
