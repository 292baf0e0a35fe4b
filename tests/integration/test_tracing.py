"""OpenTelemetry spans: one for each thing that is done with a lease, with what it is about, and never a token."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from supervised import eventually

from allocator import (
    AsyncPortAllocator,
    HeldError,
    LeaseLostError,
    OpenTelemetryTracer,
    PoolSpec,
    PortAllocator,
    StoreUnavailableError,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.trace import ReadableSpan


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def tracer(exporter: InMemorySpanExporter) -> OpenTelemetryTracer:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return OpenTelemetryTracer(provider)


@pytest.fixture
def traced(redis_url: str, pool: PoolSpec, tracer: OpenTelemetryTracer) -> Iterator[PortAllocator]:
    with PortAllocator.from_url(redis_url, pool=pool.name, host="web-1", tracer=tracer) as ports:
        yield ports


def reported(span: ReadableSpan) -> tuple[str, dict[str, object]]:
    return span.name, {name.removeprefix("allocator."): value for name, value in (span.attributes or {}).items()}


def test_each_step_of_a_lease_is_a_span_that_states_whose_it_is(traced, exporter, pool: PoolSpec) -> None:
    lease = traced.claim("email", org="org-1", instance=3)
    traced.renew(lease)
    assert traced.release(lease)
    assert not traced.release(lease)
    declined = traced.claim("stripe", org="org-1")
    traced.decline(declined)
    spans = exporter.get_finished_spans()
    whose = {"pool": pool.name, "org": "org-1", "plugin": "email", "instance": 3, "host": "web-1"}
    about = whose | {"port": lease.port, "fence": lease.fence}
    assert [reported(span) for span in spans[:4]] == [
        ("allocator.claim", about | {"outcome": "granted"}),
        ("allocator.renew", about | {"outcome": "renewed"}),
        ("allocator.release", about | {"outcome": "released"}),
        ("allocator.release", about | {"outcome": "already"}),
    ]
    assert reported(spans[-1])[1]["outcome"] == "declined"
    assert {span.kind for span in spans} == {SpanKind.CLIENT}
    everything = "".join(span.to_json() for span in spans)
    assert str(lease.token) not in everything
    assert str(declined.token) not in everything


def test_an_error_is_the_outcome_of_its_span(traced, exporter, pool: PoolSpec) -> None:
    lease = traced.claim("email", org="org-1")
    with pytest.raises(HeldError):
        traced.claim("stripe", org="org-2", port=lease.port)
    traced.release(lease)
    traced.claim("stripe", org="org-2", port=lease.port)
    with pytest.raises(LeaseLostError):
        traced.renew(lease)
    refused, lost = exporter.get_finished_spans()[1], exporter.get_finished_spans()[-1]
    assert reported(refused)[1]["outcome"] == "held"
    assert reported(refused)[1]["org"] == "org-2"
    assert refused.status.status_code is StatusCode.ERROR
    assert reported(lost)[1]["outcome"] == "lost"


def test_a_redis_that_is_away_is_an_outcome_without_its_password(exporter, tracer) -> None:
    url = "redis://me:S3CRET@127.0.0.1:1"
    with (
        PortAllocator.from_url(url, host="web-1", timeout=0.2, tracer=tracer) as ports,
        pytest.raises(StoreUnavailableError),
    ):
        ports.claim("email", org="org-1")
    (span,) = exporter.get_finished_spans()
    assert reported(span)[1]["outcome"] == "store_unavailable"
    assert "S3CRET" not in span.to_json()


def test_a_renewal_of_several_is_one_span_with_an_event_for_each(traced, exporter) -> None:
    leases = [traced.claim("email", org=f"org-{number}") for number in range(3)]
    traced.renew(*leases)
    span = exporter.get_finished_spans()[-1]
    assert (reported(span)[1]["leases"], reported(span)[1]["outcome"]) == (3, "renewed")
    assert [(event.name, event.attributes["allocator.port"]) for event in span.events] == [
        ("renewed", lease.port) for lease in leases
    ]


def test_the_async_allocator_and_its_heartbeats_are_traced_as_well(redis_url, pool, exporter, tracer) -> None:
    async def hold() -> None:
        async with (
            AsyncPortAllocator.from_url(redis_url, pool=pool.name, host="web-1", tracer=tracer) as ports,
            ports.hold("email", org="org-1", ttl=0.2),
        ):
            await asyncio.to_thread(eventually, lambda: len(exporter.get_finished_spans()) >= 3)

    asyncio.run(asyncio.wait_for(hold(), 20))
    names = [span.name for span in exporter.get_finished_spans()]
    assert names[:3] == ["allocator.claim", "allocator.renew", "allocator.renew"]
    assert names[-1] == "allocator.release"


def test_without_opentelemetry_all_but_the_tracer_works(redis_url: str, pool: PoolSpec) -> None:
    program = (
        "import sys\n"
        "sys.modules['opentelemetry'] = None  # as where it is not installed\n"
        "from allocator import ConfigurationError, OpenTelemetryTracer, PortAllocator\n"
        f"with PortAllocator.from_url({redis_url!r}, pool={pool.name!r}, host='web-1') as ports:\n"
        "    with ports.hold('email', org='org-1') as held: ports.renew(held.lease)\n"
        "try: OpenTelemetryTracer()\n"
        "except ConfigurationError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "pip install 'portlease[tracing]'" in done.stdout


@pytest.mark.parametrize(
    ("name", "code", "message"), [("1", 0, ""), ("0", 0, ""), ("yes", 78, "is neither yes nor no")]
)
def test_commands_make_spans_where_the_environment_asks_for_them(fleet, name: str, code: int, message: str) -> None:
    done = fleet.spawn("claim", "email", "--org", "org-1", variables={"ALLOCATOR_TRACING": name})
    _, err = done.communicate()
    assert (done.returncode, message in err) == (code, True)
