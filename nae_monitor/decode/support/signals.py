"""What speaks for and against a claim, as pure functions of texts and figures.

Recurrence first: of single signals, how often further texts of the same vector say the same is
the best calibrated, and texts of neighbouring positions separate true claims from related false
ones better than fidelity or log-probability do (NLA paper, 2026, and its public reproductions).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nae_monitor.decode.support.claims import Claim, recurs
from nae_monitor.records import Decoding

MIN_SAMPLES = 2  # further texts of the same vector, under which nothing is said
PRIOR_TEXTS = 2.0  # weight of the usual share against the texts there are


@dataclass(frozen=True, slots=True)
class Signals:
    """What is known of one claim; counts are of texts other than the one that claims."""

    samples: int  # of the same vector
    agreeing_samples: int
    neighbours: int  # of the positions beside
    agreeing_neighbours: int
    fve: float
    rank_share: float  # of the vector among the pair's reference vectors: 0 best, 1 worst

    @property
    def recurrence(self) -> float:
        """The share of the other texts that claim the same, 0..1; 0 where there are none."""
        texts = self.samples + self.neighbours
        return (self.agreeing_samples + self.agreeing_neighbours) / texts if texts else 0.0

    def features(self, usual_samples: float, usual_neighbours: float) -> tuple[float, ...]:
        """What the calibration weighs: the two shares, drawn to the usual ones [2].

        FVE and rank are left out: beside recurrence they do not tell true claims from untrue ones
        (``benchmarks/support.py`` shows each alone).
        """
        return (
            _share(self.agreeing_samples, self.samples, usual_samples),
            _share(self.agreeing_neighbours, self.neighbours, usual_neighbours),
        )


def signals_of(
    claim: Claim, samples: Sequence[str], neighbours: Sequence[str], measured: Decoding
) -> Signals | None:
    """The signals of a claim of ``measured.text``.

    Args:
        claim: of that text.
        samples: further texts of the same vector.
        neighbours: texts of positions beside it.
        measured: the decode, for its fidelity.

    Returns:
        None where FVE or rank is unknown, or there are fewer samples than :data:`MIN_SAMPLES`.
    """
    if measured.fve is None or measured.rank is None or len(samples) < MIN_SAMPLES:
        return None
    return Signals(
        len(samples),
        sum(recurs(claim, text) for text in samples),
        len(neighbours),
        sum(recurs(claim, text) for text in neighbours),
        measured.fve,
        measured.rank / (measured.bank_size + 1),
    )


def _share(agreeing: int, texts: int, usual: float) -> float:
    return (agreeing + PRIOR_TEXTS * usual) / (texts + PRIOR_TEXTS)
