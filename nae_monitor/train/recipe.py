"""One YAML file holds a recipe: corpus, collection, both trainings, export."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Literal

from nae_monitor.binding import bind
from nae_monitor.strict_yaml import read_document
from nae_monitor.train.conversations import CollectOptions
from nae_monitor.train.lora import LoraOptions

MIN_BANK_VECTORS = 256  # of the checkpoint contract: fewer give ranks that say little

Measure = Literal["validation_loss", "gap", "fve_gold", "fve_round_trip"]
AV_MEASURES: tuple[Measure, ...] = ("validation_loss", "gap")
AR_MEASURES: tuple[Measure, ...] = ("fve_gold", "fve_round_trip")


@dataclass(frozen=True, slots=True)
class CorpusOptions:
    """Which documents, and how they are split."""

    chat_limit: int = 3000
    technical_limit: int = 1000
    validation_share: float = 0.03
    test_share: float = 0.06
    out_of_distribution: tuple[str, ...] = ("inspect-evals/writingbench",)

    def __post_init__(self) -> None:
        if self.chat_limit < 0 or self.technical_limit < 0:
            raise ValueError("chat_limit and technical_limit must not be negative")
        if not (self.validation_share > 0 and self.test_share > 0):
            raise ValueError("validation_share and test_share must be above 0")
        if self.validation_share + self.test_share >= 1:
            raise ValueError("validation_share and test_share leave nothing to train on")


@dataclass(frozen=True, slots=True)
class HalfOptions:
    """Training of one half of the pair."""

    steps: int
    lora: LoraOptions = field(default_factory=LoraOptions)
    evaluate_every: int = 100
    save_every: int = 50
    patience: int | None = None  # stop after so many measurements without a better one
    measure: Measure | None = None  # which; None: validation_loss, and fve_round_trip or fve_gold

    def __post_init__(self) -> None:
        for name in ("steps", "evaluate_every", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, must be at least 1")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience is {self.patience}, must be at least 1 or left out")


@dataclass(frozen=True, slots=True)
class ExpertOptions:
    """Expert iteration: sample texts, keep what the reconstructor likes best, train on."""

    rounds: int = 0  # 0: none
    rows: int = 2048  # training rows a round
    samples: int = 4  # texts a row, beside the greedy one
    temperature: float = 1.0
    av_steps: int = 150
    ar_steps: int = 150
    negatives: int = 8  # the nearest vectors of other documents, which a text must not fit

    def __post_init__(self) -> None:
        if self.rounds < 0:
            raise ValueError(f"rounds is {self.rounds}, must not be negative")
        for name in ("rows", "samples", "av_steps", "ar_steps", "negatives"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, must be at least 1")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}, must be above 0")


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that determines a pair."""

    nla_id: str
    target: str
    collect: CollectOptions
    av: HalfOptions
    ar: HalfOptions
    seed: int = 0
    corpus: CorpusOptions = field(default_factory=CorpusOptions)
    expert: ExpertOptions = field(default_factory=ExpertOptions)
    scale_quantile: float = 0.75  # injection_scale = this quantile of |h|
    reference_vectors: int = 512  # the bank that ranks are counted in
    read_rows: int = 2048  # training rows whose own explanations the reconstructor learns, too
    notes: str = ""  # goes into the training record as it stands

    def __post_init__(self) -> None:
        if not 0 < self.scale_quantile <= 1:
            raise ValueError(f"scale_quantile is {self.scale_quantile}, must be in (0, 1]")
        if self.read_rows < 0:
            raise ValueError(f"read_rows is {self.read_rows}, must not be negative")
        if self.reference_vectors < MIN_BANK_VECTORS:
            raise ValueError(
                f"reference_vectors is {self.reference_vectors}, at least {MIN_BANK_VECTORS}"
            )
        for half, known in ((self.av, AV_MEASURES), (self.ar, AR_MEASURES)):
            if half.measure is not None and half.measure not in known:
                raise ValueError(f"measure is {half.measure}, one of: {', '.join(known)}")

    @classmethod
    def from_yaml(cls, path: Path | str) -> Recipe:
        """Read a recipe file, or a shipped one by name (``smollm2-135m-cpu``).

        Raises:
            ConfigurationError: every problem of the file.
        """
        shipped = resources.files("nae_monitor.train") / "recipes" / f"{path}.yaml"
        if not Path(path).exists() and shipped.is_file():
            return bind(read_document(str(shipped), shipped.read_text()), cls)
        return bind(read_document(path), cls)
