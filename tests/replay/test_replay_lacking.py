"""Rows that were judged live and not recorded: said, counted, and never taken for clean."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nae_monitor.recording import Recording, RecordingWriter, RequestRecord
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
    Transcript,
    VerdictState,
)
from nae_monitor.replay import ReplayRun, cautious_verdict, replay

DECODING = Decoding("text", True, 0.9, 0.5, 1, 2, "nla", 1, 0.1)


class Silent:
    def judge(self, *_: object) -> tuple[Finding, ...]:
        return ()


class Matching:
    """Matches every row, with a severity of one's choice."""

    def __init__(self, severity: Severity) -> None:
        self.severity = severity

    def judge(
        self, activation: Activation, decoding: Decoding, transcript: Transcript
    ) -> tuple[Finding, ...]:
        place = activation.request.request_id, activation.position
        return (Finding(*place, "id", "rule", "1", "Rule", self.severity, FindingState.MATCH),)


def turn(request_id: str, started: int, judged: int, *, dropped: int = 0) -> RequestRecord:
    """A clean turn; the coverage adds up what came before it, too."""
    sampled = judged + dropped
    lost = {"expired": dropped} if dropped else {}
    return RequestRecord(
        Request(request_id, request_id, "model-a", started_unix_ns=started),
        None, 2, 0,
        Coverage(sampled, sampled, sampled, judged, judged, 0, lost),
        VerdictState.UNDECIDED if dropped else VerdictState.CLEAN,
        ("dropped",) if dropped else (),
    )  # fmt: skip


def record(
    path: Path, turns: list[tuple[RequestRecord, int, int]], keep: str | None = "captured"
) -> Path:
    """Each turn with how many decoded and how many dropped rows of it were kept."""
    manifest = {"layer": 2} | ({} if keep is None else {"keep": keep})
    with RecordingWriter(path, manifest=manifest, d_model=4, content="full") as writer:
        for said, decoded, dropped in turns:
            for position in range(decoded + dropped):
                activation = Activation(
                    said.request, position, 7, "t", Phase.PROMPT, 2, torch.ones(4),
                    SampleReason.EVERY_N,
                )  # fmt: skip
                kept = position < decoded
                reason = None if kept else "expired"
                writer.write_activation(activation, DECODING if kept else None, reason)
            writer.write_request(said)
    return path


def again(live: Path, **options: object) -> tuple[ReplayRun, dict[int, RequestRecord]]:
    arguments = {"decoder": None, "judge": Silent(), "mode": "live", **options}
    out = live.with_name(live.name + "-again")
    run = replay([live], out, **arguments)  # type: ignore[arg-type]
    return run, {r.request.started_unix_ns: r for r in Recording.open(out).requests()}


def test_a_request_that_was_not_captured_is_undecided_and_says_what_is_missing(
    tmp_path: Path,
) -> None:
    live = record(tmp_path / "live", [(turn("a", 1, 3), 3, 0), (turn("b", 2, 4), 0, 0)])
    run, records = again(live)
    assert (run.rows, run.judged, run.not_recorded) == (3, 3, 4)
    assert records[1].state is VerdictState.CLEAN
    assert records[2].state is VerdictState.UNDECIDED
    assert records[2].reasons == ("4 rows judged live are not in the recording",)
    assert dict(records[2].coverage.dropped_tokens) == {"not_recorded": 4}
    manifest = Recording.open(run.directory).manifest
    assert manifest["keep"] == "captured"
    assert manifest["replayed_from"][0]["keep"] == "captured"


def test_a_captured_request_of_which_rows_were_let_go_is_undecided(tmp_path: Path) -> None:
    run, records = again(record(tmp_path / "live", [(turn("a", 1, 5), 2, 0)]))
    assert run.not_recorded == 3
    assert records[1].state is VerdictState.UNDECIDED


@pytest.mark.parametrize(("keep", "kept"), [("candidates", 2), ("decoded", 0), (None, 2)])
def test_rows_that_were_dropped_live_are_not_missing(
    tmp_path: Path, keep: str | None, kept: int
) -> None:
    live = record(tmp_path / "live", [(turn("a", 1, 3, dropped=2), 3, kept)], keep)
    run, records = again(live)
    assert run.not_recorded == 0
    assert dict(records[1].coverage.dropped_tokens) == {"expired": 2}


@pytest.mark.parametrize(
    ("rows", "lacking"),
    [((2, 3), (0, 0)), ((0, 3), (2, 2)), ((2, 0), (0, 3)), ((0, 0), (2, 5))],
)
def test_each_turn_of_a_request_lacks_what_is_missing_up_to_it(
    tmp_path: Path, rows: tuple[int, int], lacking: tuple[int, int]
) -> None:
    turns = [(turn("a", 1, 2), rows[0], 0), (turn("a", 2, 5), rows[1], 0)]
    run, records = again(record(tmp_path / "live", turns))
    found = [records[n].coverage.dropped_tokens.get("not_recorded", 0) for n in (1, 2)]
    assert found == list(lacking)
    assert run.not_recorded == lacking[1]


@pytest.mark.parametrize(("kept", "lacking"), [((2, 3), (0, 0)), ((2, 2), (1, 1))])
def test_a_turn_during_which_another_began_lacks_no_row_of_the_other(
    tmp_path: Path, kept: tuple[int, int], lacking: tuple[int, int]
) -> None:
    # The first turn was weighed when all rows of the second had been judged.
    first = replace(turn("a", 1, 5), state=VerdictState.UNDECIDED, reasons=("another began",))
    second = turn("a", 2, 5)
    run, records = again(record(tmp_path / "live", [(first, kept[0], 0), (second, kept[1], 0)]))
    found = [records[n].coverage.dropped_tokens.get("not_recorded", 0) for n in (1, 2)]
    assert found == list(lacking)
    assert run.not_recorded == lacking[1]


def test_a_match_in_what_is_there_stays_an_alert(tmp_path: Path) -> None:
    live = record(tmp_path / "live", [(turn("a", 1, 5), 2, 0)])
    run, records = again(live, judge=Matching(Severity.HIGH))
    assert (records[1].state, run.not_recorded) == (VerdictState.ALERT, 3)


def test_what_is_missing_stays_missing_when_the_replay_is_replayed(tmp_path: Path) -> None:
    live = record(tmp_path / "live", [(turn("a", 1, 3), 3, 0), (turn("b", 2, 4), 0, 0)])
    run, first = again(live)
    _, second = again(run.directory)
    assert second == first


def test_as_live_an_informational_match_leaves_the_verdict_alone(tmp_path: Path) -> None:
    live = record(tmp_path / "live", [(turn("a", 1, 3), 3, 0)])
    _, records = again(live, judge=Matching(Severity.INFORMATIONAL))
    assert records[1].state is VerdictState.CLEAN
    alert = replace(turn("a", 1, 3), state=VerdictState.ALERT)
    finding = Matching(Severity.INFORMATIONAL).judge(
        Activation(alert.request, 0, 7, "t", Phase.PROMPT, 2, torch.ones(4), SampleReason.EVERY_N),
        DECODING,
        Transcript(None, None),
    )
    assert cautious_verdict(alert, finding, 0)[0] is VerdictState.UNDECIDED
