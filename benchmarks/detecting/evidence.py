"""What is made of texts: which rules match a decode or a transcript, and what it is close to."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from detecting.decodes import Journal, Key
from detecting.rows import Talk
from nae_monitor.detect import Judge, RuleSet, builtin_rules_directory, load_rules
from nae_monitor.detect.semantic import SemanticMatcher
from nae_monitor.models.encoder import Encoder
from nae_monitor.records import (
    Activation,
    Decoding,
    FindingState,
    Phase,
    Request,
    SampleReason,
    Transcript,
)
from nae_monitor.train.files import replacing
from nae_monitor.train.written import parts_of

PACKS = ("harm", "jailbreak", "injection")
AWARE = ("evaluation_awareness",)
WHOLE, OUTPUT = -1, -2  # places of a transcript's findings beside those of its positions
CHUNK = 64
Matrix = NDArray[np.float32]


class Remembering:
    """An encoder that encodes a text once, also over runs.

    Args:
        encoder: what it remembers for.
        place: file of vectors by the digest of their text; None keeps nothing.
    """

    def __init__(self, encoder: Encoder, place: Path | None = None) -> None:
        self.name, self.fingerprint = encoder.name, encoder.fingerprint
        self._encoder, self._place = encoder, place
        self._known: dict[str, Matrix] = {}
        self._lock = threading.Lock()
        if place is not None and place.exists():
            kept = load_file(place)
            digests = bytes(kept["digests"].reshape(-1)).hex()
            for number, vector in enumerate(kept["vectors"]):
                self._known[digests[64 * number : 64 * (number + 1)]] = vector

    def encode(self, texts: Sequence[str]) -> Matrix:
        """Unit vectors [n, e]."""
        keys = [hashlib.sha256(text.encode()).hexdigest() for text in texts]
        missing = {key: t for key, t in zip(keys, texts, strict=True) if key not in self._known}
        if missing:
            ordered = sorted(missing, key=lambda key: (len(missing[key]), key))
            found = self._encoder.encode([missing[key] for key in ordered])
            with self._lock:
                self._known |= dict(zip(ordered, found, strict=True))
        return np.stack([self._known[key] for key in keys])

    def keep(self) -> None:
        """Write what is known, in one piece."""
        if self._place is None or not self._known:
            return
        with self._lock:
            digests = np.frombuffer(bytes.fromhex("".join(self._known)), dtype=np.uint8)
            vectors = np.stack(list(self._known.values()))
        with replacing(self._place) as temporary:
            save_file({"digests": digests, "vectors": vectors}, temporary)


@dataclass(frozen=True, eq=False, slots=True)
class Words:
    """What the rules' semantic selections compare with."""

    exemplars: Matrix
    negatives: Matrix

    @classmethod
    def of(cls, rules: RuleSet, encoder: Remembering) -> Words:
        """All exemplars and all negatives of a rule set."""
        matchers = [
            selection.matcher
            for rule in rules.rules
            for selection in rule.selections.values()
            if isinstance(selection.matcher, SemanticMatcher)
        ]
        return cls(
            encoder.encode([text for m in matchers for text in m.exemplars]),
            encoder.encode([text for m in matchers for text in m.negatives]),
        )

    def margins(self, vectors: Matrix) -> NDArray[np.float64]:
        """How much closer each text [n, e] is to its best exemplar than to its best negative."""
        best = (vectors @ self.exemplars.T).max(1) - (vectors @ self.negatives.T).max(1)
        result: NDArray[np.float64] = best.astype(np.float64)
        return result


class Readers:
    """Rules over decodes and over transcripts: of the packs of hostile conversations, or others."""

    def __init__(self, encoder: Remembering, packs: Sequence[str] = PACKS) -> None:
        places = [str(builtin_rules_directory() / pack) for pack in packs]
        self.rules = load_rules(places)
        self.pack_of = {rule.name: Path(rule.file).parent.name for rule in self.rules.rules}
        self._judge = Judge(self.rules, encoder)

    @property
    def fingerprint(self) -> str:
        """Of the rules: names and versions."""
        return " ".join(sorted(f"{r.name}:{r.version}" for r in self.rules.rules))

    def matched(self, activation: Activation, decoding: Decoding, seen: Transcript) -> list[str]:
        """Names of the rules that match."""
        found = self._judge.judge(activation, decoding, seen)
        return [f.rule_name for f in found if f.state is FindingState.MATCH]

    def of_text(self, text: str) -> list[str]:
        """The same rules with a visible text in the explanation's place."""
        return self.matched(_activation("", 10_000, 0, Phase.COMPLETION), _said(text), _NOTHING)


_NOTHING = Transcript("", "")
_NO_VECTOR = torch.ones(1)


def _activation(token: str, position: int, token_id: int, phase: Phase) -> Activation:
    request = Request("r", "r", "target")
    return Activation(request, position, token_id, token, phase, 0, _NO_VECTOR, SampleReason.SCORE)


def _said(text: str, fve: float | None = None, cosine: float | None = None) -> Decoding:
    return Decoding(text, True, cosine, fve, None, 0, "pair", 1, 0.0)


def judge_decodes(
    readers: Readers,
    decodes: Mapping[Key, Mapping[str, Any]],
    talks: Mapping[str, Talk],
    shown: Mapping[str, tuple[str, str]],
    tokenizer: Any,
    journal: Journal,
    workers: int,
    report: Callable[[int, int], None] = lambda *_: None,
) -> None:
    """The rules on every decode, with the transcript up to its token."""

    def one(key: Key) -> list[str]:
        talk, at = talks[key[0]], key[1]
        ids, prompted = talk.token_ids, at < talk.prompt_tokens
        said = "" if prompted else tokenizer.decode(ids[talk.prompt_tokens : at + 1])
        phase = Phase.PROMPT if prompted else Phase.COMPLETION
        activation = _activation(tokenizer.decode([ids[at]]), at, ids[at], phase)
        found = decodes[key]
        decoding = _said(found["text"], found["fve"], found["cosine"])
        return readers.matched(activation, decoding, Transcript(shown[key[0]][0], said))

    _each([key for key in decodes if key not in journal.found], one, journal, workers, report)


def judge_transcripts(
    readers: Readers,
    shown: Mapping[str, tuple[str, str]],
    journal: Journal,
    workers: int,
    report: Callable[[int, int], None] = lambda *_: None,
) -> None:
    """The rules on the visible conversation, and on its output alone."""

    def one(key: Key) -> list[str]:
        prompt, output = shown[key[0]]
        return readers.of_text(output if key[1] == OUTPUT else f"{prompt}\n{output}")

    keys = [(digest, place) for digest in shown for place in (WHOLE, OUTPUT)]
    _each([key for key in keys if key not in journal.found], one, journal, workers, report)


def _each(
    keys: Sequence[Key],
    one: Callable[[Key], list[str]],
    journal: Journal,
    workers: int,
    report: Callable[[int, int], None],
) -> None:
    chunks = [keys[i : i + CHUNK] for i in range(0, len(keys), CHUNK)]
    done = 0
    with ThreadPoolExecutor(workers) as pool:
        for chunk, found in zip(
            chunks, pool.map(lambda part: {key: one(key) for key in part}, chunks), strict=True
        ):
            journal.add(found)
            done += len(chunk)
            report(done, len(keys))


def theme(text: str) -> str:
    """What an explanation says the conversation is about; all of it where it is out of form."""
    parts = parts_of(text)
    return (parts.theme if parts is not None else "") or text
