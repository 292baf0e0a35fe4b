"""Every way in uses the registry that is configured; the embedded server serves only where none is."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from sqlalchemy import create_engine, text
from supervised import eventually

from allocator import (
    AsyncPluginTransport,
    AsyncPortAllocator,
    ConfigurationError,
    DatabaseRecorder,
    LeaseState,
    PluginTransport,
    PortAllocator,
    Service,
    StoreUnavailableError,
)
from allocator.cli.app import run_command
from allocator.model import settings
from allocator.store.embedded import EmbeddedServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from allocator import Lease, PoolSpec

SOURCES = ["environment", "folder", "user", "system"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A person's home without any setting, the current folder inside it, and an empty /etc/allocator."""
    for name in [one.variable for one in settings.SETTINGS.values()]:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(settings, "SYSTEM_FILE", tmp_path / "etc/allocator/allocator.toml")
    return tmp_path


@pytest.fixture
def embedded(home: Path) -> Iterator[EmbeddedServer]:
    server = EmbeddedServer(home / "state/allocator")
    yield server
    server.stop()


def configure(source: str, home: Path, monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    if source == "environment":
        for name, value in values.items():
            monkeypatch.setenv(f"ALLOCATOR_{name.upper()}", value)
        return
    addresses = {"folder": "work", "user": "config/allocator", "system": "etc/allocator"}
    file = home / addresses[source] / "allocator.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f'{name} = "{value}"\n' for name, value in values.items()))


def claim_without_a_url() -> Lease:
    with PortAllocator.from_url() as ports:
        return ports.claim("email", org="library")


def claim_without_arguments() -> Lease:
    with PortAllocator() as ports:
        return ports.claim("email", org="library")


def claim_for_asyncio(**arguments: str) -> Lease:
    async def scenario() -> Lease:
        async with AsyncPortAllocator.from_url(**arguments) if arguments else AsyncPortAllocator() as ports:
            return await ports.claim("email", org="library")

    return asyncio.run(scenario())


def claim_for_asyncio_without_a_url() -> Lease:
    async def scenario() -> Lease:
        async with AsyncPortAllocator.from_url() as ports:
            return await ports.claim("email", org="library")

    return asyncio.run(scenario())


FACES = [claim_without_a_url, claim_without_arguments, claim_for_asyncio, claim_for_asyncio_without_a_url]


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("claim", FACES)
def test_the_library_leases_in_the_registry_that_the_command_line_uses(
    claim: Callable[[], Lease],
    source: str,
    home: Path,
    redis_url: str,
    pool: PoolSpec,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure(source, home, monkeypatch, redis_url=redis_url, pool=pool.name, host="web-1")
    assert run_command(["claim", "email", "--org", "command"]) == 0
    first = int(capsys.readouterr().out)
    lease = claim()
    assert (lease.pool, lease.host) == (pool.name, "web-1")
    assert lease.port != first
    assert run_command(["ls", "--format", "json"]) == 0
    listed = capsys.readouterr().out
    assert '"org": "library"' in listed
    assert '"org": "command"' in listed
    assert not (home / "state/allocator/embedded").exists()


def test_settings_come_from_the_first_file_that_gives_them(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(
        "system", home, monkeypatch, redis_url="redis://system", pool="system", host="system", advertise="10.0.0.1"
    )
    configure("user", home, monkeypatch, pool="user", host="user")
    configure("folder", home, monkeypatch, host="folder")
    found = settings.load_settings({}, {"XDG_CONFIG_HOME": str(home / "config")})
    assert (found.redis_url, found.pool, found.host, found.advertise) == (
        "redis://system", "user", "folder", "10.0.0.1",
    )  # fmt: skip
    found = settings.load_settings({"host": "flag"}, {"ALLOCATOR_POOL": "variable", "HOME": str(home)})
    assert (found.pool, found.host) == ("variable", "flag")


def test_an_argument_of_the_library_is_what_a_flag_is(
    home: Path, redis_url: str, pool: PoolSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure("environment", home, monkeypatch, redis_url="redis://127.0.0.1:1", pool="other", host="other")
    with PortAllocator.from_url(redis_url, pool=pool.name, host="web-1") as ports:
        lease = ports.claim("email", org="o")
    assert (lease.pool, lease.host) == (pool.name, "web-1")


def test_a_settings_file_that_cannot_be_read_stops_the_library_too(home: Path) -> None:
    (home / "work/allocator.toml").write_text("redis_url = 5\n")
    with pytest.raises(ConfigurationError, match=r"allocator.toml: 'redis_url'"):
        PortAllocator.from_url()
    with pytest.raises(ConfigurationError, match=r"allocator.toml: 'redis_url'"):
        AsyncPortAllocator()


def test_a_library_that_falls_back_to_the_embedded_server_logs_it_once(
    home: Path, embedded: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    with PortAllocator() as ports, PortAllocator.from_url() as again:
        first = ports.claim("email", org="o")
        assert again.claim("email", org="p").port != first.port
    claim_for_asyncio(host="web-1")
    (record,) = [one for one in caplog.records if "no Redis is configured" in one.message]
    assert record.levelno == logging.WARNING
    assert str(home / "state/allocator/embedded") in record.message
    assert "ALLOCATOR_REDIS_URL" in record.message


READERS = [
    ("ls",), ("show", "5556"), ("who", "5556"), ("events",), ("top", "--once"), ("resolve", "email", "--org", "o"),
    ("resolve", "email", "--org", "o", "--watch"), ("export", "env"), ("host", "ls"), ("host", "show", "web-1"),
    ("pool", "ls"), ("pool", "show"), ("pool", "history"), ("reconcile", "--dry-run"),
]  # fmt: skip


@pytest.mark.parametrize("arguments", READERS, ids=" ".join)
def test_a_command_that_only_reads_starts_no_server_and_states_that_there_is_none(
    arguments: tuple[str, ...], home: Path
) -> None:
    with pytest.raises(
        StoreUnavailableError, match=r"no Redis is configured and no embedded server runs.*claim"
    ) as found:
        run_command([*arguments])
    assert found.value.exit_code == 69
    assert not (home / "state/allocator/embedded").exists()


def test_doctor_starts_no_server_and_finds_that_there_is_none(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["doctor"]) == 1
    assert "finding  no Redis is configured and no embedded server runs" in capsys.readouterr().out
    assert not (home / "state/allocator/embedded").exists()


def test_a_command_that_only_reads_uses_the_embedded_server_that_runs(
    embedded: EmbeddedServer, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(["claim", "email", "--org", "o"]) == 0
    port = capsys.readouterr().out.strip()
    assert run_command(["ls"]) == 0
    assert port in capsys.readouterr().out
    assert embedded.running() == embedded.url


@pytest.mark.parametrize("source", SOURCES)
def test_service_and_transports_ask_the_configured_registry(
    source: str, home: Path, redis_url: str, ports: PortAllocator, pool: PoolSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(source, home, monkeypatch, redis_url=redis_url, pool=pool.name, host="web-1")
    with ports.hold("email", org="o") as lease:
        ports.update(lease, state=LeaseState.READY)
        with Service("email", org="o") as service:
            eventually(lambda: service.endpoints)
            assert [one.port for one in service.endpoints] == [lease.port]
        seen: list[int | None] = []

        def answer(request: httpx.Request) -> httpx.Response:
            seen.append(request.url.port)
            return httpx.Response(200)

        inner = httpx.MockTransport(answer)
        with httpx.Client(transport=PluginTransport(inner=inner)) as client:
            client.get("http://email.o.plugin/")

        async def ask() -> None:
            async with httpx.AsyncClient(transport=AsyncPluginTransport(inner=inner)) as client:
                await client.get("http://email.o.plugin/")

        asyncio.run(ask())
        assert seen == [lease.port, lease.port]


def test_service_and_transports_start_no_server(home: Path) -> None:
    with Service("email", org="o") as service, pytest.raises(StoreUnavailableError, match="no embedded server runs"):
        service.pick()
    with (
        httpx.Client(transport=PluginTransport()) as client,
        pytest.raises(StoreUnavailableError, match="no embedded server runs"),
    ):
        client.get("http://email.o.plugin/")
    assert not (home / "state/allocator/embedded").exists()


@pytest.mark.parametrize("source", SOURCES)
def test_a_recorder_writes_to_the_configured_database(
    source: str, home: Path, redis_url: str, pool: PoolSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = f"sqlite:///{home}/rows.sqlite3"
    configure(source, home, monkeypatch, redis_url=redis_url, pool=pool.name, host="web-1", database_url=database)
    assert run_command(["db", "upgrade"]) == 0
    with DatabaseRecorder.open() as recorder, PortAllocator.from_url(recorder=recorder) as ports:
        lease = ports.claim("email", org="o", record=True)
    with create_engine(database).connect() as connection:
        assert connection.execute(text("SELECT port FROM plugin_runners")).scalars().all() == [lease.port]


def test_a_recorder_without_a_database_makes_one_in_the_state_directory_and_logs_it(
    home: Path, redis_url: str, pool: PoolSpec, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    configure("environment", home, monkeypatch, redis_url=redis_url, pool=pool.name)
    with DatabaseRecorder.open() as recorder, PortAllocator(recorder=recorder) as ports:
        ports.claim("email", org="o", record=True)
    assert (home / "state/allocator/plugin_runners.sqlite3").exists()
    assert "no database is configured" in caplog.text


def test_every_variable_that_is_read_is_a_declared_setting() -> None:
    import re

    declared = {one.variable for one in settings.SETTINGS.values()}
    for_workers = {"ALLOCATOR_HOST", "ALLOCATOR_FENCE", "ALLOCATOR_SUPERVISION"}
    root = Path(settings.__file__).parents[1]
    for path in [*root.rglob("*.py"), *(root.parent / "deploy/node/lib").glob("*.cjs")]:
        named = set(re.findall(r"(?<!_)ALLOCATOR_[A-Z_]*[A-Z](?!\w)", path.read_text()))
        assert named - {"ALLOCATOR_COMPLETE"} <= declared | for_workers, path


def test_run_and_the_node_package_keep_the_same_secrets_from_workers() -> None:
    import re

    spawn = (Path(settings.__file__).parents[2] / "deploy/node/lib/spawn.cjs").read_text()
    lists = {name: re.findall(r'"(\w+)"', text) for name, text in re.findall(r"const (\w+) = \[(.*?)\];", spawn)}
    declared = settings.SETTINGS.values()
    secret = {one.variable for one in declared if one.secret is settings.Secret.ALL} | {*settings.FOREIGN_SECRETS}
    assert set(lists["SECRETS"]) == secret
    assert set(lists["URLS"]) == {one.variable for one in declared if one.secret is settings.Secret.PASSWORD}


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://:word@h:6379/0", "redis://h:6379/0"),
        ("redis://app:word@h/0", "redis://app@h/0"),
        ("redis://app:w@rd@h/0", "redis://app@h/0"),
        ("unix:///run/redis.sock?db=1", "unix:///run/redis.sock?db=1"),
        ("redis+sentinel://h:1,i:2/s?sentinel_password=word&db=1", "redis+sentinel://h:1,i:2/s?db=1"),
        ("postgresql://app:word@db/app?sslmode=require&sslpassword=word", "postgresql://app@db/app?sslmode=require"),
        ("postgresql://db/app?password=word", "postgresql://db/app"),
    ],
)
def test_a_url_reaches_a_worker_without_its_password(url: str, shown: str) -> None:
    assert settings.without_secrets({"ALLOCATOR_REDIS_URL": url, "ALLOCATOR_TOKEN": "x", "OTHER": "y"}) == {
        "ALLOCATOR_REDIS_URL": shown,
        "OTHER": "y",
    }
