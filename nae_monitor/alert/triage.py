"""What people made of alerts: a local SQLite file of alerts, their state and their labels.

Content at rest is what the events carried, so the privacy setting of the sender holds here too.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import platformdirs

from nae_monitor.alert.read_alert import ReadAlert, read_alert
from nae_monitor.alert.triage_bounds import thin
from nae_monitor.errors import InputDataError
from nae_monitor.sink_settings import TriageSettings

Label = Literal["tp", "fp", ""]
VERSION = 1
BUSY_TIMEOUT_S = 5.0
BUSY_RETRY_S = 0.02
BATCH_ALERTS = 500
MIN_PREFIX_CHARS = 4
_SCHEMA = """
CREATE TABLE alerts (
    source TEXT NOT NULL,
    id TEXT NOT NULL,
    time TEXT NOT NULL,
    severity TEXT NOT NULL,
    rule TEXT NOT NULL,
    request_id TEXT NOT NULL,
    event TEXT NOT NULL,
    is_acked INTEGER NOT NULL DEFAULT 0,
    label TEXT NOT NULL DEFAULT '',
    note TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (source, id)
);
CREATE INDEX alerts_by_time ON alerts (time);
CREATE INDEX alerts_by_id ON alerts (id);
CREATE TABLE history (
    source TEXT NOT NULL,
    id TEXT NOT NULL,
    unix_ns INTEGER NOT NULL,
    who TEXT NOT NULL,
    what TEXT NOT NULL,
    note TEXT NOT NULL
);
"""
_COLUMNS = "event, is_acked, label, note"


@dataclass(frozen=True, slots=True)
class Triaged:
    """An alert and what was made of it."""

    alert: ReadAlert
    is_acked: bool = False
    label: Label = ""  # "": nobody has said
    note: str = ""

    @property
    def rule(self) -> str:
        """The name of the rule."""
        return rule_of(self.alert)

    @property
    def request_id(self) -> str:
        """The request the alert is about."""
        return request_of(self.alert)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which alerts of a store; what is None asks nothing."""

    severities: tuple[str, ...] | None = None
    rule: str | None = None
    is_acked: bool | None = None
    label: Label | None = None
    limit: int | None = None  # the newest so many


def _log_ahead(cursor: sqlite3.Cursor) -> None:
    """Write-ahead logging; SQLite does not wait by itself for another that asks the same."""
    end_s = time.monotonic() + BUSY_TIMEOUT_S
    while True:
        try:
            cursor.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            busy = error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY
            if not busy or time.monotonic() >= end_s:
                raise
            time.sleep(BUSY_RETRY_S)


def default_store() -> Path:
    """The file of this user."""
    return platformdirs.user_state_path("nae-monitor") / "triage.sqlite"


class TriageStore:
    """Open with ``with``. For one thread; several processes may use one file."""

    def __init__(self, path: Path, bounds: TriageSettings | None = None) -> None:
        """Open or make the file, readable by its owner only; ``bounds`` hold from the next add.

        Raises:
            InputDataError: it cannot be opened, or is no triage store of this version.
        """
        self._path = path
        self._bounds = bounds or TriageSettings()
        self.forgotten = 0  # alerts that went because the store was full, or they too old
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            self._db = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S)
            self._prepare()
        except OSError as error:
            raise InputDataError(f"{path}: cannot be opened: {error.strerror}") from error
        except sqlite3.Error as error:
            raise InputDataError(f"{path}: is no triage store: {error}") from error

    def __enter__(self) -> TriageStore:
        return self

    def __exit__(self, *_: object) -> None:
        self._db.close()

    def _prepare(self) -> None:
        with contextlib.closing(self._db.cursor()) as cursor:
            _log_ahead(cursor)
            cursor.execute("PRAGMA secure_delete=ON")  # what is forgotten is not in the file either
            cursor.execute("BEGIN IMMEDIATE")  # two first users at once make one table
            found = cursor.execute("PRAGMA user_version").fetchone()[0]
            tables = cursor.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
            if found == 0 and tables == 0:
                for statement in filter(str.strip, _SCHEMA.split(";")):
                    cursor.execute(statement)
                cursor.execute(f"PRAGMA user_version={VERSION}")
            elif found != VERSION:
                raise sqlite3.DatabaseError(f"its version is {found}, and {VERSION} is read here")
            cursor.execute("COMMIT")

    def add(self, alerts: Iterable[ReadAlert]) -> int:
        """Take alerts in; one that is there already keeps its state and label.

        Then the store's bounds are kept: see :func:`~nae_monitor.alert.triage_bounds.thin`.

        Returns:
            how many were new.
        """
        new, batch = 0, []
        for alert in alerts:
            batch.append(alert)
            if len(batch) == BATCH_ALERTS:
                new += self._insert(batch)
                batch = []
        return new + self._insert(batch)

    def _insert(self, alerts: list[ReadAlert]) -> int:
        rows = [
            (*_name(a), *map(_stored, (a.time, a.severity, rule_of(a), request_of(a))), _event(a))
            for a in alerts
        ]
        before = self._db.total_changes
        with self._db:
            self._db.executemany(
                "INSERT INTO alerts (source, id, time, severity, rule, request_id, event)"
                " VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                rows,
            )
            new = self._db.total_changes - before
            self.forgotten += thin(self._db, self._bounds)
        return new

    def alerts(self, wanted: Wanted | None = None) -> Iterator[Triaged]:
        """The alerts wanted, oldest first."""
        wanted = wanted or Wanted()
        wheres: list[str] = []
        values: list[Any] = []
        for column, value in (
            ("rule", wanted.rule),
            ("is_acked", wanted.is_acked),
            ("label", wanted.label),
        ):
            if value is not None:
                wheres.append(f"{column} = ?")
                values.append(value)
        if wanted.severities is not None:
            wheres.append(f"severity IN ({','.join('?' * len(wanted.severities))})")
            values += wanted.severities
        where = " AND ".join(wheres) or "1"
        newest = f"SELECT {_COLUMNS}, time, rowid AS number FROM alerts WHERE {where}"  # noqa: S608
        newest += " ORDER BY time DESC, number DESC LIMIT ?"
        values.append(-1 if wanted.limit is None else wanted.limit)
        query = f"SELECT {_COLUMNS} FROM ({newest}) ORDER BY time, number"  # noqa: S608
        for row in self._db.execute(query, values):
            yield _triaged(row)

    def find(self, prefix: str) -> Triaged:
        """The one alert whose id begins with ``prefix``.

        Raises:
            InputDataError: none does, or several do.
        """
        if len(prefix) < MIN_PREFIX_CHARS:
            raise InputDataError(
                f"{prefix!r}: give at least {MIN_PREFIX_CHARS} characters of an id"
            )
        query = f"SELECT {_COLUMNS} FROM alerts WHERE substr(id, 1, ?) = ? LIMIT 2"  # noqa: S608
        rows = self._db.execute(query, (len(prefix), _stored(prefix))).fetchall()
        if not rows:
            raise InputDataError(f"{prefix}: no alert in {self._path} has such an id")
        if len(rows) > 1:
            raise InputDataError(f"{prefix}: several alerts have such an id; give more of it")
        return _triaged(rows[0])

    def ack(self, alert: ReadAlert, note: str, who: str) -> None:
        """Note that somebody has taken it on."""
        self._set(alert, "is_acked = 1", (), ("ack", note, who))

    def label(self, alert: ReadAlert, label: Label, note: str, who: str) -> None:
        """Say what it is; that acknowledges it too. "" takes the label back."""
        self._set(alert, "is_acked = 1, label = ?", (label,), (f"label {label}", note, who))

    def _set(
        self,
        alert: ReadAlert,
        change: str,
        values: tuple[Any, ...],
        said: tuple[str, str, str],
    ) -> None:
        what, note, who = said
        with self._db:
            self._db.execute(
                f"UPDATE alerts SET {change}, note = CASE ? WHEN '' THEN note ELSE ? END"  # noqa: S608
                " WHERE source = ? AND id = ?",
                (*values, _stored(note), _stored(note), *_name(alert)),
            )
            self._db.execute(
                "INSERT INTO history VALUES (?, ?, ?, ?, ?, ?)",
                (*_name(alert), time.time_ns(), _stored(who), what.strip(), _stored(note)),
            )

    def history(self, alert: ReadAlert) -> list[dict[str, Any]]:
        """Who said what of an alert, oldest first."""
        rows = self._db.execute(
            "SELECT unix_ns, who, what, note FROM history WHERE source = ? AND id = ?"
            " ORDER BY unix_ns, rowid",
            _name(alert),
        )
        return [dict(zip(("unix_ns", "who", "what", "note"), row, strict=True)) for row in rows]


def rule_of(alert: ReadAlert) -> str:
    """The rule's name; "" where the event has none."""
    return _text(alert.data, "finding_info", "analytic", "name")


def request_of(alert: ReadAlert) -> str:
    """The request's id, whole where the event has it, else as its subject shows it."""
    whole = _text(alert.data, "unmapped", "gen_ai.response.id")
    return whole or str(alert.attributes.get("subject", ""))


def _text(value: Any, *path: str) -> str:
    for step in path:
        value = value.get(step) if isinstance(value, Mapping) else None
    return value if isinstance(value, str) else ""


def _name(alert: ReadAlert) -> tuple[str, str]:
    return _stored(alert.source), _stored(alert.id)


def _stored(text: str) -> str:
    """Without lone surrogates, which JSON can carry and SQLite cannot."""
    return text.encode("utf-8", "replace").decode()


def _event(alert: ReadAlert) -> str:
    return json.dumps({**alert.attributes, "data": alert.data})


def _triaged(row: tuple[str, int, Label, str]) -> Triaged:
    event = json.loads(row[0])
    alert = read_alert(event, event.pop("data"))
    if alert is None:
        raise InputDataError("the triage store holds something that is no alert")
    return Triaged(alert, bool(row[1]), row[2], row[3])
