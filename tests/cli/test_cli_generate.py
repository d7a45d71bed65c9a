"""``generate`` and ``record``: replies with verdicts, and nothing lost on Ctrl-C."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nae_monitor.recording import Recording

Cli = Callable[..., Any]
Config = Callable[..., str]
SHORT = ("--max-new-tokens", "6")


def test_each_prompt_gets_a_reply_and_a_verdict(cli: Cli, config: Config, prompts: Path) -> None:
    done = cli("generate", "-c", config(), "-p", prompts, "--json", *SHORT)
    assert done.code == 0
    first, second = done.objects
    assert (first["prompt"], second["prompt"]) == ("dogs and cats", "a harmful request")
    assert first["verdict"]["state"] == "alert"
    assert {f["rule_name"] for f in first["verdict"]["findings"]} == {"anything"}
    tokens = first["verdict"]["coverage_tokens"]
    assert tokens["seen"] == tokens["screened"] > tokens["judged"] == 4


def test_alerts_of_the_console_sink_stay_off_standard_output(
    cli: Cli, config: Config, prompts: Path
) -> None:
    done = cli("generate", "-c", config(), "-p", prompts, "--json", *SHORT)
    assert "Anything at all" in done.err
    assert len(done.objects) == 2


def test_a_person_reads_the_reply_the_verdict_and_the_rules(
    cli: Cli, config: Config, prompts: Path
) -> None:
    done = cli("generate", "-c", config(), "-p", prompts, *SHORT)
    assert "> dogs and cats" in done.out
    assert "ALERT" in done.out
    assert "low anything at token" in done.out


def test_json_lines_carry_session_and_tenant(cli: Cli, config: Config, tmp_path: Path) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps({"prompt": "a\nb", "session_id": "s", "tenant": "acme"}) + "\n")
    done = cli("generate", "-c", config(), "-p", path, "--json", *SHORT)
    (found,) = done.objects
    assert (found["prompt"], found["session_id"], found["tenant"]) == ("a\nb", "s", "acme")


def test_a_dead_decode_server_makes_undecided_never_clean(
    cli: Cli, config: Config, prompts: Path
) -> None:
    engine = {"engine": "sglang:http://127.0.0.1:9", "timeout_s": 0.2}
    done = cli("generate", "-c", config(nla=engine), "-p", prompts, "--json", *SHORT)
    assert done.code == 0
    assert {found["verdict"]["state"] for found in done.objects} == {"undecided"}
    assert done.objects[0]["verdict"]["coverage_tokens"]["dropped"]["engine"] > 0


@pytest.mark.parametrize("command", ["generate", "record"])
def test_an_alert_that_is_not_delivered_is_exit_1_behind_the_whole_output(
    command: str,
    cli: Cli,
    config: Config,
    prompts: Path,
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from nae_monitor.monitor import Monitor

    real = Monitor.close
    monkeypatch.setattr(Monitor, "close", lambda self: real(self, deadline_s=1.0))
    nobody = {"url": "http://127.0.0.1:9/", "secret_env": None, "outbox": str(tmp_path / "o.db")}
    settings["alert"]["sinks"] = [{"webhook": nobody}]
    where = ["-o", str(tmp_path / "rec")] if command == "record" else []
    done = cli(command, "-c", config(), "-p", prompts, "--json", *where, *SHORT)
    assert done.code == 1
    assert "not everything was worked off or delivered in time" in done.err
    assert "Traceback" not in done.err
    assert [set(one) for one in done.objects[2:]] == [{"recording"}] * (command == "record")
    assert all(one["verdict"] for one in done.objects[:2])


def test_a_recording_is_written_and_named(recording: Path) -> None:
    opened = Recording.open(recording)
    assert opened.complete
    assert len(list(opened.requests())) == 2
    assert len(list(opened.activations())) == 8


@pytest.mark.parametrize("stopped_in", ["generate", "verdict"])
def test_an_interrupt_keeps_what_was_accepted(
    stopped_in: str,
    cli: Cli,
    config: Config,
    prompts: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from nae_monitor.monitor import Monitor

    seen: list[str] = []
    real = Monitor.verdict

    def interrupted(self: Monitor, request_id: str, wait_s: float = 5.0) -> Any:
        seen.append(request_id)
        if len(seen) == 2 and stopped_in == "verdict":
            raise KeyboardInterrupt
        return real(self, request_id, wait_s)

    def request(self: Monitor, *arguments: Any, **names: Any) -> Any:
        if seen and stopped_in == "generate":
            raise KeyboardInterrupt
        return real_request(self, *arguments, **names)

    real_request = Monitor.request
    monkeypatch.setattr(Monitor, "verdict", interrupted)
    monkeypatch.setattr(Monitor, "request", request)
    out = tmp_path / "rec"
    done = cli("record", "-c", config(), "-p", prompts, "-o", out, "--json", *SHORT)
    assert done.code == 130
    assert "stopped after 1 of 2 prompts" in done.err
    assert "Traceback" not in done.err
    (recording,) = out.iterdir()
    opened = Recording.open(recording)
    assert opened.complete
    assert len(list(opened.requests())) == (2 if stopped_in == "verdict" else 1)


def test_ctrl_c_in_a_real_process_ends_it_in_order(config: Config, tmp_path: Path) -> None:
    many = tmp_path / "many.txt"
    many.write_text("dogs and cats\n" * 500)
    command = [
        Path(sys.executable).with_name("nae-monitor"), "record", "-c", config(), "-p", many,
        "-o", tmp_path / "rec", "--json", *SHORT,
    ]  # fmt: skip
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for _ in range(2):
            assert "verdict" in json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        _, said = process.communicate()
    assert process.returncode == 130
    assert said.splitlines()[-1] == "interrupted"
    assert "Traceback" not in said
    (recording,) = (tmp_path / "rec").iterdir()
    opened = Recording.open(recording)
    assert opened.complete
    assert len(list(opened.requests())) >= 2
