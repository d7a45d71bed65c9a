from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from pipeline_parts import Bench


@pytest.fixture
def bench() -> Iterator[Callable[..., Bench]]:
    """Makes benches, and closes them however the test ends."""
    made: list[Bench] = []

    def make(**options: Any) -> Bench:
        made.append(Bench(**options))
        return made[-1]

    yield make
    for one in made:
        one.decoder.released.set()
        one.pipeline.close(20.0)
