"""The embedded default: one real Valkey for this user and host, started by whichever command needs it first.

`server` has what the rest of the product calls, `reach` asks whether a server answers (all that a command needs when
one does), `life` starts and stops under the locks, `process` deals with the operating system and `log` explains what a
server died of. Nothing here imports a Redis client.

Two locks in the private directory decide everything, so that the kernel, and no pid file, tells the truth:
`start.lock` is held by the one command that starts or stops a server; `server.lock` is inherited by the server and
so is held exactly as long as it lives, whatever became of its starter, its socket or its pid file. No second server
is ever started on the same data, and no lock file is ever removed. Whether a server can be *used* is another question,
and only its answer to PING counts.
"""

from allocator.store.embedded.server import EmbeddedServer, EmbeddedStatus

__all__ = ["EmbeddedServer", "EmbeddedStatus"]
