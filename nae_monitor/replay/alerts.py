"""The alerts that a replay's findings would have led to, and what suppression held back.

Live, an alert leaves at the end of a request's turn and suppression goes by that time; here it goes
by the capture of the turn's last row, so that the same recording always says the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from nae_monitor.alert.fold import alert_id
from nae_monitor.detect.response import Suppression
from nae_monitor.detect.tools.alerting import Alerted, Alerting
from nae_monitor.errors import ConfigurationError
from nae_monitor.recording import canonical_line
from nae_monitor.records import Activation, Finding, Request

ALERTS = "alerts.jsonl"


class ReplayedAlerts:
    """Gathers a replay's findings. Holds one entry a turn and alert, and no text.

    Args:
        policies: suppression by rule id; a rule without one is never held back.
    """

    def __init__(self, policies: Mapping[str, Suppression]) -> None:
        self._policies = policies
        self._alerting = Alerting()
        self._latest: dict[str, Request] = {}  # the turn read last, by request id

    def judged(self, activation: Activation, findings: Iterable[Finding]) -> None:
        """A row was judged."""
        self._alerting.saw(activation)
        self._alerting.add(activation.request, findings)
        self._latest[activation.request.request_id] = activation.request

    def aggregated(self, findings: Iterable[Finding]) -> None:
        """What aggregation rules found; told of the turn of their request that was read last."""
        for finding in findings:
            if (request := self._latest.get(finding.request_id)) is not None:
                self._alerting.add(request, [finding])

    def write(self, directory: Path) -> Mapping[str, int]:
        """Write ``alerts.jsonl``, in the order of time; returns how many met which fate.

        Raises:
            ConfigurationError: the directory cannot be written.
        """
        alerts = self._alerting.fates(self._policies)
        lines = "".join(canonical_line(_line(one)) + "\n" for one in alerts)
        try:
            (directory / ALERTS).write_text(lines, encoding="ascii")
        except OSError as error:
            raise ConfigurationError(f"{directory / ALERTS}: {error.strerror}") from error
        return dict(sorted(Counter(one.fate for one in alerts).items()))


def _line(one: Alerted) -> dict[str, Any]:
    alert = one.alert
    request = alert.request
    return {
        "alert_id": alert_id(request, alert.rule_id, alert.first_position),
        "fate": one.fate,
        "request_id": request.request_id,
        "rule_id": alert.rule_id,
        "rule_name": alert.rule_name,
        "rule_version": alert.rule_version,
        "severity": alert.severity.value,
        "routes": list(alert.routes),
        "first_position": alert.first_position,
        "last_position": alert.last_position,
        "count": alert.count,
        "held_back": alert.held_back,
        "time_unix_ns": alert.time_unix_ns,
    }
