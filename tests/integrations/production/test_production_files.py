"""The production files parse and name what the code has."""

from __future__ import annotations

import re
from configparser import RawConfigParser
from pathlib import Path

import yaml

from nae_monitor.alert.otel_metrics import FAMILIES, GAUGES

FILES = Path(__file__).resolve().parents[3] / "integrations"


def prometheus_names() -> set[str]:
    """Dots become underscores, counters end in _total, By and s are spelled out."""
    units = {"By": "_bytes", "s": "_seconds"}
    counters = {f"{name}_total" for name, _, _ in FAMILIES.values()}
    gauges = {name + units.get(unit, "") for name, unit, _ in GAUGES.values()}
    return {name.replace(".", "_") for name in counters | gauges | {"nae.activations.lag"}}


def test_prometheus_rules_name_only_metrics_that_the_code_has() -> None:
    document = yaml.safe_load((FILES / "prometheus/alerts.yaml").read_text())
    rules = [rule for group in document["groups"] for rule in group["rules"]]
    labels = {"nae_reason", "nae_component", "nae_event", "nae_sink"}
    named = {name for rule in rules for name in re.findall(r"nae_\w+", rule["expr"])}
    assert named - labels
    assert named - labels <= prometheus_names()


def test_the_unit_keeps_its_sockets_private_and_outwaits_the_worker() -> None:
    unit = RawConfigParser(strict=True)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(FILES / "systemd/nae-monitor-worker.service")
    service = unit["Service"]
    assert service["RuntimeDirectoryMode"] == "0700"
    assert int(service["TimeoutStopSec"]) > int(service["ExecStart"].split()[-1])
