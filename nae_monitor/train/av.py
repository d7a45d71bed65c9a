"""Train the activation verbalizer: vector in, explanation out.

The vector replaces one token embedding of a fixed chat prompt, rescaled to ``injection_scale``;
the loss is the cross-entropy of the explanation that follows (supervised stage of the NLA
recipe). Loss weights lift the spans that only the vector can tell.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from nae_monitor.errors import Mark, ModelError, Problem
from nae_monitor.train.batches import padded
from nae_monitor.train.frozen_head import frozen_head_losses
from nae_monitor.train.targets import Target

OPEN, CLOSE = "<explanation>", "</explanation>"
MARKER = "█"
TOKEN_WEIGHT, NEXT_WEIGHT, KIND_WEIGHT, WORDS_WEIGHT = 4.0, 2.0, 4.0, 2.0  # against 1 elsewhere
AV_TEMPLATE = "Explain <v>{injection_char}</v>"
AV_CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' "
    "+ message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class AvPrompt:
    """The fixed prompt and where the vector goes."""

    token_ids: tuple[int, ...]
    marker: int  # index of the injected position
    injection_scale: float

    @property
    def neighbours(self) -> tuple[int, int]:
        """Ids to the left and right of the marker."""
        return self.token_ids[self.marker - 1], self.token_ids[self.marker + 1]


def av_prompt(tokenizer: Any, injection_scale: float) -> AvPrompt:
    """Render the prompt once; ``tokenizer`` must carry the AV's chat template.

    Raises:
        ModelError: the tokenizer does not make one token of the marker, once in the prompt.
    """
    content = AV_TEMPLATE.format(injection_char=MARKER)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        add_generation_prompt=True,
        return_dict=False,
    )
    marker = tokenizer(MARKER, add_special_tokens=False).input_ids
    if len(marker) != 1 or marker[0] == tokenizer.unk_token_id or ids.count(marker[0]) != 1:
        raise unfit_tokenizer(
            tokenizer,
            f"encodes the marker {MARKER} to {len(marker)} tokens, "
            f"{ids.count(marker[0]) if marker else 0} of the first kind in the prompt",
            "the verbalizer needs a tokenizer that knows it as one token",
        )
    return AvPrompt(tuple(ids), ids.index(marker[0]), injection_scale)


def unfit_tokenizer(tokenizer: Any, message: str, mend: str) -> ModelError:
    """A tokenizer that no pair can be trained with; to be raised."""
    name = str(getattr(tokenizer, "name_or_path", "") or "the tokenizer")
    return ModelError([Problem(Mark(name), message, mend)])


@dataclass(frozen=True, eq=False, slots=True)
class AvExamples:
    """Token ids of each explanation with its loss weights."""

    token_ids: tuple[tuple[int, ...], ...]
    weights: tuple[tuple[float, ...], ...]
    open_tokens: int  # of the opening tag: always the same, it would only dilute a loss

    @property
    def lengths(self) -> list[int]:
        """Tokens of each explanation, tags included."""
        return [len(ids) for ids in self.token_ids]


def encode_targets(tokenizer: Any, targets: Sequence[Target]) -> AvExamples:
    """Tokenise explanations, with a loss weight for every token.

    Raises:
        ModelError: the tokenizer has no end-of-sequence token to close an explanation with.
    """
    eos = tokenizer.eos_token_id
    if eos is None:
        raise unfit_tokenizer(tokenizer, "has no end-of-sequence token", "name one in its config")
    texts = [f"{OPEN}{t.text}{CLOSE}" for t in targets]
    encoded = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)
    ids = tuple((*row, eos) for row in encoded["input_ids"])
    weights = tuple(
        (*(_weight(end - len(OPEN), spans) for _, end in offsets), 1.0)
        for spans, offsets in zip(map(_spans, targets), encoded["offset_mapping"], strict=True)
    )
    inside = ([end <= len(OPEN) for _, end in offsets] for offsets in encoded["offset_mapping"])
    return AvExamples(ids, weights, min((sum(row) for row in inside), default=0))


def _spans(target: Target) -> list[tuple[int, float]]:
    """(end of a stretch of the explanation, its tokens' weight), in order.

    The token and the kind decide whether a reader is led to the right place at all. The token
    stands a second time at the very end, where the reconstructor reads.
    """
    theme = target.head.rindex("; " + target.theme)
    kind = theme + 2 + len(target.theme.split(":")[0])
    again = len(target.text) - len(target.last_token.strip())
    return [
        (len(target.last_token) + len('at ""'), TOKEN_WEIGHT),
        (theme, NEXT_WEIGHT),
        (kind, KIND_WEIGHT),
        (len(target.head), 1.0),
        (max(again, len(target.head)), WORDS_WEIGHT),
        (len(target.text), TOKEN_WEIGHT),
    ]


def _weight(end: int, spans: Sequence[tuple[int, float]]) -> float:
    if end <= 0:
        return 1.0  # the opening tag
    return next((weight for stop, weight in spans if end <= stop), 1.0)


def inject(embeddings: torch.Tensor, vectors: torch.Tensor, prompt: AvPrompt) -> torch.Tensor:
    """Overwrite the marker's embedding of each row [b, t, d] with its rescaled vector [b, d]."""
    norms = vectors.norm(dim=-1, keepdim=True).clamp_min(1e-12)  # a zeroed control stays zero
    scaled = vectors * (prompt.injection_scale / norms)
    result = embeddings.clone()
    result[:, prompt.marker] = scaled.to(embeddings.dtype)
    return result


def token_losses(
    model: Any, prompt: AvPrompt, vectors: torch.Tensor, token_ids: Sequence[Sequence[int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cross-entropy of each explanation token [b, t] and the mask [b, t] of real tokens."""
    ids, mask = padded(token_ids, pad=0)
    ids, mask = ids.to(vectors.device), mask.to(vectors.device)
    fixed = torch.tensor(prompt.token_ids, device=vectors.device).expand(len(ids), -1)
    embeddings = model.get_input_embeddings()(torch.cat([fixed, ids[:, :-1]], dim=1))
    hidden = _trunk(model)(
        inputs_embeds=inject(embeddings, vectors, prompt), use_cache=False
    ).last_hidden_state[:, len(prompt.token_ids) - 1 :]
    real = mask.bool()
    losses = torch.zeros(ids.shape, device=vectors.device)
    head = model.get_output_embeddings().weight
    losses[real] = frozen_head_losses(hidden[real], head.detach(), ids[real])
    return losses, real


def _trunk(model: Any) -> nn.Module:
    """The decoder without its LM head, adapters included."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    return base.model  # type: ignore[no-any-return]


def weighted_loss(
    losses: torch.Tensor, real: torch.Tensor, weights: Sequence[Sequence[float]]
) -> torch.Tensor:
    """Mean of the losses under the span weights."""
    w = torch.zeros_like(losses)
    for i, row in enumerate(weights):
        w[i, : len(row)] = torch.tensor(row, device=losses.device)
    w = w * real
    return (losses * w).sum() / w.sum()


@torch.no_grad()
def validation_loss(
    model: Any, prompt: AvPrompt, vectors: torch.Tensor, examples: AvExamples, batch_size: int = 64
) -> float:
    """Mean cross-entropy per explanation token, closing tag included, opening tag left out."""
    total, count = 0.0, 0
    for rows in _chunks(len(examples.token_ids), batch_size):
        losses, real = token_losses(
            model, prompt, vectors[rows], [examples.token_ids[i] for i in rows]
        )
        kept = real.clone()
        kept[:, : examples.open_tokens] = False
        total += float(losses[kept].sum())
        count += int(kept.sum())
    return total / count


def _chunks(size: int, step: int) -> Iterator[list[int]]:
    for start in range(0, size, step):
        yield list(range(start, min(size, start + step)))
