"""What the production files hold, as plain data."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from prometheus_client import REGISTRY

from nae_monitor.alert.otel_metrics import FAMILIES, GAUGES, register_counters

FILES = Path(__file__).resolve().parents[3] / "integrations"


def documents(path: str) -> list[Any]:
    return list(yaml.safe_load_all((FILES / path).read_text()))


def exported() -> dict[str, set[str]]:
    """Labels by the names that OpenTelemetry's own Prometheus exporter gives our metrics."""
    reader = PrometheusMetricReader()
    provider = MeterProvider([reader])
    meter = provider.get_meter("production")
    register_counters(
        meter,
        lambda: {f"{prefix}any": 1 for prefix in FAMILIES},
        lambda: {"kafka": dict.fromkeys(GAUGES, 1)},
        lambda: {"activations.lag_records": 1},
    )
    alerts = meter.create_counter("nae.alerts", "{alert}")
    alerts.add(1, {"nae.rule.id": "any", "nae.severity": "high"})
    try:
        samples = [sample for family in REGISTRY.collect() for sample in family.samples]
    finally:
        provider.shutdown()
    # From the collector: job and instance are service.name and service.instance.id.
    return {s.name: {*s.labels, "job", "instance"} for s in samples if s.name.startswith("nae_")}


def queries() -> dict[str, str]:
    """Each query of the alert rules and of the dashboard, by where it stands."""
    found = {
        f"alert {rule['alert']}": rule["expr"]
        for document in documents("prometheus/alerts.yaml")
        for group in document["groups"]
        for rule in group["rules"]
    }
    dashboard = json.loads((FILES / "grafana/nae-monitor.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            found[f"panel {panel['title']} {target['refId']}"] = target["expr"]
    return found


def metrics_of(query: str) -> dict[str, set[str]]:
    """Labels that a query uses, by metric."""
    query = re.sub(r'"[^"]*"', '""', query)
    grouped = {
        label.strip()
        for group in re.findall(r"by \(([^)]*)\)", query)
        for label in group.split(",")
    }
    used = re.findall(r"\b(nae_\w+)(?:\{([^}]*)\})?", re.sub(r"by \([^)]*\)", "", query))
    found: dict[str, set[str]] = {}
    for name, selector in used:
        labels = set(re.findall(r"(\w+)\s*[=!]~?", selector))
        if not any(name in other for _, other in used):
            found.setdefault(name, set(grouped)).update(labels)
    return found
