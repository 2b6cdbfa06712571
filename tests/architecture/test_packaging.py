"""What is installed: `qanchor` with its views, and no package with a common name beside it."""

import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGED = ("pyproject.toml", "README.md", "LICENSE")
BUILD = "import sys; from setuptools import build_meta; build_meta.{}(sys.argv[1])"
USE = """
import sys
import qanchor
from qanchor import widgets
assert widgets.__file__.startswith(sys.argv[1]), widgets.__file__
scripts = [str(view._esm) for view in vars(widgets).values() if hasattr(view, "_esm")]
assert len(scripts) > 5 and min(map(len, scripts)) > 1000
assert issubclass(qanchor.DataError, ValueError)
"""
VIEWS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.py", "static/*")
    for path in (ROOT / "widgets").glob(pattern)
)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Return a copy of what is packaged: building leaves files beside the source."""
    folder = tmp_path_factory.mktemp("source")
    skip = shutil.ignore_patterns("__pycache__")
    for name in ("qanchor", "widgets"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=skip)
    for name in PACKAGED:
        shutil.copy(ROOT / name, folder)
    return folder


def build(source: Path, kind: str, out: Path) -> Path:
    """Build a `wheel`, an `sdist` or an `editable` as pip does, and return the file."""
    out.mkdir()
    command = [sys.executable, "-c", BUILD.format(f"build_{kind}"), str(out)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = (path for path in out.iterdir() if path.suffix in (".whl", ".gz"))
    return path


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.mark.slow
def test_a_wheel_has_the_views_and_no_package_called_widgets(source, tmp_path):
    wheel = build(source, "wheel", tmp_path / "wheel")
    packed = names(wheel)
    tops = {name.split("/")[0] for name in packed}
    assert tops == {"qanchor", next(top for top in tops if top.endswith(".dist-info"))}
    assert len(VIEWS) > 40
    assert not {f"qanchor/{name}" for name in VIEWS} - packed
    assert {"qanchor/__init__.pyi", "qanchor/py.typed", "qanchor/useru/topics.csv"} <= packed

    with tarfile.open(build(source, "sdist", tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.glob("qanchor-*")
    assert names(build(unpacked, "wheel", tmp_path / "again")) == packed

    installed = tmp_path / "installed"
    shutil.unpack_archive(wheel, installed, "zip")
    command = [sys.executable, "-c", USE, str(installed)]
    environment = {"PYTHONPATH": str(installed), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_an_editable_install_is_a_path(source, tmp_path):
    """An import hook would be hidden by a folder called qanchor where Python is started."""
    wheel = build(source, "editable", tmp_path / "editable")
    with zipfile.ZipFile(wheel) as archive:
        (path,) = (name for name in archive.namelist() if name.endswith(".pth"))
        assert archive.read(path).decode().split() == [str(source)]
        assert not [name for name in archive.namelist() if name.endswith(".py")]
