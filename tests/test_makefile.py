"""`make` on a machine with missing requirements."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def make(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["make", *args], cwd=folder, capture_output=True, text=True, timeout=60, check=False)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "constraints-run.txt"):
        shutil.copy(ROOT / name, tmp_path / name)
    return tmp_path


def python_without(folder: Path, *, module: str) -> str:
    """A Python that cannot import a module, like Debian's without python3-venv."""
    path = folder / "python"
    path.write_text(f'#!/bin/sh\ncase "$*" in *"import "*{module}*) exit 1;; esac\nexec {sys.executable} "$@"\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("target", ["run", "test"])
def test_setup_without_venv_names_the_package_and_leaves_nothing(project: Path, target: str) -> None:
    for _ in range(2):  # the second run behaves the same
        done = make(project, target, f"PYTHON={python_without(project, module='ensurepip')}")
        assert done.returncode != 0
        assert "lacks venv: install it (on Debian and Ubuntu: apt-get install python3-venv)" in done.stdout
        assert not (project / ".venv").exists()


def test_old_python_is_refused(project: Path) -> None:
    old = project / "python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    done = make(project, "run", f"PYTHON={old}")
    assert done.returncode != 0
    assert "Python 3.11 or newer is needed" in done.stdout


def test_every_target_has_help(project: Path) -> None:
    words = make(project, "help").stdout
    for word in ("setup", "run", "demo-failure", "test", "check", "bench"):
        assert f"\n{word} " in f"\n{words}"
