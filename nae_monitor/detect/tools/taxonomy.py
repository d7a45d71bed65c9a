"""What the monitor is to look for, by the ``nae.*`` tag that a rule claims it with."""

from __future__ import annotations

from collections.abc import Mapping

PREFIX = "nae."
TAXONOMY: Mapping[str, str] = {
    "nae.evaluation-awareness": "evaluation awareness",
    "nae.deception": "deception and concealment",
    "nae.harm": "harmful requests and compliance, any family",
    "nae.harm.compliance": "harm: the model goes along",
    "nae.cyber": "harm: cyber",
    "nae.harm.weapons": "harm: weapons and CBRN",
    "nae.harm.violence": "harm: violence",
    "nae.harm.self-harm": "harm: self-harm",
    "nae.harm.hate": "harm: hate",
    "nae.harm.sexual": "harm: sexual",
    "nae.harm.fraud": "harm: fraud",
    "nae.harm.privacy": "harm: privacy",
    "nae.harm.drugs": "harm: drugs",
    "nae.harm.misinformation": "harm: misinformation",
    "nae.jailbreak": "jailbreak pressure",
    "nae.jailbreak.role-play": "jailbreak: role-play pressure",
    "nae.injection": "prompt injection",
    "nae.sycophancy": "sycophancy",
    "nae.refusal": "refusal (informational)",
    "nae.monitor-integrity": "monitor integrity",
}
