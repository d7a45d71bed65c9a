"""``replay``, ``report`` and ``nla decode`` over a recording made by ``record``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from nae_monitor.recording import Recording

Cli = Callable[..., Any]
Config = Callable[..., str]


def test_the_same_configuration_finds_the_same(
    cli: Cli, config: Config, recording: Path, tmp_path: Path
) -> None:
    done = cli(
        "replay",
        recording,
        "-c",
        config(),
        "-o",
        tmp_path / "run",
        "--against",
        recording,
        "--json",
    )
    assert done.code == 0, done.err
    (summary,) = done.objects
    assert summary["rows"] == summary["judged"] == summary["reused"] == 8
    assert summary["comparison"]["identical"]
    live, again = (
        (path / "findings.jsonl").read_bytes().splitlines()
        for path in (recording, tmp_path / "run")
    )
    assert sorted(live) == sorted(again)


def test_decoding_again_gives_the_same_texts(
    cli: Cli, config: Config, recording: Path, tmp_path: Path
) -> None:
    done = cli(
        "replay", recording, "-c", config(), "-o", tmp_path / "run", "--redecode",
        "--batch-size", "3", "--against", recording,
    )  # fmt: skip
    assert done.code == 0, done.out
    assert "8 decoded now" in done.out
    assert "compared: 8 the same, 0 new, 0 gone, 0 changed" in done.out


def test_other_rules_find_other_things_and_exit_with_one(
    cli: Cli, config: Config, recording: Path, rule: Path, tmp_path: Path
) -> None:
    rule.write_text(rule.read_text().replace("severity: low", "severity: high"))
    done = cli("replay", recording, "-c", config(), "-o", tmp_path / "run", "--against", recording)
    assert done.code == 1
    assert "8 changed" in done.out
    assert "anything high match" in done.out


def test_a_report_is_one_html_file(cli: Cli, recording: Path, tmp_path: Path) -> None:
    done = cli("report", recording, "-o", tmp_path / "r.html")
    assert done.code == 0
    assert "report: " in done.out
    page = (tmp_path / "r.html").read_text()
    assert "Anything at all" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_vectors_of_a_recording_decode_to_what_was_recorded(
    cli: Cli, recording: Path, tiny: Any
) -> None:
    done = cli(
        "nla", "decode", recording, "--av", tiny.av, "--ar", tiny.ar, "--limit", "3", "--json"
    )
    assert done.code == 0, done.err
    assert len(done.objects) == 3
    live = list(Recording.open(recording).activations())[:3]
    for row, recorded in zip(done.objects, live, strict=True):
        assert recorded.decoding is not None
        assert row["explanation"].startswith(recorded.decoding.text[:4])  # 8 tokens were recorded
        assert -1 <= row["cosine"] <= 1
        assert row["bank_size"] == 256


def test_positions_of_a_prompt_are_decoded(cli: Cli, tiny: Any) -> None:
    pair = ("--av", tiny.av, "--ar", tiny.ar, "--target", tiny.target)
    done = cli("nla", "decode", "--prompt", "dogs", "--position", "3", "--position", "-1", *pair)
    assert done.code == 0, done.err
    assert done.out.count("FVE") == 2
    assert "rank" in done.out
    beyond = cli("nla", "decode", "--prompt", "dogs", "--position", "999", *pair)
    assert beyond.code == 2
    assert "--position 999: the prompt has" in beyond.err
