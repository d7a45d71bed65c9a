from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny_trainer
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return tiny_trainer.build_tokenizer()


@pytest.fixture(scope="session")
def model(tokenizer: Any) -> Any:
    """Read-only: tests that train build their own."""
    return tiny_trainer.build_model(len(tokenizer))


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return tiny_trainer.write_wheels(tmp_path_factory.mktemp("wheels"))
