"""An `httpx` transport: `http://email.org-123.plugin/…` goes to the next healthy worker of `org-123/email`.

Only a request whose connection was refused is sent again, to another worker: nothing of it was received. All other
errors are the caller's to judge. `service_url` writes the name of any service, `@hay/plugin-email` too.
"""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import httpx

from allocator.client.blocking import open_reader
from allocator.discovery.directory import Directory
from allocator.discovery.service import Service
from allocator.model.encodings import host_name, service_of_host
from allocator.model.errors import InvalidInputError
from allocator.model.names import check_name, check_plugin, shown

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from allocator.model.endpoints import Endpoint

SUFFIX = ".plugin"
MAX_ATTEMPTS = 3
"""Workers that a request is offered to before its error is the caller's."""


def service_url(plugin: str, *, org: str) -> str:
    """Return the URL of a service for the transports, without a slash at its end: `http://email.org-123.plugin`.

    Raises:
        InvalidInputError: When a name is not valid, or too long for a host name.
    """
    host = host_name(check_plugin(plugin), check_name("organisation", org))
    if host is None:
        raise InvalidInputError(f"{shown(f'{org}/{plugin}')} is too long for a host name; use Service")
    return f"http://{host}{SUFFIX}"


class _Router:
    """Which service a URL names, and where its next worker is."""

    def __init__(self, url: str | None, pool: str | None, host: str | None, *, prefer_local: bool) -> None:
        self._allocator = open_reader(url, pool=pool, host=host)
        self._directory = Directory(self._allocator)
        self._prefer_local = prefer_local
        self._services: dict[str, Service] = {}
        self._lock = threading.Lock()

    def service(self, url: httpx.URL) -> Service | None:
        """Return the service that a URL names; None when it names another host."""
        name = url.host
        if not name.endswith(SUFFIX):
            return None
        with self._lock:
            if name not in self._services:
                plugin, org = service_of_host(name.removesuffix(SUFFIX))
                self._services[name] = Service(
                    plugin,
                    org=org,
                    host=self._allocator.session.host,
                    prefer_local=self._prefer_local,
                    directory=self._directory,
                )
            return self._services[name]

    def close(self) -> None:
        """Stop following the pool."""
        self._directory.close()
        self._allocator.close()


def _addressed(request: httpx.Request, endpoint: Endpoint) -> httpx.Request:
    """Return the request for one worker; it keeps the name that was asked for as its `Host`."""
    return httpx.Request(
        request.method,
        request.url.copy_with(host=endpoint.address, port=endpoint.port),
        headers=request.headers,
        stream=request.stream,
        extensions=request.extensions,
    )


class _Offer:
    """A request's turn with one worker: whether that refused the connection is taken in at the end of a `with` block.

    Args:
        service: Whose worker.
        is_last: Whether a refusal is the caller's error, and not the next worker's turn.
    """

    def __init__(self, service: Service, *, is_last: bool) -> None:
        self._service, self._is_last = service, is_last
        self._endpoint = service.pick()

    def __enter__(self) -> Endpoint:
        return self._endpoint

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is None:
            self._service.restore(self._endpoint)
        elif isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            self._service.eject(self._endpoint)
            return not self._is_last
        return False


def _offers(service: Service) -> Iterator[_Offer]:
    for attempt in range(1, MAX_ATTEMPTS + 1):
        yield _Offer(service, is_last=attempt == MAX_ATTEMPTS)


class PluginTransport(httpx.BaseTransport):
    """For `httpx.Client(transport=PluginTransport(…))`.

    Args:
        url: The Redis to ask; see `PortAllocator.from_url`. An embedded server is not started.
        pool: The pool; None for that of the settings.
        host: The name of this host; None for that of the settings.
        prefer_local: Whether the workers of this host come first.
        inner: What sends the requests, and those to all other hosts; None for `httpx.HTTPTransport()`.

    A request raises NoWorkerError when no worker of its service is ready.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        pool: str | None = None,
        host: str | None = None,
        prefer_local: bool = False,
        inner: httpx.BaseTransport | None = None,
    ) -> None:
        self._router = _Router(url, pool, host, prefer_local=prefer_local)
        self._inner = inner or httpx.HTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request to the next worker, and to another when that one refuses the connection."""
        service = self._router.service(request.url)
        if service is None:
            return self._inner.handle_request(request)
        for offer in _offers(service):
            with offer as endpoint:
                return self._inner.handle_request(_addressed(request, endpoint))
        raise AssertionError("the last offer returns or raises")

    def close(self) -> None:
        """Stop following the pool and close the connections."""
        self._router.close()
        self._inner.close()


class AsyncPluginTransport(httpx.AsyncBaseTransport):
    """For `httpx.AsyncClient(transport=AsyncPluginTransport(…))`; as `PluginTransport` else."""

    def __init__(
        self,
        url: str | None = None,
        *,
        pool: str | None = None,
        host: str | None = None,
        prefer_local: bool = False,
        inner: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._router = _Router(url, pool, host, prefer_local=prefer_local)
        self._inner = inner or httpx.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Do the same as `PluginTransport`; Redis is read in a thread, when a service is first asked for."""
        service = self._router.service(request.url)
        if service is None:
            return await self._inner.handle_async_request(request)
        if not service.known:
            await asyncio.to_thread(lambda: service.endpoints)
        for offer in _offers(service):
            with offer as endpoint:
                return await self._inner.handle_async_request(_addressed(request, endpoint))
        raise AssertionError("the last offer returns or raises")

    async def aclose(self) -> None:
        """Stop following the pool and close the connections."""
        await asyncio.to_thread(self._router.close)
        await self._inner.aclose()
