"""Run a recipe stage by stage; every stage picks up where a killed run left it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from nae_monitor.errors import ConfigurationError, InputDataError, Mark, Problem
from nae_monitor.models import Target, load_target, resolve_target
from nae_monitor.train import ar, av, export, lora, reading, stages
from nae_monitor.train.collect import IDENTITY, collect, identity
from nae_monitor.train.corpus import TrainingDocument, read_corpus
from nae_monitor.train.dataset import Examples, load_examples
from nae_monitor.train.families import assign_splits
from nae_monitor.train.files import make_directory, replacing, write_errors
from nae_monitor.train.fit import METRICS, STATE, FitOptions
from nae_monitor.train.recipe import HalfOptions, Recipe
from nae_monitor.train.target_checks import check_target
from nae_monitor.train.wheels import corpus_wheels

Stage = Literal["collect", "av", "read", "ar", "export"]
STAGES: tuple[Stage, ...] = ("collect", "av", "read", "ar", "export")
READ = "read.jsonl"  # the verbalizer's own texts for training rows
VALIDATION_ROWS = 256

Progress = Callable[[str, Mapping[str, Any]], None]
Wheels = Callable[[], Mapping[str, Path]]  # distribution name -> verified wheel file


@dataclass(frozen=True, slots=True)
class Run:
    """A recipe and the directory its stages write to.

    Every stage raises :class:`~nae_monitor.errors.NaeMonitorError` alone: ConfigurationError for
    a target that cannot be trained on or a directory that cannot be written, InputDataError for
    a corpus, shards or states that are missing or damaged, TrainingFailedError for a bad loss.
    """

    recipe: Recipe
    directory: Path
    device: str = "cpu"
    time_limit_s: float | None = None
    progress: Progress = lambda stage, row: None
    wheels: Wheels = corpus_wheels

    @property
    def activations(self) -> Path:
        """Where the collect stage keeps its shards."""
        return self.directory / "activations"

    def stage(self, name: Stage) -> None:
        """Run one stage to its end, its time limit or a clear error."""
        stages_by_name: dict[Stage, Callable[[], None]] = {
            "collect": self.collect,
            "av": self.train_av,
            "read": self.read,
            "ar": self.train_ar,
            "export": self.export,
        }
        stages_by_name[name]()

    def collect(self) -> None:
        """Collect activations of every document of the corpus."""
        target = self._load(torch.float32)
        options = self.recipe.collect
        documents = split_corpus(self.recipe, self.wheels)
        fast = target
        if options.autocast and lora.has_fast_bfloat16(target.model.device):
            fast = self._load(torch.bfloat16)
        self._claim_shards(identity(self.recipe.target, documents, options, self.recipe.seed))
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

    def read(self) -> None:
        """Verbalise training rows with the trained verbalizer, for the reconstructor."""
        tokenizer, train, _ = self._data()
        tokenizer.chat_template = av.AV_CHAT_TEMPLATE
        base, _ = self._trainable()
        model = lora.add_adapters(base, self.recipe.av.lora, seed=self.recipe.seed)
        lora.load_state(self.directory / "av" / STATE, model, None)
        for done, total in reading.read_rows(
            model.merge_and_unload().eval(),
            tokenizer,
            train,
            self.directory / READ,
            injection_scale=self.injection_scale(train),
            rows=self.recipe.read_rows,
            seed=self.recipe.seed,
        ):
            self.progress("read", {"done": done, "total": total})

    def train_ar(self) -> None:
        """Train the reconstructor, on the verbalizer's own texts, too, where they were read."""
        tokenizer, train, validation = self._data()
        found = self.directory / READ
        model, reduced = self._trainable()
        stages.train_ar(
            model,
            tokenizer,
            train,
            validation,
            self.directory / "ar",
            self.recipe.ar.lora,
            self._fit(self.recipe.ar),
            blocks=self.recipe.collect.layer,
            reduced=reduced,
            report=lambda row: self.progress("ar", row),
            read=reading.read_texts(found, len(train)) if found.exists() else (),
        )

    def export(self) -> None:
        """Write ``DIR/pair/<nla_id>-av`` and ``-ar`` from the last states of both halves."""
        tokenizer, train, _ = self._data()
        pair = make_directory(self.directory / "pair")
        with write_errors(pair):
            self._export_ar(pair / f"{self.recipe.nla_id}-ar", tokenizer, train)
            self._export_av(pair / f"{self.recipe.nla_id}-av", tokenizer, train)

    def _export_ar(self, directory: Path, tokenizer: Any, train: Examples) -> None:
        half = self.directory / "ar"
        model, _ = self._trainable()
        body = lora.add_adapters(model, self.recipe.ar.lora, seed=self.recipe.seed)
        trunk = ar.Trunk(body, self.recipe.collect.layer)
        lora.load_state(half / STATE, trunk, None)
        record = export.training_record(self.recipe, half / METRICS, train)
        export.export_ar(directory, trunk, tokenizer, self.recipe, train, record=record)

    def _export_av(self, directory: Path, tokenizer: Any, train: Examples) -> None:
        half = self.directory / "av"
        model, _ = self._trainable()
        verbalizer = lora.add_adapters(model, self.recipe.av.lora, seed=self.recipe.seed)
        lora.load_state(half / STATE, verbalizer, None)
        tokenizer.chat_template = av.AV_CHAT_TEMPLATE
        export.export_av(
            directory,
            verbalizer,
            tokenizer,
            self.recipe,
            injection_scale=self.injection_scale(train),
            d_model=train.vectors.shape[1],
            record=export.training_record(self.recipe, half / METRICS, train),
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
        """Tokenizer, training rows, and a fixed sample of the validation split's content rows."""
        from transformers import AutoConfig, AutoTokenizer

        place = resolve_target(self.recipe.target)
        tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True)
        config = AutoConfig.from_pretrained(place, local_files_only=True).get_text_config()
        train, validation = (
            load_examples(self.activations, tokenizer, split, d_model=config.hidden_size)
            for split in ("train", "validation")
        )
        for split, examples in (("train", train), ("validation", validation)):
            if not examples.content.any():
                raise InputDataError(
                    f"{self.activations} holds no content positions of the split {split!r}; "
                    "collect more documents"
                )
        content = validation.content.nonzero().flatten()
        order = torch.randperm(
            len(content), generator=torch.Generator().manual_seed(self.recipe.seed)
        )
        return tokenizer, train, validation.select(content[order[:VALIDATION_ROWS]])

    def _trainable(self) -> tuple[Any, bool]:
        reduced = lora.has_fast_bfloat16(torch.device(self.device))
        model = self._load(torch.bfloat16 if reduced else torch.float32).model
        if self.device == "cpu":
            # The fused kernel's backward pass took a fifth of a training step on short texts.
            model.set_attn_implementation("eager")
        return model, reduced

    def _load(self, dtype: torch.dtype) -> Target:
        target = load_target(self.recipe.target, dtype=dtype, device=self.device)
        check_target(target, self.recipe.collect.layer)
        return target


def split_corpus(
    recipe: Recipe, wheels: Wheels = corpus_wheels
) -> list[tuple[TrainingDocument, str]]:
    """Every document with its split: train, validation, test or ood.

    Raises:
        InputDataError: a wheel is missing or is not what the corpus was made for.
    """
    options = recipe.corpus
    documents = read_corpus(
        wheels(),
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
