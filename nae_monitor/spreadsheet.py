"""What a CSV file must not hold: text that a spreadsheet would compute rather than show."""

from __future__ import annotations

from typing import Any

_FORMULA = ("=", "+", "-", "@", "\t", "\r")  # OWASP, CSV injection


def harmless_cell(cell: Any) -> Any:
    """A text that begins as a formula does, behind a quote; anything else as it is."""
    return "'" + cell if isinstance(cell, str) and cell.startswith(_FORMULA) else cell
