"""A plugin worker for demonstrations: a real HTTP server with the answers and exit codes of the plugin SDK's runner.

Usage: worker.py --plugin-path=plugins/email --org-id=org-123 --port=5556
Exit codes: 0 stopped by a signal, 1 cannot initialise, 2 the HTTP server failed.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import itertools
import json
import signal
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class DualStackServer(ThreadingHTTPServer):
    """Listens on IPv6 and IPv4 with one socket, as Node does."""

    address_family = socket.AF_INET6
    daemon_threads = True

    def server_bind(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


METRICS = """\
# HELP plugin_requests_total Requests, this one included.
# TYPE plugin_requests_total counter
plugin_requests_total {count}
"""


def answers(plugin: dict, org: str) -> dict[str, dict]:
    name = plugin["name"]
    return {
        "/health": {"status": "healthy", "plugin": name, "organizationId": org},
        "/metadata": {"name": name, "version": plugin["version"], "organizationId": org},
        "/mcp/list-tools": {"tools": plugin["tools"]},
    }


def handler_for(pages: dict[str, dict]) -> type[BaseHTTPRequestHandler]:
    counted = itertools.count(1)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            count, page = next(counted), pages.get(self.path)
            if self.path == "/metrics":
                self.answer(200, "text/plain; version=0.0.4; charset=utf-8", METRICS.format(count=count))
            else:
                self.answer(200 if page else 404, "application/json", json.dumps(page or {"error": "not found"}))

        def answer(self, status: int, kind: str, text: str) -> None:
            body = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *words: object) -> None:
            """Stay quiet: the demo's output is its own."""

    return Handler


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--plugin-path", required=True, type=Path)
    parser.add_argument("--org-id", required=True)
    parser.add_argument("--port", required=True, type=int)
    options = parser.parse_args()
    try:
        plugin = json.loads((options.plugin_path / "plugin.json").read_text(encoding="utf-8"))
        pages = answers(plugin, options.org_id)
    except (OSError, ValueError, KeyError) as error:
        print(f"Error: cannot initialise the plugin at {options.plugin_path}: {error}", file=sys.stderr)
        return 1
    try:
        server = DualStackServer(("::", options.port), handler_for(pages))
    except OSError as error:
        code = errno.errorcode.get(error.errno or 0, "EUNKNOWN")
        words = "address already in use" if code == "EADDRINUSE" else error.strerror
        print(f"Error: listen {code}: {words} :::{options.port}", file=sys.stderr)
        return 2
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
    with server:
        server.serve_forever(poll_interval=0.05)
    return 0


if __name__ == "__main__":
    sys.exit(main())
