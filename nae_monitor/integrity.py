"""The alert a monitor raises about itself: a component went blind."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator

from nae_monitor.records import Alert, Request, Severity

RULE_NAME = "monitor_blind"
RULE_ID = "5b7d2f0e-1f0c-4c0f-9a44-6f0a2d5c9e10"


def blind_alert(
    component: str, why: str, request: Request, nla_id: str, sequence: Iterator[int]
) -> Alert:
    """A critical alert naming the component and the reason; ``why`` must hold no content."""
    now_unix_ns = time.time_ns()
    return Alert(
        alert_id=str(uuid.uuid5(uuid.UUID(RULE_ID), f"{component}/{now_unix_ns}")),
        request=request,
        rule_id=RULE_ID,
        rule_name=RULE_NAME,
        rule_version="1",
        title=f"Monitor is blind: {component} ({why})",
        severity=Severity.CRITICAL,
        risk_score=90,
        tags=("nae.monitor-integrity",),
        first_position=0,
        last_position=0,
        count=1,
        held_back=0,
        evidence=(),
        nla_id=nla_id,
        sequence=next(sequence),
        time_unix_ns=now_unix_ns,
    )
