"""Any bytes as a file that people write (settings, pools, workers, tokens, variables): read, or refused in a line."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from fuzzing import accepted, any_bytes, any_text, examples
from hypothesis import example, given
from hypothesis import strategies as st

from allocator.api.credentials import Scope, TokensFile, new_api_token, tokens_line
from allocator.model.errors import AllocatorError, ConfigurationError
from allocator.model.files import parse_pool, written_pool
from allocator.model.pools import SDK_V2, PoolSpec
from allocator.model.settings import NAMES, load_settings
from allocator.model.small_files import MAX_FILE_BYTES, read_text
from allocator.supervisor.fields import FIELDS, read_env_file
from allocator.supervisor.workers_file import read_workers_file

if TYPE_CHECKING:
    from pathlib import Path

POOL = """\
[pool]
name = "custom"
first = 6000
last = 6100
ttl = "30s"
ttl_min = "1s"
ttl_max = "24h"
grace = "5s"
cooldown = "1s"
scope = "host"
spill = true
durability = "none"
[pool.conventional]
email = 6000
stripe = [6001, 6002]
[pool.bands]
zendesk = "6010-6019"
[pool.limits]
max_per_org = 20
max_instances = 4
[pool.limits.orgs]
org-big = 40
[pool.limits.plugins]
email = 10
"""
SETTINGS = """\
pool = "sdk-v2"
host = "web-1"
advertise = "10.0.0.1"
redis_url = "redis://:secret-word@localhost:6379/0"
connect_timeout = "5s"
database_url = "postgresql://app:secret-word@db/app"
listen = "127.0.0.1:8577"
tokens_file = "tokens"
[database]
table = "plugin_runners"
schema = "public"
refresh_expiry = true
[database.columns]
port = "tcp_port"
"""
WORKERS_FILE = """\
[[worker]]
plugin = "email"
org = "org-123"
command = ["sh", "-c", "exec worker --port={port}"]
instance = 1
port = 6001
ttl = "30s"
priority = 1
labels = { team = "blue" }
env = { MODE = "fast" }
health = "/health"
restart = "on-failure"
[[worker]]
plugin = "stripe"
org = "org-123"
command = "sh -c 'sleep 1'"
replicas = 2
wait = "5s"
stop_timeout = "1s"
"""
TOKENS = "\n".join(tokens_line(name, scope, new_api_token()) for name, scope in (("a", Scope.READ), ("b", Scope.ADMIN)))
VARIABLES = "# a comment\nexport MODE=fast\nNAME='a b'\nOTHER=\"x\" # said\nEMPTY=\n"

TOML_VALUES = st.one_of(
    st.sampled_from(
        ["0", "-1", "1", "65536", "1e400", "nan", "-inf", "true", "[]", "{}", '""', '"\\u0000"', '"\\n"', '"x"',
         "[1, [2]]", "1979-05-27", "00:00:01", "{ a = { b = 1 } }", "'''\n'''", "9" * 30, "9" * 5_000, "[" * 2_000,
         "0x10", "1_0", "'*'"]
    ),
    st.integers().map(str),
    any_text(max_size=30).map(lambda text: "'" + text.replace("'", "") + "'"),
    any_text(max_size=30),
)  # fmt: skip


@st.composite
def garbled(draw: st.DrawFn, text: str, fields: list[str] | None = None) -> bytes:
    """A valid file with values replaced, lines left out, doubled, moved or added, and bytes changed; or any bytes."""
    if draw(st.integers(0, 7)) == 0:
        return draw(any_bytes())
    lines = text.splitlines()
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, len(lines) - 1)) if lines else 0
        how = draw(st.sampled_from(["value", "value", "value", "drop", "double", "key", "any", "header"]))
        if how == "value" and lines and "=" in lines[at]:
            lines[at] = f"{lines[at].partition('=')[0]}= {draw(TOML_VALUES)}"
        elif how == "drop" and lines:
            del lines[at]
        elif how == "double" and lines:
            lines.insert(at, lines[at])
        elif how == "key":
            name = draw(st.sampled_from(fields or ["x"]) | any_text(max_size=20))
            lines.insert(at, f"{name} = {draw(TOML_VALUES)}")
        elif how == "header":
            lines.insert(at, draw(st.sampled_from(["[x]", "[pool.x]", "[[worker]]", "[worker]", "[database.columns]"])))
        elif how == "any":
            lines.insert(at, draw(any_text(max_size=30)))
    content = "\n".join(lines).encode(errors="surrogatepass")
    if draw(st.integers(0, 5)) == 0 and content:
        at = draw(st.integers(0, len(content) - 1))
        content = content[:at] + draw(st.binary(max_size=4)) + content[at + draw(st.integers(0, 3)) :]
    return content


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("files")


def read_pool(content: bytes) -> PoolSpec | AllocatorError:
    return accepted(lambda: parse_pool("pool.toml", content.decode(errors="replace")))


@given(content=garbled(POOL, ["limits", "bands", "conventional", "pool"]))
@example(content=b"x = " + b"9" * 5_000)
@example(content=b"x = " + b"[" * 5_000)
@example(content=b"[pool]\nname = '\x1b[31m'\nfirst = 1\nlast = 2\n")
@examples(150)
def test_a_pool_file_is_a_pool_that_reads_back_or_is_refused(content: bytes) -> None:
    pool = read_pool(content)
    if isinstance(pool, PoolSpec):
        assert parse_pool("again", written_pool(pool)) == pool
        assert PoolSpec.from_fields(pool.name, pool.as_fields()) == pool


@given(content=garbled(SETTINGS, [*NAMES, "database"]))
@example(content=b'database_url = "\\u0000"')
@example(content=b'tokens_file = "\\u0000"')
@examples(200)
def test_a_settings_file_is_settings_or_is_refused_without_its_secrets(directory: Path, content: bytes) -> None:
    file = directory / "allocator.toml"
    file.write_bytes(content)
    settings = accepted(lambda: load_settings({}, {"HOME": str(directory)}, config=str(file)))
    assert "secret-word" not in repr(settings)
    if not isinstance(settings, AllocatorError):
        assert all("\\0" not in (getattr(settings, name) or "") for name in ("database_url", "tokens_file", "tls_cert"))


@given(content=garbled(WORKERS_FILE, list(FIELDS)))
@example(content=b"[[worker]]\nplugin = 'p'\norg = 'o'\ncommand = 'sh'\nenv_file = \"a\\u0000\"")
@example(content=b"[[worker]]\nplugin = 'p'\norg = 'o'\ncommand = 'sh'\ndirectory = \"a\\u0000\"")
@example(content=b"[[worker]]\nplugin = 'p'\norg = 'o'\ncommand = \"a\\u0000\"")
@example(content=b"[[worker]]\nplugin = 'p'\norg = 'o'\ncommand = ['sh', \"a\\u0000\"]")
@examples(200)
def test_a_workers_file_is_read_or_is_refused(directory: Path, content: bytes) -> None:
    file = directory / "workers.toml"
    file.write_bytes(content)
    specs = accepted(lambda: read_workers_file(file, {}, {"PATH": "/usr/bin:/bin"}))
    for spec in specs if isinstance(specs, list) else ():
        assert not any("\0" in name for name in [*spec.command, spec.port_argument or ""])


@given(content=garbled(TOKENS))
@examples(200)
def test_a_tokens_file_is_credentials_or_is_refused(directory: Path, content: bytes) -> None:
    file = directory / "tokens"
    file.write_bytes(content)
    accepted(lambda: TokensFile(file).caller("x"))


@given(content=garbled(VARIABLES))
@examples(150)
def test_a_file_of_variables_is_variables_or_is_refused(directory: Path, content: bytes) -> None:
    file = directory / "variables"
    file.write_bytes(content)
    found = accepted(lambda: read_env_file(file))
    if isinstance(found, dict):
        assert not any("\0" in text for pair in found.items() for text in pair)


@given(name=any_text(max_size=60))
@examples(100)
def test_a_file_of_any_name_is_read_or_refused(directory: Path, name: str) -> None:
    for read in (
        lambda: read_workers_file(directory / name, {}, {}),
        lambda: load_settings({}, {}, config=str(directory / name)),
        lambda: TokensFile(directory / name).load(),
        lambda: read_env_file(directory / name),
    ):
        refusal = accepted(read)
        assert not isinstance(refusal, AllocatorError) or refusal.exit_code == ConfigurationError.exit_code


def test_a_file_without_end_is_refused_after_a_bounded_part_of_it(directory: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"/dev/zero cannot be read \(File too large\)"):
        load_settings({}, {}, config="/dev/zero")
    large = directory / "large"
    with large.open("wb") as file:
        file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(ConfigurationError, match="File too large"):
        read_workers_file(large, {}, {})
    with large.open("wb") as file:
        file.truncate(MAX_FILE_BYTES)
    assert len(read_text(large)) == MAX_FILE_BYTES


def test_the_files_that_are_garbled_here_are_right(directory: Path) -> None:
    assert read_pool(POOL.encode()).name == "custom"
    assert parse_pool("built-in", written_pool(SDK_V2)) == SDK_V2
    for name, text in (("p", WORKERS_FILE), ("s", SETTINGS), ("t", TOKENS), ("v", VARIABLES)):
        (directory / name).write_text(text)
    assert len(read_workers_file(directory / "p", {}, {"PATH": "/usr/bin:/bin"})) == 3
    assert load_settings({}, {}, config=str(directory / "s")).host == "web-1"
    assert TokensFile(directory / "t").load() == 2
    assert read_env_file(directory / "v") == {"MODE": "fast", "NAME": "a b", "OTHER": "x", "EMPTY": ""}
