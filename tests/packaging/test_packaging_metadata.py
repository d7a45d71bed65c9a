"""pyproject.toml and the constraints say what the folders and the imports say."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
MAPPED = {"nae_monitor": "nae_monitor", "nae_monitor.rules": "rules"}
MAPPED |= {"nae_monitor.integrations": "integrations"}
# Imported by other libraries on our behalf, or run as a program.
INDIRECT = {"gguf", "pip"}


def packages() -> Iterator[str]:
    for name, folder in MAPPED.items():
        for place in (ROOT / folder, *(ROOT / folder).rglob("*")):
            if not place.is_dir() or "__pycache__" in place.parts:
                continue
            if folder == "nae_monitor" and not any(place.glob("*.py")):
                continue  # data of the package above
            if any(path.is_file() for path in place.iterdir()) or place == ROOT / folder:
                yield ".".join([name, *place.relative_to(ROOT / folder).parts])


def requirements(*extras: str) -> dict[str, Requirement]:
    lines = list(PROJECT["project"]["dependencies"])
    for extra in extras:
        lines += PROJECT["project"]["optional-dependencies"][extra]
    return {canonicalize_name(r.name): r for r in map(Requirement, lines)}


def imported_distributions(folder: Path) -> set[str]:
    known = packages_distributions()
    names = {
        module.split(".")[0]
        for path in folder.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for module in modules(node)
    }
    foreign = names - set(sys.stdlib_module_names) - {"nae_monitor", "__future__", "opentelemetry"}
    return {canonicalize_name(known[name][0]) for name in foreign if name in known}


def modules(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module or ""] if isinstance(node, ast.ImportFrom) else []


def test_the_package_list_is_that_of_the_folders() -> None:
    assert sorted(PROJECT["tool"]["setuptools"]["packages"]) == sorted(packages())
    assert PROJECT["tool"]["setuptools"]["package-dir"] == MAPPED


def test_every_import_is_declared() -> None:
    declared = set(requirements("train", "otlp", "remote", "ray", "ipc", "encryption"))
    assert imported_distributions(ROOT / "nae_monitor") - declared == set()


def test_every_declared_dependency_is_used() -> None:
    unused = set(requirements("train")) - imported_distributions(ROOT / "nae_monitor") - INDIRECT
    assert {name for name in unused if not name.startswith("opentelemetry")} == set()


def test_every_dependency_but_tools_has_a_lower_bound() -> None:
    assert all(len(r.specifier) for r in requirements("train", "otlp", "broker", "ray").values())


def test_constraints_are_full_pins_that_any_machine_can_find() -> None:
    text = (ROOT / ".ci" / "constraints.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9A-Za-z.]+", line) for line in lines)
    assert "torch==2.13.0" in lines
    assert len({line.split("==")[0] for line in lines}) == len(lines)


def test_constraints_pin_what_is_declared_within_its_range() -> None:
    text = (ROOT / ".ci" / "constraints.txt").read_text(encoding="utf-8")
    pins = dict(line.split("==") for line in text.splitlines() if "==" in line)
    for name, requirement in requirements("train", "otlp", "kafka", "broker", "dev").items():
        if name not in ("nae-monitor", "pip"):
            assert name in pins, name
            assert requirement.specifier.contains(pins[name], prereleases=True), name


@pytest.mark.parametrize(
    "extra",
    ["train", "otlp", "kafka", "broker", "ray", "encryption", "sglang", "vllm", "fuzz", "dev"],
)
def test_the_extras_exist(extra: str) -> None:
    assert PROJECT["project"]["optional-dependencies"][extra]


def test_the_licence_is_the_apache_licence() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
