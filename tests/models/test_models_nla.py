from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from nae_monitor.errors import ModelError
from nae_monitor.models import resolve_nla


@pytest.fixture
def embedded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("nae_monitor.models.nla.EMBEDDED", tmp_path)
    pair = tmp_path / "tiny-av"
    pair.mkdir()
    (pair / "weights").write_bytes(b"numbers")
    digest = hashlib.sha256(b"numbers").hexdigest()
    (pair / "SHA256SUMS").write_text(f"{digest}  weights\n")
    return pair


def test_an_embedded_checkpoint_is_found_by_name(embedded: Path) -> None:
    assert resolve_nla("embedded/tiny-av") == embedded


def test_an_unknown_embedded_name_lists_those_there_are(embedded: Path) -> None:
    with pytest.raises(ModelError, match="embedded here: tiny-av"):
        resolve_nla("embedded/other")


@pytest.mark.parametrize("name", ["embedded/../x", "embedded/", "embedded/a/b", "embedded//etc"])
def test_an_embedded_name_never_leaves_its_folder(embedded: Path, name: str) -> None:
    with pytest.raises(ModelError, match="not an embedded checkpoint"):
        resolve_nla(name)


def test_a_changed_file_is_named(embedded: Path) -> None:
    (embedded / "weights").write_bytes(b"numbres")
    with pytest.raises(ModelError, match=r"weights.*does not match"):
        resolve_nla("embedded/tiny-av")


def test_a_missing_file_is_named(embedded: Path) -> None:
    (embedded / "weights").unlink()
    with pytest.raises(ModelError, match=r"weights.*missing"):
        resolve_nla("embedded/tiny-av")


@pytest.mark.parametrize("line", ["junk", "0" * 64 + "  ../up", "0" * 64 + "  /etc/hostname"])
def test_a_broken_or_unsafe_line_is_refused(embedded: Path, line: str) -> None:
    (embedded / "SHA256SUMS").write_text(line + "\n")
    with pytest.raises(ModelError, match="SHA256SUMS:1"):
        resolve_nla("embedded/tiny-av")


def test_a_directory_without_checksums_passes(tmp_path: Path) -> None:
    assert resolve_nla(str(tmp_path)) == tmp_path


def test_a_directory_with_checksums_is_verified(embedded: Path) -> None:
    (embedded / "weights").write_bytes(b"")
    with pytest.raises(ModelError, match="does not match"):
        resolve_nla(str(embedded))


def test_a_missing_directory_is_named() -> None:
    with pytest.raises(ModelError, match=r"\./nowhere"):
        resolve_nla("./nowhere")
