"""The status page: a few static files of this package, which hold no data and need no credentials.

Nothing is built, nothing comes from outside: the policy of the page allows this server's own files and requests only.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

from fastapi import APIRouter, Request
from fastapi.responses import Response

router = APIRouter(include_in_schema=False)

_FILES = Path(__file__).parent / "page"
_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


@cache
def page_files() -> dict[str, tuple[bytes, str]]:
    """Return the files of the page by name, each with its media type."""
    return {
        path.name: (path.read_bytes(), f"{_TYPES[path.suffix]}; charset=utf-8")
        for path in sorted(_FILES.iterdir())
        if path.suffix in _TYPES
    }


def _answer(name: str) -> Response:
    content, media_type = page_files()[name]
    return Response(content, media_type=media_type, headers=_HEADERS)


@router.get("/")
async def page() -> Response:
    """Return the page."""
    return _answer("index.html")


def _file_route(name: str) -> None:
    @router.get(f"/page/{name}")
    async def file(_request: Request) -> Response:
        return _answer(name)


for _name in page_files():
    _file_route(_name)
