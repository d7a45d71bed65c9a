"""``alerts import|list|show|ack|label|labels|export|schema``, and labels in the rule tools."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from alert_parts import CANARIES, broker, make_alert, make_evidence, make_policy

from nae_monitor.alert.event import to_event, to_json
from nae_monitor.records import Alert

__all__ = ["broker"]

Cli = Callable[..., Any]
Config = Callable[..., str]
RULE = {"rule_name": "anything", "title": "Anything at all"}


def write_alerts(path: Path, alerts: list[Alert], content: str = "full") -> Path:
    policy = make_policy(content)
    lines = [to_json(to_event(policy.redact(a), policy).structured()) for a in alerts]
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    return path


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "triage.sqlite"


@pytest.fixture
def ids(cli: Cli, tmp_path: Path, store: Path) -> list[str]:
    """Ids of four alerts in the store, the last with hashed content."""
    full = [make_alert(n, **RULE) for n in range(3)]
    assert cli("alerts", "import", write_alerts(tmp_path / "a", full), "--store", store).code == 0
    hashed = write_alerts(tmp_path / "b", [make_alert(3, **RULE)], "hash")
    done = cli("alerts", "import", hashed, "--store", store, "--json")
    assert done.objects == [{"read": 1, "new": 1, "forgotten": 0}]
    listed = cli("alerts", "list", "--store", store, "--json").objects
    return [one["event"]["id"] for one in listed]


def test_alerts_are_listed_shown_taken_on_and_labelled(
    cli: Cli, ids: list[str], store: Path
) -> None:
    assert cli("alerts", "ack", ids[0][:8], "--note", "mine", "--store", store).code == 0
    assert cli("alerts", "label", *ids[1:3], "--as", "fp", "--store", store).code == 0
    done = cli("alerts", "list", "--store", store)
    rows = [line.split() for line in done.out.splitlines() if line.strip()][1:]
    assert [(row[0], row[3], row[5]) for row in rows] == [
        (ids[0][:8], "acked", "r0"),
        (ids[1][:8], "fp", "r1"),
        (ids[2][:8], "fp", "r2"),
        (ids[3][:8], "new", "r3"),
    ]
    still = cli("alerts", "list", "--open", "--store", store, "--json").objects
    assert [one["event"]["id"] for one in still] == [ids[3]]
    shown = cli("alerts", "show", ids[0][:8], "--store", store)
    assert CANARIES["explanation"] in shown.out
    assert "ack: mine" in shown.out
    as_json = cli("alerts", "show", ids[1], "--store", store, "--json").objects[0]
    assert (as_json["label"], as_json["history"][0]["what"]) == ("fp", "label fp")


def test_what_a_program_changed_is_told_to_it(cli: Cli, ids: list[str], store: Path) -> None:
    acked = cli("alerts", "ack", ids[0][:8], "--note", "mine", "--store", store, "--json").objects
    assert [(one["id"], one["acked"], one["label"]) for one in acked] == [(ids[0], True, None)]
    assert acked[0]["note"] == "mine"
    labelled = cli("alerts", "label", *ids[1:3], "--as", "fp", "--store", store, "--json").objects
    assert [(one["id"], one["label"]) for one in labelled] == [(ids[1], "fp"), (ids[2], "fp")]


def test_the_store_is_bounded_by_the_configuration_and_says_what_goes(
    cli: Cli, ids: list[str], store: Path, tmp_path: Path, config: Config
) -> None:
    assert cli("alerts", "label", ids[0], "--as", "tp", "--store", store).code == 0
    more = write_alerts(tmp_path / "c", [make_alert(n, **RULE) for n in range(10, 13)])
    bounded = config(alert={"triage": {"max_alerts": 3}})
    done = cli("alerts", "import", more, "-c", bounded, "--store", store)
    assert "3 of them new, 4 forgotten" in done.out
    left = cli("alerts", "list", "--store", store, "--json").objects
    assert left[0]["event"]["id"] == ids[0]
    assert len(left) == 3


def test_nothing_is_changed_where_one_id_is_wrong(cli: Cli, ids: list[str], store: Path) -> None:
    done = cli("alerts", "label", ids[0], "no-such", "--as", "tp", "--store", store)
    assert (done.code, len(done.err.splitlines())) == (3, 1)
    assert cli("alerts", "list", "--label", "tp", "--store", store, "--json").objects == []


def test_an_alert_cannot_drive_the_terminal(cli: Cli, tmp_path: Path, store: Path) -> None:
    evil = "\x1b[2Jgone\nforged"
    evidence = make_evidence(title=evil)
    alert = make_alert(0, title=evil, rule_name=evil, evidence=(evidence,))
    path = write_alerts(tmp_path / "a", [alert])
    assert cli("alerts", "import", path, "--store", store).code == 0
    (one,) = cli("alerts", "list", "--store", store, "--json").objects
    listed = cli("alerts", "list", "--store", store).out
    assert "\x1b" not in listed + cli("alerts", "show", one["event"]["id"], "--store", store).out


def test_a_store_that_is_not_there_is_told_and_not_made(cli: Cli, store: Path) -> None:
    done = cli("alerts", "list", "--store", store)
    assert (done.code, store.exists()) == (3, False)
    assert "make it with `nae-monitor alerts import`" in done.err


def test_labels_are_expectations_that_backtest_takes(
    cli: Cli, ids: list[str], store: Path, rule: Path, tmp_path: Path
) -> None:
    cli("alerts", "label", ids[0], ids[3], "--as", "tp", "--store", store)
    cli("alerts", "label", ids[1], "--as", "fp", "--store", store)
    expect = tmp_path / "expect.json"
    expect.write_text(cli("alerts", "labels", "--store", store).out)
    assert json.loads(expect.read_text()) == {"r0": ["anything"], "r1": [], "r3": ["anything"]}
    corpus = tmp_path / "corpus.jsonl"
    texts = {"r0": "a word", "r1": "a word"}
    lines = [{"request_id": name, "explanation": text} for name, text in texts.items()]
    corpus.write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = cli("rules", "backtest", rule, "--corpus", corpus, "--expect", expect, "--json")
    (found,) = done.objects
    assert done.code == 1
    assert [missing["id"] for missing in found["missing"]] == ["r3"]
    assert len(found["unexpected"]) == 1


def test_labelled_evidence_is_a_corpus_that_tune_takes(
    cli: Cli, ids: list[str], store: Path, rule: Path, tmp_path: Path
) -> None:
    cli("alerts", "label", ids[0], "--as", "tp", "--store", store)
    cli("alerts", "label", ids[1], "--as", "fp", "--store", store)
    for label in ("tp", "fp"):
        done = cli("alerts", "labels", "--rule", "anything", "--as", label, "--store", store)
        assert (done.code, len(done.objects)) == (0, 1)
        (tmp_path / f"{label}.jsonl").write_text(done.out)
    command = ("rules", "tune", "anything", "--rules", rule, "--json")
    done = cli(*command, "--fp", tmp_path / "fp.jsonl", "--tp", tmp_path / "tp.jsonl")
    (found,) = done.objects
    assert (found["true_positives"], found["false_positives"]) == (1, ["r1:12"])


def test_hashed_evidence_without_its_recording_is_told(
    cli: Cli, ids: list[str], store: Path
) -> None:
    cli("alerts", "label", ids[3], "--as", "fp", "--store", store)
    done = cli("alerts", "labels", "--rule", "anything", "--store", store)
    assert (done.code, done.out) == (1, "")
    assert "1 labelled places have no readable text" in done.err


def test_hashed_evidence_is_read_from_the_recording_it_came_from(
    cli: Cli, config: Callable[..., str], prompts: Path, store: Path, tmp_path: Path
) -> None:
    path = tmp_path / "alerts.jsonl"
    record = {"dir": str(tmp_path / "recordings"), "keep": "decoded"}
    written = config(
        alert={"sinks": [{"jsonl": str(path)}]}, record=record, privacy={"content": "full"}
    )
    assert cli("generate", "-c", written, "-p", prompts, "--max-new-tokens", "6").code == 0
    events = [json.loads(line) for line in path.read_text().splitlines()]
    said = {
        f"{event['subject']}:{e['data']['position']}": e["data"]["explanation"]
        for event in events
        for e in event["data"]["evidences"]
    }
    for event in events:
        for evidence in event["data"]["evidences"]:
            evidence["data"]["explanation"] = "hmac-sha256:00"
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    cli("alerts", "import", path, "--store", store)
    every = [event["id"] for event in events]
    assert cli("alerts", "label", *every, "--as", "fp", "--store", store).code == 0
    command = ("alerts", "labels", "--rule", "anything", "--store", store, "--recording")
    done = cli(*command, tmp_path / "recordings")
    assert done.code == 0, done.err
    assert {line["id"]: line["explanation"] for line in done.objects} == said


def test_exports_are_read_by_their_readers(
    cli: Cli, ids: list[str], store: Path, tmp_path: Path
) -> None:
    sarif = cli("alerts", "export", "--store", store).out
    assert len(json.loads(sarif)["runs"][0]["results"]) == 4
    ocsf = cli("alerts", "export", tmp_path / "a", tmp_path / "b", "--format", "ocsf").objects
    assert [finding["metadata"]["uid"] for finding in ocsf] == ids
    table = cli("alerts", "export", "--format", "csv", "--store", store).out
    assert [row["id"] for row in csv.DictReader(table.splitlines())] == ids


def test_schemas_are_printed_by_a_command(cli: Cli) -> None:
    value = json.loads(cli("alerts", "schema").out)
    assert value["properties"]["class_uid"] == {"const": 2004}
    assert "data" in json.loads(cli("alerts", "schema", "--event").out)["required"]
    document = json.loads(cli("alerts", "schema", "--asyncapi", "--topic", "t").out)
    assert (document["asyncapi"], document["channels"]["alerts"]["address"]) == ("3.0.0", "t")
    assert cli("alerts", "schema", "--asyncapi", "--event").code == 2


def test_alerts_of_a_later_contract_are_refused(cli: Cli, tmp_path: Path, store: Path) -> None:
    path = write_alerts(tmp_path / "a", [make_alert(0)])
    path.write_bytes(path.read_bytes().replace(b"alert.v1", b"alert.v2"))
    for command in (("tail", path), ("import", path, "--store", store), ("export", path)):
        done = cli("alerts", *command)
        assert done.code == 3
        assert "upgrade whichever is older" in done.err
