"""Where a decode's fidelity stands among the decodes of an NLA pair's calibration set.

A figure that is good for one pair is bad for another; its percentile among ordinary decodes of the
same pair carries over. The set is a JSON file: the pair's name, the metric, and its values.
"""

from __future__ import annotations

import hashlib
import json
import math
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from nae_monitor.errors import ConfigurationError, Mark, Problem
from nae_monitor.records import Decoding
from nae_monitor.strict_yaml import read_regular_file

FILE_NAME = "calibration.json"  # in the reconstructor's directory, where a pair ships one
MAX_FILE_BYTES = 32 * 1024 * 1024
MIN_VALUES = 20  # under which a percentile says next to nothing
Metric = Literal["fve", "cosine"]
_KEYS = ("nla_id", "metric", "values")


@dataclass(frozen=True, eq=False, slots=True)
class Calibration:
    """The fidelity of a pair's decodes of ordinary text; build with :meth:`of`."""

    nla_id: str
    metric: Metric
    values: tuple[float, ...]  # ascending

    @classmethod
    def of(cls, nla_id: str, values: Iterable[float], metric: Metric = "fve") -> Calibration:
        """Sort the figures of the decodes.

        Raises:
            ValueError: fewer than :data:`MIN_VALUES`, or one that is not finite.
        """
        ordered = tuple(sorted(values))
        if len(ordered) < MIN_VALUES:
            raise ValueError(f"{len(ordered)} values; at least {MIN_VALUES}")
        if not all(math.isfinite(value) for value in ordered):
            raise ValueError("a value is not finite")
        return cls(nla_id, metric, ordered)

    @property
    def digest(self) -> str:
        """SHA-256 of the pair, the metric and the values."""
        said = json.dumps([self.nla_id, self.metric, self.values])
        return hashlib.sha256(said.encode()).hexdigest()

    def percentile(self, decoding: Decoding) -> float | None:
        """The share of the set that is no better, 0..100.

        None: the decode was not scored, or is another pair's.
        """
        figure: float | None = getattr(decoding, self.metric)
        return self.percentile_of(figure) if decoding.nla_id == self.nla_id else None

    def percentile_of(self, figure: float | None) -> float | None:
        """As :meth:`percentile`, of a figure of the set's metric and pair."""
        if figure is None or not math.isfinite(figure):
            return None
        return round(100 * bisect_right(self.values, figure) / len(self.values), 4)


def read_calibration(path: Path) -> Calibration:
    """Read a calibration file.

    Raises:
        ConfigurationError: not there, too large, or not a calibration set.
    """
    try:
        content = read_regular_file(path, MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise ValueError(f"larger than {MAX_FILE_BYTES} bytes")
        return _calibration(json.loads(content))
    except OSError as error:
        raise _refusal(path, f"cannot be read: {error.strerror or 'no such file'}") from error
    except (ValueError, TypeError, RecursionError) as error:  # JSON and Unicode faults are values
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise _refusal(path, f"is no calibration set: {why[:200]}") from error


def shipped_calibration(reconstructor: Path) -> Calibration | None:
    """The set in a reconstructor's directory; None where it ships none.

    Raises:
        ConfigurationError: what lies there is no calibration set.
    """
    place = reconstructor / FILE_NAME
    return read_calibration(place) if place.is_file() else None


def write_calibration(path: Path, calibration: Calibration) -> None:
    """Write what :func:`read_calibration` reads; the same set always gives the same bytes."""
    value = {key: getattr(calibration, key) for key in _KEYS}
    path.write_text(json.dumps(value, sort_keys=True) + "\n", encoding="utf-8")


def _calibration(value: Any) -> Calibration:
    if not isinstance(value, dict) or set(value) != set(_KEYS):
        raise ValueError("it must hold exactly the keys " + ", ".join(_KEYS))
    if not isinstance(value["nla_id"], str) or value["metric"] not in get_args(Metric):
        raise ValueError("nla_id must be text and metric fve or cosine")
    values = value["values"]
    if not isinstance(values, list) or not all(type(item) in (int, float) for item in values):
        raise ValueError("values must be a list of numbers")
    try:
        numbers = [float(item) for item in values]
    except OverflowError as error:
        raise ValueError("a value is not finite") from error
    return Calibration.of(value["nla_id"], numbers, cast(Metric, value["metric"]))


def _refusal(path: Path, message: str) -> ConfigurationError:
    mend = "write it with `nae-monitor nla calibrate`, or leave it out"
    return ConfigurationError([Problem(Mark(str(path)), message, mend)])
