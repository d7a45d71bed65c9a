"""What the embedded pair must reach on held-out documents, and what it aims at."""

from __future__ import annotations

from dataclasses import dataclass

from reporting.claims import Bound

from nae_monitor.train.evaluate import RETRIEVAL_SIZE

ABOVE_LAST_TOKEN = "round-trip FVE above the same-last-token mean"
OOD_FVE = "round-trip FVE, out of distribution"
KIND = "theme's kind right, of 20"


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the table: a measure, what it must reach and what it aims at."""

    name: str
    measure: str  # as it is called where it is measured
    must: Bound
    aim: Bound | None = None
    unit: str = ""

    @property
    def scale(self) -> float:
        """Shares are printed in per cent."""
        return 100.0 if self.unit == "%" else 1.0


RETRIEVAL = f"retrieval among {RETRIEVAL_SIZE}, top 1"
LINES = (
    Line("round-trip FVE", "round-trip FVE", Bound(0.40), Bound(0.60)),
    Line("above the same-last-token mean by", ABOVE_LAST_TOKEN, Bound(0.08), Bound(0.28)),
    Line(OOD_FVE, OOD_FVE, Bound(0.30), Bound(0.50)),
    Line("AR on gold targets, FVE", "AR on gold targets, FVE", Bound(0.55), Bound(0.75)),
    Line("AR on empty text, FVE", "AR on empty text, FVE", Bound(0.02, at_most=True)),
    Line(
        "AV loss: real below another's by", "gap: another's - real", Bound(0.8), Bound(1.3), "nats"
    ),
    Line("last token named", "last token named", Bound(70), Bound(92), "%"),
    Line(RETRIEVAL, RETRIEVAL, Bound(50), Bound(85), "%"),
    Line("unique texts per 100", "unique texts per 100", Bound(90)),
    Line(KIND, KIND, Bound(50), Bound(75), "%"),
    Line(
        "tokens per explanation",
        "tokens per explanation",
        Bound(48, at_most=True),
        Bound(32, at_most=True),
    ),
)
