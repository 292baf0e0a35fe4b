"""Limits of a request: how large its body may be, how many a caller may make. Pure ASGI, so that streams pass through.

Callers are counted by the credential that they prove, otherwise by their address: what a limit protects are the others,
and whoever could choose what it is counted under would have no limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from allocator.api.connections import counted_address
from allocator.api.problems import TOO_LARGE, TOO_MANY, problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from allocator.api.access import Access

MAX_CALLERS = 10_000
"""Callers whose rate is remembered; the one seen longest ago is forgotten and starts afresh."""

LINGER_S = 5.0
"""How long a refused body is still read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a caller may ask for.

    Attributes:
        body_bytes: Largest body of a request.
        requests_per_s: Requests a second of one caller in the long run; 0 for any number.
        burst: How many it may make at once.
    """

    body_bytes: int = 65_536
    requests_per_s: float = 500.0
    burst: int = 1_000


class LimitMiddleware:
    """Refuses what is beyond the limits before a route sees it."""

    def __init__(
        self, app: ASGIApp, limits: Limits, access: Access, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._app = app
        self._limits = limits
        self._access = access
        self._clock = clock
        self._allowances: OrderedDict[tuple[str, str], tuple[float, float]] = OrderedDict()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with a problem."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        wait_s = self._seconds_to_wait(scope)
        if wait_s > 0:
            detail = f"more than {self._limits.requests_per_s:g} requests a second; wait for the time in Retry-After"
            refusal = problem(TOO_MANY, detail, headers={"Retry-After": str(math.ceil(wait_s))})
            await refusal(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if not announced.isdigit() or int(announced) > self._limits.body_bytes:
            await self._refuse_size(scope, receive, send, has_more=True)
            return
        await self._pass_bounded(scope, receive, send)

    async def _pass_bounded(self, scope: Scope, receive: Receive, send: Send) -> None:
        received = 0
        is_over = has_more = False

        async def bounded() -> Message:
            nonlocal received, is_over, has_more
            message = await receive()
            received += len(message.get("body", b""))
            has_more = message.get("more_body", False)
            if received > self._limits.body_bytes:
                is_over = True
                raise _TooLargeError
            return message

        async def watched(message: Message) -> None:
            if not is_over:  # what a route makes of the broken body is not what the caller has to know
                await send(message)

        with contextlib.suppress(_TooLargeError):
            await self._app(scope, bounded, watched)
        if is_over:
            await self._refuse_size(scope, receive, send, has_more=has_more)

    async def _refuse_size(self, scope: Scope, receive: Receive, send: Send, *, has_more: bool) -> None:
        """Answer at once, and read on before the connection is closed.

        A socket that is closed with unread data is reset, and a caller that is still sending would see the reset in
        place of the answer (RFC 9112, section 9.6).
        """
        detail = f"a body may have {self._limits.body_bytes} bytes; send less"
        refusal = problem(TOO_LARGE, detail, headers={"Connection": "close"})

        async def lingering(message: Message) -> None:
            if message["type"] != "http.response.body":
                await send(message)
                return
            await send({**message, "more_body": True})
            more = has_more
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(LINGER_S):
                    while more:
                        more = (await receive()).get("more_body", False)
            await send({"type": "http.response.body", "body": b""})

        await refusal(scope, receive, lingering)

    def _seconds_to_wait(self, scope: Scope) -> float:
        """Return how long a caller has to wait for its next request; 0 when it may be made now."""
        rate, burst = self._limits.requests_per_s, self._limits.burst
        if rate <= 0:
            return 0.0
        who, now = self._caller(scope), self._clock()
        left, at = self._allowances.pop(who, (float(burst), now))
        left = min(float(burst), left + (now - at) * rate)
        allowed = left >= 1.0
        self._allowances[who] = (left - 1.0 if allowed else left, now)
        if len(self._allowances) > MAX_CALLERS:
            self._allowances.popitem(last=False)
        return 0.0 if allowed else (1.0 - left) / rate

    def _caller(self, scope: Scope) -> tuple[str, str]:
        credential = self._access.credential(scope)
        if credential is not None:
            return "credential", credential
        client = scope.get("client")
        return "address", counted_address(client[0]) if client else ""


class _TooLargeError(Exception):
    """The body went on beyond the limit."""
