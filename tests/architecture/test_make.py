"""`make test` ends by saying what could not be tested for want of a browser or of node."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.programs import PROGRAMS, find_program

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


def make(*arguments: str, path: Path, ci: str = "", venv: str = sys.prefix):
    """Run make where only the programs of one folder are found."""
    environment = {name: value for name, value in os.environ.items() if "MAKE" not in name}
    return subprocess.run(
        [shutil.which("make"), "--no-print-directory", *arguments, f"VENV={venv}"],
        cwd=ROOT,
        env=environment | {"PATH": str(path), "CI": ci},
        capture_output=True,
        text=True,
    )


def install(folder: Path, name: str, text: str = "#!/bin/sh\n") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


@pytest.mark.parametrize("ci", ["", "true"])
def test_a_missing_browser_and_node_are_told_and_fail_in_ci(tmp_path, ci):
    run = make("tell-missing", path=tmp_path, ci=ci)
    assert "NOT TESTED: tests that need chromium and nodejs were skipped" in run.stderr
    assert bool(run.returncode) == bool(ci)


@pytest.mark.parametrize("browser", PROGRAMS["chromium"])
def test_make_and_the_browser_tests_look_for_the_same_browsers(tmp_path, monkeypatch, browser):
    install(tmp_path, browser)
    run = make("tell-missing", path=tmp_path, ci="true")
    assert run.returncode and "need nodejs were" in run.stderr
    install(tmp_path, "node")
    run = make("tell-missing", path=tmp_path, ci="true")
    assert not run.returncode and not run.stderr
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_program("chromium") == str(tmp_path / browser)
    conftest = (ROOT / "tests/browser/conftest.py").read_text(encoding="utf-8")
    assert 'find_program("chromium")' in conftest and "shutil.which" not in conftest


@pytest.mark.parametrize("target", ["test", "test-all"])
def test_what_is_missing_is_told_after_a_failure_too(tmp_path, target):
    venv = tmp_path / "venv"
    tell = f'case "$*" in *tests.programs) exec {sys.executable} "$@";; esac\n'
    install(venv / "bin", "python", f"#!/bin/sh\n{tell}exit 1\n")
    (venv / ".qanchor-made").touch()  # newer than what it is made from
    run = make(target, path=tmp_path, venv=str(venv))
    assert run.returncode and "passed" not in run.stdout
    assert "NOT TESTED" in run.stderr, run.stderr
