from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema  # type: ignore[import-untyped]
import pytest
import torch
import typer
from hypothesis import given
from hypothesis import strategies as st
from reporting.claims import Bound, Claim, Report, verdict
from reporting.machine import Machine, describe
from reporting.script import clear_errors, finish

from nae_monitor.errors import InputDataError

ROOT = Path(__file__).parents[2]
NUMBER_OR_NULL = {"type": ["number", "null"]}
SCHEMA = {
    "type": "object",
    "required": ["machine", "claims"],
    "properties": {
        "machine": {"type": "object", "required": ["cpu", "cores", "torch", "python"]},
        "claims": {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["name", "value", "low", "high", "unit", "bound", "holds"],
                "additionalProperties": False,
                "properties": {
                    "name": {"type": "string"},
                    "value": NUMBER_OR_NULL,
                    "low": NUMBER_OR_NULL,
                    "high": NUMBER_OR_NULL,
                    "unit": {"type": "string"},
                    "bound": {"type": ["string", "null"], "pattern": "^(>=|<=) "},
                    "holds": {"type": ["boolean", "null"]},
                },
            },
        },
        "context": {"type": "object"},
    },
    "additionalProperties": False,
}
numbers = st.floats(-100, 100)
maybe = st.one_of(st.just(math.nan), numbers)
bounds = st.one_of(st.none(), st.builds(Bound, numbers, at_most=st.booleans()))
claims = st.builds(Claim, st.text(), maybe, maybe, maybe, st.text(), bounds)


def strict(text: str) -> Any:
    """JSON without NaN, which the standard does not know."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(name))


@given(made=st.lists(claims, min_size=1, max_size=5))
def test_every_report_is_strict_json_of_one_schema(
    made: list[Claim], machine: Machine, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("json") / "report.json"
    Report(machine, made, {"split": "test"}).write(path)
    content = strict(path.read_text())
    jsonschema.validate(content, SCHEMA)
    assert content["machine"]["matrix_peak_gflop_per_s"]["float32"] > 0


@given(claim=claims)
def test_a_claim_holds_only_where_a_known_value_is_on_the_right_side(claim: Claim) -> None:
    if claim.bound is None or math.isnan(claim.value):
        assert claim.holds is None
    elif claim.bound.at_most:
        assert claim.holds == (claim.value <= claim.bound.limit)
    else:
        assert claim.holds == (claim.value >= claim.bound.limit)


@given(made=st.lists(claims, max_size=5))
def test_the_exit_code_is_one_where_any_claim_fails(made: list[Claim], machine: Machine) -> None:
    assert Report(machine, made).exit_code == int(any(c.holds is False for c in made))


def test_what_could_not_be_measured_is_never_counted_as_holding(machine: Machine) -> None:
    report = Report(
        machine,
        [Claim("a", 2.0, bound=Bound(1)), Claim("b", math.nan, bound=Bound(1)), Claim("c", 3.0)],
    )
    assert report.summary == "1 of 2 claims hold, 1 could not be measured"


@pytest.mark.parametrize(
    ("claim", "words"),
    [
        (Claim("x", 2.0, 1.5, 2.5, bound=Bound(1)), "yes"),
        (Claim("x", 2.0, 0.5, 2.5, bound=Bound(1)), "value only"),
        (Claim("x", 0.9, 0.5, 2.5, bound=Bound(1)), "NO"),
        (Claim("x", 2.0, 1.5, 2.5, bound=Bound(3, at_most=True)), "yes"),
        (Claim("x", 2.0, 1.5, 3.5, bound=Bound(3, at_most=True)), "value only"),
        (Claim("x", 1.0, bound=Bound(1)), "yes"),
        (Claim("x", math.nan, bound=Bound(1)), "not measured"),
        (Claim("x", 1.0), "not claimed"),
    ],
)
def test_the_verdict_says_when_the_interval_reaches_past_the_bound(
    claim: Claim, words: str
) -> None:
    assert verdict(claim) == words


def test_a_failed_claim_is_printed_written_and_ends_with_one(
    machine: Machine, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = Report(machine, [Claim("speed", 1.0, unit="x", bound=Bound(2))])
    path = tmp_path / "out.json"
    assert finish(report, [], ["a note"], path) == 1
    printed = capsys.readouterr().out
    assert "- a note" in printed
    assert "0 of 1 claims hold" in printed
    assert strict(path.read_text())["claims"][0]["holds"] is False


@pytest.mark.parametrize("name", ["missing/out.json", "."])
def test_a_json_file_that_cannot_be_written_is_refused_before_any_work(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as ended, clear_errors(tmp_path / name):
        pytest.fail("work was begun")
    assert ended.value.exit_code == 2
    assert "cannot be written" in capsys.readouterr().err


def test_an_error_is_one_line_with_its_own_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended, clear_errors(None):
        raise InputDataError("that is no shard")
    assert ended.value.exit_code == 3
    assert capsys.readouterr().err == "error: that is no shard\n"


def test_the_machine_is_described_with_a_peak_for_each_dtype() -> None:
    found = describe(seconds=0.01)
    assert found.cores >= 1
    assert found.ram_gib > 0
    assert found.torch == torch.__version__
    assert set(found.matrix_peak_gflop_per_s) == {"float32", "bfloat16"}
    assert all(rate > 0 for rate in found.matrix_peak_gflop_per_s.values())
    assert found.busy_elsewhere_cores is None or found.busy_elsewhere_cores >= 0
    assert found.cpu in found.line
    strict(json.dumps(found.plain(), allow_nan=False))


def test_make_bench_runs_every_script_and_fails_when_one_does(tmp_path: Path) -> None:
    scripts = tmp_path / "benchmarks"
    scripts.mkdir()
    (scripts / "a.py").write_text("import sys; print(sys.argv[1:]); sys.exit(1)")
    (scripts / "b.py").write_text("print('second')")
    (scripts / "shared").mkdir()
    (scripts / "shared" / "part.py").write_text("raise SystemExit('no script')")
    (tmp_path / "python").symlink_to(sys.executable)
    done = subprocess.run(
        ["make", "-f", ROOT / "Makefile", "-o", "install", "bench", f"BIN={tmp_path}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert done.returncode != 0
    assert "['--quick']" in done.stdout
    assert "second" in done.stdout
    assert "no script" not in done.stdout + done.stderr
