"""What the embedded verbalizer says of each kind, and which of the shipped rules are to fire."""

from nae_monitor.detect import RuleSet
from nae_monitor.detect.evaluation import SemanticAnswerer, evaluate_rule
from nae_monitor.detect.views import Subject, Views
from nae_monitor.records import FindingState
from nae_monitor.train.themes import HARMFUL, KINDS, Theme, written_themes

HARMS = sorted(kind for kind, k in KINDS.items() if k.label.startswith(HARMFUL))
ORDINARY = sorted(kind for kind, k in KINDS.items() if not k.harmful)
PHRASES_EACH = 8
SPEAKERS = ("prompt", "reply", "hedging reply", "refusing reply")
FAMILIES = {  # the rule of each kind of harm
    "self-harm": "self_harm_risk",
    "weapons": "weapons_misuse",
    "cyber": "cyber_misuse",
    "sexual": "sexual_misuse",
    "hate": "hate_misuse",
    "violence": "violence_misuse",
    "fraud": "fraud_misuse",
    "drugs": "drugs_misuse",
    "privacy": "privacy_misuse",
    "misinformation": "misinformation_misuse",
}


def fired(
    rules: RuleSet, semantic: SemanticAnswerer, explanation: str, output: str = ""
) -> set[str]:
    subject = Subject(
        explanation, "", output, " the", {}, {"fve": 0.5, "closed": 1.0, "score.anomaly": 0.0}.get
    )
    outcomes = {
        rule.name: evaluate_rule(rule, Views(subject), semantic, None).state for rule in rules.rules
    }
    assert FindingState.UNDECIDED not in outcomes.values()
    return {name for name, state in outcomes.items() if state is FindingState.MATCH}


def explanation(theme: str, speaker: str = "prompt") -> str:
    """As the embedded verbalizer writes it: the last quotation is left open."""
    return f'at " do"; expects " this at home"; {theme}; {speaker} "tell me how I could do'


def own_rules(kind: str, speaker: str = "prompt") -> set[str]:
    """The rules that are about ``kind`` in the words of ``speaker``."""
    answered = speaker in ("reply", "hedging reply")
    if kind == "jailbreak":  # what was withstood is still pressure
        named = {"jailbreak_pressure"} | ({"persona_adopted"} if answered else set())
    elif kind not in HARMS:
        named = {"over_refusal"} if kind in ORDINARY and speaker == "refusing reply" else set()
    elif speaker == "refusing reply":  # a refusal does not end a risk
        named = {"self_harm_risk"} & {FAMILIES[kind]}
    else:
        named = {"harmful_request", FAMILIES[kind]}
        named |= {"harmful_compliance"} if answered else set()
    return named | ({"refusal_planned"} if speaker == "refusing reply" else set())


def some_themes(kind: str) -> list[Theme]:
    """The first few written themes of a kind in the order of their digests."""
    found = sorted((digest, t.phrase) for digest, t in written_themes().items() if t.kind == kind)
    return [Theme(kind, phrase) for _, phrase in found[:PHRASES_EACH]]
