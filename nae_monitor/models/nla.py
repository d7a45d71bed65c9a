"""NLA checkpoints: shipped inside the package, in a directory, or on a model hub."""

from __future__ import annotations

import re
from pathlib import Path

from nae_monitor.models.cache import model_error, sha256_file
from nae_monitor.models.hub import fetch_from_hub, is_hub_id

EMBEDDED = Path(__file__).parent / "embedded"
CHECKSUMS = "SHA256SUMS"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
_LINE = re.compile(r"([0-9a-f]{64}) [ *](\S.*)")


def resolve_nla(name: str) -> Path:
    """The local directory of an NLA checkpoint.

    Args:
        name: ``embedded/NAME`` (shipped in this package), a directory, or a hub id OWNER/NAME.

    Raises:
        ModelError: not found, or a file that does not match the directory's SHA256SUMS.
    """
    prefix, _, rest = name.partition("/")
    if prefix == "embedded":
        directory = EMBEDDED / rest
        if not _NAME.fullmatch(rest) or not directory.is_dir():
            known = sorted(p.name for p in EMBEDDED.glob("*") if p.is_dir())
            mend = "embedded here: " + (", ".join(known) or "none")
            raise model_error(name, "is not an embedded checkpoint", mend)
    else:
        directory = Path(name).expanduser()
    if not directory.is_dir():
        if name.startswith(("/", ".", "~")) or not is_hub_id(name):
            raise model_error(name, "is not a directory", "a directory, embedded/NAME, OWNER/NAME")
        directory = fetch_from_hub(name)
    verify_checksums(directory)
    return directory


def verify_checksums(directory: Path) -> None:
    """Compare every file that SHA256SUMS lists; a directory without that file passes.

    Raises:
        ModelError: names each file that is missing, differs, or is listed unsafely.
    """
    sums = directory / CHECKSUMS
    if not sums.is_file():
        return
    for number, line in enumerate(sums.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        match = _LINE.fullmatch(line)
        if match is None or Path(match[2]).is_absolute() or ".." in Path(match[2]).parts:
            raise model_error(f"{sums}:{number}", "is not a `sha256  file` line")
        listed = directory / match[2]
        if not listed.is_file():
            raise model_error(listed, "is missing but listed in SHA256SUMS", "restore it")
        if sha256_file(listed) != match[1]:
            raise model_error(listed, "does not match its checksum in SHA256SUMS", "restore it")


def list_in_checksums(file: Path) -> None:
    """Write the checksum of ``file`` into its directory's SHA256SUMS, where there is one."""
    sums = file.parent / CHECKSUMS
    if not sums.is_file():
        return
    lines = sums.read_text(encoding="utf-8").splitlines()
    others = [line for line in lines if line.split(maxsplit=1)[1:] != [file.name]]
    others.append(f"{sha256_file(file)}  {file.name}")
    ordered = sorted(others, key=lambda line: line.split(maxsplit=1)[1:])
    sums.write_text("\n".join(ordered) + "\n", encoding="utf-8")
