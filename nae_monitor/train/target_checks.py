"""What a target model must be for a pair to be trained on it: checked before any long work."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch

from nae_monitor.errors import Mark, ModelError, Problem
from nae_monitor.models import Target, resolve_target
from nae_monitor.train import av
from nae_monitor.train.lora import LINEAR_LAYERS

TOLERANCE = 1e-2  # of the largest logit: bfloat16 rounds in other places in the two ways compared
# What transformers raises for a directory that holds no usable model or tokenizer.
_UNLOADABLE = (OSError, ValueError, KeyError, RuntimeError, ImportError, AttributeError)


def check_target(target: Target, layer: int) -> None:
    """Refuse a target that the trainer would fail on, or train wrongly, hours later.

    Args:
        target: the loaded model.
        layer: K, the index of hidden_states and the number of the reconstructor's blocks; the
            last index stands behind the final norm, so K is at most the number of blocks - 1.

    Raises:
        ModelError: every problem found.
    """
    problems = target_problems(target, layer)
    if problems:
        raise ModelError(problems)


def target_problems(target: Target, layer: int) -> list[Problem]:
    """As :func:`check_target`; a model on the meta device is checked by its shape alone."""
    place = Mark(str(target.directory))
    found = [*_tokenizer_faults(target.tokenizer), *_model_faults(target, layer)]
    if not found and target.model.device.type != "meta":
        found += _other_arithmetic(target.model)
    return [Problem(place, message, mend) for message, mend in found]


def without_weights(name: str) -> Target:
    """The target with its tokenizer and a model of the right shape on the meta device.

    Raises:
        ModelError: not found, or configuration or tokenizer cannot be read.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    directory = resolve_target(name)
    try:
        config = AutoConfig.from_pretrained(directory, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    except _UNLOADABLE as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        problem = Problem(Mark(str(directory)), f"cannot be loaded: {why}", "name a causal LM")
        raise ModelError([problem]) from error
    text = config.get_text_config()
    return Target(name, directory, model, tokenizer, text.num_hidden_layers, text.hidden_size, "")


def _tokenizer_faults(tokenizer: Any) -> Iterator[tuple[str, str]]:
    if not tokenizer.chat_template:
        yield "has no chat template", "use the instruction-tuned model, or add a chat template"
    if not getattr(tokenizer, "is_fast", False):
        yield "has a slow tokenizer, without character offsets", "convert it to tokenizer.json"
    if tokenizer.eos_token_id is None:
        yield "has no end-of-sequence token", "name one in its tokenizer_config.json"
    elif tokenizer("a").input_ids[-1] == tokenizer.eos_token_id:
        message = "has a tokenizer that adds an end-of-sequence token behind every text"
        yield message, "switch add_eos_token off: the reconstructor reads the last token"
    verbalizer = copy.copy(tokenizer)
    verbalizer.chat_template = av.AV_CHAT_TEMPLATE
    try:
        av.av_prompt(verbalizer, 1.0)
    except ModelError as error:
        yield from ((p.message, p.mend) for p in error.problems)


def _model_faults(target: Target, layer: int) -> Iterator[tuple[str, str]]:
    if not 1 <= layer < target.layer_count:
        yield (
            f"has {target.layer_count} blocks, collect.layer is {layer}",
            f"choose 1 to {target.layer_count - 1}; about two thirds of the depth is usual",
        )
    names = {name.rpartition(".")[2] for name, _ in target.model.named_modules()}
    inner = getattr(target.model, "model", None)
    lacking = [name for name in (*LINEAR_LAYERS, "lm_head") if name not in names]
    if not hasattr(inner, "layers") or not hasattr(inner, "norm") or lacking:
        shape = "model.layers with " + ", ".join(LINEAR_LAYERS) + ", then model.norm and lm_head"
        yield "is of an architecture the trainer does not know", f"it trains models of {shape}"
    config = target.model.config.get_text_config()
    kinds = getattr(config, "layer_types", None) or []
    window = not kinds and getattr(config, "sliding_window", None)
    if window or any(kind != "full_attention" for kind in kinds):
        # Continuations branch behind one cache, which must hold the whole document.
        yield "has layers that attend to a window only", "the trainer needs full attention"
    if getattr(config, "final_logit_softcapping", None):
        yield "caps its logits", "the trainer's loss is that of plain logits"


@torch.no_grad()
def _other_arithmetic(model: Any) -> list[tuple[str, str]]:
    """What the model does between embeddings and logits that the losses would leave out.

    Embeddings that an embedding module scales itself (Gemma) are as the first block sees them;
    a factor applied after it (Granite) would spoil an injected vector unseen.
    """
    ids = torch.arange(4, device=model.device)[None]
    whole = model(input_ids=ids, use_cache=False).logits.float()
    embedded = model.get_input_embeddings()(ids)
    out = model.model(inputs_embeds=embedded, use_cache=False, output_hidden_states=True)
    head = model.get_output_embeddings().weight
    plain = (out.last_hidden_state @ head.T).float()
    found = []
    if not torch.allclose(out.hidden_states[0].float(), embedded.float()):
        found.append(("scales its embeddings outside their module", "such models cannot be used"))
    elif (plain - whole).abs().max() > TOLERANCE * whole.abs().max():
        found.append(("scales, caps or biases its logits", "the trainer needs plain logits"))
    return found
