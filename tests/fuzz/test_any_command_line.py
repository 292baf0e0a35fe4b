"""Any words after `allocator`: a known exit code, at most a few lines, no traceback, and no change where it refuses.

The commands run in this process, as `main` runs them. Those that would serve for ever get as far as being ready to.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
import redis
from fuzzing import argument_text, changed_keys, examples, run, state_of_all_keys
from hypothesis import example, given
from hypothesis import strategies as st
from typer.main import get_command

from allocator.cli.app import _MODULES, _application

if TYPE_CHECKING:
    from collections.abc import Iterator


KNOWN_CODES = {0, 1, 2, 3, 69, 73, 75, 78, 126, 127}
REFUSALS = {2, 78}
MOST_LINES = 60
"""Of help, or of the findings of `doctor`; an error is one line."""

# Nothing that a test may give leads out of its own directory: `export --out` replaces whatever it is told to.
TEXT = argument_text().map(lambda text: text.replace("/", ""))
NAMES = st.sampled_from(["email", "org-1", "web-1", "web-2", "stripe", "auto", "custom", "nobody", "a+b", "1"])
WORKERS = st.sampled_from(["org-1/email", "org-1/email#0", "org-2/x#1", "o/", "/p", "o/p#x", "a/b/c"])
NUMBERS = st.sampled_from(["0", "1", "5", "-1", "6000", "65535", "65536", "99999", "0000001", "000000999999", "1e3"])
DURATIONS = st.sampled_from(["0s", "1ms", "50ms", "5s", "999999999999d", "1.5s", "s"])
FILES = st.sampled_from(["pool.toml", "garbage", "nowhere", ".", "tokens", "-"])
REDIS_URLS = st.sampled_from(["redis://127.0.0.1:1", "unix:///nowhere", "redis://", "http://x", "redis://127.0.0.1:x"])
SQL_URLS = st.sampled_from(["sqlite:///rows.sqlite3", "sqlite:///", "sqlite:///garbage", "postgresql://127.0.0.1:1/x"])
LISTENS = st.sampled_from(["127.0.0.1:0", ":0", "[::1]:0", "127.0.0.1:000000999999", "127.0.0.1:65536", "a..b:0", "::",
                           "x" * 64 + ":0", "\udcff:0", "[:0", "0.0.0.0:0"])  # fmt: skip
OTHERS = {
    "--redis-url": REDIS_URLS,
    "--database-url": SQL_URLS,
    "--listen": LISTENS,
    "--wait": st.sampled_from(["0s", "1ms", "x", "-1s"]),
    "--for": st.sampled_from(["0s", "1ms"]),
    "--format": st.sampled_from(["text", "json", "env", "shell", "xml"]),
    "--exec": st.sampled_from(["true", "nowhere-to-be-found", "'"]),
    "--pid": st.sampled_from(["1", "0", "-1", "999999999", "x", "99999999999999999999"]),
    "--label": st.sampled_from(["a=b", "=", "a", "a=\x07", "health=x"]),
    "--pool": st.sampled_from(["custom", "nobody-knows", "sdk-v2"]),
    "--token": st.sampled_from(["0" * 32, "0" * 31, "G" * 32]),
    "--ports": st.sampled_from(["http", "http,debug", ",", "a,a", ",".join(f"p{at}" for at in range(17))]),
    "--scope": st.sampled_from(["read", "lease", "admin"]),
}
LIKELY = OTHERS | {
    **dict.fromkeys(("plugin", "--plugin", "--org", "--host", "host", "name"), NAMES),
    **dict.fromkeys(("--port", "port"), st.sampled_from(["15000", "15001", "15010", "15011"])),
    **dict.fromkeys(
        ("targets", "target", "worker"), st.sampled_from(["15000", "15001", "org-1/email", "org-1/email#0"])
    ),
    "--redis-url": st.sampled_from(["redis://127.0.0.1:1"]),
    "--database-url": st.sampled_from(["sqlite:///rows.sqlite3"]),
    "--format": st.sampled_from(["text", "json"]),
    "--instance": st.sampled_from(["0", "1", "auto", "99999"]),
    "--ttl": st.sampled_from(["1s", "30s", "24h"]),
    "--spread": st.sampled_from(["org", "plugin"]),
    "--priority": st.sampled_from("059"),
    "--pool": st.just("custom"),
    "--config": st.just("nowhere"),
    "form": st.sampled_from(["nginx", "haproxy", "traefik", "envoy", "prometheus", "env", "json", "hosts"]),
    "file": FILES,
}
FOREVER = {"--follow", "--watch", "--every", "--install-completion", "--show-completion", "--version"}
"""What makes a command go on, or is not ours."""


def commands() -> dict[tuple[str, ...], Any]:
    """Return all commands by the words that call them."""
    found: dict[tuple[str, ...], Any] = {}

    def collect(command: Any, arguments: tuple[str, ...]) -> None:
        for name, child in getattr(command, "commands", {}).items():
            collect(child, (*arguments, name))
        if not hasattr(command, "commands"):
            found[arguments] = command

    collect(get_command(_application(list(_MODULES))), ())
    return found


COMMANDS = commands()
VALUES = st.one_of(NAMES, WORKERS, NUMBERS, DURATIONS, FILES, TEXT)


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """The words of a command: its own options and arguments with likely and unlikely values, a few foreign words."""
    text = draw(st.sampled_from(sorted(COMMANDS)))
    line, is_likely = list(text), draw(st.booleans())
    for parameter in COMMANDS[text].params:
        named = [name for name in parameter.opts if name.startswith("--")]
        if any(name in FOREVER for name in parameter.opts):
            continue
        name = named[0] if named else str(parameter.name)
        value = draw(LIKELY.get(name, VALUES) if is_likely else st.one_of(OTHERS.get(name, VALUES), VALUES))
        if not named:
            line += [value] if draw(st.integers(0, 9)) else []
        elif parameter.required or draw(st.integers(0, 3)) == 0:
            line += [named[0]] if getattr(parameter, "is_flag", False) else [named[0], value]
    if draw(st.integers(0, 9)) == 0:
        line.insert(
            draw(st.integers(0, len(line))), draw(st.one_of(TEXT, st.sampled_from(["--", "-x", "--nope", "-h"])))
        )
    if text == ("run",):
        line += ["--", draw(st.sampled_from(["nowhere-to-be-found", "{nope}", ""]))]
    line += {("top",): ["--once"], ("host", "drain"): ["--no-wait"]}.get(text, [])
    return line


@pytest.fixture(scope="module")
def surroundings(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis.Redis]:
    """A directory, an environment and a pool of their own; nothing that is started goes on."""
    home = tmp_path_factory.mktemp("home")
    (home / "garbage").write_bytes(b"\xff\x00[")
    (home / "pool.toml").write_text('[pool]\nname = "custom"\nfirst = 15000\nlast = 15010\n')
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ALLOCATOR_", "XDG_"))}
    own = {"HOME": str(home), "ALLOCATOR_REDIS_URL": redis_url, "ALLOCATOR_POOL": "custom", "ALLOCATOR_HOST": "web-1",
           "ALLOCATOR_STATE_DIR": str(home / "state"), "ALLOCATOR_CONNECT_TIMEOUT": "300ms"}  # fmt: skip
    before = os.getcwd()  # noqa: PTH109  # what chdir takes back
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("allocator.api.server.run_server", lambda _app, listener, **_: listener.close())
        patch.setattr("allocator.cli.agent._run", lambda *_: None)
        patch.setattr("allocator.cli.logs.start_logging", lambda: None)
        for name in os.environ.keys() - kept.keys():
            patch.delenv(name)
        for name, value in own.items():
            patch.setenv(name, value)
        os.chdir(home)
        try:
            assert run(["pool", "apply", "pool.toml"])[0] == 0
            assert run(["claim", "email", "--org", "org-1"])[0] == 0
            yield redis.Redis.from_url(redis_url)
        finally:
            run(["embedded", "stop"])
            os.chdir(before)


def test_every_command_is_tried() -> None:
    assert {arguments[0] for arguments in COMMANDS} == set(_MODULES)


@given(arguments=command_lines())
@example(arguments=["serve", "--listen", "127.0.0.1:000000999999"])
@example(arguments=["serve", "--listen", "x" * 64 + ":0"])
@examples(200)
def test_any_arguments_end_with_a_known_code_and_a_refusal_changes_nothing(
    surroundings: redis.Redis, arguments: list[str]
) -> None:
    before = state_of_all_keys(surroundings)
    code, out, report = run(arguments)
    assert code in KNOWN_CODES, (code, arguments, report)
    assert "Traceback" not in report + out, (arguments, report)
    assert report.count("\n") <= MOST_LINES, (arguments, report)
    if code in REFUSALS:
        assert report, arguments
        changed = changed_keys(surroundings, before)
        assert not changed, (arguments, report, changed)


@given(
    arguments=st.lists(
        st.one_of(st.sampled_from(sorted({argument for line in COMMANDS for argument in line})), TEXT), max_size=5
    )
)
@examples(40)
def test_any_arguments_at_all_end_with_a_known_code(surroundings: redis.Redis, arguments: list[str]) -> None:
    if arguments[:1] in (["run"], ["agent"], ["serve"]) or "--install-completion" in arguments:
        return
    code, out, report = run(arguments)
    assert code in KNOWN_CODES, (code, arguments, report)
    assert "Traceback" not in report + out, (arguments, report)
