from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from nae_monitor.errors import ConfigurationError
from nae_monitor.health import Health
from nae_monitor.parts import load_parts
from nae_monitor.settings import DetectSettings, NlaSettings, Settings


@pytest.mark.parametrize("missing", ["av", "ar"])
def test_a_missing_half_does_not_hide_what_is_wrong_with_the_other(
    missing: str, tmp_path: Path
) -> None:
    directories = {"av": str(tmp_path), "ar": str(tmp_path), missing: str(tmp_path / "nowhere")}
    settings = replace(
        Settings(),
        nla=NlaSettings(**directories),
        detect=DetectSettings(rules=("builtin",), encoder=None),
    )
    with pytest.raises(ConfigurationError) as caught:
        load_parts(settings, Health())
    places = [str(problem.where.file) for problem in caught.value.problems]
    assert str(tmp_path / "nowhere") in places
    assert str(tmp_path / "nla_meta.yaml") in places
