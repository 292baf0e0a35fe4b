"""What a reconciler shows to Prometheus when another one takes over."""

from __future__ import annotations

import pytest

pytest.importorskip("prometheus_client")

from prometheus_client import CollectorRegistry

from allocator.database.drift import Kind
from allocator.database.metrics import PrometheusGauge
from allocator.database.reconciler import Report


def test_who_does_not_lead_any_more_shows_no_drift() -> None:
    registry = CollectorRegistry()
    gauge = PrometheusGauge(registry, "p")
    report = Report(leases=7)
    report.counts[Kind.UNKNOWN_ROW] = 2
    gauge.leads(leads=True)
    gauge.passed(report, 0.1)

    def shown() -> list[float | None]:
        drift = registry.get_sample_value("allocator_reconcile_drift", {"pool": "p", "kind": str(Kind.UNKNOWN_ROW)})
        return [drift, registry.get_sample_value("allocator_reconcile_leases", {"pool": "p"})]

    assert shown() == [2, 7]
    gauge.leads(leads=False)
    assert shown() == [0, 0]
