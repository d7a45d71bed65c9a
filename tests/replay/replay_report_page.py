"""A report read back as a browser's parser would, and a run in which every text is hostile."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import torch
from replay_demo_run import D_MODEL

from nae_monitor.recording import RecordingWriter, RequestRecord
from nae_monitor.records import (
    Activation,
    Coverage,
    Decoding,
    Finding,
    FindingState,
    Phase,
    Request,
    SampleReason,
    Severity,
    Span,
    VerdictState,
)
from nae_monitor.replay import write_report

HOSTILE = (
    "\u202e</script><script>document.title='pwned'</script>"
    "<img src=x onerror=\"document.title='pwned'\"><!--<script> &lt;b&gt; \u2028 ${x} {{ 7*7 }}"
)


class Page(HTMLParser):
    """Tags, executable scripts, the page's data and its visible text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.data = ""
        self.text = ""
        self._inside = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag in ("script", "style"):
            self._inside = "data" if attributes.get("type") == "application/json" else tag
            if self._inside == "script":
                self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self._inside = ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside == "data":
            self.data += data
        elif not self._inside:
            self.text += data


def report(run: Path, **options: int) -> Page:
    write_report(run, run.parent / "report.html", **options)
    return Page((run.parent / "report.html").read_text("utf-8"))


def hostile_run(path: Path, *, finished: bool = False) -> None:
    """Every text that can reach the page is hostile."""
    request = Request(HOSTILE, HOSTILE, HOSTILE, HOSTILE, HOSTILE, started_unix_ns=10**18)
    manifest = {"model": HOSTILE, "layer": 3, "nla_id": HOSTILE, "rules_sha256": HOSTILE}
    with RecordingWriter(path, manifest=manifest, d_model=D_MODEL, content="full") as writer:
        row = Activation(
            request, 0, 1, HOSTILE, Phase.PROMPT, 3, torch.ones(D_MODEL), SampleReason.RANDOM,
            {HOSTILE: 1.0},
        )  # fmt: skip
        writer.write_activation(row, Decoding(HOSTILE, True, 0.1, 0.2, 1, 256, HOSTILE, 1, 0.1))
        writer.write_activation(row, None, HOSTILE)
        spans = (
            Span(HOSTILE, "explanation", 0, 9, HOSTILE[:9]),
            Span(HOSTILE, "output", 0, len(HOSTILE), HOSTILE),
        )
        for state in (FindingState.MATCH, FindingState.UNDECIDED):
            writer.write_findings(
                [
                    Finding(
                        HOSTILE, 0, HOSTILE, HOSTILE, HOSTILE, HOSTILE, Severity.HIGH, state,
                        spans, (HOSTILE,), None, (HOSTILE,),
                    )
                ]
            )  # fmt: skip
        if finished:
            for tenant in ("", "-2"):  # two of each, or there is no filter to choose them by
                writer.write_request(_record(request, tenant))


def _record(request: Request, suffix: str) -> RequestRecord:
    name = HOSTILE + suffix
    return RequestRecord(
        Request(name, name, name, name, name, started_unix_ns=request.started_unix_ns),
        HOSTILE, 1, 1, Coverage(2, 2, 1, 1, 1, 0, {HOSTILE: 1}), VerdictState.ALERT, (HOSTILE,),
        (1,), (2,), (HOSTILE,), (HOSTILE,),
    )  # fmt: skip
