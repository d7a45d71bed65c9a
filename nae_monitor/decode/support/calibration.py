"""P(unsupported) of a claim: a logistic fit on claims that could be checked, kept beside the pair.

The file is JSON and is read strictly: a damaged one, or one of another pair, gives no figure.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from nae_monitor.decode.support.claims import Claim, ClaimType
from nae_monitor.decode.support.signals import Signals
from nae_monitor.errors import CheckpointError, Mark, Problem
from nae_monitor.strict_yaml import read_regular_file

FILE_NAME = "support.json"  # in the reconstructor's directory, where a pair ships one
MAX_FILE_BYTES = 1024 * 1024
FEATURES = ("samples", "neighbours")
_KEYS = frozenset({"schema_version", "nla_id", "labels", "models", "provenance"})


@dataclass(frozen=True, slots=True)
class SupportModel:
    """The fit of one type of claim: logistic(intercept + weights . standardised features)."""

    usual_samples: float  # mean share of agreeing samples, on which few texts fall back
    usual_neighbours: float
    mean: tuple[float, ...]  # [2], of the features
    scale: tuple[float, ...]  # [2], above 0
    weights: tuple[float, ...]  # [2]
    intercept: float

    def unsupported(self, signals: Signals) -> float:
        """The probability, 0..1, that a claim with these signals is not true."""
        features = signals.features(self.usual_samples, self.usual_neighbours)
        terms = zip(features, self.mean, self.scale, self.weights, strict=True)
        score = self.intercept + sum(w * (x - m) / s for x, m, s, w in terms)
        return 1 / (1 + math.exp(-max(-30.0, min(30.0, score))))


@dataclass(frozen=True, slots=True)
class SupportCalibration:
    """The fits of a pair. A type of claim without one, or an unknown theme, has no figure."""

    nla_id: str
    labels: tuple[str, ...]  # the themes' labels that were checked
    models: Mapping[ClaimType, SupportModel]
    provenance: Mapping[str, Any] = field(default_factory=dict)  # what it was fitted on

    def unsupported(self, claim: Claim, signals: Signals | None) -> float | None:
        """P(unsupported), rounded to 4 digits; None: unknown, never guessed."""
        model = self.models.get(claim.type)
        unheard = claim.type is ClaimType.THEME and claim.content not in self.labels
        if signals is None or model is None or unheard:
            return None
        figure = model.unsupported(signals)
        return round(figure, 4) if math.isfinite(figure) else None


def shipped_support(reconstructor: Path, nla_id: str) -> SupportCalibration | None:
    """The calibration in a reconstructor's directory; None: there is none for this pair.

    Raises:
        CheckpointError: what lies there is no such calibration.
    """
    place = reconstructor / FILE_NAME
    if not place.is_file():
        return None
    found = read_support(place)
    return found if found.nla_id == nla_id else None


def read_support(path: Path) -> SupportCalibration:
    """Read what :func:`write_support` wrote.

    Raises:
        CheckpointError: not there, too large, damaged, or with a figure that is not finite.
    """
    try:
        content = read_regular_file(path, MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            raise ValueError(f"larger than {MAX_FILE_BYTES} bytes")
        return _calibration(json.loads(content))
    except OSError as error:
        raise _refusal(path, f"cannot be read: {error.strerror or 'no such file'}") from error
    except (ValueError, TypeError, RecursionError) as error:
        raise _refusal(path, f"is no support calibration: {str(error)[:200]}") from error


def write_support(path: Path, calibration: SupportCalibration) -> None:
    """Write the calibration; the same one always gives the same bytes."""
    value = {
        "schema_version": 1,
        "nla_id": calibration.nla_id,
        "labels": list(calibration.labels),
        "models": {kind.value: asdict(model) for kind, model in calibration.models.items()},
        "provenance": dict(calibration.provenance),
    }
    text = json.dumps(value, indent=1, sort_keys=True, allow_nan=False)
    path.write_text(text + "\n", encoding="utf-8")


def _calibration(value: Any) -> SupportCalibration:
    if not isinstance(value, dict) or set(value) != _KEYS or value["schema_version"] != 1:
        raise ValueError("it must hold exactly the keys " + ", ".join(sorted(_KEYS)))
    labels, models = value["labels"], value["models"]
    if not isinstance(value["nla_id"], str) or not isinstance(value["provenance"], dict):
        raise ValueError("nla_id must be text and provenance a mapping")
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ValueError("labels must be a list of texts")
    if not isinstance(models, dict):
        raise ValueError("models must be a mapping")
    return SupportCalibration(
        value["nla_id"],
        tuple(labels),
        {ClaimType(kind): _model(model) for kind, model in models.items()},
        value["provenance"],
    )


def _model(value: Any) -> SupportModel:
    names = {one.name for one in fields(SupportModel)}
    if not isinstance(value, dict) or set(value) != names:
        raise ValueError("a model must hold exactly the keys " + ", ".join(sorted(names)))
    model = SupportModel(
        usual_samples=_number(value["usual_samples"]),
        usual_neighbours=_number(value["usual_neighbours"]),
        mean=_row(value["mean"]),
        scale=_row(value["scale"]),
        weights=_row(value["weights"]),
        intercept=_number(value["intercept"]),
    )
    if min(model.scale) <= 0:
        raise ValueError("a scale is not above 0")
    return model


def _row(value: Any) -> tuple[float, ...]:
    if not isinstance(value, list) or len(value) != len(FEATURES):
        raise ValueError(f"a model has {len(FEATURES)} features")
    return tuple(_number(item) for item in value)


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError("a figure is not a finite number")
    return float(value)


def _refusal(path: Path, message: str) -> CheckpointError:
    mend = "restore it, or delete it: P(unsupported) is then unknown"
    return CheckpointError([Problem(Mark(str(path)), message, mend)])
