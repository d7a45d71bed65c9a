"""How well a claim of a decoded text is supported by further texts: an estimate, never a proof.

claims.py       the claims that a text of the known form makes, and when another makes the same
signals.py      what is known for and against one: recurrence, fidelity, rank
calibration.py  from those to P(unsupported), by a fit on claims that could be checked
recurrence.py   the texts of a running request, and the figure of each decode among them
"""

from nae_monitor.decode.support.calibration import (
    SupportCalibration,
    SupportModel,
    read_support,
    shipped_support,
    write_support,
)
from nae_monitor.decode.support.claims import Claim, ClaimType, claims_of, grounded, recurs
from nae_monitor.decode.support.recurrence import Place, Recurrence
from nae_monitor.decode.support.signals import MIN_SAMPLES, Signals, signals_of

__all__ = [
    "MIN_SAMPLES",
    "Claim",
    "ClaimType",
    "Place",
    "Recurrence",
    "Signals",
    "SupportCalibration",
    "SupportModel",
    "claims_of",
    "grounded",
    "read_support",
    "recurs",
    "shipped_support",
    "signals_of",
    "write_support",
]
