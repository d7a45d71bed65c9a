"""Copies to the CPU: what is read is what was there, and starting one waits for nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from nae_monitor.capture.gathering import GatheredSteps
from nae_monitor.host_copy import copy_rows, to_device, to_host
from nae_monitor.records import Phase, Request, RowBatch
from nae_monitor.screen import ScoredScreen
from nae_monitor.screen.directions import calibrated
from nae_monitor.settings import ScreenSettings

D = 8
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_cuda)]


@pytest.fixture
def no_waiting() -> Iterator[None]:
    """Any operation that waits for the device raises."""
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
def test_a_copy_holds_what_was_there(device: str, dtype: torch.dtype) -> None:
    there = torch.arange(24, device=device).reshape(4, 6).to(dtype)
    found = to_host(there)
    arrived = found.wait()
    assert found.done()
    assert arrived.device.type == "cpu"
    assert torch.equal(arrived, there.cpu())


@pytest.mark.parametrize("device", DEVICES)
def test_rows_are_copied_in_the_order_asked_for_and_as_the_type_asked_for(device: str) -> None:
    vectors = torch.randn(9, D, device=device, requires_grad=True)
    found = copy_rows(vectors, [7, 0, 7], torch.float16).wait()
    assert torch.equal(found, vectors.detach().cpu()[[7, 0, 7]].half())
    assert not found.requires_grad


@pytest.mark.parametrize("device", DEVICES)
def test_what_goes_to_the_device_is_the_same_there(device: str) -> None:
    values = torch.tensor([3, 1, 2])
    assert torch.equal(to_device(values, torch.device(device)).cpu(), values)


@needs_cuda
def test_a_copy_from_cuda_does_not_show_what_is_written_later() -> None:
    there = torch.zeros(1_000_000, device="cuda")
    found = to_host(there)
    there.fill_(1)
    assert found.wait().sum() == 0


@needs_cuda
def test_scores_rows_and_token_ids_leave_cuda_without_a_wait(no_waiting: None) -> None:
    random = torch.Generator().manual_seed(1)
    directions = calibrated(
        ("one",), torch.eye(D)[:1], torch.randn(4_000, D, generator=random),
        torch.arange(4_000) % 2 == 0, base_model="m", layer=2, provenance={},
    )  # fmt: skip
    screen = ScoredScreen(ScreenSettings(), directions)
    torch.cuda.set_sync_debug_mode("default")
    vectors = torch.randn(4, D, device="cuda")
    ids = torch.tensor([[5]], device="cuda")
    phases = (Phase.PROMPT, Phase.PROMPT, Phase.COMPLETION, Phase.COMPLETION)
    batch = RowBatch(
        (Request("r", "r", "m"),), (0,) * 4, (0, 1, 2, 3), (1,) * 4, phases, 2, vectors
    )
    screen.begin(batch).wait()  # the directions go to the device once
    torch.cuda.set_sync_debug_mode("error")
    begun = screen.begin(batch)
    rows = copy_rows(vectors, [1, 3], torch.float16)
    gathered = GatheredSteps(limit_steps=1, limit_s=10.0)
    gathered.begin(ids)
    gathered.keep(vectors[:1])
    torch.cuda.set_sync_debug_mode("default")
    assert begun.wait().shape == (4, 1)
    assert torch.equal(rows.wait(), vectors.cpu()[[1, 3]].half())
    steps = gathered.take()
    assert steps is not None
    assert list(steps.token_ids) == [[5]]
