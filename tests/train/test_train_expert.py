from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import tiny_trainer
from tiny_trainer import make_examples

from nae_monitor.errors import InputDataError
from nae_monitor.train import av, reading, sampling, stages
from nae_monitor.train.best import final_state
from nae_monitor.train.conversations import CollectOptions
from nae_monitor.train.expert import CHOICES, SAMPLES, newest, read_choices
from nae_monitor.train.fit import FitOptions
from nae_monitor.train.halves import Data, Halves
from nae_monitor.train.lora import LoraOptions, load_state, state_facts
from nae_monitor.train.metrics import read_metrics
from nae_monitor.train.recipe import ExpertOptions, HalfOptions, Recipe
from nae_monitor.train.run import Run
from nae_monitor.train.sampling import Sampled, read_samples, sample_rows


def text(number: int) -> str:
    return f'at "a"; expects "b"; small talk; prompt "say {number}'


HALF = HalfOptions(
    steps=3,
    lora=LoraOptions(rank=2, alpha=4, batch_size=8, warmup_steps=1, learning_rate=5e-3),
    evaluate_every=2,
    save_every=1,
)
EXPERT = ExpertOptions(
    rounds=2, rows=5, samples=2, temperature=0.8, av_steps=2, ar_steps=2, negatives=3
)


class KilledError(Exception):
    pass


@dataclasses.dataclass
class Trained:
    """A first training of both halves over made-up rows, for rounds to start from."""

    target: Path
    directory: Path

    def run(self, directory: Path, kill: str = "", **changes: Any) -> Run:
        """A run in a copy; ``kill`` names the tick or row it dies at."""
        if not directory.exists():
            shutil.copytree(self.directory, directory)
        recipe = Recipe(
            nla_id="tiny",
            target=str(self.target),
            collect=CollectOptions(layer=tiny_trainer.K),
            av=HALF,
            ar=HALF,
            expert=dataclasses.replace(EXPERT, **changes),
        )

        def tick(stage: str, done: int, total: int) -> None:
            if kill == f"{stage} {done}":
                raise KilledError

        def progress(stage: str, row: Mapping[str, Any]) -> None:
            if kill == stage:
                raise KilledError

        return Run(recipe, directory, progress=progress, tick=tick)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root = tmp_path_factory.mktemp("expert")
    target, run = tiny_trainer.write_target(root / "target"), root / "run"
    tokenizer = tiny_trainer.build_tokenizer()
    options = FitOptions(steps=3, evaluate_every=3, save_every=3)
    common = {"reduced": False, "report": lambda row: None}
    train, validation = make_examples(24, 0), make_examples(6, 1)
    stages.train_ar(
        tiny_trainer.build_model(len(tokenizer)),
        tokenizer,
        train,
        validation,
        run / "ar",
        HALF.lora,
        options,
        blocks=tiny_trainer.K,
        **common,
    )
    tokenizer.chat_template = av.AV_CHAT_TEMPLATE
    stages.train_av(
        tiny_trainer.build_model(len(tokenizer)),
        tokenizer,
        train,
        validation,
        run / "av",
        HALF.lora,
        options,
        injection_scale=4.0,
        **common,
    )
    return Trained(target, run)


def replace_rows(patch: pytest.MonkeyPatch) -> None:
    """Rows without a collection."""

    def data(self: Halves) -> Data:
        return Data(tiny_trainer.build_tokenizer(), make_examples(24, 0), make_examples(6, 1), 4.0)

    patch.setattr(Halves, "data", data)


def replace_parser(patch: pytest.MonkeyPatch) -> None:
    """A beginner's texts made usable: it writes noise that no tag closes."""
    patch.setattr(sampling, "parse_explanation", lambda raw: (text(len(raw) % 7), True))


@pytest.fixture(autouse=True)
def made_up_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_rows(monkeypatch)


@pytest.fixture
def in_form(monkeypatch: pytest.MonkeyPatch) -> None:
    replace_parser(monkeypatch)


@pytest.fixture(scope="module")
def whole(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose two rounds were not interrupted."""
    directory = tmp_path_factory.mktemp("whole") / "run"
    with pytest.MonkeyPatch.context() as patch:
        replace_rows(patch)
        replace_parser(patch)
        trained.run(directory).stage("expert")
    return directory


@pytest.mark.usefixtures("in_form")
def test_rounds_train_both_halves_further_and_say_what_they_gained(
    trained: Trained, whole: Path
) -> None:
    rows = read_metrics(whole / "expert" / "metrics.jsonl")
    assert [row["round"] for row in rows] == [1, 2]
    for row in rows:
        assert row["rows"] == row["kept"] == 5
        assert row["best_score"] >= row["greedy_score"]
        assert {"fve_gold", "fve_round_trip"} <= row.keys()
    assert rows[1]["fve_round_trip_before"] == rows[0]["fve_round_trip"]
    for half in ("av", "ar"):
        assert newest(whole, half) == whole / "expert" / "round-2" / half
        assert state_facts(final_state(newest(whole, half)))["step"] == 2
    before = (whole / "expert" / "round-2" / "ar" / "state.safetensors").read_bytes()
    trained.run(whole).stage("expert")
    after = (whole / "expert" / "round-2" / "ar" / "state.safetensors").read_bytes()
    assert after == before


@pytest.mark.usefixtures("in_form")
def test_the_first_round_starts_from_the_first_trainings_states(
    trained: Trained, tmp_path: Path
) -> None:
    run = trained.run(tmp_path / "run", rounds=1)
    run.stage("expert")
    trunk = run.halves.reconstructor(final_state(trained.directory / "ar"))
    first = trunk.head.weight.detach().clone()
    load_state(final_state(newest(run.directory, "ar")), trunk, None)
    further = trunk.head.weight.detach()
    step = float((further - first).norm() / first.norm())
    assert 0 < step < 0.1  # two gentle steps, not a fit from the beginning


@pytest.mark.usefixtures("in_form")
@pytest.mark.parametrize(
    "kill",
    [
        "expert 1 sample 5",
        "expert 1 av 1",
        "expert 1 av",
        "expert 1 read 6",
        "expert 1 ar 1",
        "expert 1 ar",
        "expert",
        "expert 2 av 2",
    ],
)
def test_a_killed_round_ends_where_an_uninterrupted_one_does(
    kill: str, trained: Trained, whole: Path, tmp_path: Path
) -> None:
    number = int("2" in kill) + 1
    with pytest.raises(KilledError):
        trained.run(tmp_path / "killed", kill=kill, rounds=number).stage("expert")
    trained.run(tmp_path / "killed", rounds=number).stage("expert")
    for name in ("samples.jsonl", "choices.json", "av/state.safetensors", "ar/state.safetensors"):
        a, b = (p / "expert" / f"round-{number}" / name for p in (whole, tmp_path / "killed"))
        assert a.read_bytes() == b.read_bytes()
    measured = [read_metrics(p / "expert" / "metrics.jsonl") for p in (whole, tmp_path / "killed")]
    assert measured[0][:number] == measured[1]


def test_no_rounds_leave_the_first_trainings_states_the_newest(
    trained: Trained, tmp_path: Path
) -> None:
    run = trained.run(tmp_path / "run", rounds=0)
    run.stage("expert")
    assert not (tmp_path / "run" / "expert").exists()
    assert newest(tmp_path / "run", "av") == tmp_path / "run" / "av"


@pytest.mark.usefixtures("in_form")
def test_an_unfinished_round_is_not_used_and_the_time_limit_leaves_it_resumable(
    trained: Trained, tmp_path: Path
) -> None:
    run = dataclasses.replace(trained.run(tmp_path / "run", rounds=1), time_limit_s=0.0)
    run.stage("expert")
    assert newest(tmp_path / "run", "av") == tmp_path / "run" / "av"
    for _ in range(6):
        run.stage("expert")
    assert newest(tmp_path / "run", "av") == tmp_path / "run" / "expert" / "round-1" / "av"


@pytest.mark.usefixtures("in_form")
def test_samples_of_other_rows_are_refused(trained: Trained, tmp_path: Path) -> None:
    trained.run(tmp_path / "run", rounds=1).stage("expert")
    shutil.rmtree(tmp_path / "run" / "expert" / "round-1" / "av")
    (tmp_path / "run" / "expert" / "metrics.jsonl").unlink()
    path = tmp_path / "run" / "expert" / "round-1" / SAMPLES
    path.write_text('{"row": 99, "texts": ["a"]}\n')
    with pytest.raises(InputDataError, match="other training rows"):
        trained.run(tmp_path / "run", rounds=1).stage("expert")


@pytest.mark.usefixtures("in_form")
def test_choices_are_kept_as_they_were_made(trained: Trained, tmp_path: Path) -> None:
    trained.run(tmp_path / "run", rounds=1).stage("expert")
    path = tmp_path / "run" / "expert" / "round-1" / CHOICES
    assert [dataclasses.asdict(c) for c in read_choices(path)] == json.loads(path.read_text())


def test_a_sample_depends_on_its_row_and_seed_alone_and_the_greedy_one_comes_first(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "parse_explanation", lambda raw: (raw, True))
    run = trained.run(tmp_path / "run")
    data = run.halves.data()
    model = run.halves.verbalizer(final_state(tmp_path / "run" / "av")).merge_and_unload().eval()

    def sampled(rows: list[int], name: str, size: int, seed: int = 1) -> dict[int, Any]:
        monkeypatch.setattr(reading, "CPU_BATCH", size)
        list(
            sample_rows(
                model,
                data.verbalizer_tokenizer,
                data.train.vectors,
                rows,
                tmp_path / name,
                injection_scale=4.0,
                samples=2,
                temperature=1.0,
                seed=[seed],
            )
        )
        return {s.row: s.texts for s in read_samples(tmp_path / name)}

    one, other = sampled([3, 1, 2], "a", 2), sampled([2, 3], "b", 8)
    assert one[3] == other[3]
    assert one[2] == other[2]
    assert sampled([3], "c", 8, seed=2)[3][1:] != one[3][1:]
    assert all(len(texts) == 3 for texts in one.values())


def test_a_torn_line_of_samples_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / SAMPLES
    whole = '{"row": 4, "texts": ["a", null]}\n'
    path.write_text(whole + '{"row": 5, "tex')
    assert read_samples(path) == [Sampled(4, ("a", None))]
    assert path.read_text() == whole
