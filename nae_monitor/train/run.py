"""Run a recipe stage by stage; every stage picks up where a killed run left it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from nae_monitor.errors import ConfigurationError, Mark, Problem
from nae_monitor.train import export, reading, stages
from nae_monitor.train.best import final_state
from nae_monitor.train.collect import IDENTITY, collect, identity
from nae_monitor.train.dataset import Examples
from nae_monitor.train.expert import Expert, newest
from nae_monitor.train.files import make_directory, replacing, write_errors
from nae_monitor.train.fit import METRICS, FitOptions
from nae_monitor.train.halves import Data, Halves
from nae_monitor.train.machine import (
    Meter,
    Work,
    keep_freed_memory,
    reconstructor_work,
    verbalizer_work,
)
from nae_monitor.train.metrics import StepRow
from nae_monitor.train.plot import write_plot
from nae_monitor.train.processes import first_alone, is_first
from nae_monitor.train.recipe import HalfOptions, Measure, Recipe
from nae_monitor.train.splits import Wheels, split_corpus
from nae_monitor.train.wheels import corpus_wheels

__all__ = ["READ", "READ_VALIDATION", "STAGES", "Run", "Stage", "Wheels", "split_corpus"]

Stage = Literal["collect", "av", "read", "ar", "expert", "export"]
STAGES: tuple[Stage, ...] = ("collect", "av", "read", "ar", "expert", "export")
READ = "read.jsonl"  # the verbalizer's own texts for training rows
READ_VALIDATION = "read-validation.jsonl"  # and for the validation rows

Progress = Callable[[str, Mapping[str, Any]], None]
Tick = Callable[[str, int, int], None]  # stage, steps done, steps in all


@dataclass(frozen=True, slots=True)
class Run:
    """A recipe and the directory its stages write to.

    Every stage raises :class:`~nae_monitor.errors.NaeMonitorError` alone: ConfigurationError for
    a target that cannot be trained on or a directory that cannot be written, InputDataError for
    a corpus, shards or states that are missing or damaged, TrainingFailedError for a bad loss.
    ``progress`` takes measurements, ``tick`` every step.
    """

    recipe: Recipe
    directory: Path
    device: str = "cpu"
    time_limit_s: float | None = None
    progress: Progress = lambda stage, row: None
    wheels: Wheels = corpus_wheels
    tick: Tick = lambda stage, done, total: None

    @property
    def activations(self) -> Path:
        """Where the collect stage keeps its shards."""
        return self.directory / "activations"

    @property
    def halves(self) -> Halves:
        """What loads the models and the rows."""
        return Halves(self.recipe, self.activations, self.device)

    def stage(self, name: Stage) -> None:
        """Run one stage to its end, its time limit or a clear error."""
        if self.device == "cpu":
            keep_freed_memory()
        stages_by_name: dict[Stage, Callable[[], None]] = {
            "collect": lambda: first_alone(self.collect, self.device),
            "av": self.train_av,
            "read": lambda: first_alone(self.read, self.device),
            "ar": self.train_ar,
            "expert": self.iterate,
            "export": lambda: first_alone(self.export, self.device),
        }
        stages_by_name[name]()
        if name in ("av", "ar", "expert") and is_first():
            write_plot(self.directory)

    def collect(self) -> None:
        """Collect activations of every document of the corpus."""
        target = self.halves.target(torch.float32)
        options = self.recipe.collect
        documents = split_corpus(self.recipe, self.wheels)
        fast = target
        if options.autocast and self.halves.reduced:
            fast = self.halves.target(torch.bfloat16)
        self._claim_shards(identity(self.recipe.target, documents, options, self.recipe.seed))
        before, began_s = self._shards(), time.monotonic()
        for done, total in collect(
            target.model,
            target.tokenizer,
            documents,
            self.activations,
            options,
            seed=self.recipe.seed,
            reply_model=fast.model,
        ):
            self.progress("collect", {"done": done, "total": total})
        meter = Meter()  # of documents; shards found are no work
        new = (self._shards() - before) * options.batch_size
        meter.add(min(new, len(documents)), 0, time.monotonic() - began_s)
        self._sum_up("collect", meter, None, None)

    def _shards(self) -> int:
        return len(list(self.activations.glob("shard-*.parquet")))

    def _claim_shards(self, wanted: str) -> None:
        """Refuse to mix shards of two recipes in one directory."""
        place = make_directory(self.activations) / IDENTITY
        if place.exists() and place.read_text(encoding="utf-8") != wanted:
            message = "was written under another target, corpus, seed or collect options"
            mend = "name another directory, or delete this one's activations"
            raise ConfigurationError([Problem(Mark(str(place)), message, mend)])
        with replacing(place) as temporary:
            temporary.write_text(wanted, encoding="utf-8")

    def train_av(self) -> None:
        """Train the verbalizer."""
        data, model = self.halves.data(), self.halves.base()
        meter = Meter()
        work = verbalizer_work(model, data.prompt_tokens, training=True)
        peak = self.halves.peak()
        stages.train_av(
            model,
            data.verbalizer_tokenizer,
            data.train,
            data.validation,
            self.directory / "av",
            self.recipe.av.lora,
            self.fit_options("av", self.recipe.av, "validation_loss", meter),
            injection_scale=data.injection_scale,
            reduced=self.halves.reduced,
            report=lambda row: self.progress("av", row),
        )
        self._sum_up("av", meter, work, peak)

    def read(self) -> None:
        """Verbalise training and validation rows with the trained verbalizer."""
        data = self.halves.data()
        tokenizer = data.verbalizer_tokenizer
        model = self.halves.verbalizer(final_state(self.directory / "av"))
        model = model.merge_and_unload().eval()
        work = verbalizer_work(model, data.prompt_tokens, training=False)
        rows = min(self.recipe.read_rows, len(data.train))
        for name, examples, count in (
            (READ_VALIDATION, data.validation, len(data.validation)),
            (READ, data.train, rows),
        ):
            before, began_s = len(self._written(name, examples)), time.monotonic()
            for done, total in reading.read_rows(
                model,
                tokenizer,
                examples,
                self.directory / name,
                injection_scale=data.injection_scale,
                rows=count,
                seed=self.recipe.seed,
            ):
                self.progress("read", {"done": done, "total": total})
            taken_s = time.monotonic() - began_s
            texts = [text for _, text in self._written(name, examples)[before:]]
            tokens = sum(len(ids) for ids in tokenizer(texts).input_ids) if texts else 0
            meter = Meter()
            meter.add(len(texts), tokens, taken_s)
            self._sum_up("read", meter, work, self.halves.peak() if texts else None)

    def train_ar(self) -> None:
        """Train the reconstructor, on the verbalizer's own texts, too, where they were read."""
        data, model = self.halves.data(), self.halves.base()
        meter, work = Meter(), reconstructor_work(model, self.recipe.collect.layer)
        peak = self.halves.peak()
        written = self._written(READ_VALIDATION, data.validation)
        stages.train_ar(
            model,
            data.tokenizer,
            data.train,
            data.validation,
            self.directory / "ar",
            self.recipe.ar.lora,
            self.fit_options(
                "ar", self.recipe.ar, "fve_round_trip" if written else "fve_gold", meter
            ),
            blocks=self.recipe.collect.layer,
            reduced=self.halves.reduced,
            report=lambda row: self.progress("ar", row),
            read=self._written(READ, data.train),
            read_validation=written,
        )
        self._sum_up("ar", meter, work, peak)

    def _written(self, name: str, examples: Examples) -> list[tuple[int, str]]:
        path = self.directory / name
        return reading.read_texts(path, len(examples)) if path.exists() else []

    def iterate(self) -> None:
        """Expert iteration: the recipe's rounds, each from the newest states."""
        ends_s = None if self.time_limit_s is None else time.monotonic() + self.time_limit_s
        Expert(self.halves, self.directory, self.progress, self.tick, ends_s).run()

    def export(self) -> None:
        """Write ``DIR/pair/<nla_id>-av`` and ``-ar`` from the newest states of both halves."""
        data = self.halves.data()
        pair = make_directory(self.directory / "pair")
        with write_errors(pair):
            self._export_ar(pair / f"{self.recipe.nla_id}-ar", data)
            self._export_av(pair / f"{self.recipe.nla_id}-av", data)

    def _export_ar(self, directory: Path, data: Data) -> None:
        half = newest(self.directory, "ar")
        trunk = self.halves.reconstructor(final_state(half))
        record = export.training_record(self.recipe, half / METRICS, data.train)
        export.export_ar(directory, trunk, data.tokenizer, self.recipe, data.train, record=record)

    def _export_av(self, directory: Path, data: Data) -> None:
        half = newest(self.directory, "av")
        export.export_av(
            directory,
            self.halves.verbalizer(final_state(half)),
            data.verbalizer_tokenizer,
            self.recipe,
            injection_scale=data.injection_scale,
            d_model=data.train.vectors.shape[1],
            record=export.training_record(self.recipe, half / METRICS, data.train),
        )

    def fit_options(
        self, stage: str, half: HalfOptions, measure: Measure, meter: Meter
    ) -> FitOptions:
        """A half's training, with a tick a step."""

        def on_step(row: StepRow) -> None:
            meter.add(row.examples, row.tokens, row.seconds)
            self.tick(stage, row.step, half.steps)

        return FitOptions(
            steps=half.steps,
            seed=self.recipe.seed,
            evaluate_every=half.evaluate_every,
            save_every=half.save_every,
            time_limit_s=self.time_limit_s,
            measure=half.measure or measure,
            patience=half.patience,
            on_step=on_step,
        )

    def _sum_up(self, stage: str, meter: Meter, work: Work | None, peak: float | None) -> None:
        """One line with what the stage did, where it did anything."""
        row = meter.row(work, peak)
        if row and is_first():
            self.progress(stage, {"examples": meter.examples, **row})
