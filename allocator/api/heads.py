"""HEAD wherever GET works: the same answer without its body. Pure ASGI, so that streams pass through.

An answer that never ends (a stream of events) has a head too: it is sent, and then its listener has left.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send


class HeadMiddleware:
    """Has a HEAD request answered as a GET, and sends its head alone."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; what is sent for a HEAD ends with its head."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        is_over = asyncio.Event()

        async def without_body(message: Message) -> None:
            if is_over.is_set():
                return
            if message["type"] == "http.response.body":
                is_over.set()
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        async def until_over() -> Message:
            coming = asyncio.ensure_future(receive())
            over = asyncio.ensure_future(is_over.wait())
            try:
                await asyncio.wait({coming, over}, return_when=asyncio.FIRST_COMPLETED)
                return coming.result() if coming.done() else {"type": "http.disconnect"}
            finally:
                coming.cancel()
                over.cancel()

        await self._app({**scope, "method": "GET"}, until_over, without_body)
