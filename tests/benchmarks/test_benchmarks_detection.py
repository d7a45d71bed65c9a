from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from conftest import WordEncoder  # type: ignore[import-not-found]
from detecting.apart_cases import CLEAN, EXAM, EXAM_LEARNT, INJECTION, NATURAL
from detecting.choices import Cell, bought, evenly, in_subset, order
from detecting.controls import shuffled, zeroed
from detecting.conversations import Case, divided
from detecting.decodes import Journal
from detecting.figures import Scored, auroc, recall, threshold_at
from detecting.panel import Evidence, Panel
from detecting.results import results
from detecting.rows import Talk, greedy
from detecting.scoring import Sign
from detecting.work import Material
from detection import Setting, gathered
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score
from transformers import LlamaConfig, LlamaForCausalLM

from nae_monitor.decode.engines.fused import FusedDecoder
from nae_monitor.screen import write_directions
from nae_monitor.screen.directions import FILE_NAME, calibrated
from nae_monitor.train.corpus import TrainingDocument
from nae_monitor.train.recipe import Recipe

Trained = tuple[Path, Path, Recipe]
CELLS = (Cell("ar", 2), Cell("random", 2), Cell("ar", 1))
SPLITS = ("train", "validation", "test", "ood", "open")
FILLER = "once upon a time there was a very long and quiet tale of"
SIZES = {"directions": 24, "fit": 12, "threshold": 40, "test": 16, "foreign": 4}


def made_up() -> list[Case]:
    """Conversations of every part; hostile ones have words of their own."""
    cases = []
    for part, count in SIZES.items():
        for number in range(count):
            hostile = number % 2 == 0 and part in ("directions", "fit", "test")
            words = "rob the bakery at night" if hostile else "bake a loaf of bread"
            document = TrainingDocument(
                f"{words} {part} {number}", "tests", "fraud" if hostile else "planning"
            )
            cases.append(Case(document, part, document.kind, str(len(cases))))  # type: ignore[arg-type]
    return cases


@pytest.fixture(scope="module")
def setting(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    chance = torch.Generator().manual_seed(0)
    directions = calibrated(
        ["a", "b"],
        torch.randn(2, 32, generator=chance),
        torch.randn(400, 32, generator=chance),
        torch.arange(400) % 2 == 0,
        base_model="tiny",
        layer=2,
        provenance={},
    )
    write_directions(trained[1] / FILE_NAME, directions)
    cache = tmp_path_factory.mktemp("detection")
    return Setting(cache, CELLS, None, 2, 0, None, str(trained[0]), str(trained[1]))


def found(setting: Setting, recipe: Recipe) -> tuple[Evidence, dict[str, Any]]:
    return gathered(setting, recipe, made_up(), lambda *_: None, WordEncoder())


def talk(rows: int, digest: str = "d") -> Talk:
    chance = torch.Generator().manual_seed(rows)
    return Talk(
        digest,
        tuple(range(rows + 20)),
        20 + rows // 2,
        torch.arange(20, 20 + rows),
        torch.randn(rows, 8, generator=chance).half(),
        torch.rand(rows, generator=chance),
    )


@given(st.lists(st.tuples(st.integers(0, 6), st.sampled_from(SPLITS)), min_size=2, max_size=40))
def test_a_near_duplicate_family_is_never_in_two_parts(drawn: list[tuple[int, str]]) -> None:
    documents = [
        (TrainingDocument(f"{FILLER} story of number {topic} told by {i}", "tests", "facts"), split)
        for i, (topic, split) in enumerate(drawn)
    ]
    cases = divided(documents, seed=0)
    assert len(cases) == len(documents)
    parts: dict[str, set[str]] = {}
    for case in cases:
        parts.setdefault(case.family, set()).add(case.part)
    assert all(len(found) == 1 for found in parts.values())


@given(st.lists(st.sampled_from(SPLITS), min_size=1, max_size=6))
def test_a_family_that_the_pair_was_trained_on_is_never_reported_on(splits: list[str]) -> None:
    twins = [
        (TrainingDocument(f"{FILLER} {FILLER} {FILLER} end {i}", "tests", "facts"), split)
        for i, split in enumerate(splits)
    ]
    found = {case.part for case in divided(twins, seed=0)}
    assert len(found) == 1
    if "train" in splits:
        assert found <= {"directions", "threshold"}


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=300),
    st.lists(st.integers(0, 30), min_size=1, max_size=60),
    st.sampled_from([0.0, 0.01, 0.05, 0.3]),
)
def test_recall_is_that_of_the_lowest_threshold_which_the_rate_allows(
    ordinary: list[int], hostile: list[int], share: float
) -> None:
    scored = Scored(*(np.array(s, dtype=np.float64) for s in (ordinary, hostile, [0], [])))
    allowed = [
        limit
        for limit in range(-1, 32)
        if sum(score > limit for score in ordinary) <= share * len(ordinary)
    ]
    expected = np.mean([score > min(allowed) for score in hostile])
    assert recall(scored, share) == pytest.approx(expected)
    assert np.mean(scored.threshold > threshold_at(scored.threshold, share)) <= share


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=60),
    st.lists(st.integers(0, 9), min_size=1, max_size=60),
)
def test_the_area_is_that_of_a_library(ordinary: list[int], hostile: list[int]) -> None:
    scored = Scored(*(np.array(s, dtype=np.float64) for s in ([0], hostile, ordinary, [])))
    labels = [1] * len(hostile) + [0] * len(ordinary)
    assert auroc(scored) == pytest.approx(roc_auc_score(labels, [*hostile, *ordinary]))


@given(st.integers(1, 300))
def test_every_order_names_each_row_once_and_a_larger_budget_only_adds(rows: int) -> None:
    one = talk(rows)
    scores = {"ar": one.entropy.double().numpy()}
    for choice in ("ar", "random", "uniform", "entropy"):
        found = order(choice, one, scores, seed=3)  # type: ignore[arg-type]
        assert sorted(found.tolist()) == list(range(rows))
    counts = [bought(rows, budget) for budget in (0, 1, 2, 4, 8, 16)]
    assert counts == sorted(counts)
    assert counts[0] == 0 < counts[1]


def test_evenly_spread_rows_leave_no_gap_twice_the_mean() -> None:
    for count in (5, 60, 97, 128):
        for k in (2, 4, 8):
            if k <= count:
                places = sorted(evenly(count)[:k].tolist())
                gaps = np.diff([0, *places, count])
                assert gaps.max() <= 2 * (1 << (count - 1).bit_length()) / k


@given(st.integers(0, 120), st.integers(1, 5))
def test_a_torn_journal_keeps_what_was_whole(cut: int, count: int) -> None:
    with TemporaryDirectory() as folder:
        place = Path(folder) / "journal.jsonl"
        items = {("d", n): {"text": "x" * n} for n in range(count)}
        Journal(place).add(items)
        whole = place.read_bytes()
        place.write_bytes(whole[: max(0, len(whole) - cut)])
        again = Journal(place)
        assert all(items[key] == value for key, value in again.found.items())
        missing = {key: value for key, value in items.items() if key not in again.found}
        again.add(missing)
        assert Journal(place).found == items


def test_a_killed_run_goes_on_to_what_an_uninterrupted_one_gives(
    setting: Setting, trained: Trained, tmp_path: Path
) -> None:
    whole, told = found(setting, trained[2])
    shown = results(whole, Panel(whole.material), told, 0, tmp_path / "p.svg", lambda *_: None)
    assert {c.name for c in shown.claims if c.bound is not None}
    assert (tmp_path / "p.svg").read_text(encoding="utf-8").startswith("<?xml")
    journal = next(setting.cache.glob("decodes-*.jsonl"))
    lines = journal.read_bytes().splitlines(keepends=True)
    cut = tmp_path / "cut"
    (cut / "talks").mkdir(parents=True)
    for file in list((setting.cache / "talks").iterdir())[:1]:
        (cut / "talks" / file.name).write_bytes(file.read_bytes())
    torn = b"".join(lines[: len(lines) // 3]) + lines[-1][:20]
    (cut / journal.name).write_bytes(torn)
    again, retold = found(replace(setting, cache=cut), trained[2])
    assert (again.signs, again.visible) == (whole.signs, whole.visible)
    texts = [{k: v["text"] for k, v in t["journal"].items()} for t in (told, retold)]
    assert texts[0] == texts[1]
    assert len(next(cut.glob("decodes-*.jsonl")).read_bytes().splitlines()) == len(lines)


def made_up_apart() -> list[Case]:
    cases = []
    for sort in (INJECTION, CLEAN, EXAM, EXAM_LEARNT, NATURAL):
        for number in range(6):
            kind = "jailbreak" if sort == INJECTION else "facts"
            document = TrainingDocument(f"tell me about {sort} in the year {number}", sort, kind)
            cases.append(Case(document, "apart", kind, document.digest))
    return cases


def test_what_is_reported_apart_changes_nothing_of_the_curve(
    setting: Setting, trained: Trained, tmp_path: Path
) -> None:
    shown = []
    for name, more in (("without", []), ("with", made_up_apart())):
        evidence, told = gathered(
            replace(setting, cache=tmp_path / name), trained[2], [*made_up(), *more],
            lambda *_: None, WordEncoder(),
        )  # fmt: skip
        panel = Panel(evidence.material)
        shown.append(results(evidence, panel, told, 0, None, lambda *_: None))
    without, with_ = shown
    assert without.claims == with_.claims
    assert without.context["curve"] == with_.context["curve"]
    assert "apart" not in without.context
    apart = with_.context["apart"]
    assert apart["counts"] == {"persona": 0} | dict.fromkeys(
        (INJECTION, CLEAN, EXAM, EXAM_LEARNT, NATURAL), 6
    )
    assert len(with_.tables) == len(without.tables) + 3
    for shares in apart["shares_above_the_threshold"].values():
        assert np.isnan(shares["persona"][0])
        assert all(0 <= shares[sort][0] <= 1 for sort in (INJECTION, CLEAN, EXAM, NATURAL))


@pytest.fixture(scope="module")
def telling() -> Evidence:
    """Conversations whose scores and decodes tell hostile from ordinary ones plainly."""
    chance = np.random.default_rng(0)
    sizes = {"fit": 60, "threshold": 300, "test": 300}
    cases, talks, scores, orders = [], {}, {}, {}
    for part, count in sizes.items():
        for number in range(count):
            kind = "fraud" if number % 2 and part != "threshold" else "planning"
            document = TrainingDocument(f"{part} {number}", "tests", kind)
            case = Case(document, part, kind, document.digest)  # type: ignore[arg-type]
            one = talk(60, case.digest)
            cases.append(case)
            talks[case.digest] = one
            scores[case.digest] = {"ar": chance.normal(size=60) + 2 * case.hostile}
            orders[case.digest] = {"ar": order("ar", one, scores[case.digest], 0)}  # type: ignore[arg-type]
    rows = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    directions = calibrated(
        ["a"], torch.ones(1, 8), rows, torch.arange(400) % 2 == 0, base_model="t", layer=1,
        provenance={},
    )  # fmt: skip
    material = Material(tuple(cases), talks, {"ar": directions}, scores, orders)  # type: ignore[arg-type]
    signs = {
        key: Sign(key[1], chance.normal() + 3 * case.hostile, 0.0, frozenset(), 0.5)
        for case in cases
        for key in material.chosen(case.digest, CELL)
    }
    return Evidence(material, signs, {})


CELL = Cell("ar", 2)


def test_rows_and_decodes_of_other_conversations_tell_nothing(telling: Evidence) -> None:
    panel = Panel(telling.material)
    assert auroc(panel.scored(telling.both(CELL), CELL)) > 0.95
    assert abs(auroc(shuffled(telling, panel, CELL, seed=0)) - 0.5) < 0.1
    assert recall(shuffled(telling, panel, CELL, seed=0)) < 0.1


def test_zeros_for_rows_tell_nothing(telling: Evidence) -> None:
    assert auroc(zeroed(telling, Panel(telling.material), CELL)) == 0.5


def test_scores_are_learnt_on_the_fit_part_alone(telling: Evidence) -> None:
    panel = Panel(telling.material)
    asked: list[str] = []

    def features(digest: str) -> NDArray[np.float64]:
        asked.append(digest)
        return telling.both(CELL)(digest)

    panel.learnt(features)
    assert set(asked) == {case.digest for case in telling.material.cases if case.part == "fit"}


def test_a_large_budget_is_measured_on_a_part_of_the_conversations_but_learnt_on_all(
    telling: Evidence,
) -> None:
    cell = Cell("ar", 16)
    covered = {digest for digest, _ in telling.material.wanted(cell)}
    for case in telling.material.cases:
        assert (case.digest in covered) == (case.part == "fit" or in_subset(case.digest))
    assert set(Panel(telling.material).digests("test", True, cell)) <= covered


def test_replies_are_what_the_target_generates_greedily() -> None:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=160, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3,
        bos_token_id=None, eos_token_id=None, pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    prompts = [[5, 9, 140, 7], [33, 2], [80, 81, 82, 83, 84, 85, 86]]
    found = greedy(FusedDecoder(model), prompts, 9)
    for prompt, reply in zip(prompts, found, strict=True):
        whole = model.generate(torch.tensor([prompt]), max_new_tokens=9, do_sample=False)
        assert reply == whole[0, len(prompt) :].tolist()
    assert max(max(reply) for reply in found) >= config.hidden_size
