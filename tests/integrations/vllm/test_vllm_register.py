"""The entry point: nothing without its switch, and no exception with it."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from nae_monitor.integrations.engines.switch import SWITCH
from nae_monitor.integrations.vllm import register as plugin

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "_patched", False)
    for name in [name for name in sys.modules if name.split(".")[0] == "vllm"]:
        monkeypatch.delitem(sys.modules, name)


class WorkerBase:
    def __init__(self) -> None:
        self.started = True

    def load_model(self) -> None: ...

    compile_or_warm_up_model = execute_model = sample_tokens = shutdown = load_model


class VllmConfig:
    def __init__(self, name: str) -> None:
        self.name = name

    def compute_hash(self, include_version: bool = True) -> str:
        return f"{self.name}-0123"[:10]


def install_double(monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """A ``vllm`` of the three modules that the entry point imports."""
    config, base = type("C", (VllmConfig,), {}), type("W", (WorkerBase,), {})
    config.compute_hash = VllmConfig.compute_hash
    base.__init__ = WorkerBase.__init__
    for name, content in {
        "vllm": {}, "vllm.config": {"VllmConfig": config}, "vllm.v1": {}, "vllm.v1.worker": {},
        "vllm.v1.worker.worker_base": {"WorkerBase": base},
    }.items():  # fmt: skip
        module = ModuleType(name)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
    return config, base


def test_nothing_is_patched_without_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SWITCH, raising=False)
    config, base = install_double(monkeypatch)
    before = (config.compute_hash, base.__init__)
    plugin.register()
    assert (config.compute_hash, base.__init__) == before


def test_the_key_of_compiled_graphs_tells_a_monitored_engine_from_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, _ = install_double(monkeypatch)
    one, other = config("one"), config("other")
    plain = {one.compute_hash(), other.compute_hash()}
    monkeypatch.setenv(SWITCH, "monitor.yaml")
    plugin.register()
    salted = {one.compute_hash(), other.compute_hash(include_version=False)}
    assert len(plain | salted) == 4
    assert {len(key) for key in salted} <= {len(key) for key in plain}


def test_a_worker_of_another_shape_is_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, base = install_double(monkeypatch)
    monkeypatch.setenv(SWITCH, "monitor.yaml")
    plugin.register()
    base.sample_tokens = property(lambda self: self.no_such_thing)
    with pytest.raises(SystemExit, match="no_such_thing"):
        base()


def test_registering_again_patches_once(monkeypatch: pytest.MonkeyPatch) -> None:
    config, _ = install_double(monkeypatch)
    monkeypatch.setenv(SWITCH, "monitor.yaml")
    plugin.register()
    first = config.compute_hash
    plugin.register()
    assert config.compute_hash is first


def test_headers_that_cannot_be_carried_do_not_stop_the_rest(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    _, base = install_double(monkeypatch)
    monkeypatch.setenv(SWITCH, "monitor.yaml")
    plugin.register()
    assert base.__init__ is not WorkerBase.__init__
    assert "HTTP headers are not carried" in caplog.text


@pytest.mark.parametrize("text", ["", "capture: {on_failure: refuse}\n", "no such: [yaml"])
def test_an_unknown_vllm_ends_the_process_with_the_reason(
    text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "monitor.yaml"
    path.write_text(text)
    monkeypatch.setenv(SWITCH, str(path))
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace())
    with pytest.raises(SystemExit, match="this vLLM cannot be watched"):
        plugin.register()


def test_an_unknown_vllm_serves_where_the_configuration_lets_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "monitor.yaml"
    path.write_text("capture: {on_failure: serve}\n")
    monkeypatch.setenv(SWITCH, str(path))
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace())
    plugin.register()
    assert "monitor blind" in caplog.text


def test_the_entry_point_is_declared_for_vllm() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    target = project["entry-points"]["vllm.general_plugins"]["nae_monitor"]
    assert target == f"{plugin.__name__}:{plugin.register.__name__}"
