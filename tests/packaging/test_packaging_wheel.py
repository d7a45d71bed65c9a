"""The built wheel, installed outside the checkout, is whole and runs."""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "nae_monitor", "rules", "integrations")
PLACES = {
    "nae_monitor/": "nae_monitor",
    "nae_monitor/rules/": "rules",
    "nae_monitor/integrations/": "integrations",
}
pytestmark = pytest.mark.live


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True
    )


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: a build leaves files beside the sources it reads."""
    folder = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    built = tmp_path_factory.mktemp("dist")
    done = run(
        sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", built, cwd=folder
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "absent from the `packages`" not in done.stdout + done.stderr
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with the wheel.

    The dependencies are read from the running environment's site-packages, by a path line:
    ``.pth`` files there are not run, so the editable install of the checkout is not seen.
    """
    home = tmp_path_factory.mktemp("venv")
    venv.create(home, with_pip=False, symlinks=True)
    folder = next((home / "lib").glob("python*")) / "site-packages"
    (folder / "dependencies.pth").write_text("\n".join(site.getsitepackages()) + "\n")
    command = ("-m", "pip", "--python", home / "bin" / "python", "install", "--no-deps", "--quiet")
    done = run(sys.executable, *command, "--ignore-installed", wheel, cwd=home)
    assert done.returncode == 0, done.stderr
    return home / "bin"


def test_the_wheel_holds_every_file_of_the_sources(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    expected = {
        f"{prefix}{path.relative_to(ROOT / folder).as_posix()}"
        for prefix, folder in PLACES.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert expected - inside == set()
    assert {name for name in inside if ".dist-info/" not in name} - expected == set()


def test_the_wheel_carries_the_licence(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        assert any(name.endswith("licenses/LICENSE") for name in archive.namelist())


def test_the_installed_package_is_the_wheel(installed: Path, tmp_path: Path) -> None:
    code = "import nae_monitor; print(nae_monitor.__file__)"
    done = run(installed / "python", "-c", code, cwd=tmp_path)
    assert Path(done.stdout.strip()).is_relative_to(installed.parent), done.stderr


def test_the_installed_rules_load_and_pass(installed: Path, tmp_path: Path) -> None:
    done = run(installed / "nae-monitor", "rules", "test", "--no-models", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert " 0 failed" in done.stdout


def test_the_installed_doctor_runs(installed: Path, tmp_path: Path) -> None:
    done = run(installed / "nae-monitor", "doctor", "--json", cwd=tmp_path)
    checks = json.loads(done.stdout)["checks"]
    assert [check["name"] for check in checks if check["state"] == "fault"] == []
    assert "Traceback" not in done.stderr


@pytest.mark.timeout(900)
def test_the_installed_demo_runs(installed: Path, tmp_path: Path) -> None:
    done = run(installed / "nae-monitor", "demo", "--prompts", "2", "--out", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "out" / "report.html").stat().st_size > 10_000
    assert (tmp_path / "out" / "alerts.jsonl").exists()
