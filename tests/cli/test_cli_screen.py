"""``screen build``, and a monitor that spends its decodes by what it wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_nla
import torch
from collections_on_disk import write_collection

from nae_monitor.recording import Recording, RecordingWriter
from nae_monitor.records import (
    Activation,
    Decoding,
    Finding,
    FindingState,
    Phase,
    Request,
    SampleReason,
    Severity,
)
from nae_monitor.screen import read_directions, write_directions
from nae_monitor.screen.directions import calibrated
from nae_monitor.screening import directions_for
from nae_monitor.settings import ScreenSettings, Settings

Cli = Callable[..., Any]
Config = Callable[..., str]


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    directory = tmp_path / "activations"
    directory.mkdir()
    write_collection(directory, d_model=tiny_nla.D)
    return directory


@pytest.fixture
def built(cli: Cli, tiny: Any, collection: Path, tmp_path: Path) -> Path:
    path = tmp_path / "screen.safetensors"
    done = cli(
        "screen", "build", "--activations", collection, "--backend", "contrast",
        "--av", tiny.av, "--ar", tiny.ar, "--target", tiny.target, "-o", path, "--json",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert done.objects[0]["names"] == ["cyber"]
    return path


def test_a_direction_from_labelled_rows_is_written_with_where_it_comes_from(
    built: Path, tiny: Any
) -> None:
    found = read_directions(built)
    assert (found.names, found.base_model) == (("cyber",), str(tiny.target))
    told = found.provenance
    assert told["backend"] == "contrast"
    assert told["validation_auroc"]["cyber"] > told["random_auroc"]


def test_a_person_reads_each_direction_beside_chance_and_the_set_on_other_documents(
    cli: Cli, tiny: Any, collection: Path, tmp_path: Path
) -> None:
    done = cli(
        "screen", "build", "--activations", collection, "--backend", "probe",
        "--av", tiny.av, "--ar", tiny.ar, "-o", tmp_path / "s.safetensors",
    )  # fmt: skip
    assert done.code == 0, done.err
    said = " ".join(done.out.split())
    assert "cyber" in said
    assert "random, 97.5 % quantile" in said
    assert "on the test split: AUROC" in said


def test_words_that_the_pair_makes_nothing_of_are_left_out_and_said(
    cli: Cli, tiny: Any, collection: Path, rule: Path, tmp_path: Path
) -> None:
    out = tmp_path / "s.safetensors"
    done = cli(
        "screen", "build", "--activations", collection, "-r", rule, "--frames", "4",
        "--av", tiny.av, "--ar", tiny.ar, "-o", out,
    )  # fmt: skip
    assert done.code == 3  # the tiny pair's weights are chance
    assert "makes no directions: no direction beats random ones" in " ".join(done.err.split())
    assert not out.exists()


def test_a_monitor_spends_its_decodes_on_what_scores_and_records_the_scores(
    cli: Cli, config: Config, prompts: Path, built: Path, tmp_path: Path
) -> None:
    screen = {"directions": str(built), "decode_share": 0.5}
    done = cli(
        "record", "-c", config(screen=screen), "-p", prompts, "-o", tmp_path / "rec", "--json",
        "--max-new-tokens", "12",
    )  # fmt: skip
    assert done.code == 0, done.err
    recorded = Recording.open(Path(done.objects[-1]["recording"])).activations()
    scored = [r.activation for r in recorded if r.activation.reason is SampleReason.SCORE]
    made = read_directions(built)
    assert scored
    for row in scored:
        over = row.scores["cyber"] >= made.threshold(row.phase, 0.5) - 1e-3
        assert over or row.scores["anomaly"] >= made.anomaly_threshold(row.phase, 0.05) - 1e-3


@pytest.mark.parametrize(
    ("directions", "message"),
    [
        ("none.safetensors", "is no file of screening directions"),
        ("rules", "screen build"),
        ("contrast", "screen build"),
    ],
)
def test_directions_that_are_not_there_stop_the_start(
    cli: Cli, config: Config, prompts: Path, directions: str, message: str
) -> None:
    done = cli("generate", "-c", config(screen={"directions": directions}), "-p", prompts)
    assert done.code == 2
    assert message in " ".join(done.err.split())


def test_directions_of_another_layer_or_width_stop_the_start(
    cli: Cli, config: Config, prompts: Path, tmp_path: Path
) -> None:
    out = tmp_path / "narrow.safetensors"
    narrow = calibrated(
        ("a",), torch.ones(1, 5), torch.randn(50, 5), torch.arange(50) % 2 == 0,
        base_model="m", layer=1, provenance={},
    )  # fmt: skip
    write_directions(out, narrow)
    done = cli("generate", "-c", config(screen={"directions": str(out)}), "-p", prompts)
    assert done.code == 2
    assert "is of width 5 and layer 1, the NLA of width" in " ".join(done.err.split())


def test_the_doctor_tells_how_rows_are_chosen(
    cli: Cli, config: Config, built: Path, tmp_path: Path
) -> None:
    def told(**screen: Any) -> tuple[str, str]:
        done = cli("doctor", "-c", config(screen=screen), "--json")
        (found,) = (c for c in done.objects[0]["checks"] if c["name"] == "screen")
        return found["state"], found["message"]

    assert told() == ("ok", "one token in 2 and some by chance, nothing is scored")
    state, message = told(directions=str(built))
    assert (state, message.startswith("1 directions by contrast for")) == ("ok", True)
    assert told(directions=str(tmp_path / "none"))[0] == "fault"


def test_both_sets_of_the_shipped_pair_fit_it_and_each_direction_beats_chance() -> None:
    tags = {}
    for name in ("rules", "contrast"):
        made = directions_for(Settings(screen=ScreenSettings(directions=name)), 576, 20)
        assert made is not None
        told = made.provenance
        tags[name] = (told["backend"], told["nla_id"], made.anomaly is not None)
        assert set(told["validation_auroc"]) == set(made.names)
        assert min(told["validation_auroc"].values()) > told["random_auroc"]
    assert tags == {
        "rules": ("ar", "smollm2-135m-l20-v3", True),
        "contrast": ("contrast", "smollm2-135m-l20-v3", True),
    }


def test_directions_are_learnt_from_what_rules_read_in_recordings(
    cli: Cli, tiny: Any, collection: Path, tmp_path: Path
) -> None:
    random = torch.Generator().manual_seed(1)
    settings = {"layer": tiny_nla.LAYER, "model": str(tiny.target)}
    place = tmp_path / "rec"
    with RecordingWriter(place, manifest=settings, d_model=tiny_nla.D, content="none") as writer:
        for number in range(60):
            request = Request(f"r{number}", f"r{number}", str(tiny.target))
            vector = torch.randn(tiny_nla.D, generator=random) + 2
            vector[1] += 6.0 * (number % 2)
            row = Activation(
                request, 3, 1, "t", Phase.PROMPT, tiny_nla.LAYER, vector, SampleReason.RANDOM
            )
            writer.write_activation(row, Decoding("x", True, 0.5, 0.5, 1, 0, "p", 3, 0.1))
            if number % 2:
                found = ("r1", "leaning", "1", "T", Severity.HIGH, FindingState.MATCH)
                writer.write_findings([Finding(request.request_id, 3, *found)])
    out = tmp_path / "s.safetensors"
    command = [
        "screen", "build", "--activations", collection, "--recording", place,
        "--av", tiny.av, "--ar", tiny.ar, "--target", tiny.target, "-o", out, "--json",
    ]  # fmt: skip
    done = cli(*command, "--backend", "probe")
    assert done.code == 0, done.err
    assert "leaning" in done.objects[0]["names"]
    assert done.objects[0]["recorded_rows"] == 60
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps({f"r{number}": [] for number in range(60)}))
    done = cli(*command, "--backend", "probe", "--labels", labels)
    assert done.code == 0, done.err
    assert "leaning" not in done.objects[0]["names"]
    assert cli(*command, "--backend", "ar").code == 2


def test_labels_without_a_recording_are_refused_before_anything_is_read(
    cli: Cli, tmp_path: Path
) -> None:
    done = cli("screen", "build", "--activations", tmp_path / "missing", "--labels", "labels.json")
    assert done.code == 2
    assert "--labels" in done.err
