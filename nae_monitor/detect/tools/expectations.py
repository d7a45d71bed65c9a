"""What a backtest is held against."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from nae_monitor.errors import ConfigurationError, InputDataError
from nae_monitor.strict_yaml import read_document


def read_expectations(path: Path, known: Iterable[str] | None) -> dict[str, frozenset[str]]:
    """A YAML or JSON mapping of sample or request id to the rules that must match.

    Args:
        path: the file.
        known: names of rules that it may name; None: any.

    Raises:
        InputDataError: it is not that, or names a rule that is not among ``known``.
    """
    try:
        value = read_document(path).value
    except ConfigurationError as error:
        raise InputDataError(str(error)) from error
    if not isinstance(value, dict):
        raise InputDataError(f"{path}: must be a mapping of ids to lists of rule names")
    rules = None if known is None else frozenset(known)
    for name, expected in value.items():
        is_list = isinstance(expected, list) and all(isinstance(rule, str) for rule in expected)
        if not is_list:
            raise InputDataError(f"{path}: {name} must have a list of rule names")
        if rules is not None and (foreign := sorted(set(expected) - rules)):
            raise InputDataError(f"{path}: {name} expects {foreign[0]!r}, which is no rule here")
    return {name: frozenset(expected) for name, expected in value.items()}
