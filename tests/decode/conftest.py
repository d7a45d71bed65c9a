from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny_nla
import torch

torch.set_num_threads(1)


@dataclass(frozen=True)
class Tiny:
    """One family's directories."""

    family: str
    base: Path
    official: tuple[Path, Path]
    adapter: tuple[Path, Path]

    def resolve(self, name: str) -> Path:
        assert name == "tiny"
        return self.base


@pytest.fixture(scope="session")
def tiny_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Tiny]:
    """Builds each family's checkpoints once; treat them as read-only."""
    made: dict[str, Tiny] = {}

    def build(family: str) -> Tiny:
        if family not in made:
            root = tmp_path_factory.mktemp(family)
            base = tiny_nla.write_base(root / "base", family)
            made[family] = Tiny(
                family,
                base,
                tiny_nla.write_official(root, base),
                tiny_nla.write_adapters(root, base),
            )
        return made[family]

    return build


@pytest.fixture(params=tiny_nla.FAMILIES)
def tiny(request: pytest.FixtureRequest, tiny_of: Callable[[str], Tiny]) -> Tiny:
    return tiny_of(request.param)


@pytest.fixture
def llama(tiny_of: Callable[[str], Tiny]) -> Tiny:
    return tiny_of("llama")


@pytest.fixture
def official_copy(llama: Tiny, tmp_path: Path) -> tuple[Path, Path]:
    """An official pair that the test may spoil."""
    av, ar = llama.official
    return shutil.copytree(av, tmp_path / "av"), shutil.copytree(ar, tmp_path / "ar")


@pytest.fixture
def adapter_copy(llama: Tiny, tmp_path: Path) -> tuple[Path, Path]:
    """An adapter pair that the test may spoil."""
    av, ar = llama.adapter
    return shutil.copytree(av, tmp_path / "av"), shutil.copytree(ar, tmp_path / "ar")
