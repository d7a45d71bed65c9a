"""The HTML report of a run: one file, no request to anywhere, every text escaped."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from nae_monitor.errors import ConfigurationError, Mark, Problem
from nae_monitor.recording import Recording
from nae_monitor.records import FindingState
from nae_monitor.replay.moments import moment
from nae_monitor.replay.report_alerts import (
    MAX_ALERTS,
    MAX_HITS,
    SEVERITIES,
    AlertView,
    Listed,
    listed,
)
from nae_monitor.replay.report_data import MAX_TOKENS, RunData, gather
from nae_monitor.replay.report_fidelity import histogram
from nae_monitor.replay.report_marks import revealed, visible_token
from nae_monitor.replay.report_page import page_json
from nae_monitor.replay.report_spend import duration
from nae_monitor.replay.report_stops import MAX_STOPS, stop_views
from nae_monitor.replay.report_timeline import timeline

MAX_CHOICES = 500  # of one filter; the search finds the rest
_SCRIPTS = tuple(
    f"report_{name}.js" for name in ("text", "tokens", "details", "filter", "keys", "start")
)
_STYLES = tuple(
    f"report_{name}.css" for name in ("base", "overview", "alerts", "tokens", "details", "narrow")
)
_IN_SCRIPT = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"}


def write_report(
    run_directory: Path | str, output_path: Path | str, *, max_tokens: int = MAX_TOKENS
) -> None:
    """Write the report of a recording or a replayed run.

    Summary and alerts are plain HTML; conversations are drawn by the page's own script from
    JSON in the page. A content policy allows that one script by its hash and nothing from
    outside.

    Args:
        run_directory: the recording, see :mod:`nae_monitor.recording`.
        output_path: the file to write; replaced whole or not at all.
        max_tokens: conversations beyond this many tokens are counted but not shown.

    Raises:
        RecordingError: the recording cannot be read.
        ConfigurationError: the file cannot be written.
    """
    page = render(gather(Recording.open(run_directory), max_tokens))
    target = Path(output_path)
    part = target.with_name(f".{target.name}.part")
    try:
        part.write_text(page, encoding="utf-8")
        os.replace(part, target)  # noqa: PTH105 - one call, atomic
    except OSError as error:
        problem = Problem(Mark(str(target)), f"cannot be written: {error.strerror}")
        raise ConfigurationError([problem]) from error


def render(run: RunData) -> str:
    """The page as text."""
    environment = Environment(
        loader=PackageLoader("nae_monitor.replay"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalized,
    )
    environment.filters.update(
        n=lambda value: f"{value:,}", visible=visible_token, duration=duration, moment=moment
    )
    # One script of several files, in a scope of its own.
    parts = "".join(_source(environment, name) for name in _SCRIPTS)
    script = f'"use strict";\n{{\n{parts}}}\n'
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    alerts = listed(run)
    return environment.get_template("report.html.j2").render(
        **_summary(run, alerts),
        style=Markup("".join(_source(environment, name) for name in _STYLES)),  # noqa: S704 - ours
        script=Markup(script),  # noqa: S704 - our own files
        script_sha256=digest,
        data=script_json(page_json(run, alerts)),
    )


def script_json(value: Any) -> Markup:
    """JSON that cannot end the script element it stands in, nor begin a comment or entity."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for character, escape in _IN_SCRIPT.items():
        text = text.replace(character, escape)
    return Markup(text)  # noqa: S704 - nothing in it is markup any more


def _finalized(value: Any) -> Any:
    """Every text that the template prints, save our own markup, with its direction marks shown."""
    return revealed(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _source(environment: Environment, name: str) -> str:
    if environment.loader is None:
        return ""
    return environment.loader.get_source(environment, name)[0]


def _summary(run: RunData, listed_alerts: Listed) -> dict[str, Any]:
    alerts, signs = listed_alerts.alerts, listed_alerts.signs
    by_severity = Counter(view.severity for view in alerts)
    return {
        "facts": _facts(run.recording),
        "complete": run.recording.complete,
        "unfinished": run.recording.unfinished,
        "content": run.recording.content,
        "verdicts": run.verdicts,
        "requests": sum(run.verdicts.values()),
        "coverage": run.coverage,
        "stages": _stages(run),
        "dropped": run.dropped.most_common(),
        "alerts": alerts[:MAX_ALERTS],
        "alert_count": len(alerts),
        "max_hits": MAX_HITS,
        "signs": signs[:MAX_ALERTS],
        "sign_count": len(signs),
        "by_severity": [(name, by_severity[name]) for name in SEVERITIES if by_severity[name]],
        "timeline": timeline(alerts, run.starts_unix_ns),
        "spend": run.spend,
        "histogram": histogram(run.fve),
        "fve_count": len(run.fve),
        "fve_unknown": run.fve_unknown,
        "omitted": run.omitted,
        "scored": len(run.strongest),
        **_choices(run, [*alerts, *signs]),
        **_undecided(run),
        "stops": stop_views(run.stops)[:MAX_STOPS],
        "stop_count": len(run.stops),
        "stops_recorded": run.recording.stops_recorded,
    }


def _choices(run: RunData, views: Sequence[AlertView]) -> dict[str, Any]:
    """What the filters offer."""
    return {
        "tenants": sorted(run.tenants)[:MAX_CHOICES],
        "models": sorted(run.models)[:MAX_CHOICES],
        "rules": sorted({view.rule for view in views})[:MAX_CHOICES],
        "severities": SEVERITIES,
        "dated": any(time > 0 for time in run.starts_unix_ns) or bool(run.hit_times),
    }


def _undecided(run: RunData) -> dict[str, Any]:
    undecided = [f for f in run.findings if f.state is FindingState.UNDECIDED]
    return {
        "undecided": Counter(f.title for f in undecided).most_common(),
        "undecided_why": Counter(why for f in undecided for why in f.undecided).most_common(5),
    }


def _stages(run: RunData) -> list[tuple[str, int, float]]:
    """Stage name, tokens, share of the tokens seen."""
    seen = run.coverage["seen"] or 1
    names = ("seen", "screened", "sampled", "decoded", "judged")
    return [(name, run.coverage[name], min(1.0, run.coverage[name] / seen)) for name in names]


def _facts(recording: Recording) -> list[tuple[str, str, bool]]:
    """Name, value, whether it is set in a fixed-width face."""
    manifest = recording.manifest
    layer = recording.layer
    facts = [
        ("Model", recording.model or "not recorded", True),
        ("Layer", "not recorded" if layer is None else str(layer), False),
        ("NLA", _text(manifest, "nla_id"), True),
        ("NLA weights", _text(manifest, "nla_weights"), True),
        ("Rule set", _text(manifest, "rules_sha256")[:16], True),
        ("Recorded", moment(manifest.get("created_unix_ns")), False),
    ]
    if recording.keep == "captured":
        facts.append(("Rows kept", "only of requests that a rule captured", False))
    sources = manifest.get("replayed_from")
    if isinstance(sources, list):
        names = ", ".join(str(s.get("name")) for s in sources[:5] if isinstance(s, Mapping))
        facts.append(("Replayed from", names, True))
    return facts


def _text(manifest: Mapping[str, Any], key: str) -> str:
    value = manifest.get(key)
    return value if isinstance(value, str) and value else "not recorded"
