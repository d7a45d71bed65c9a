"""The machine that a figure was measured on, and the most matrix products it does a second."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from nae_monitor.train.lora import has_fast_bfloat16
from nae_monitor.train.machine import matmul_peak

DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True, slots=True)
class Machine:
    """What a figure depends on besides the program."""

    cpu: str
    cores: int  # that this process may use
    threads: int  # that torch uses
    capability: str  # the vector instructions that torch uses, e.g. AVX512
    native_bfloat16: bool  # of the device that was measured
    ram_gib: float
    gpu: str | None
    python: str
    torch: str
    busy_elsewhere_cores: float | None  # taken by other processes while the peak was measured
    device: str
    matrix_peak_gflop_per_s: dict[str, float] = field(default_factory=dict)  # by dtype

    @property
    def line(self) -> str:
        """One line for the head of a table."""
        peaks = ", ".join(
            f"{name} {rate:,.0f}" for name, rate in self.matrix_peak_gflop_per_s.items()
        )
        gpu = f", {self.gpu}" if self.gpu else ""
        return (
            f"{self.cpu}, {self.cores} cores ({self.threads} threads, {self.capability})"
            f"{gpu}, {self.ram_gib:.0f} GiB, torch {self.torch}, Python {self.python}; "
            f"matrix-product peak on {self.device} in GFLOP/s: {peaks or 'not measured'}"
        )

    @property
    def is_busy(self) -> bool:
        """Whether other work ran beside the benchmark: its speeds are then too low."""
        return self.busy_elsewhere_cores is not None and self.busy_elsewhere_cores > 0.25

    def plain(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def describe(device: str = "cpu", seconds: float = 1.0) -> Machine:
    """Describe this machine and measure the peak of ``device``, ``seconds`` for each dtype."""
    started_s, taken = time.perf_counter(), _core_seconds()
    peaks = {dtype_name(dtype): matmul_peak(device, dtype, seconds) / 1e9 for dtype in DTYPES}
    elapsed_s, taken_after = time.perf_counter() - started_s, _core_seconds()
    return Machine(
        cpu=_cpu_name(),
        cores=_cores(),
        threads=torch.get_num_threads(),
        capability=torch.backends.cpu.get_cpu_capability(),
        native_bfloat16=has_fast_bfloat16(torch.device(device)),
        ram_gib=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        gpu=torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
        python=platform.python_version(),
        torch=torch.__version__,
        busy_elsewhere_cores=(
            None
            if taken is None or taken_after is None
            else round(max(0.0, taken_after - taken) / elapsed_s, 2)
        ),
        device=device,
        matrix_peak_gflop_per_s=peaks,
    )


def dtype_name(dtype: torch.dtype) -> str:
    """``float32`` and the like."""
    return str(dtype).removeprefix("torch.")


def _core_seconds() -> float | None:
    """Processor time that other processes have taken so far; None where /proc does not tell."""
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
    except OSError:
        return None
    user, nice, system, _idle, _wait, *rest = map(int, fields[:8])
    ticks = user + nice + system + sum(rest)
    return ticks / os.sysconf("SC_CLK_TCK") - time.process_time()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()
