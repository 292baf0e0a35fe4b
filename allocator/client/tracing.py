"""Spans: what an allocator does with leases, sent to a tracer. Without one nothing is made and nothing imported.

The model is httpcore's trace hook: the client reports the begin and the outcome of an action; the listener makes
of it what it likes. `OpenTelemetryTracer` makes spans. No attribute holds a token, and an error's message never does.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Self, TypeVar

from allocator.model.errors import AllocatorError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from allocator.model.leases import Lease
    from allocator.model.names import WorkerId
    from allocator.operations.renew import RenewOutcome


Outcomes = TypeVar("Outcomes", bound="Sequence[RenewOutcome]")


class OpenTelemetryTracer:
    """Makes an OpenTelemetry span of each claim, renewal, release and decline.

    Attributes of a span: `allocator.pool`, `.org`, `.plugin`, `.instance`, `.host`, `.port`, `.fence` and `.outcome`. A
    renewal of several leases is one span with `allocator.leases`, and an event in it for each.

    Args:
        provider: Where spans go; None for OpenTelemetry's global provider.

    Raises:
        ConfigurationError: When opentelemetry-api is not installed.
    """

    def __init__(self, provider: Any = None) -> None:  # noqa: ANN401  # its type is not installed everywhere
        try:
            from opentelemetry import trace
        except ModuleNotFoundError:
            raise ConfigurationError(
                "opentelemetry-api is not installed; pip install 'portlease[tracing]', or give no tracer"
            ) from None
        self._tracer = trace.get_tracer("portlease", tracer_provider=provider)

    def __repr__(self) -> str:
        return f"<OpenTelemetryTracer to {type(self._tracer).__name__}>"

    def span(self, name: str, pool: str, worker: WorkerId | None, leases: Sequence[Lease]) -> OpenTelemetrySpan:
        """Return the span of something that is about to be done; see `Tracer`."""
        from opentelemetry.trace import SpanKind

        attributes: dict[str, str | int] = {"allocator.pool": pool}
        if len(leases) == 1:
            attributes |= _of_lease(leases[0])
        elif leases:
            attributes["allocator.leases"] = len(leases)
        elif worker is not None:
            attributes |= _of_worker(worker)
        context = self._tracer.start_as_current_span(
            f"allocator.{name}",
            kind=SpanKind.CLIENT,
            attributes=attributes,
            record_exception=False,
            set_status_on_exception=False,
        )
        return OpenTelemetrySpan(context)


class OpenTelemetrySpan:
    """A span of OpenTelemetry, as `Session.span` gives it."""

    def __init__(self, context: Any) -> None:  # noqa: ANN401  # as above
        self._context = context
        self._span: Any = None

    def __enter__(self) -> Self:
        self._span = self._context.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            from opentelemetry.trace import Status, StatusCode

            message = str(error) if isinstance(error, AllocatorError) else type(error).__name__
            self._span.set_attribute("allocator.outcome", outcome_of(error))
            self._span.set_status(Status(StatusCode.ERROR, message))
        self._context.__exit__(kind, error, trace)

    def granted(self, lease: Lease) -> Lease:
        """Write down the lease that a claim got."""
        self._span.set_attributes(_of_lease(lease) | {"allocator.outcome": "granted"})
        return lease

    def renewed(self, outcomes: Outcomes) -> Outcomes:
        """Write down what a renewal came to."""
        codes = [outcome.code for outcome in outcomes]
        if len(outcomes) == 1:
            self._span.set_attributes(_of_lease(outcomes[0].lease) | {"allocator.outcome": codes[0]})
            return outcomes
        for outcome, code in zip(outcomes, codes, strict=True):
            self._span.add_event(code, _of_lease(outcome.lease))
        worst = next((code for code in ("lost", "reasserted") if code in codes), "renewed")
        self._span.set_attribute("allocator.outcome", worst)
        return outcomes

    def ended(self, outcome: str, *, done: bool) -> bool:
        """Write down whether this call ended a lease."""
        self._span.set_attribute("allocator.outcome", outcome if done else "already")
        return done


def outcome_of(error: BaseException) -> str:
    """Return the name of an error: `exhausted` for ExhaustedError, `store_unavailable` for StoreUnavailableError."""
    return re.sub(r"(?<!^)(?=[A-Z])", "_", type(error).__name__.removesuffix("Error")).lower()


def _of_worker(worker: WorkerId) -> dict[str, str | int]:
    return {
        "allocator.org": worker.org,
        "allocator.plugin": worker.plugin,
        "allocator.instance": worker.instance,
    }


def _of_lease(lease: Lease) -> dict[str, str | int]:
    attributes: dict[str, str | int] = {
        "allocator.host": lease.host,
        "allocator.port": lease.port,
        "allocator.fence": lease.fence,
    }
    return _of_worker(lease.worker) | attributes
