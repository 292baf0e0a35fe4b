"""What an allocator is made of when its settings decide: the one way from settings to a connection and a session.

Every face comes here: both allocators of the library, `Service` and the transports, and through them commands, API and
agent. The embedded server serves only where no setting names a Redis; whoever only reads never starts it.
"""

from __future__ import annotations

import os
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, TypeVar

from allocator.client.arguments import check_text
from allocator.client.session import make_session
from allocator.model.durations import seconds_of
from allocator.model.errors import ConfigurationError, InvalidInputError, StoreUnavailableError
from allocator.model.log import log
from allocator.model.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from allocator.client.session import OnLost, Session
    from allocator.client.tracing import Tracer
    from allocator.model.durations import Duration
    from allocator.model.settings import Settings
    from allocator.store.base import BaseStore
    from allocator.store.embedded.server import EmbeddedStatus

S = TypeVar("S", bound="BaseStore")


def library_settings(
    url: str | None = None,
    *,
    pool: str | None = None,
    host: str | None = None,
    timeout: Duration | None = None,
    advertise: str | None = None,
) -> Settings:
    """Return the settings of a program that uses the library: its arguments are what flags are to a command.

    Raises:
        InvalidInputError: When an argument or a variable cannot be right.
        ConfigurationError: When a settings file cannot be used.
    """
    given = {"redis_url": url, "pool": pool, "host": host, "advertise": advertise}
    for name, value in given.items():
        if value is not None:
            check_text("url" if name == "redis_url" else name, value)
    settings = load_settings(given, os.environ)
    for refused in settings.refused:
        _warn_once(refused)
    return settings if timeout is None else replace(settings, connect_timeout_ms=_timeout_ms(timeout))


def _timeout_ms(timeout: Duration) -> int:
    timeout_s = seconds_of(timeout, "timeout")
    if timeout_s == 0:
        raise InvalidInputError("timeout=0 leaves Redis no time to answer; give for example '5s'")
    return max(1, round(timeout_s * 1_000))


def session_of(settings: Settings, *, on_lost: OnLost = "keep", tracer: Tracer | None = None) -> Session:
    """Return the session that the settings make.

    Args:
        settings: The settings.
        on_lost: What holders do when Redis has not confirmed their lease in time.
        tracer: Receives what is done with leases; None for what the settings ask for.

    Raises:
        InvalidInputError: When the policy is not valid.
        ConfigurationError: When spans are asked for and OpenTelemetry is not installed.
    """
    if tracer is None and settings.tracing:
        from allocator.client.tracing import OpenTelemetryTracer

        tracer = OpenTelemetryTracer()
    return make_session(settings.pool, settings.host, on_lost, advertise=settings.advertise, tracer=tracer)


def open_store(
    kind: type[S],
    settings: Settings,
    *,
    reads_only: bool = False,
    on_start: Callable[[EmbeddedStatus], None] | None = None,
) -> S:
    """Return the connection that the settings make; nothing is sent yet.

    Args:
        kind: The store to make: blocking or for asyncio.
        settings: The settings.
        reads_only: Whether its user only reads, for which no embedded server is started.
        on_start: Called when an embedded server was started; None for a library, which logs that it uses one.
    """
    if settings.redis_url:
        return kind.open(settings.redis_url, timeout_s=settings.timeout_s, password=settings.redis_password)

    def embedded() -> str:
        if settings.refused:  # it may name the registry that everybody uses
            raise ConfigurationError(f"no Redis is configured, and {'; '.join(settings.refused)}")
        if reads_only:
            return running_embedded(settings)
        return started_embedded(settings, on_start)

    return kind.embedded(embedded, timeout_s=settings.timeout_s)


def started_embedded(settings: Settings, on_start: Callable[[EmbeddedStatus], None] | None) -> str:
    """Return the URL of this user's embedded server, which is started when it does not run."""
    from allocator.store.embedded import EmbeddedServer

    server = EmbeddedServer(settings.state_dir)
    url = server.ensure(on_start)
    if on_start is None:
        _warn_once(
            f"no Redis is configured: ports are leased from the embedded server in {server.data_dir}, which other "
            "users and hosts do not see; set ALLOCATOR_REDIS_URL, or redis_url in allocator.toml, or give a URL"
        )
    return url


def running_embedded(settings: Settings) -> str:
    """Return the URL of this user's embedded server.

    Raises:
        StoreUnavailableError: When none runs.
    """
    from allocator.store.embedded import EmbeddedServer

    url = EmbeddedServer(settings.state_dir).running()
    if url is None:
        raise StoreUnavailableError(
            "no Redis is configured and no embedded server runs, so there is nothing to read; claim a port first, "
            "or name a Redis with --redis-url or ALLOCATOR_REDIS_URL"
        )
    return url


@cache
def _warn_once(sentence: str) -> None:
    log.warning("%s", sentence)
