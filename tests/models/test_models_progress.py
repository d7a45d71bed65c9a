from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import pytest
from rich.console import Console
from rich.live import Live
from transformers import modeling_gguf_pytorch_utils
from transformers.utils import logging

from nae_monitor.cli.terminal import errors
from nae_monitor.models.progress import quiet_loading, standard_error, steps

GGUF: Any = modeling_gguf_pytorch_utils


@pytest.fixture(autouse=True)
def bars() -> Iterator[None]:
    """Drawn, as where no command of this package ran before; as they were afterwards."""
    was_enabled = logging.is_progress_bar_enabled()
    logging.enable_progress_bar()
    yield
    if not was_enabled:
        logging.disable_progress_bar()


def test_no_bar_of_transformers_is_drawn_while_a_model_loads(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def draw() -> str:
        for bar in (GGUF.tqdm, logging.tqdm):
            assert list(bar(range(2), desc="loading")) == [0, 1]
        return capsys.readouterr().err

    assert draw().count("100%") == 2
    with quiet_loading():
        assert draw() == ""
    assert draw().count("100%") == 2


def test_bars_are_drawn_again_after_a_model_that_did_not_load() -> None:
    before = GGUF.tqdm
    with pytest.raises(FileNotFoundError), quiet_loading():
        raise FileNotFoundError
    assert GGUF.tqdm is before
    assert logging.is_progress_bar_enabled()


def test_what_a_command_says_and_what_loading_shows_share_one_screen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert errors() is standard_error()
    screen = Console(file=io.StringIO(), force_terminal=True, width=80)
    monkeypatch.setattr("nae_monitor.models.progress.standard_error", lambda: screen)
    with Live("the demo", console=screen, auto_refresh=False) as outer:
        with steps("preparing a model", 2) as step:
            step("converting")
        outer.refresh()
    assert isinstance(screen.file, io.StringIO)
    lines = screen.file.getvalue().splitlines()
    assert [line for line in lines if "preparing a model" in line]
    assert not [line for line in lines if "the demo" in line and "preparing" in line]
