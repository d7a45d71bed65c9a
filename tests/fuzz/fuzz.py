"""Fuzzes one property, or each in turn: ``python tests/fuzz/fuzz.py all --seconds 60``.

Coverage-guided (atheris, an optional dependency: ``pip install -e '.[fuzz]'``). What breaks a
property is written under ``build/fuzz/NAME/`` as a file of the bytes; put it, shortened, into
``test_fuzz_replay.py`` with its mend. Exit code 0: nothing broke.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["nae_monitor.detect", "nae_monitor.strict_yaml"]):
    from fuzz_properties import PROPERTIES
    from fuzz_seeds import seeds

FOUND = Path(__file__).resolve().parents[2] / "build" / "fuzz"
MAX_BYTES = 4_096
HANG_S = 60  # for one input, on a busy machine
RSS_MB = 4_096


def main() -> int:
    """Fuzz; see the module."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=[*PROPERTIES, "all"])
    parser.add_argument("--seconds", type=int, default=60, help="of each property")
    asked = parser.parse_args()
    if asked.name == "all":
        command = [sys.executable, __file__, "--seconds", str(asked.seconds)]
        codes = [subprocess.run([*command, name], check=False).returncode for name in PROPERTIES]
        return int(any(codes))
    return _fuzz(asked.name, asked.seconds)


def _fuzz(name: str, seconds: int) -> int:
    corpus = FOUND / name / "corpus"
    corpus.mkdir(parents=True, exist_ok=True)
    for number, seed in enumerate(seeds(name)):
        (corpus / f"seed-{number}").write_bytes(seed)
    options = [
        f"-max_total_time={seconds}",
        f"-max_len={MAX_BYTES}",
        f"-timeout={HANG_S}",
        f"-rss_limit_mb={RSS_MB}",
        f"-artifact_prefix={FOUND / name}/",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], PROPERTIES[name])
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
