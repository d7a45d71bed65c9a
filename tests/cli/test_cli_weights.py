"""``nla.cpu_weights``: what was decoded with which precision can be read off, and is kept apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nae_monitor.decode.engines.quantised import lacking
from nae_monitor.recording import Recording, RecordingWriter

Cli = Callable[..., Any]
Config = Callable[..., str]
INT8 = {"nla": {"cpu_weights": "int8"}}
needed = pytest.mark.skipif(lacking() is not None, reason=str(lacking()))


def weights(path: Path) -> tuple[Any, list[Any]]:
    """What the manifest says of this run, and of those that it was replayed from."""
    manifest = Recording.open(path).manifest
    sources = manifest.get("replayed_from", [])
    return manifest["nla_weights"], [source["nla_weights"] for source in sources]


@needed
def test_recordings_and_runs_name_the_precision_of_their_decodes(
    cli: Cli, config: Config, recording: Path, prompts: Path, tmp_path: Path
) -> None:
    assert weights(recording) == ("float32", [])
    small = config(**INT8)
    live = cli(
        "record", "-c", small, "-p", prompts, "-o", tmp_path / "small", "--json",
        "--max-new-tokens", "3",
    )  # fmt: skip
    assert weights(Path(live.objects[-1]["recording"])) == ("int8", [])
    for name, options in {"again": ["--redecode"], "judged": ["--rescore"]}.items():
        assert cli("replay", recording, "-c", small, "-o", tmp_path / name, *options).code == 0
    assert weights(tmp_path / "again") == ("int8", ["float32"])
    assert weights(tmp_path / "judged") == ("float32", ["float32"])  # nothing was decoded
    assert cli("report", tmp_path / "again", "-o", tmp_path / "report.html").code == 0
    assert "NLA weights" in (tmp_path / "report.html").read_text()


@needed
def test_a_replay_does_not_go_on_under_another_precision(
    cli: Cli, config: Config, recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    command = ("replay", recording, "-o", tmp_path / "run", "--redecode", "-c")
    with monkeypatch.context() as patch:
        patch.setattr(RecordingWriter, "write_request", interrupt)
        assert cli(*command, config()).code == 130
    refused = cli(*command, config(**INT8))
    assert refused.code == 2
    assert "had other" in refused.err
    assert cli(*command, config()).code == 0


@needed
@pytest.mark.parametrize("wanted", ["float32", "int8"])
def test_doctor_names_the_precision(cli: Cli, config: Config, wanted: str) -> None:
    done = cli("doctor", "-c", config(nla={"cpu_weights": wanted}), "--json")
    (engine,) = (one for one in done.objects[0]["checks"] if one["name"] == "engine")
    assert f"weights in {wanted}" in engine["message"]


def test_doctor_and_a_start_refuse_what_the_machine_cannot_do(
    cli: Cli, config: Config, recording: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nae_monitor.decode.nla.lacking", lambda: "this processor is too old")
    done = cli("doctor", "-c", config(**INT8), "--json")
    (engine,) = (one for one in done.objects[0]["checks"] if one["name"] == "engine")
    assert (done.code, engine["state"]) == (2, "fault")
    assert "this processor is too old" in engine["message"]
    assert "nla.cpu_weights" in engine["mend"]
    started = cli("replay", recording, "-c", config(**INT8), "-o", tmp_path / "run", "--redecode")
    assert started.code == 2
    assert "nla.cpu_weights cannot be int8" in started.err
    assert not (tmp_path / "run").exists()
