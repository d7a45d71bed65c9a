"""Bad input: one clear line a problem, the right exit code, never a traceback."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny_nla

Cli = Callable[..., Any]
Config = Callable[..., str]
HEAVY = ("torch", "transformers", "pyarrow", "kafka", "sentence_transformers", "opentelemetry")


def assert_clear(done: Any, code: int, *said: str) -> None:
    assert done.code == code, done.err
    assert "Traceback" not in done.err
    lines = [line for line in done.err.splitlines() if line.strip()]
    assert lines
    assert all(line.startswith("error: ") for line in lines), done.err
    for text in said:
        assert text in done.err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "nla: {egine: torch}",
            "bad.yaml:1:7: unknown key 'egine' in nla (did you mean 'engine'?)",
        ),
        ("nla: [1\nx: 2", "bad.yaml:2:"),
        ("a: &a [*a]", "YAML aliases are not allowed"),
        ("nla: {batch_size: many}", "expected int"),
        ("", "holds 0 documents, not one"),
    ],
)
def test_a_bad_configuration_is_refused_with_its_place(
    text: str, said: str, cli: Cli, prompts: Path, tmp_path: Path
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    assert_clear(cli("generate", "-c", path, "-p", prompts), 2, said)


def test_problems_of_rules_nla_and_places_come_together(
    cli: Cli, config: Config, prompts: Path, rule: Path, tmp_path: Path
) -> None:
    rule.write_text(rule.read_text() + "serverity: low\n")
    (tmp_path / "file").write_text("")
    path = config(nla={"av": str(tmp_path / "none")}, record={"dir": str(tmp_path / "file" / "r")})
    done = cli("generate", "-c", path, "-p", prompts)
    assert_clear(done, 2, "serverity", "none: is not a directory", "recordings cannot be written")


def test_an_nla_for_another_width_is_refused(
    cli: Cli, config: Config, tiny: Any, prompts: Path
) -> None:
    path = config(target={"model": str(tiny.wide_target)})
    said = "reads vectors of width 32, the watched model has 64"
    assert_clear(cli("generate", "-c", path, "-p", prompts), 2, said, "trained for this model")


def test_a_checkpoint_without_sidecar_is_refused(
    cli: Cli, config: Config, tiny: Any, prompts: Path, tmp_path: Path
) -> None:
    av = shutil.copytree(tiny.av, tmp_path / "av")
    (av / "nla_meta.yaml").unlink()
    done = cli("generate", "-c", config(nla={"av": str(av)}), "-p", prompts)
    assert_clear(done, 2, f"{av / 'nla_meta.yaml'}")


def test_a_marker_that_tokenises_differently_is_refused(
    cli: Cli, config: Config, tiny: Any, prompts: Path, tmp_path: Path
) -> None:
    av = shutil.copytree(tiny.av, tmp_path / "av")
    sidecar = tiny_nla.read_sidecar(av)
    sidecar["tokens"]["injection_token_id"] += 1
    tiny_nla.write_sidecar(av, sidecar)
    done = cli("generate", "-c", config(nla={"av": str(av)}), "-p", prompts)
    assert_clear(done, 2, "injection_token_id")


@pytest.mark.parametrize(
    ("name", "content", "code", "said"),
    [
        ("p.txt", b"\n \n", 3, "holds no prompt"),
        ("p.txt", b"\xff\xfe", 3, "not UTF-8"),
        ("p.jsonl", b'{"prompt": "a"}\nb\n', 3, "p.jsonl:2: is not a JSON object"),
        ("p.jsonl", b'{"promt": "a"}\n', 3, "p.jsonl:1: unknown key 'promt'"),
        ("p.jsonl", b'{"prompt": ""}\n', 3, "`prompt` is missing, empty"),
        ("p.jsonl", b'{"prompt": "a", "tenant": 3}\n', 3, "`tenant` is not text"),
        ("p.jsonl", b'{"prompt": "a\\ud800"}\n', 3, "half a surrogate pair"),
        ("p.txt", b"word " * 400, 3, "do not fit the model's 256"),
    ],
)
def test_bad_prompts_are_refused_with_their_line(
    name: str, content: bytes, code: int, said: str, cli: Cli, config: Config, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    assert_clear(cli("generate", "-c", config(), "-p", path), code, said)


def test_a_missing_prompt_file_is_named(cli: Cli, config: Config, tmp_path: Path) -> None:
    done = cli("generate", "-c", config(), "-p", tmp_path / "none.txt")
    assert_clear(done, 2, "none.txt: prompts cannot be read")


def test_a_truncated_recording_is_refused_by_name(
    cli: Cli, config: Config, recording: Path, tmp_path: Path
) -> None:
    (part,) = recording.glob("activations-*.parquet")
    part.write_bytes(part.read_bytes()[:-20])
    for command in (
        ("replay", recording, "-c", config(), "-o", tmp_path / "run"),
        ("report", recording, "-o", tmp_path / "r.html"),
        ("nla", "decode", recording),
    ):
        assert_clear(cli(*command), 3, str(part))


def test_a_recording_of_another_model_is_refused(
    cli: Cli, config: Config, tiny: Any, recording: Path, tmp_path: Path
) -> None:
    path = config(target={"model": str(tiny.wide_target)})
    done = cli("replay", recording, "-c", path, "-o", tmp_path / "run")
    assert_clear(done, 3, "set target.model")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0])
def test_a_vector_that_cannot_be_decoded_is_named_by_its_row(
    bad: float, cli: Cli, tiny: Any, tmp_path: Path
) -> None:
    rows = [[1.0] * tiny_nla.D, [bad] * tiny_nla.D]
    vectors = pa.array(rows, pa.list_(pa.float32(), tiny_nla.D))
    path = tmp_path / "v.parquet"
    pq.write_table(pa.table({"activation_vector": vectors}), path)
    done = cli("nla", "decode", path, "--av", tiny.av, "--ar", tiny.ar)
    assert_clear(done, 3, "row 1")


def test_vectors_of_another_width_are_refused(cli: Cli, tiny: Any, tmp_path: Path) -> None:
    vectors = pa.array([[1.0] * 8], pa.list_(pa.float32(), 8))
    path = tmp_path / "v.parquet"
    pq.write_table(pa.table({"activation_vector": vectors}), path)
    done = cli("nla", "decode", path, "--av", tiny.av, "--ar", tiny.ar)
    assert_clear(done, 3, "this NLA reads [n, 32]")


def test_an_unwritable_directory_is_named(
    cli: Cli, config: Config, prompts: Path, recording: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    inside = tmp_path / "file" / "x"
    assert_clear(cli("record", "-c", config(), "-p", prompts, "-o", inside), 2, str(inside))
    assert_clear(cli("replay", recording, "-c", config(), "-o", inside), 2, str(inside))
    assert_clear(cli("report", recording, "-o", inside), 2, str(inside))


@pytest.mark.parametrize(
    "line",
    [
        ("bogus",),
        ("generate", "--max-new-tokens", "0"),
        ("generate", "--nope"),
        ("nla", "decode"),
        ("nla", "decode", "a.parquet", "--prompt", "b"),
        ("alerts", "tail"),
        ("record",),
    ],
)
def test_bad_usage_exits_with_two_and_one_line(line: tuple[str, ...], cli: Cli) -> None:
    done = cli(*line)
    assert_clear(done, 2)
    assert len(done.err.splitlines()) == 1


def test_an_unexpected_failure_shows_no_message_and_no_traceback(
    cli: Cli, rule: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_: Any) -> None:
        raise RuntimeError("the user's prompt")

    monkeypatch.setattr("nae_monitor.detect.lint.lint", explode)
    done = cli("rules", "lint", rule)
    assert_clear(done, 1, "unexpected RuntimeError", "--debug")
    assert "prompt" not in done.err
    debug = cli("rules", "lint", rule, "--debug")
    assert debug.code == 1
    assert "Traceback" in debug.err


def test_every_command_explains_itself(cli: Cli) -> None:
    commands = (
        "", "demo", "generate", "record", "replay", "report", "doctor", "rules", "rules test",
        "rules lint", "nla", "nla decode", "nla train", "nla evaluate", "alerts", "alerts tail",
    )  # fmt: skip
    for command in commands:
        done = cli(*command.split(), "--help")
        assert done.code == 0
        assert "Usage: nae-monitor" in done.out


def test_the_version_is_that_of_the_package(cli: Cli) -> None:
    from nae_monitor import __version__

    assert cli("--version").out.strip() == __version__


def test_help_imports_nothing_heavy() -> None:
    import subprocess
    import sys

    code = (
        "import sys; from nae_monitor.cli import run; run(['--help']); "
        f"print([m for m in {HEAVY!r} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
