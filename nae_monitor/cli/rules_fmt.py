"""``rules fmt``: the canonical order of keys."""

from __future__ import annotations

from typing import Annotated

import typer

from nae_monitor.cli.rules_options import PathsArgument, rules_at
from nae_monitor.cli.terminal import output


def fmt(
    paths: PathsArgument = None,
    check: Annotated[
        bool, typer.Option("--check", help="Write nothing; exit 1 where a file would change.")
    ] = False,
) -> None:
    """Put the keys of rule files in canonical order; lines and comments stay as they are."""
    from nae_monitor.detect.sources import rule_files
    from nae_monitor.detect.tools.layout import laid_out
    from nae_monitor.strict_yaml import read_documents

    files = rule_files(rules_at(paths))
    changed = 0
    for file in files:
        read_documents(file)  # refuses, with its place, what is no text
        text = file.read_text(encoding="utf-8")
        after = laid_out(text, str(file))
        if after != text:
            changed += 1
            output().print(f"{'would change' if check else 'changed'}: {file}", soft_wrap=True)
            if not check:
                file.write_text(after, encoding="utf-8")
    output().print(f"{len(files)} files, {changed} {'to change' if check else 'changed'}")
    if check and changed:
        raise typer.Exit(1)
