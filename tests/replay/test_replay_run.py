"""Replay: the same findings again, every row accounted for, nothing decoded that must not be."""

from __future__ import annotations

import random
import tracemalloc
from collections import Counter
from collections.abc import Callable
from itertools import repeat
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recording_parts import clean_request, write_undecoded

from nae_monitor.errors import ConfigurationError, EngineError, RecordingError
from nae_monitor.health import Health
from nae_monitor.recording import (
    Recording,
    RecordingWriter,
    RequestRecord,
    transcript_for,
)
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
    Transcript,
    VerdictState,
)
from nae_monitor.replay import ReplayRun, compare, replay

D_MODEL, LAYER = 8, 3
KEY = b"k" * 16
WORDS = ("keylogger", "recipe", "poison", "weather", "exploit")


class FakeDecoder:
    """Deterministic text from the vector alone, whatever batch it rides in."""

    nla_id = "fake-nla"

    def __init__(self, d_model: int = D_MODEL, layer: int = LAYER) -> None:
        self.d_model = d_model
        self.layer = layer
        self.batches: list[int] = []

    def decode(self, vectors: torch.Tensor) -> list[Decoding]:
        assert vectors.dtype is torch.float32
        assert bool(torch.isfinite(vectors).all())
        assert bool(vectors.any(dim=1).all())
        self.batches.append(len(vectors))
        return [self._one(vector) for vector in vectors]

    def _one(self, vector: torch.Tensor) -> Decoding:
        word = WORDS[int(vector.abs().sum() * 100) % len(WORDS)]
        text = f'about {word}; "{word}"'
        return Decoding(text, True, 0.9, float(vector[0]), 1, 256, self.nla_id, 5, 0.001)


class WordJudge:
    """Matches words in the explanation; undecided where the output is unknown."""

    def __init__(self, *words: str) -> None:
        self.words = words or ("keylogger", "poison")
        self.seen: list[tuple[str, int]] = []

    def judge(
        self, activation: Activation, decoding: Decoding, transcript: Transcript
    ) -> tuple[Finding, ...]:
        self.seen.append((activation.request.request_id, activation.position))
        found = []
        for word in self.words:
            start = decoding.text.find(word)
            if start < 0 or word in (transcript.output or ""):
                continue
            unknown = transcript.output is None
            found.append(
                Finding(
                    activation.request.request_id,
                    activation.position,
                    f"rule-{word}",
                    word,
                    "1",
                    f"About {word}",
                    Severity.HIGH,
                    FindingState.UNDECIDED if unknown else FindingState.MATCH,
                    (Span(word, "explanation", start, start + len(word), word),),
                    ("output: withheld",) if unknown else (),
                    decoding.fve,
                )
            )
        return tuple(found)


def record_live(
    path: Path,
    *,
    requests: int = 5,
    rows: int = 12,
    seed: int = 0,
    content: str = "full",
    decoder: FakeDecoder | None = None,
    judge: WordJudge | None = None,
    undecoded: float = 0.0,
    rotate_rows: int = 7,
    finish: bool = True,
) -> None:
    """What a live monitor would have written: rows of many requests in mixed order."""
    rng = random.Random(seed)
    decoder, judge = decoder or FakeDecoder(), judge or WordJudge()
    places = [(r, p) for r in range(requests) for p in range(rows)]
    rng.shuffle(places)
    generator = torch.Generator().manual_seed(seed)
    outputs = tuple(f"w{i} " for i in range(rows - 4))
    records = {
        r: RequestRecord(
            request=Request(f"r{r}", f"r{r}", "model-a", tenant="acme"),
            prompt_text=f"prompt {r}",
            prompt_tokens=4,
            output_tokens=len(outputs),
            coverage=Coverage(rows, rows, rows, rows, rows, 0, {}),
            state=VerdictState.CLEAN,
            prompt_token_ids=(1, 2, 3, 4),
            output_token_ids=tuple(range(len(outputs))),
            prompt_token_texts=("p", "r", "o", "m"),
            output_token_texts=outputs,
        )
        for r in range(requests)
    }
    with RecordingWriter(
        path,
        manifest={"model": "model-a", "layer": LAYER, "nla_id": decoder.nla_id},
        d_model=D_MODEL,
        content=content,  # type: ignore[arg-type]
        hmac_key=KEY,
        rotate_rows=rotate_rows,
    ) as writer:
        for r, p in places:
            vector = torch.randn(D_MODEL, generator=generator).half()
            activation = Activation(
                records[r].request,
                p,
                p,
                "t",
                Phase.PROMPT if p < 4 else Phase.COMPLETION,
                LAYER,
                vector,
                SampleReason.EVERY_N,
            )
            if rng.random() < undecoded:
                writer.write_activation(activation, None, "expired")
                continue
            (decoding,) = decoder.decode(vector.float()[None])
            writer.write_activation(activation, decoding)
            writer.write_findings(judge.judge(activation, decoding, transcript_for(records[r], p)))
        if finish:
            for record in records.values():
                writer.write_request(record)


def sorted_lines(path: Path) -> list[str]:
    lines = (path / "findings.jsonl").read_text("ascii").splitlines()
    return sorted(lines)


def run(tmp_path: Path, name: str = "again", source: str = "live", **options: object) -> ReplayRun:
    arguments: dict[str, object] = {"decoder": FakeDecoder(), "judge": WordJudge(), **options}
    return replay([tmp_path / source], tmp_path / name, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("redecode", [False, True])
@pytest.mark.parametrize("content", ["full", "hash"])
def test_replaying_a_run_gives_its_own_findings_byte_for_byte(
    tmp_path: Path, content: str, redecode: bool
) -> None:
    judge = WordJudge()
    record_live(tmp_path / "live", content="full", judge=judge)
    done = run(tmp_path, mode="redecode" if redecode else "missing", content=content, hmac_key=KEY)
    assert done.findings > 5
    assert (done.judged, dict(done.dropped)) == (60, {})
    if content == "full":
        assert sorted_lines(tmp_path / "again") == sorted_lines(tmp_path / "live")
        assert compare(tmp_path / "live", tmp_path / "again").identical
    twice = run(
        tmp_path, "twice", mode="missing" if redecode else "redecode", content=content, hmac_key=KEY
    )
    first, second = tmp_path / "again" / "findings.jsonl", tmp_path / "twice" / "findings.jsonl"
    assert first.read_bytes() == second.read_bytes()
    assert twice.findings == done.findings


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 99),
    batch_size=st.integers(1, 9),
    piece_bytes=st.integers(1, 60_000),
    part_rows=st.integers(1, 20),
    rotate_rows=st.integers(1, 40),
)
def test_batches_pieces_and_file_sizes_change_no_byte(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    batch_size: int,
    piece_bytes: int,
    part_rows: int,
    rotate_rows: int,
) -> None:
    root = tmp_path_factory.mktemp("run")
    record_live(root / "live", requests=3, seed=seed, undecoded=0.3, rotate_rows=rotate_rows)
    judge = WordJudge()
    run(root, "a")
    sizes = {"batch_size": batch_size, "piece_bytes": piece_bytes, "part_rows": part_rows}
    run(root, "b", judge=judge, **sizes)
    findings = [(root / name / "findings.jsonl").read_bytes() for name in ("a", "b")]
    assert findings[0] == findings[1]
    assert judge.seen == sorted(judge.seen)
    assert len(judge.seen) == 36


def test_a_replayed_run_can_be_replayed_again(tmp_path: Path) -> None:
    record_live(tmp_path / "live", undecoded=0.4)
    run(tmp_path, "one")
    run(tmp_path, "two", source="one", decoder=None)
    assert compare(tmp_path / "one", tmp_path / "two").identical
    first, second = Recording.open(tmp_path / "one"), Recording.open(tmp_path / "two")
    assert list(first.requests()) == list(second.requests())
    assert first.manifest["replayed_from"][0]["name"] == "live"
    for a, b in zip(first.activations(), second.activations(), strict=True):
        assert torch.equal(a.activation.vector, b.activation.vector)
        assert a.decoding == b.decoding


def test_rows_with_a_live_decoding_are_not_decoded_again(tmp_path: Path) -> None:
    record_live(tmp_path / "live", undecoded=0.5)
    missing = sum(row.decoding is None for row in Recording.open(tmp_path / "live").activations())
    decoder = FakeDecoder()
    done = run(tmp_path, decoder=decoder, batch_size=4)
    assert sum(decoder.batches) == done.decoded == missing > 0
    assert max(decoder.batches) <= 4
    assert done.reused == 60 - missing
    again = FakeDecoder()
    run(tmp_path, "all", decoder=again, mode="redecode")
    assert sum(again.batches) == 60


def test_without_the_missing_rows_the_live_findings_come_back(tmp_path: Path) -> None:
    record_live(tmp_path / "live", undecoded=0.5)
    decoder = FakeDecoder()
    done = run(tmp_path, decoder=decoder, mode="live")
    assert decoder.batches == []
    assert sorted_lines(tmp_path / "again") == sorted_lines(tmp_path / "live")
    assert dict(done.dropped) == {"expired": 60 - done.judged}
    more = compare(tmp_path / "live", run(tmp_path, "more").directory)
    assert (more.gone, more.changed) == ((), ())
    assert more.new


def test_other_rules_give_new_gone_and_changed_findings(tmp_path: Path) -> None:
    record_live(tmp_path / "live")
    run(tmp_path, judge=WordJudge("poison", "exploit"))
    outcome = compare(tmp_path / "live", tmp_path / "again")
    assert {finding.rule_name for finding in outcome.new} == {"exploit"}
    assert {finding.rule_name for finding in outcome.gone} == {"keylogger"}
    assert outcome.changed == ()
    assert outcome.same > 0
    record_live(tmp_path / "open", finish=False)
    changed = compare(tmp_path / "live", run(tmp_path, "x", source="open").directory)
    assert changed.changed  # the output is unknown there: matches become undecided
    assert all(b.state is FindingState.UNDECIDED for _, b in changed.changed)


def test_text_that_was_withheld_is_decoded_again_and_never_judged(tmp_path: Path) -> None:
    record_live(tmp_path / "live", content="none")
    decoder, judge = FakeDecoder(), WordJudge()
    done = run(tmp_path, decoder=decoder, judge=judge)
    assert done.decoded == 60
    states = {finding.state for finding in Recording.open(tmp_path / "again").findings()}
    assert FindingState.UNDECIDED in states  # completions are unknown, never "not said"
    without = run(tmp_path, "without", decoder=None)
    assert dict(without.dropped) == {"no_decoder": 60}
    verdicts = {record.state for record in Recording.open(tmp_path / "without").requests()}
    assert verdicts == {VerdictState.UNDECIDED}


def test_bad_vectors_are_counted_and_never_decoded(tmp_path: Path) -> None:
    values = [1.0, float("nan"), float("inf"), 0.0, 2.0]
    seen = Coverage(5, 5, 5, 0, 0, 0, {})
    write_undecoded(
        tmp_path / "live",
        [torch.full((D_MODEL,), value) for value in values],
        D_MODEL,
        clean_request(5, 0, coverage=seen),
    )
    health, decoder = Health(), FakeDecoder()  # the decoder asserts finite, nonzero input
    done = run(tmp_path, decoder=decoder, health=health)
    assert (done.rows, done.judged, dict(done.dropped)) == (5, 2, {"bad_vector": 3})
    assert health.counters()["dropped.bad_vector"] == 3
    (record,) = Recording.open(tmp_path / "again").requests()
    assert record.state is not VerdictState.CLEAN
    assert dict(record.coverage.dropped_tokens) == {"bad_vector": 3}


@pytest.mark.parametrize(
    ("decoder", "model", "message"),
    [
        (FakeDecoder(d_model=9), None, "8 wide, the NLA fake-nla reads 9: name the NLA"),
        (FakeDecoder(layer=4), None, "records layer 3, the NLA fake-nla reads layer 4"),
        (FakeDecoder(), "model-b", "records model-a, not model-b: set target.model"),
    ],
)
def test_another_width_layer_or_model_is_refused_with_its_mend(
    tmp_path: Path, decoder: FakeDecoder, model: str | None, message: str
) -> None:
    record_live(tmp_path / "live")
    with pytest.raises(RecordingError, match=message):
        run(tmp_path, decoder=decoder, model=model)
    assert not (tmp_path / "again").exists()


class BrokenDecoder(FakeDecoder):
    """Fails on the calls that ``fails`` names."""

    def __init__(self, fails: Callable[[int], bool]) -> None:
        super().__init__()
        self.fails = fails

    def decode(self, vectors: torch.Tensor) -> list[Decoding]:
        decodings = super().decode(vectors)
        if self.fails(len(self.batches)):
            raise TimeoutError
        return decodings


def test_a_batch_that_fails_costs_its_rows_only_and_they_are_counted(tmp_path: Path) -> None:
    record_live(tmp_path / "live")
    done = run(tmp_path, decoder=BrokenDecoder(lambda n: n % 3 == 0), mode="redecode", batch_size=5)
    assert dict(done.dropped) == {"decode_failed": 20}
    assert done.judged == 40
    reasons = Counter(
        row.dropped_reason for row in Recording.open(tmp_path / "again").activations()
    )
    assert reasons == {None: 40, "decode_failed": 20}


def test_a_dead_decoder_ends_the_replay_and_keeps_what_was_judged(tmp_path: Path) -> None:
    record_live(tmp_path / "live")
    with pytest.raises(EngineError, match="five batches in a row"):
        run(
            tmp_path,
            decoder=BrokenDecoder(lambda n: n > 3),
            mode="redecode",
            batch_size=5,
            part_rows=5,
        )
    kept = Recording.open(tmp_path / "again")
    assert not kept.complete
    assert sum(row.decoding is not None for row in kept.activations()) == 15


def test_a_failing_rule_engine_is_counted_and_never_clean(tmp_path: Path) -> None:
    class Broken(WordJudge):
        def judge(self, *row: object) -> tuple[Finding, ...]:
            raise ZeroDivisionError

    record_live(tmp_path / "live")
    done = run(tmp_path, judge=Broken())
    assert dict(done.dropped) == {"judge_failed": 60}
    states = {record.state for record in Recording.open(tmp_path / "again").requests()}
    assert states == {VerdictState.UNDECIDED}


def test_verdicts_follow_the_new_findings(tmp_path: Path) -> None:
    record_live(tmp_path / "live")
    run(tmp_path, judge=WordJudge("keylogger"))
    recording = Recording.open(tmp_path / "again")
    alerting = {finding.request_id for finding in recording.findings()}
    for record in recording.requests():
        expected = (
            VerdictState.ALERT if record.request.request_id in alerting else VerdictState.CLEAN
        )
        assert record.state is expected
    run(tmp_path, "none", source="again", judge=WordJudge("nothing"))
    states = Counter(record.state for record in Recording.open(tmp_path / "none").requests())
    assert states[VerdictState.UNDECIDED] == len(alerting)  # an alert never becomes clean by itself


def test_progress_counts_every_row(tmp_path: Path) -> None:
    record_live(tmp_path / "live")
    calls: list[tuple[int, int]] = []
    run(tmp_path, progress=lambda done, total: calls.append((done, total)), part_rows=7)
    assert calls[-1] == (60, 60)
    assert len(calls) > 1


def test_the_run_directory_must_be_new(tmp_path: Path) -> None:
    record_live(tmp_path / "live")
    run(tmp_path)
    with pytest.raises(ConfigurationError, match="already holds a recording"):
        run(tmp_path)


def test_several_recordings_are_replayed_as_one(tmp_path: Path) -> None:
    record_live(tmp_path / "all" / "a", seed=1)
    record_live(tmp_path / "all" / "b", seed=2)
    done = run(tmp_path, source="all")
    live = sorted_lines(tmp_path / "all" / "a") + sorted_lines(tmp_path / "all" / "b")
    assert done.rows == 120
    assert sorted_lines(tmp_path / "again") == sorted(live)
    assert sum(1 for _ in Recording.open(tmp_path / "again").requests()) == 10


def test_tens_of_thousands_of_rows_replay_in_bounded_memory(tmp_path: Path) -> None:
    width, rows = 32, 15_000
    write_undecoded(tmp_path / "live", repeat(torch.ones(width), rows), width)

    class Quiet(WordJudge):
        def judge(self, *row: object) -> tuple[Finding, ...]:
            return ()

    tracemalloc.start()
    done = run(
        tmp_path,
        decoder=FakeDecoder(d_model=width),
        judge=Quiet(),
        batch_size=512,
        piece_bytes=2 * 2**20,
    )
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert done.decoded == rows
    assert peak < 12 * 2**20  # about 7 MiB; 20 MiB with everything at once
