"""The one YAML configuration file as frozen settings; strict, every problem reported at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, cast
from urllib.parse import urlsplit

from nae_monitor.binding import bind, bind_kinds
from nae_monitor.errors import ConfigurationError, Problem
from nae_monitor.placement_settings import ActivationsSettings, IpcSettings
from nae_monitor.sink_settings import (
    AlertSettings,
    ConsoleSettings,
    JsonlSettings,
    KafkaSettings,
    OtelSettings,
    SinkKind,
    SinkSettings,
    WebhookSettings,
)
from nae_monitor.strict_yaml import Document, read_document

EMBEDDED_AV = "embedded/smollm2-135m-l20-av"
EMBEDDED_ENCODER = "embedded/all-minilm-l6-v2"
EMBEDDED_AR = "embedded/smollm2-135m-l20-ar"


@dataclass(frozen=True, slots=True)
class TargetSettings:
    """The monitored model: embedded alias, directory or hub id."""

    model: str = "smollm2-135m-instruct"


@dataclass(frozen=True, slots=True)
class NlaSettings:
    """The verbalizer and reconstructor, and where they run."""

    av: str = EMBEDDED_AV
    ar: str = EMBEDDED_AR
    engine: str = "torch"  # torch | vllm:URL | sglang:URL
    batch_size: int = 16
    # Texts that the reconstructor reads at once. None: batch_size on CUDA; on the CPU 1, so that no
    # bit of a text's figures depends on which others were read beside it.
    ar_batch_size: int | None = None
    max_new_tokens: int = 64
    temperature: float = 0.0  # 0: greedy
    seed: int = 0
    timeout_s: float = 30.0  # remote engines: deadline of one decode batch, retries included
    device: Literal["auto", "cpu", "cuda"] = "auto"  # torch engine and reconstructor
    # Of the verbalizer on the CPU; what scores its texts stays in float32. With int8 some texts are
    # others, and may depend on what is decoded beside them.
    cpu_weights: Literal["float32", "int8"] = "float32"

    def __post_init__(self) -> None:
        name, _, url = self.engine.partition(":")
        if self.engine != "torch" and (name not in ("vllm", "sglang") or not urlsplit(url).netloc):
            raise ValueError(f"engine is {self.engine!r}; use torch, vllm:URL or sglang:URL")
        if self.batch_size < 1 or self.max_new_tokens < 1 or self.temperature < 0:
            raise ValueError("batch_size and max_new_tokens are at least 1, temperature at least 0")
        if self.timeout_s <= 0 or (self.ar_batch_size is not None and self.ar_batch_size < 1):
            raise ValueError("timeout_s is above 0, ar_batch_size at least 1")
        if self.cpu_weights != "float32" and (self.engine != "torch" or self.device == "cuda"):
            raise ValueError("cpu_weights is for engine torch on device cpu or auto")


@dataclass(frozen=True, slots=True)
class CaptureSettings:
    """Which rows leave the model, and how much memory they may hold on the way."""

    phases: tuple[Literal["prompt", "completion"], ...] = ("prompt", "completion")
    min_position: int = 10  # tokens; earlier positions decode to the prior
    # inline: this process decodes too; ipc, kafka: `nae-monitor worker` does
    placement: Literal["inline", "ipc", "kafka"] = "inline"
    # Where monitoring cannot start: refuse to serve, or serve unmonitored and say so by an alert.
    on_failure: Literal["refuse", "serve"] = "refuse"
    vector_dtype: Literal["float16", "float32"] = "float16"
    queue_bytes: int = 64 * 1024 * 1024
    # transformers' generate: rows of so many decode steps are screened together, or of those of
    # so many seconds. Where generations may be stopped, each step's are, at once.
    gather_steps: int = 8
    gather_s: float = 0.25

    def __post_init__(self) -> None:
        if not self.phases or self.min_position < 0 or self.queue_bytes < 1:
            raise ValueError("phases must not be empty; min_position and queue_bytes not negative")
        if not 1 <= self.gather_steps <= 64 or not 0 <= self.gather_s <= 10:
            raise ValueError("gather_steps is 1 to 64, gather_s 0 to 10")


@dataclass(frozen=True, slots=True)
class BudgetSettings:
    """How many decodes may be bought, and what for.

    ``wait_s`` and ``ageing_per_s`` are for choice by score: a row that stands out and cannot be
    paid at once waits, the highest score first.
    """

    decodes_per_s: float = 4.0
    per_request: int = 16
    wait_s: float = 2.0  # how long such a row waits at most; 0: it is passed over
    ageing_per_s: float = 1.0  # score, in deviations, that a second of waiting is worth
    neighbours: int = 0  # tokens on either side that a rule's hit buys
    resamples: int = 0  # further texts of its own activation that a hit buys

    def __post_init__(self) -> None:
        if self.decodes_per_s <= 0 or self.per_request < 0:
            raise ValueError("decodes_per_s must be above 0 and per_request not negative")
        if not 0 <= self.wait_s <= 60 or not 0 <= self.ageing_per_s <= 1000:
            raise ValueError("wait_s is 0 to 60, ageing_per_s 0 to 1000")
        if not 0 <= self.neighbours <= 16 or not 0 <= self.resamples <= 16:
            raise ValueError("neighbours and resamples are 0 to 16")


@dataclass(frozen=True, slots=True)
class ScreenSettings:
    """How rows are chosen for decoding.

    ``directions`` is ``none`` (every n-th token), ``rules`` or ``contrast`` (sets that lie with
    the reconstructor: from the rules' words, from labelled rows) or a file that ``nae-monitor
    screen build`` wrote.
    """

    directions: str = "none"
    decode_share: float = 0.05  # of ordinary tokens: a score that fewer reach buys a decode
    every_n_tokens: int = 8
    random_share: float = 0.1  # of the budget, kept for random rows
    budget: BudgetSettings = field(default_factory=BudgetSettings)
    expire_s: float = 60.0  # a row older than this is dropped and counted, not decoded

    def __post_init__(self) -> None:
        if not 0 <= self.random_share <= 1 or self.every_n_tokens < 1 or self.expire_s <= 0:
            raise ValueError("random_share is 0 to 1, every_n_tokens at least 1, expire_s above 0")
        if not 0 < self.decode_share <= 0.5 or not self.directions:
            raise ValueError(
                "decode_share is above 0 to 0.5; directions is none, rules, contrast or a file"
            )


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """Decodings that are used again, within one tenant; see :mod:`nae_monitor.decode.cache`."""

    prefix: bool = True  # for a row after the same tokens
    near_cosine: float | None = None  # for a row at least so near to a decoded one; none: never
    entries: int = 4096
    limit_bytes: int = 64 * 1024 * 1024
    max_age_s: float = 3600.0

    def __post_init__(self) -> None:
        if self.near_cosine is not None and not 0.9 <= self.near_cosine <= 1:
            raise ValueError("near_cosine is 0.9 to 1; leave it out to reuse no near rows")
        if self.entries < 1 or self.limit_bytes < 1 or self.max_age_s <= 0:
            raise ValueError("entries, limit_bytes and max_age_s are above 0")

    @property
    def is_on(self) -> bool:
        """Whether anything is used again."""
        return self.prefix or self.near_cosine is not None


@dataclass(frozen=True, slots=True)
class DecodeSettings:
    """What is decoded at all of the rows that were bought."""

    cache: CacheSettings = field(default_factory=CacheSettings)


@dataclass(frozen=True, slots=True)
class VllmSettings:
    """The plugin of integrations/vllm."""

    # auto: the first of the three whose self-test passes
    tap: Literal["auto", "op", "aux", "hooks"] = "auto"


@dataclass(frozen=True, slots=True)
class DetectSettings:
    """Rule files or directories (``builtin`` is the shipped pack) and the sentence encoder.

    Where ``reload_s`` is given, the files are looked at that often and changes are taken over.
    """

    rules: tuple[str, ...] = ("builtin",)
    encoder: str | None = EMBEDDED_ENCODER
    reload_s: float | None = None
    calibration: str | None = None  # the pair's calibration set; else the one it ships, if any

    def __post_init__(self) -> None:
        if not self.rules:  # nothing could ever match, and every request would look clean
            raise ValueError("rules is empty; name a rule file, a directory, or builtin")
        if self.reload_s is not None and not self.reload_s >= 0.1:
            raise ValueError("reload_s is at least 0.1; leave it out to read the rules once")


@dataclass(frozen=True, slots=True)
class RecordSettings:
    """Recordings: none where ``dir`` is missing."""

    dir: str | None = None
    # candidates: every chosen row; decoded: those that were decoded; captured: candidates, but
    # only of requests that a rule with the action `capture` matched in
    keep: Literal["candidates", "decoded", "captured"] = "candidates"
    encrypt: bool = False  # under the key in NAE_MONITOR_RECORDING_KEY

    def __post_init__(self) -> None:
        if self.dir == "":
            raise ValueError("dir is empty; name a directory, or leave it out")


@dataclass(frozen=True, slots=True)
class ActionSettings:
    """Which of the rules' actions are carried out; the others are only counted and told.

    ``capture`` needs no key here: it is carried out where ``record.keep`` is ``captured``.
    """

    # enforce: as the mode of each rule says; shadow: no rule stops anything
    stop_generation: Literal["shadow", "enforce"] = "shadow"
    # Over all rules; further stops are only told, so that a bad rule cannot end every answer.
    max_stops_per_min: int = 30
    # How long, in all, a sequence may be kept waiting for its unjudged rows, so that a rule's
    # within_tokens holds; 0: generation never waits, and a stop comes when it comes.
    hold_s: float = 0.0
    raise_sampling: bool = False
    raised_decodes_per_s: float = 4.0  # for raised sampling alone, beside screen.budget

    def __post_init__(self) -> None:
        if self.max_stops_per_min < 1 or not 0 <= self.hold_s <= 60:
            raise ValueError("max_stops_per_min is at least 1, hold_s 0 to 60")
        if self.raised_decodes_per_s <= 0:
            raise ValueError("raised_decodes_per_s must be above 0")


@dataclass(frozen=True, slots=True)
class PrivacySettings:
    """What of prompts, outputs and decoded text may leave the process in alerts and spans."""

    content: Literal["hash", "full", "none"] = "hash"
    key_env: str = "NAE_MONITOR_HMAC_KEY"


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """What a request must have had looked at before it may be called clean."""

    min_judged_tokens: int = 1
    min_screened_share: float = 0.99


@dataclass(frozen=True, slots=True)
class Settings:
    """The whole configuration."""

    target: TargetSettings = field(default_factory=TargetSettings)
    nla: NlaSettings = field(default_factory=NlaSettings)
    capture: CaptureSettings = field(default_factory=CaptureSettings)
    screen: ScreenSettings = field(default_factory=ScreenSettings)
    decode: DecodeSettings = field(default_factory=DecodeSettings)
    detect: DetectSettings = field(default_factory=DetectSettings)
    alert: AlertSettings = field(default_factory=AlertSettings)
    record: RecordSettings = field(default_factory=RecordSettings)
    actions: ActionSettings = field(default_factory=ActionSettings)
    privacy: PrivacySettings = field(default_factory=PrivacySettings)
    policy: PolicySettings = field(default_factory=PolicySettings)
    ipc: IpcSettings = field(default_factory=IpcSettings)  # for placement ipc
    activations: ActivationsSettings = field(default_factory=ActivationsSettings)  # for kafka
    vllm: VllmSettings = field(default_factory=VllmSettings)

    @classmethod
    def from_yaml(cls, path: Path | str, text: str | None = None) -> Settings:
        """Read a configuration file.

        Raises:
            ConfigurationError: with every problem of the file, each with file:line:column.
        """
        document = read_document(path, text)
        problems: list[Problem] = []
        sinks = _take_sinks(document, problems)
        try:
            settings = bind(document, cls)
        except ConfigurationError as error:
            raise ConfigurationError([*error.problems, *problems]) from error
        if problems:
            raise ConfigurationError(problems)
        if sinks is None:
            return settings
        return _with_sinks(settings, sinks)


_SINK_OPTIONS: Mapping[str, type] = {
    "console": ConsoleSettings,
    "jsonl": JsonlSettings,
    "otel": OtelSettings,
    "kafka": KafkaSettings,
    "webhook": WebhookSettings,
}


def _with_sinks(settings: Settings, sinks: tuple[SinkSettings, ...]) -> Settings:
    return replace(settings, alert=replace(settings.alert, sinks=sinks))


def _take_sinks(document: Document, problems: list[Problem]) -> tuple[SinkSettings, ...] | None:
    """Take ``alert.sinks`` out of the document: its items are a name or a one-key mapping."""
    alert = document.value.get("alert") if isinstance(document.value, dict) else None
    if not isinstance(alert, dict) or "sinks" not in alert:
        return None
    found = bind_kinds(document, ("alert", "sinks"), "sink", _SINK_OPTIONS, {"jsonl": "path"})
    del alert["sinks"]
    problems += found.problems
    return tuple(SinkSettings(cast(SinkKind, kind), options) for kind, options in found.items)
