"""Diagnostics as SARIF 2.1.0 (OASIS), which code hosts show beside the lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from nae_monitor.detect.lint.diagnostics import CODES, Diagnostic, Edit

SARIF_VERSION = "2.1.0"
SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def to_sarif(diagnostics: Sequence[Diagnostic], version: str) -> dict[str, Any]:
    """One SARIF log with one run; ``version`` is that of the tool."""
    codes = list(CODES)
    driver = {
        "name": "nae-monitor rules lint",
        "version": version,
        "rules": [
            {
                "id": code,
                "shortDescription": {"text": CODES[code].title},
                "defaultConfiguration": {"level": CODES[code].level},
            }
            for code in codes
        ],
    }
    run = {
        "tool": {"driver": driver},
        "columnKind": "unicodeCodePoints",
        "results": [_result(diagnostic, codes) for diagnostic in diagnostics],
    }
    return {"$schema": SARIF_SCHEMA, "version": SARIF_VERSION, "runs": [run]}


def _result(diagnostic: Diagnostic, codes: list[str]) -> dict[str, Any]:
    mend = f" ({diagnostic.mend})" if diagnostic.mend else ""
    location: dict[str, Any] = {"artifactLocation": {"uri": _uri(diagnostic.where.file)}}
    if diagnostic.where.line:
        location["region"] = {
            "startLine": diagnostic.where.line,
            "startColumn": max(1, diagnostic.where.column),
        }
    result: dict[str, Any] = {
        "ruleId": diagnostic.code,
        "level": diagnostic.level,
        "message": {"text": diagnostic.message + mend},
        "locations": [{"physicalLocation": location}],
    }
    if diagnostic.code in codes:
        result["ruleIndex"] = codes.index(diagnostic.code)
    if diagnostic.edit is not None:
        result["fixes"] = [_fix(diagnostic.edit)]
    return result


def _fix(edit: Edit) -> dict[str, Any]:
    region = {
        "startLine": edit.line,
        "startColumn": edit.column,
        "endLine": edit.line,
        "endColumn": edit.column + len(edit.old),
    }
    replacement = {"deletedRegion": region, "insertedContent": {"text": edit.new}}
    change = {"artifactLocation": {"uri": _uri(edit.file)}, "replacements": [replacement]}
    return {"description": {"text": f"write {edit.new!r}"}, "artifactChanges": [change]}


def _uri(file: str) -> str:
    path = Path(file)
    return path.as_uri() if path.is_absolute() else quote(path.as_posix())
