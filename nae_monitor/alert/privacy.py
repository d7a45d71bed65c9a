"""What of prompts, outputs and decoded text a sink may see.

``hash`` (default): ``hmac-sha256:HEX`` under the key in the environment variable ``key_env``,
so that equal texts can be joined by whoever holds the key and guessed by nobody else.
``none``: nothing. ``full``: the text itself, bounded.
"""

from __future__ import annotations

import hmac
import logging
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Literal, NewType

from nae_monitor.records import EMPTY, Alert, Evidence, Finding, Span, Transcript
from nae_monitor.settings import PrivacySettings

log = logging.getLogger("nae_monitor.alert")

ContentMode = Literal["hash", "full", "none"]
RedactedAlert = NewType("RedactedAlert", Alert)
"""An alert whose every content string went through :meth:`ContentPolicy.text`."""

HASH_PREFIX = "hmac-sha256:"
MAX_CONTENT_CHARS = 8192  # of one string; keeps an event with three evidences below 1 MB
CAPTURE_ENV = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
_CAPTURE = {
    "true": (True, True),  # the value of the conventions before they split spans and events
    "span_only": (True, False),
    "event_only": (False, True),
    "span_and_event": (True, True),
}


def width(mode: ContentMode) -> int:
    """1 (none) to 3 (full): how much may be shown."""
    return 3 - len(wider_modes(mode))


def wider_modes(mode: ContentMode) -> tuple[ContentMode, ...]:
    """The modes under which more may be shown than under ``mode``."""
    modes: tuple[ContentMode, ...] = ("full", "hash", "none")
    return modes[: modes.index(mode)]


class ContentPolicy:
    """The privacy setting with its key. The key never appears in ``repr`` or in the log."""

    def __init__(self, settings: PrivacySettings, environ: Mapping[str, str] | None = None) -> None:
        env = os.environ if environ is None else environ
        self.mode: ContentMode = settings.content
        key = env.get(settings.key_env, "")
        self._tell_random_key = "" if key else settings.key_env
        self._key = key.encode() if key else secrets.token_bytes(32)
        asked = _CAPTURE.get(env.get(CAPTURE_ENV, "").strip().lower(), (False, False))
        full = settings.content == "full"
        self.span_mode: ContentMode = "hash" if full and not asked[0] else settings.content
        self.event_mode: ContentMode = "hash" if full and not asked[1] else settings.content

    def digest(self, text: str) -> str:
        """The keyed hash of a text, whatever the mode: ``hmac-sha256:`` and 64 hex digits."""
        if self._tell_random_key:
            log.warning(
                "%s is not set: content hashes use a random key and compare only within this"
                " process",
                self._tell_random_key,
            )
            self._tell_random_key = ""  # once
        data = text.encode("utf-8", "surrogatepass")
        return HASH_PREFIX + hmac.digest(self._key, data, "sha256").hex()

    def text(self, value: str, mode: ContentMode | None = None) -> str:
        """What may be shown of ``value``: its hash, its text, or an empty string."""
        mode = mode or self.mode
        if not value or mode == "none":
            return ""
        if mode == "hash":
            return self.digest(value)
        clean = value.encode("utf-8", "replace").decode()  # lone surrogates cannot be sent
        # The end is kept: the judged token is the last of the output.
        return clean if len(clean) <= MAX_CONTENT_CHARS else "…" + clean[1 - MAX_CONTENT_CHARS :]

    def showing(self, mode: ContentMode | None = None) -> Callable[[str], str]:
        """:meth:`text` for the texts of one alert, whose evidences share much of theirs."""
        mode = mode or self.mode
        shown_of: dict[str, str] = {}

        def show(value: str) -> str:
            shown = shown_of.get(value)
            if shown is None:
                shown = shown_of[value] = self.text(value, mode)
            return shown

        return show

    def redact(self, alert: Alert, mode: ContentMode | None = None) -> RedactedAlert:
        """The alert with all content under ``mode`` and the host's free attributes removed."""
        show = self.showing(mode)
        request = alert.request
        if request.attributes:
            request = replace(request, attributes=EMPTY)
        evidence = tuple([_evidence(e, show) for e in alert.evidence])
        return RedactedAlert(replace(alert, request=request, evidence=evidence))

    def narrow(self, alert: RedactedAlert, mode: ContentMode) -> RedactedAlert:
        """An alert redacted under this policy, for a place where less may be shown."""
        return alert if mode == self.mode else self.redact(alert, mode)


# Records are made directly, field by field: dataclasses.replace takes several times as long, and
# an alert has a dozen of them.
def _evidence(evidence: Evidence, show: Callable[[str], str]) -> Evidence:
    said = evidence.transcript
    return Evidence(
        _finding(evidence.finding, show),
        show(evidence.token),
        evidence.phase,
        show(evidence.explanation),
        Transcript(show(said.prompt or "") or None, show(said.output or "") or None),
        evidence.fve,
        evidence.cosine,
        evidence.reused,
    )


def _finding(finding: Finding, show: Callable[[str], str]) -> Finding:
    if not finding.spans and not finding.undecided:
        return finding
    return Finding(
        request_id=finding.request_id,
        position=finding.position,
        rule_id=finding.rule_id,
        rule_name=finding.rule_name,
        rule_version=finding.rule_version,
        title=finding.title,
        severity=finding.severity,
        state=finding.state,
        spans=tuple([_span(s, show) for s in finding.spans]),
        fve=finding.fve,
        tags=finding.tags,
        risk_score=finding.risk_score,
        routes=finding.routes,
        support=finding.support,
        support_asked=finding.support_asked,
        support_s=finding.support_s,
        unsupported=finding.unsupported,
        unsupported_decodes=finding.unsupported_decodes,
        unsupported_s=finding.unsupported_s,
    )


def _span(span: Span, show: Callable[[str], str]) -> Span:
    return Span(span.selection, span.field, span.start, span.end, show(span.text), span.score)
