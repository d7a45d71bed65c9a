"""Python, the packages this one declares, and the device."""

from __future__ import annotations

import platform
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

from nae_monitor.cli.checks.check import Check

NAMED = ("torch", "transformers")  # a row each; the others share one
MIN_PYTHON = (3, 11)


def environment() -> Iterator[Check]:
    """Python's version, and every package that the installed distribution requires."""
    yield _python()
    declared = _declared()
    if declared is None:
        yield Check(
            "packages",
            "warning",
            "nae-monitor is not installed, so its requirements are unknown",
            "install it: pip install nae-monitor",
        )
        return
    faults = {r.name: _package_fault(r) for r in declared}
    for name in NAMED:
        if name in faults and not faults[name]:
            yield Check(name, "ok", _described(name))
    for name, fault in faults.items():
        if fault:
            yield Check(name, "fault", fault, "pip install -U nae-monitor")
    fine = sum(not fault for fault in faults.values())
    yield Check("packages", "ok", f"{fine} of {len(faults)} required packages fit")


def _python() -> Check:
    found = platform.python_version()
    if sys.version_info < MIN_PYTHON:
        return Check("python", "fault", found, "use Python 3.11 or later")
    return Check("python", "ok", found)


def _declared() -> list[Requirement] | None:
    try:
        lines = requires("nae-monitor") or []
    except PackageNotFoundError:
        return None
    parsed = [Requirement(line) for line in lines]
    return [r for r in parsed if r.marker is None or r.marker.evaluate({"extra": ""})]


def _package_fault(requirement: Requirement) -> str:
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        return f"{requirement} is not installed"
    if not requirement.specifier.contains(found, prereleases=True):
        return f"{requirement.name} {found} is installed, {requirement} is needed"
    return ""


def _described(name: str) -> str:
    if name != "torch":
        return version(name)
    import torch

    on_gpu = torch.cuda.is_available()
    return f"{torch.__version__}, {torch.cuda.get_device_name(0) if on_gpu else 'CPU'}"
