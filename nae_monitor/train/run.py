"""Run a recipe stage by stage; every stage picks up where a killed run left it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from nae_monitor.models import load_target, resolve_target
from nae_monitor.train import ar, av, export, lora, stages
from nae_monitor.train.collect import collect
from nae_monitor.train.corpus import TrainingDocument, read_corpus
from nae_monitor.train.dataset import Examples, load_examples
from nae_monitor.train.families import assign_splits
from nae_monitor.train.fit import FitOptions
from nae_monitor.train.recipe import HalfOptions, Recipe
from nae_monitor.train.wheels import corpus_wheels

Stage = Literal["collect", "av", "ar", "export"]
STAGES: tuple[Stage, ...] = ("collect", "av", "ar", "export")
VALIDATION_ROWS = 256

Progress = Callable[[str, Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Run:
    """A recipe and the directory its stages write to."""

    recipe: Recipe
    directory: Path
    device: str = "cpu"
    time_limit_s: float | None = None
    progress: Progress = lambda stage, row: None

    @property
    def activations(self) -> Path:
        """Where the collect stage keeps its shards."""
        return self.directory / "activations"

    def stage(self, name: Stage) -> None:
        """Run one stage to its end, its time limit or a clear error."""
        {"collect": self.collect, "av": self.train_av, "ar": self.train_ar, "export": self.export}[
            name
        ]()

    def collect(self) -> None:
        """Collect activations of every document of the corpus."""
        target = load_target(self.recipe.target, device=self.device)
        reduced = self.recipe.collect.autocast and lora.has_fast_bfloat16(target.model.device)
        fast = (
            load_target(self.recipe.target, dtype=torch.bfloat16, device=self.device)
            if (reduced)
            else target
        )
        options = self.recipe.collect
        for done, total in collect(
            target.model,
            target.tokenizer,
            split_corpus(self.recipe),
            self.activations,
            options,
            seed=self.recipe.seed,
            reply_model=fast.model,
        ):
            self.progress("collect", {"done": done, "total": total})

    def train_av(self) -> None:
        """Train the verbalizer."""
        tokenizer, train, validation = self._data()
        model, reduced = self._trainable()
        tokenizer.chat_template = av.AV_CHAT_TEMPLATE
        stages.train_av(
            model,
            tokenizer,
            train,
            validation,
            self.directory / "av",
            self.recipe.av.lora,
            self._fit(self.recipe.av),
            injection_scale=self.injection_scale(train),
            reduced=reduced,
            report=lambda row: self.progress("av", row),
        )

    def train_ar(self) -> None:
        """Train the reconstructor."""
        tokenizer, train, validation = self._data()
        model, reduced = self._trainable()
        stages.train_ar(
            model,
            tokenizer,
            train,
            validation,
            self.directory / "ar",
            self.recipe.ar.lora,
            self._fit(self.recipe.ar),
            blocks=self.recipe.collect.layer + 1,
            reduced=reduced,
            report=lambda row: self.progress("ar", row),
        )

    def export(self) -> None:
        """Write ``DIR/pair/<nla_id>-av`` and ``-ar`` from the last states of both halves."""
        tokenizer, train, _ = self._data()
        name = self.recipe.nla_id
        model, _ = self._trainable()
        trunk = ar.Trunk(
            lora.add_adapters(model, self.recipe.ar.lora), self.recipe.collect.layer + 1
        )
        lora.load_state(self.directory / "ar" / "state.safetensors", trunk, None)
        export.export_ar(
            self.directory / "pair" / f"{name}-ar",
            trunk,
            tokenizer,
            self.recipe,
            train,
            record=export.training_record(
                self.recipe, self.directory / "ar" / "metrics.jsonl", train
            ),
        )
        base, _ = self._trainable()
        verbalizer = lora.add_adapters(base, self.recipe.av.lora)
        lora.load_state(self.directory / "av" / "state.safetensors", verbalizer, None)
        tokenizer.chat_template = av.AV_CHAT_TEMPLATE
        export.export_av(
            self.directory / "pair" / f"{name}-av",
            verbalizer,
            tokenizer,
            self.recipe,
            injection_scale=self.injection_scale(train),
            d_model=train.vectors.shape[1],
            record=export.training_record(
                self.recipe, self.directory / "av" / "metrics.jsonl", train
            ),
        )

    def injection_scale(self, train: Examples) -> float:
        """The norm that injected vectors are given: a quantile of |h| on the training rows."""
        return float(train.vectors.norm(dim=-1).quantile(self.recipe.scale_quantile))

    def _fit(self, half: HalfOptions) -> FitOptions:
        return FitOptions(
            steps=half.steps,
            seed=self.recipe.seed,
            evaluate_every=half.evaluate_every,
            save_every=half.save_every,
            time_limit_s=self.time_limit_s,
        )

    def _data(self) -> tuple[Any, Examples, Examples]:
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(
            resolve_target(self.recipe.target), local_files_only=True
        )
        train = load_examples(self.activations, tokenizer, "train")
        validation = load_examples(self.activations, tokenizer, "validation")
        content = validation.content.nonzero().flatten()
        order = torch.randperm(
            len(content), generator=torch.Generator().manual_seed(self.recipe.seed)
        )
        return tokenizer, train, validation.select(content[order[:VALIDATION_ROWS]])

    def _trainable(self) -> tuple[Any, bool]:
        device = torch.device(self.device)
        reduced = lora.has_fast_bfloat16(device)
        dtype = torch.bfloat16 if reduced else torch.float32
        return load_target(self.recipe.target, dtype=dtype, device=self.device).model, reduced


def split_corpus(recipe: Recipe) -> list[tuple[TrainingDocument, str]]:
    """Every document with its split: train, validation, test or ood."""
    options = recipe.corpus
    documents = read_corpus(
        corpus_wheels(),
        seed=recipe.seed,
        chat_limit=options.chat_limit,
        technical_limit=options.technical_limit,
    )
    splits = assign_splits(
        [d.text for d in documents],
        validation_share=options.validation_share,
        test_share=options.test_share,
    )
    outside = set(options.out_of_distribution)
    return [
        (d, "ood" if d.source in outside else split)
        for d, split in zip(documents, splits, strict=True)
    ]
