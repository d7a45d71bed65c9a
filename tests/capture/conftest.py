from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from capture_oracle import LAYER, MAKERS, Recorder, assert_untouched, make

from nae_monitor.capture import TransformersTap
from nae_monitor.health import Health
from nae_monitor.settings import CaptureSettings


@pytest.fixture(scope="session")
def models() -> dict[str, Any]:
    return {name: make(name) for name in MAKERS}


@pytest.fixture(params=list(MAKERS))
def model(request: pytest.FixtureRequest, models: dict[str, Any]) -> Iterator[Any]:
    """Each architecture in turn; a test must leave it as it was."""
    model = models[request.param]
    yield model
    assert_untouched(model)


@pytest.fixture
def llama_model(models: dict[str, Any]) -> Any:
    return models["llama"]


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def health() -> Health:
    return Health()


@pytest.fixture
def tap(recorder: Recorder, health: Health) -> Callable[..., TransformersTap]:
    """Makes a tap that tells the recorder; every position unless asked otherwise."""

    def build(model: Any, *, layer: int = LAYER, **settings: Any) -> TransformersTap:
        return TransformersTap(
            model,
            None,
            layer=layer,
            settings=CaptureSettings(**{"min_position": 0, **settings}),
            listener=recorder,
            health=health,
            model_name="tiny",
        )

    return build
