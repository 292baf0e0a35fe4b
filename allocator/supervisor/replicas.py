"""N workers of one service: the same command under instances that follow each other, one lease each."""

from __future__ import annotations

from typing import TYPE_CHECKING

from allocator.kernel.outlets import may_block
from allocator.model.errors import InvalidInputError
from allocator.model.names import WorkerId
from allocator.model.values import replace

if TYPE_CHECKING:
    from allocator.supervisor.spec import WorkerSpec

BOTH = frozenset({"stdout", "stderr"})


def replicated(spec: WorkerSpec, count: int) -> list[WorkerSpec]:
    """Return `count` workers like this one; the first has its instance, each further one the next.

    Raises:
        InvalidInputError: When they were to share one port, or there are too few instances.
    """
    if count > 1 and spec.explicit_port:
        raise InvalidInputError(f"{count} replicas cannot share port {spec.claim.get('port')}; omit the port")
    first = spec.claim.get("instance", 0)
    workers = [WorkerId(spec.claim["org"], spec.plugin, first + at) for at in range(count)]
    return [replace(spec, claim={**spec.claim, "instance": worker.instance}) for worker in workers]


def with_named_output(specs: list[WorkerSpec], *, orphans_end: bool) -> list[WorkerSpec]:
    """Return workers with the streams that the supervisor has to read.

    Of several, both are read, so that each line can carry its worker's name; of a single one standard error, to see why
    it ends, and what goes into a pipe or a file, so that it neither waits for who reads there nor fails on a full disk;
    nothing at all of workers that may outlive the supervisor, for a pipe would not.
    """
    if not orphans_end:
        captured = frozenset[str]()
    else:
        captured = BOTH if len(specs) > 1 or may_block(1) else frozenset({"stderr"})
    return [replace(spec, captured=captured) for spec in specs]
