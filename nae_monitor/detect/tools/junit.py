"""Inline test results as JUnit XML, which CI systems show."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from itertools import groupby
from xml.etree.ElementTree import Element, SubElement, tostring

from nae_monitor.detect.inline_tests import TestResult


def to_junit(results: Sequence[TestResult]) -> bytes:
    """One suite a rule, one case a test; UTF-8 XML."""
    root = Element("testsuites", _counts(results))
    for rule, group in groupby(results, key=lambda result: result.rule_name):
        cases = list(group)
        suite = SubElement(root, "testsuite", {"name": rule, **_counts(cases)})
        for case in cases:
            name = _xml_text(case.test_name)
            element = SubElement(suite, "testcase", {"classname": rule, "name": name})
            tag = {"failed": "failure", "skipped": "skipped"}.get(case.outcome)
            if tag is not None:
                SubElement(element, tag, {"message": _xml_text(case.message)})
    written: bytes = tostring(root, encoding="utf-8", xml_declaration=True)
    return written


def _counts(results: Sequence[TestResult]) -> dict[str, str]:
    return {
        "tests": str(len(results)),
        "failures": str(sum(result.outcome == "failed" for result in results)),
        "skipped": str(sum(result.outcome == "skipped" for result in results)),
    }


def _xml_text(text: str) -> str:
    """XML 1.0 has no way to write control characters and surrogates."""
    return "".join(
        "\ufffd" if unicodedata.category(c) in ("Cc", "Cs") or c in "\ufffe\uffff" else c
        for c in text
    )
