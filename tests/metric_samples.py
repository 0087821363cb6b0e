"""What the metrics page says, as numbers."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from headrace.server.repository.model import Model
from headrace.server.telemetry.metrics import Metrics
from headrace.server.telemetry.requests import RequestMetrics


def scrape(requests: RequestMetrics, *served: Model) -> dict[str, float]:
    """Return the value of each sample of these models, named as ``name{label=value,…}``, labels sorted."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(Metrics(requests, lambda: list(served)).render().decode()):
        for sample in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(sample.labels.items()))
            name = f"{sample.name}{{{labels}}}"
            assert name not in found, f"{name} is there twice"
            found[name] = sample.value
    return found
