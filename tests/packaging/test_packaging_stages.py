"""The stages know the contract and each other not at all; only composers wire them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import nae_monitor

PACKAGE = Path(nae_monitor.__file__).parent
STAGES = ("capture", "screen", "decode", "detect", "alert", "recording")
CONTRACT = {
    "records",
    "errors",
    "health",
    "host_copy",
    "settings",
    "placement_settings",
    "sink_settings",
    "binding",
    "strict_yaml",
    "models",
    "transcripts",
    "spreadsheet",
    "version",
}


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every import of this package, lazy ones included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.startswith("nae_monitor"))


def sources(folder: str) -> list[Path]:
    found = sorted((PACKAGE / folder).rglob("*.py"))
    assert found
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_imports_the_contract_and_itself_only(stage: str) -> None:
    foreign = [
        f"{path.relative_to(PACKAGE)}:{line}: {name}"
        for path in sources(stage)
        for line, name in imported(path)
        if name.split(".")[1] not in CONTRACT | {stage}
    ]
    assert foreign == []


@pytest.mark.parametrize("module", sorted(CONTRACT - {"models"}))
def test_the_contract_imports_no_stage(module: str) -> None:
    names = [name.split(".")[1] for _, name in imported(PACKAGE / f"{module}.py")]
    assert set(names) <= CONTRACT - {"models"}


def test_models_imports_no_stage() -> None:
    names = {name.split(".")[1] for path in sources("models") for _, name in imported(path)}
    assert names <= CONTRACT


@pytest.mark.parametrize("forbidden", ["pickle", "marshal", "shelve", "dill", "joblib"])
def test_nothing_here_can_unpickle(forbidden: str) -> None:
    users = [
        str(path)
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Import) and forbidden in {a.name for a in node.names})
        or (isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == forbidden)
    ]
    assert users == []
