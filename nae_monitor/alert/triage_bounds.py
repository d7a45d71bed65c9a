"""What a triage store lets go of, so that it does not grow for ever."""

from __future__ import annotations

import sqlite3
from datetime import UTC, datetime, timedelta

from nae_monitor.sink_settings import TriageSettings


def thin(db: sqlite3.Connection, bounds: TriageSettings, now: datetime | None = None) -> int:
    """Within a transaction: delete what is too old, then what is too much; returns how many.

    Of too many, those go first that nobody labelled, and of these first what somebody has taken
    on; then the oldest.
    """
    gone = 0
    if bounds.max_age_days is not None:
        before = (now or datetime.now(UTC)) - timedelta(days=bounds.max_age_days)
        gone += db.execute("DELETE FROM alerts WHERE time < ?", (before.isoformat(),)).rowcount
    gone += db.execute(
        "DELETE FROM alerts WHERE rowid IN (SELECT rowid FROM alerts"
        " ORDER BY label = '', is_acked AND label = '', time DESC, rowid DESC LIMIT -1 OFFSET ?)",
        (bounds.max_alerts,),
    ).rowcount
    if gone:
        db.execute(
            "DELETE FROM history WHERE NOT EXISTS (SELECT 1 FROM alerts"
            " WHERE alerts.source = history.source AND alerts.id = history.id)"
        )
    return gone
