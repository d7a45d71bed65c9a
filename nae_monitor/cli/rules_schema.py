"""``rules schema``: the JSON Schema that editors check rule files with."""

from __future__ import annotations

import json

import typer


def schema() -> None:
    """Print the JSON Schema (draft 2020-12) of rule files."""
    from nae_monitor.detect.tools.json_schema import rule_schema

    typer.echo(json.dumps(rule_schema(), indent=2))
