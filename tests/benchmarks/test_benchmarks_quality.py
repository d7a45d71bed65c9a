from __future__ import annotations

import dataclasses
import io
import json
import math
import shutil
from pathlib import Path
from typing import Any

import nla_quality
import pytest
from nla_quality import main, show
from quality.bounds import ABOVE_LAST_TOKEN, LINES, RETRIEVAL
from quality.measured import Measured, Size, measure_pair, recipe_for
from quality.tables import claims_of, control_table, notes_of, quality_table
from reporting.claims import Bound
from reporting.machine import Machine
from rich.console import Console
from typer import Exit

from nae_monitor.errors import InputDataError
from nae_monitor.models import resolve_target
from nae_monitor.train.evaluate import Pair, open_for_evaluation
from nae_monitor.train.intervals import Measure
from nae_monitor.train.recipe import Recipe

Trained = tuple[Path, Path, Recipe]


@pytest.fixture(scope="module")
def pair(trained: Trained) -> Pair:
    return open_for_evaluation(trained[0], trained[1], resolve_target)


@pytest.fixture(scope="module")
def found(
    pair: Pair,
    trained: Trained,
    encoder: Any,
    corpus: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Measured:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NAE_MONITOR_CACHE", str(tmp_path_factory.mktemp("cache")))
        return measure_pair(pair, trained[2], encoder, "test", Size(20, 12), wheels=lambda: corpus)


def made(**changes: float) -> Measured:
    """Measures that meet every bound exactly, but for the changes."""
    values = {line.measure: line.must.limit / line.scale for line in LINES} | changes
    measures = {n: Measure(n, v, v - 0.1, v + 0.1) for n, v in values.items()}
    foreign = {"round-trip FVE": Measure("round-trip FVE", 0.3)}
    rows = {"content_rows": 300, "content_documents": 100}
    return Measured(measures, {}, foreign, rows, ())


def rendered(found: Measured) -> str:
    console = Console(width=220, record=True, file=io.StringIO())
    console.print(quality_table("a pair", claims_of(found), found))
    console.print(control_table(found))
    return console.export_text()


def test_a_tiny_pair_gets_every_line_of_the_table_and_fails(
    found: Measured,
    trained: Trained,
    machine: Machine,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "quality.json"
    assert show(found, trained[2], "test", machine, path) == 1
    content = json.loads(path.read_text())
    names = [claim["name"] for claim in content["claims"]]
    assert len(names) == len(LINES) == 11
    assert content["context"]["nla_id"] == "tiny-l2"
    assert content["context"]["content_rows"] <= 12
    by_name = {claim["name"]: claim for claim in content["claims"]}
    assert by_name["round-trip FVE"]["holds"] is False
    assert by_name["round-trip FVE, out of distribution"]["value"] is not None
    kinds = content["context"]["measures"]
    assert {len(kinds[k]) > 10 for k in ("content", "template", "ood")} == {True}
    assert "every figure and control" in capsys.readouterr().out


def test_content_and_template_positions_are_measured_apart(found: Measured) -> None:
    assert found.content["round-trip FVE"] != found.template["round-trip FVE"]
    assert found.rows["template_rows"] > 0


def test_the_difference_to_the_last_token_mean_is_that_of_the_two_figures(found: Measured) -> None:
    for measures in (found.content, found.template, found.foreign):
        difference = measures[ABOVE_LAST_TOKEN]
        expected = measures["round-trip FVE"].value - measures["same-last-token mean, FVE"].value
        assert difference.value == pytest.approx(expected, abs=1e-5)
        assert difference.low - 1e-9 <= difference.value <= difference.high + 1e-9


def test_tokens_per_explanation_get_an_interval_around_the_evaluations_own_mean(
    found: Measured,
) -> None:
    measure = found.content["tokens per explanation"]
    assert measure.low <= measure.value <= measure.high


def test_a_pair_without_a_foreign_source_says_so_and_keeps_the_other_lines(
    pair: Pair,
    trained: Trained,
    encoder: Any,
    corpus: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("NAE_MONITOR_CACHE", str(tmp_path))
    options = dataclasses.replace(trained[2].corpus, out_of_distribution=())
    recipe = dataclasses.replace(trained[2], corpus=options)
    got = measure_pair(pair, recipe, encoder, "test", Size(20, 4), wheels=lambda: corpus)
    assert any("no out-of-distribution figure" in note for note in notes_of(got))
    claims = {c.name: c for c in claims_of(got)}
    assert claims["round-trip FVE, out of distribution"].holds is None
    assert claims["round-trip FVE"].holds is not None


def test_the_foreign_source_itself_can_be_the_split(
    pair: Pair,
    trained: Trained,
    encoder: Any,
    corpus: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("NAE_MONITOR_CACHE", str(tmp_path))
    got = measure_pair(pair, trained[2], encoder, "ood", Size(4, 4), wheels=lambda: corpus)
    assert got.foreign["round-trip FVE"] is got.content["round-trip FVE"]


def test_without_last_token_means_that_line_is_unknown_not_passed(
    pair: Pair,
    trained: Trained,
    encoder: Any,
    corpus: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setenv("NAE_MONITOR_CACHE", str(tmp_path))
    bare = dataclasses.replace(pair, token_means={})
    got = measure_pair(bare, trained[2], encoder, "test", Size(20, 4), wheels=lambda: corpus)
    claim = next(c for c in claims_of(got) if c.name.startswith("above"))
    assert math.isnan(claim.value)
    assert claim.holds is None
    assert any("no means of last tokens" in note for note in notes_of(got))


def test_a_pair_exactly_at_every_bound_passes(
    trained: Trained, machine: Machine, capsys: pytest.CaptureFixture[str]
) -> None:
    assert show(made(), trained[2], "test", machine, None) == 0
    assert "11 of 11 claims hold" in capsys.readouterr().out


@pytest.mark.parametrize("line", LINES, ids=lambda line: line.name)
def test_each_line_alone_can_fail_the_pair(line: Any, trained: Trained, machine: Machine) -> None:
    worse = 0.01 if line.must.at_most else -0.01
    found = made(**{line.measure: line.must.limit / line.scale + worse})
    if line.name.endswith("out of distribution"):
        foreign = {"round-trip FVE": Measure("round-trip FVE", 0.29)}
        found = dataclasses.replace(found, foreign=foreign)
    assert [c.name for c in claims_of(found) if c.holds is False] == [line.name]
    assert show(found, trained[2], "test", machine, None) == 1


def test_the_bounds_are_those_that_the_pair_was_asked_for() -> None:
    bounds = {line.name: (line.must, line.aim) for line in LINES}
    assert bounds["round-trip FVE"] == (Bound(0.4), Bound(0.6))
    assert bounds["AR on empty text, FVE"] == (Bound(0.02, at_most=True), None)
    assert bounds[RETRIEVAL] == (Bound(50), Bound(85))
    assert bounds["tokens per explanation"] == (Bound(48, at_most=True), Bound(32, at_most=True))


def test_retrieval_among_fewer_vectors_is_shown_but_not_claimed() -> None:
    found = made()
    content = {k: v for k, v in found.content.items() if k != RETRIEVAL}
    name = "retrieval among 48, top 1"
    content[name] = Measure(name, 0.9, 0.8, 1.0)
    claims = claims_of(dataclasses.replace(found, content=content))
    claim = next(c for c in claims if c.name == name)
    assert (claim.value, claim.bound, claim.holds) == (90, None, None)
    assert RETRIEVAL not in {c.name for c in claims}


def test_the_table_says_where_only_the_value_meets_its_bound() -> None:
    text = rendered(made())
    assert text.count("value only") == 10
    assert text.count("reached") == 0
    assert "round-trip FVE, out of distribution" in text
    assert ">= 0.4" in text
    assert "<= 48" in text


def test_the_table_says_which_aims_are_reached() -> None:
    text = rendered(made(**{"round-trip FVE": 0.61}))
    assert text.count(", reached") == 1


def test_a_recipe_of_another_layer_is_refused(pair: Pair, trained: Trained, tmp_path: Path) -> None:
    av_dir = tmp_path / "av"
    shutil.copytree(trained[0], av_dir)
    record = json.loads((av_dir / "training.json").read_text())
    record["recipe"]["collect"]["layer"] = 3
    (av_dir / "training.json").write_text(json.dumps(record))
    with pytest.raises(InputDataError, match="the pair reads layer 2, the recipe collects layer 3"):
        recipe_for(pair, av_dir, trained[1], None)


def test_halves_of_different_splits_are_warned_of(
    pair: Pair, trained: Trained, tmp_path: Path
) -> None:
    assert recipe_for(pair, trained[0], trained[1], None) == (trained[2], "")
    ar_dir = tmp_path / "ar"
    shutil.copytree(trained[1], ar_dir)
    record = json.loads((ar_dir / "training.json").read_text())
    record["recipe"]["seed"] = 5
    (ar_dir / "training.json").write_text(json.dumps(record))
    assert "another split" in recipe_for(pair, trained[0], ar_dir, None)[1]


def test_a_named_recipe_stands_in_for_a_missing_record_with_a_warning(
    pair: Pair, trained: Trained
) -> None:
    with pytest.raises(InputDataError, match="recipe collects layer 20"):
        recipe_for(pair, trained[0], trained[1], "smollm2-135m-cpu")


def test_a_pair_without_training_record_ends_with_three(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for source in trained[:2]:
        shutil.copytree(source, tmp_path / source.name)
        (tmp_path / source.name / "training.json").unlink()
        (tmp_path / source.name / "SHA256SUMS").unlink()
    av, ar = (str(tmp_path / source.name) for source in trained[:2])
    with pytest.raises(Exit) as ended:
        main(av=av, ar=ar, quick=True, json_file=None)
    assert ended.value.exit_code == 3
    assert "training.json is missing" in capsys.readouterr().err


def test_a_missing_pair_ends_with_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(Exit) as ended:
        main(av=str(tmp_path / "none"), ar=str(tmp_path / "none"), quick=True, json_file=None)
    assert ended.value.exit_code == 2
    assert "none" in capsys.readouterr().err


def test_a_quick_run_is_small() -> None:
    assert nla_quality.QUICK_DOCUMENTS < 160 // 4
    assert nla_quality.QUICK_ROWS < 320 // 4
