"""The entry point: nothing without its switch; with it, all hooks or an end with the reason."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sglang_fakes as sgl

from nae_monitor.integrations.engines.switch import SWITCH
from nae_monitor.integrations.sglang import register as plugin
from nae_monitor.integrations.sglang.http import with_identity

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "_registered", False)


def test_nothing_is_registered_without_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SWITCH, raising=False)
    double = sgl.install(monkeypatch)
    plugin.register()
    assert double.registry.hooks == {}


def test_every_hook_goes_around_what_sglang_has(monkeypatch: pytest.MonkeyPatch) -> None:
    double = sgl.install(monkeypatch)
    monkeypatch.setenv(SWITCH, "monitor.yaml")
    plugin.register()
    plugin.register()
    assert len(double.registry.hooks) == 7
    assert {len(hooks) for hooks in double.registry.hooks.values()} == {1}
    assert {kind for hooks in double.registry.hooks.values() for _, kind in hooks} == {"around"}


@pytest.mark.parametrize("text", ["", "capture: {on_failure: refuse}\n", "no such: [yaml"])
def test_an_sglang_without_a_hooked_method_ends_the_process_with_the_reason(
    text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "monitor.yaml"
    path.write_text(text)
    double = sgl.install(monkeypatch)
    monkeypatch.setenv(SWITCH, str(path))
    monkeypatch.setattr(
        sys.modules["sglang.srt.managers.scheduler"], "Scheduler", SimpleNamespace()
    )
    with pytest.raises(SystemExit, match="this SGLang cannot be watched"):
        plugin.register()
    assert double.registry.hooks == {}


def test_an_unknown_sglang_serves_where_the_configuration_lets_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "monitor.yaml"
    path.write_text("capture: {on_failure: serve}\n")
    monkeypatch.setenv(SWITCH, str(path))
    monkeypatch.setitem(sys.modules, "sglang", SimpleNamespace())
    plugin.register()
    assert "monitor blind" in caplog.text


def test_headers_that_cannot_be_carried_do_not_stop_the_rest(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    double = sgl.install(monkeypatch)
    monkeypatch.delattr(sys.modules["sglang.srt.managers.tokenizer_manager"], "TokenizerManager")
    monkeypatch.setenv(SWITCH, "monitor.yaml")
    plugin.register()
    assert len(double.registry.hooks) == 6
    assert "HTTP headers are not carried" in caplog.text


def sent(monkeypatch: pytest.MonkeyPatch, params: Any, headers: Any) -> Any:
    """What the engine is given of a request's sampling parameters."""
    double = sgl.install(monkeypatch)
    monkeypatch.setenv(SWITCH, "monitor.yaml")
    plugin.register()
    double.registry.apply_hooks()
    request = None if headers is None else SimpleNamespace(headers=SimpleNamespace(raw=headers))
    obj = SimpleNamespace(sampling_params=params)
    return double.TokenizerManager().generate_request(obj, request)


def test_the_server_puts_the_headers_into_the_sampling_parameters(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    headers = [(b"x-tenant-id", b"acme"), (b"authorization", b"Bearer secret")]
    given = {"temperature": 0, "custom_params": {"own": 1}}
    found = sent(monkeypatch, given, headers)
    assert found["custom_params"] == {"own": 1, "nae_monitor": {"tenant": "acme"}}
    assert found["temperature"] == 0
    assert given["custom_params"] == {"own": 1}


@pytest.mark.parametrize("headers", [[], [(b"x-session-id", b"s1")]])
def test_a_client_cannot_set_what_only_the_server_may(
    headers: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    forged = [{"custom_params": {"nae_monitor": {"tenant": "acme"}, "own": 1}}, {}]
    found = sent(monkeypatch, forged, headers)
    assert "acme" not in str(found)
    assert found[0]["custom_params"]["own"] == 1


def test_the_operators_own_program_may_name_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"custom_params": {"nae_monitor": {"tenant": "acme"}}}
    assert sent(monkeypatch, said, None) == said


def test_a_request_without_parameters_or_headers_is_left_as_it_is() -> None:
    assert with_identity(None, {}) is None
    assert with_identity(None, {"tenant": "a"}) == {
        "custom_params": {"nae_monitor": {"tenant": "a"}}
    }


def test_the_entry_point_is_declared_for_sglang() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    target = project["entry-points"]["sglang.srt.plugins"]["nae_monitor"]
    assert target == f"{plugin.__name__}:{plugin.register.__name__}"
