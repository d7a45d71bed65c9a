"""What a target model must be for a pair to be trained on it: checked before any long work."""

from __future__ import annotations

from collections.abc import Iterator

from nae_monitor.errors import Mark, ModelError, Problem
from nae_monitor.models import Target
from nae_monitor.train.lora import LINEAR_LAYERS


def check_target(target: Target, layer: int) -> None:
    """Refuse a target that the trainer would fail on, or train wrongly, hours later.

    Args:
        target: the loaded model.
        layer: K; the reconstructor needs blocks 0..K, so K is at most the number of blocks - 1.

    Raises:
        ModelError: every problem found.
    """
    place = Mark(str(target.directory))
    problems = [Problem(place, message, mend) for message, mend in _faults(target, layer)]
    if problems:
        raise ModelError(problems)


def _faults(target: Target, layer: int) -> Iterator[tuple[str, str]]:
    if not target.tokenizer.chat_template:
        yield "has no chat template", "use the instruction-tuned model, or add a chat template"
    if not 1 <= layer < target.layer_count:
        yield (
            f"has {target.layer_count} blocks, collect.layer is {layer}",
            f"choose 1 to {target.layer_count - 1}; about two thirds of the depth is usual",
        )
    names = {name.rpartition(".")[2] for name, _ in target.model.named_modules()}
    inner = getattr(target.model, "model", None)
    lacking = [name for name in (*LINEAR_LAYERS, "lm_head") if name not in names]
    if not hasattr(inner, "layers") or lacking:
        shape = "model.layers with " + ", ".join(LINEAR_LAYERS)
        yield "is of an architecture the trainer does not know", f"it trains models of {shape}"
    config = target.model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or []
    window = not kinds and getattr(config, "sliding_window", None)
    if window or any(kind != "full_attention" for kind in kinds):
        # Continuations branch behind one cache, which must hold the whole document.
        yield "has layers that attend to a window only", "the trainer needs full attention"
