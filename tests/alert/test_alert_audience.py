"""Sinks for certain routes, tags and tenants."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from alert_parts import make_alert
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from nae_monitor.alert import build_sinks
from nae_monitor.alert.audience import EVERYONE, Audience
from nae_monitor.alert.tail import JsonlTail
from nae_monitor.errors import ConfigurationError
from nae_monitor.health import Health
from nae_monitor.records import Alert, Request
from nae_monitor.settings import PrivacySettings, Settings
from nae_monitor.sink_settings import AlertSettings

names = st.frozensets(st.sampled_from("abc"), max_size=2)


def alert_of(number: int = 0, tenant: str | None = None, **fields: object) -> Alert:
    request = Request(f"r{number}", "g", "m", tenant=tenant)
    return replace(make_alert(number), request=request, **fields)  # type: ignore[arg-type]


@given(names, names, names, names, names, st.none() | st.sampled_from("abc"))
def test_an_alert_is_meant_for_an_audience_by_one_of_each_kind_it_names(
    routes: frozenset[str],
    tags: frozenset[str],
    tenants: frozenset[str],
    has_routes: frozenset[str],
    has_tags: frozenset[str],
    tenant: str | None,
) -> None:
    alert = alert_of(tenant=tenant, routes=tuple(has_routes), tags=tuple(has_tags))
    wanted = (
        (routes == frozenset() or any(r in has_routes for r in routes))
        and (tags == frozenset() or any(t in has_tags for t in tags))
        and (tenants == frozenset() or tenant in tenants)
    )
    assert Audience(routes, tags, tenants).includes(alert) == wanted
    assert EVERYONE.includes(alert)


def test_tags_and_tenants_of_the_configuration_choose_the_sink(
    tmp_path: Path, health: Health
) -> None:
    acme, deception = tmp_path / "acme.jsonl", tmp_path / "deception.jsonl"
    text = (
        "alert:\n  sinks:\n  - console\n"
        f"  - jsonl: {{path: {acme}, tenants: [acme]}}\n"
        f"  - jsonl: {{path: {deception}, tags: [nae.deception], min_severity: medium}}\n"
    )
    settings = Settings.from_yaml(tmp_path / "c.yaml", text).alert
    console = Console(file=(tmp_path / "screen").open("w"))
    sinks = build_sinks(settings, PrivacySettings(), health, console=console)
    sinks.emit(alert_of(0, "acme"))
    sinks.emit(alert_of(1, "other", tags=("nae.deception", "more")))
    sinks.emit(alert_of(2))
    assert sinks.close(20.0)
    found = [
        [a.data["unmapped"]["nae.sequence"] for a in JsonlTail(path)] for path in (acme, deception)
    ]
    assert found == [[0], [1]]
    assert (tmp_path / "screen").read_text().count("request r") == 3


def test_one_sink_must_take_alerts_of_any_tag_and_tenant(tmp_path: Path, health: Health) -> None:
    text = f"alert:\n  sinks: [{{jsonl: {{path: {tmp_path / 'a'}, tenants: [acme]}}}}]\n"
    settings = Settings.from_yaml(tmp_path / "c.yaml", text).alert
    with pytest.raises(ConfigurationError, match="certain tags or tenants"):
        build_sinks(settings, PrivacySettings(), health)


def test_a_settings_record_without_sinks_is_allowed(health: Health) -> None:
    assert build_sinks(AlertSettings(()), PrivacySettings(), health).close(1.0)
