"""``doctor``: what stops a start is a fault with its mend; what does not is a warning."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]
Config = Callable[..., str]


def checks(done: Any, name: str) -> list[dict[str, str]]:
    return [check for check in done.objects[0]["checks"] if check["name"] == name]


def test_a_sound_configuration_has_no_fault(cli: Cli, config: Config) -> None:
    done = cli("doctor", "-c", config(), "--json")
    assert done.code == 0, done.out
    names = {check["name"] for check in done.objects[0]["checks"]}
    assert names >= {"python", "torch", "transformers", "packages", "settings", "target", "nla"}
    assert names >= {"encoder", "rules", "sink console", "cache", "privacy"}
    assert done.objects[0]["ok"]


@pytest.mark.parametrize("reason", [None, "rotary positions of type dynamic"])
def test_the_slower_way_of_decoding_is_told(
    cli: Cli, config: Config, reason: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if reason is not None:
        monkeypatch.setattr("nae_monitor.decode.engines.fused._STATIC_ROPES", frozenset({reason}))
    (engine,) = checks(cli("doctor", "-c", config(), "--json"), "engine")
    assert ("slower" in engine["message"]) == (reason is not None)
    assert engine["state"] == "ok"


def test_every_fault_is_named_with_its_mend_and_exits_with_two(
    cli: Cli, config: Config, tiny: Any, tmp_path: Path, rule: Path
) -> None:
    (tmp_path / "file").write_text("")
    rule.write_text("title: x")
    path = config(
        target={"model": str(tiny.wide_target)},
        alert={"sinks": [{"jsonl": str(tmp_path / "file" / "a.jsonl")}]},
        record={"dir": str(tmp_path / "file" / "rec")},
    )
    done = cli("doctor", "-c", path)
    assert done.code == 2
    for said in ("d_model is 32", "the target", "jsonl", "cannot be written", "lacks"):
        assert said in " ".join(done.out.split())
    assert "Traceback" not in done.err


def test_a_broken_file_is_a_fault_and_the_machine_is_still_checked(
    cli: Cli, tmp_path: Path
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text("nla: {x: 1}\ntarget: 3")
    done = cli("doctor", "-c", path, "--json")
    assert done.code == 2
    assert len(checks(done, "settings")) == 2
    assert checks(done, "torch")[0]["state"] == "ok"


def test_brokers_that_are_away_are_warnings(cli: Cli, config: Config) -> None:
    with socket.socket() as closed:  # bound and not listening: nothing else takes the port
        closed.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{closed.getsockname()[1]}"
        sinks = [{"kafka": {"bootstrap": where}}, {"otel": {"endpoint": f"http://{where}"}}]
        done = cli("doctor", "-c", config(alert={"sinks": sinks}), "--json")
    assert done.code == 0
    assert [checks(done, f"sink {kind}")[0]["state"] for kind in ("kafka", "otel")] == [
        "warning",
        "warning",
    ]


def test_a_broker_that_listens_is_ok(cli: Cli, config: Config) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        where = f"127.0.0.1:{server.getsockname()[1]}"
        done = cli("doctor", "-c", config(alert={"sinks": [{"kafka": {"bootstrap": where}}]}))
    assert "answers" in done.out


def test_a_model_that_is_not_fetched_yet_is_a_warning_and_nothing_is_fetched(
    cli: Cli, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAE_MONITOR_CACHE", str(tmp_path / "cache"))
    path = config(
        target={"model": "smollm2-135m-instruct"}, detect={"encoder": "embedded/all-minilm-l6-v2"}
    )
    done = cli("doctor", "-c", path, "--json")
    assert done.code == 0
    assert [checks(done, name)[0]["state"] for name in ("target", "encoder")] == ["warning"] * 2
    assert not (tmp_path / "cache").exists()


def test_a_checkpoint_without_sidecar_is_a_fault(
    cli: Cli, config: Config, tiny: Any, tmp_path: Path
) -> None:
    av = shutil.copytree(tiny.av, tmp_path / "av")
    (av / "nla_meta.yaml").unlink()
    done = cli("doctor", "-c", config(nla={"av": str(av)}), "--json")
    assert done.code == 2
    assert "nla_meta.yaml" in checks(done, "nla")[0]["message"]


def test_a_check_leaves_no_file_behind(cli: Cli, config: Config, tmp_path: Path) -> None:
    path = config(alert={"sinks": [{"jsonl": str(tmp_path / "out" / "a.jsonl")}]})
    assert cli("doctor", "-c", path).code == 0
    assert not list((tmp_path / "out").iterdir())


def test_the_privacy_key_is_asked_for(
    cli: Cli, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NAE_MONITOR_HMAC_KEY", raising=False)
    path = config(privacy={"content": "hash"})
    assert checks(cli("doctor", "-c", path, "--json"), "privacy")[0]["state"] == "warning"
    monkeypatch.setenv("NAE_MONITOR_HMAC_KEY", "a secret")
    assert checks(cli("doctor", "-c", path, "--json"), "privacy")[0]["state"] == "ok"


def test_rules_among_which_nothing_can_match_are_a_fault(
    cli: Cli, config: Config, tmp_path: Path
) -> None:
    (tmp_path / "words.yaml").write_text("schema_version: 1\nlist: words\nitems: [a]\n")
    done = cli("doctor", "-c", config(detect={"rules": [str(tmp_path / "words.yaml")]}), "--json")
    (found,) = checks(done, "rules")
    assert done.code == 2
    assert found["message"] == "there is no rule: nothing could ever match"
