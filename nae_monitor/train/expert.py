"""Expert iteration: sample, keep what the reconstructor likes best, train both halves on.

One round, each step of which resumes after a kill (best-of-n against a reward model, then
supervised training; Anthony et al. 2017, Gulcehre et al. 2023):

1. the newest verbalizer writes one greedy and several sampled texts for some training rows;
2. the newest reconstructor scores them, own vector less hard negatives, and the best is kept;
3. the verbalizer learns the kept texts among as many targets;
4. the reconstructor learns targets, kept and greedy texts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nae_monitor.train import ar, lora, reading, stages
from nae_monitor.train.best import final_state
from nae_monitor.train.dataset import Examples
from nae_monitor.train.files import make_directory, replacing
from nae_monitor.train.fit import METRICS, FitOptions, is_finished
from nae_monitor.train.halves import Data, Halves
from nae_monitor.train.lora import LoraOptions
from nae_monitor.train.machine import Meter, Work, reconstructor_work, verbalizer_work
from nae_monitor.train.metrics import StepRow, append_row, read_metrics
from nae_monitor.train.processes import first_alone, is_first
from nae_monitor.train.recipe import HalfOptions
from nae_monitor.train.sampling import check_rows, read_samples, sample_rows
from nae_monitor.train.scoring import Choice, centred, choose, contrastive_scores, hard_negatives
from nae_monitor.train.written import as_target

EXPERT = "expert"
RATE_SHARE = 0.3  # of the first training's learning rate
SAMPLES, CHOICES, VALIDATION = "samples.jsonl", "choices.json", "read-validation.jsonl"


def newest(directory: Path, half: str) -> Path:
    """The folder of ``av`` or ``ar`` that the last whole round left, or the first training's."""
    rounds = [row["round"] for row in read_metrics(directory / EXPERT / METRICS)]
    return _folder(directory, max(rounds), half) if rounds else directory / half


def _folder(directory: Path, number: int, half: str = "") -> Path:
    return directory / EXPERT / f"round-{number}" / half


@dataclass(frozen=True, slots=True)
class Expert:
    """Runs the rounds of a recipe in ``directory/expert``; ``ends_s`` is a monotonic time."""

    halves: Halves
    directory: Path
    progress: Callable[[str, Mapping[str, Any]], None]
    tick: Callable[[str, int, int], None]
    ends_s: float | None = None

    def run(self) -> None:
        """Every round that is not done yet, as far as the time goes."""
        done = len(read_metrics(self.directory / EXPERT / METRICS))
        options = self.halves.recipe.expert
        data = self.halves.data() if done < options.rounds else None
        for number in range(done + 1, options.rounds + 1):
            assert data is not None
            if not self._round(number, data):
                return

    def _round(self, number: int, data: Data) -> bool:
        """One round; False where the time ended before it did."""
        folder = make_directory(_folder(self.directory, number))
        device = self.halves.device
        first_alone(lambda: self._sample(number, data), device)
        if not (folder / CHOICES).exists():
            first_alone(lambda: self._score(number, data), device)
        if not (folder / CHOICES).exists() or not self._train_av(number, data):
            return False
        first_alone(lambda: self._read_validation(number, data), device)
        if not self._train_ar(number, data):
            return False
        if is_first():
            row = {
                "round": number,
                **gains(read_choices(folder / CHOICES)),
                **self._fidelity(folder),
            }
            append_row(self.directory / EXPERT / METRICS, row)
            self.progress(EXPERT, row)
        first_alone(lambda: None, device)  # the others read the row above
        return True

    def rows(self, number: int, train: Examples) -> list[int]:
        """The content rows of a round."""
        content = train.content.nonzero().flatten().numpy()
        rng = np.random.default_rng([self.halves.recipe.seed, 2, number])
        rows: list[int] = rng.permutation(content)[: self.halves.recipe.expert.rows].tolist()
        return rows

    def _sample(self, number: int, data: Data) -> None:
        path, rows = _folder(self.directory, number) / SAMPLES, self.rows(number, data.train)
        if path.exists():
            found = read_samples(path)
            check_rows(found, rows, path)
            if len(found) == len(rows):
                return
        options = self.halves.recipe.expert
        model = self.halves.verbalizer(final_state(newest(self.directory, "av")))
        for done, total in sample_rows(
            model.merge_and_unload().eval(),
            data.verbalizer_tokenizer,
            data.train.vectors,
            rows,
            path,
            injection_scale=data.injection_scale,
            samples=options.samples,
            temperature=options.temperature,
            seed=[self.halves.recipe.seed, 3, number],
        ):
            self.tick(f"{EXPERT} {number} sample", done, total)
            if self._is_late():
                return

    def _score(self, number: int, data: Data) -> None:
        """Choose the best text of every row, where all are sampled."""
        folder, rows = _folder(self.directory, number), self.rows(number, data.train)
        sampled = read_samples(folder / SAMPLES)
        if len(sampled) < len(rows):
            return
        chosen = data.train.select(rows)
        mean = stages.unit_mean(data.train.vectors[data.train.content])
        trunk = self.halves.reconstructor(final_state(newest(self.directory, "ar"))).eval()
        texts = [text or "" for one in sampled for text in one.texts]
        with lora.precision(trunk.body, trunk.head.weight.device, self.halves.reduced):
            predicted = centred(ar.reconstruct(trunk, data.tokenizer, texts), mean)
        own = centred(chosen.vectors, mean)
        negatives = hard_negatives(own, chosen.digests, self.halves.recipe.expert.negatives)
        each = len(sampled[0].texts)
        owners = torch.arange(len(rows)).repeat_interleave(each)
        scores = contrastive_scores(predicted, own[owners], own[negatives][owners])
        choices = choose(sampled, scores.reshape(-1, each).tolist())
        with replacing(folder / CHOICES) as temporary:
            temporary.write_text(json.dumps([asdict(c) for c in choices]), encoding="utf-8")

    def _train_av(self, number: int, data: Data) -> bool:
        folder, half = _folder(self.directory, number, "av"), self.halves.recipe.av
        meter = Meter()
        options = self._fit(number, "av", half, self.halves.recipe.expert.av_steps, meter)
        if not is_finished(folder, options):
            model, tokenizer = self.halves.base(), data.verbalizer_tokenizer
            work = verbalizer_work(model, data.prompt_tokens, training=True)
            stages.train_av(
                model,
                tokenizer,
                mixed(data.train, read_choices(folder.parent / CHOICES), self._seed(number)),
                data.validation,
                folder,
                _gentler(half.lora),
                options,
                injection_scale=data.injection_scale,
                reduced=self.halves.reduced,
                report=lambda row: self.progress(f"{EXPERT} {number} av", row),
            )
            self._sum_up(f"{EXPERT} {number} av", meter, work)
        return is_finished(folder, options)

    def _read_validation(self, number: int, data: Data) -> None:
        folder = _folder(self.directory, number)
        path, rows = folder / VALIDATION, len(data.validation)
        if path.exists() and len(reading.read_texts(path, rows)) == rows:
            return
        model = self.halves.verbalizer(final_state(folder / "av")).merge_and_unload().eval()
        for done, total in reading.read_rows(
            model,
            data.verbalizer_tokenizer,
            data.validation,
            path,
            injection_scale=data.injection_scale,
            rows=rows,
            seed=self.halves.recipe.seed,
        ):
            self.tick(f"{EXPERT} {number} read", done, total)

    def _train_ar(self, number: int, data: Data) -> bool:
        folder, half = _folder(self.directory, number, "ar"), self.halves.recipe.ar
        meter = Meter()
        options = self._fit(number, "ar", half, self.halves.recipe.expert.ar_steps, meter)
        choices = read_choices(folder.parent / CHOICES)
        if not is_finished(folder, options):
            model = self.halves.base()
            work = reconstructor_work(model, self.halves.recipe.collect.layer)
            stages.train_ar(
                model,
                data.tokenizer,
                data.train,
                data.validation,
                folder,
                _gentler(half.lora),
                options,
                blocks=self.halves.recipe.collect.layer,
                reduced=self.halves.reduced,
                report=lambda row: self.progress(f"{EXPERT} {number} ar", row),
                read=[(c.row, t) for c in choices for t in dict.fromkeys((c.best, c.greedy)) if t],
                read_validation=reading.read_texts(
                    folder.parent / VALIDATION, len(data.validation)
                ),
            )
            self._sum_up(f"{EXPERT} {number} ar", meter, work)
        return is_finished(folder, options)

    def _fidelity(self, folder: Path) -> dict[str, Any]:
        """The reconstructor's last measurement, and that of the round before."""
        after = (read_metrics(folder / "ar" / METRICS) or [{}])[-1]
        before = (read_metrics(newest(self.directory, "ar") / METRICS) or [{}])[-1]
        found: dict[str, Any] = {k: v for k, v in after.items() if k.startswith("fve_")}
        if "fve_round_trip" in before:
            found["fve_round_trip_before"] = before["fve_round_trip"]
        return found

    def _fit(
        self, number: int, half_name: str, half: HalfOptions, steps: int, meter: Meter
    ) -> FitOptions:
        """No best state: targets alone measure the verbalizer, which is to leave them behind."""

        def on_step(row: StepRow) -> None:
            meter.add(row.examples, row.tokens, row.seconds)
            self.tick(f"{EXPERT} {number} {half_name}", row.step, steps)

        left_s = None if self.ends_s is None else max(0.0, self.ends_s - time.monotonic())
        return FitOptions(
            steps=steps,
            seed=self._seed(number),
            evaluate_every=half.evaluate_every,
            save_every=half.save_every,
            time_limit_s=left_s,
            start=final_state(newest(self.directory, half_name)),
            on_step=on_step,
        )

    def _sum_up(self, name: str, meter: Meter, work: Work) -> None:
        row = meter.row(work, self.halves.peak())
        if row and is_first():
            self.progress(name, {"examples": meter.examples, **row})

    def _seed(self, number: int) -> int:
        return self.halves.recipe.seed + 1000 * number

    def _is_late(self) -> bool:
        return self.ends_s is not None and time.monotonic() > self.ends_s


def _gentler(options: LoraOptions) -> LoraOptions:
    return replace(options, learning_rate=options.learning_rate * RATE_SHARE, warmup_steps=10)


def read_choices(path: Path) -> list[Choice]:
    """What the scoring step kept."""
    return [Choice(**row) for row in json.loads(path.read_text(encoding="utf-8"))]


def mixed(train: Examples, choices: list[Choice], seed: int) -> Examples:
    """The kept texts as targets of their vectors, among as many ordinary rows."""
    kept = [c for c in choices if c.best is not None]
    gold = np.random.default_rng([seed, 4]).permutation(len(train))[: max(len(kept), 1)].tolist()
    examples = train.select([c.row for c in kept] + gold)
    own = [as_target(c.best) for c in kept if c.best is not None]
    targets = [t for t in own if t is not None]
    return replace(examples, targets=(*targets, *examples.targets[len(kept) :]))


def gains(choices: list[Choice]) -> dict[str, Any]:
    """What a round's choice gained over the greedy texts, over rows where both are usable."""
    both = [(c.greedy_score, c.best_score) for c in choices]
    pairs = [(g, b) for g, b in both if g is not None and b is not None]
    greedy = float(np.mean([g for g, _ in pairs])) if pairs else None
    best = float(np.mean([b for _, b in pairs])) if pairs else None
    kept = [c.best for c in choices if c.best is not None]
    return {
        "rows": len(choices),
        "kept": len(kept),
        "better_than_greedy": sum(c.best is not None and c.best != c.greedy for c in choices),
        "greedy_score": greedy,
        "best_score": best,
        "distinct": len(set(kept)),
    }
