"""What both stores are made of: a URL or the embedded server, a client that is made when it is first used, a limit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, Self

from allocator.store.urls import parse_store_url, redacted

if TYPE_CHECKING:
    from collections.abc import Callable

    from allocator.store.urls import StoreAddress


class OnCall(Protocol):
    """Takes the time of each script that an async store ran, for counting."""

    def __call__(self, script: str, seconds: float, *, answered: bool) -> None:
        """Take one script's time, the way to Redis and back included."""
        ...


class Opening:
    """The making of a store; `Store` and `AsyncStore` say which client it has.

    Args:
        connect: Makes the Redis client.
        shown_url: The URL without secrets.
        timeout_s: For how many seconds Redis may be silent.
    """

    def __init__(self, connect: Callable[[], Any], *, shown_url: str, timeout_s: float = 5.0) -> None:
        self._connect = connect
        self._shown_url = shown_url
        self._timeout_s = timeout_s
        self._client: Any = None
        self._reconnects = False
        self.on_call: OnCall | None = None

    def __repr__(self) -> str:
        condition = "connected" if self._client else "not connected yet"
        return f"<{type(self).__name__} {self._shown_url}, {condition}>"

    @staticmethod
    def _client_for(address: StoreAddress, timeout_s: float) -> Any:  # noqa: ANN401  # one of six client classes
        raise NotImplementedError

    @classmethod
    def open(cls, url: str, *, timeout_s: float = 5.0, password: str | None = None) -> Self:
        """Return a store for a Redis URL; nothing is sent yet.

        Args:
            url: See `allocator.store.urls`.
            timeout_s: For how many seconds Redis may be silent.
            password: The password when the URL has none.

        Raises:
            ConfigurationError: When the URL cannot be read.
        """
        address = parse_store_url(url, password=password)
        return cls(lambda: cls._client_for(address, timeout_s), shown_url=redacted(url), timeout_s=timeout_s)

    @classmethod
    def embedded(cls, ensure: Callable[[], str], *, timeout_s: float = 5.0) -> Self:
        """Return a store for the embedded server, which is started again whenever it is gone.

        Args:
            ensure: Starts the server when it does not run; returns its URL.
            timeout_s: For how many seconds it may be silent.
        """
        store = cls(
            lambda: cls._client_for(parse_store_url(ensure(), password=""), timeout_s),
            shown_url="the embedded server",
            timeout_s=timeout_s,
        )
        store._reconnects = True
        return store
