"""What holds for every test: shapes and types in signatures are checked, the network is shut,
browser tests are marked.
"""

import os
import socket
from pathlib import Path

import beartype
import pytest
from jaxtyping import install_import_hook

os.environ.setdefault(
    "HF_HUB_OFFLINE", "1"
)  # else a missing file is looked for on a hub and the test hangs
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # else forked workers warn and may lock

HERE = Path(__file__).parent
LIBRARY = HERE.parent / "qanchor"
LONGEST = (
    "test_app_page.py",
    "test_lesson_page.py",
)  # begun first (`make browser` keeps the order), or one of two workers ends alone
LOCAL = ("127.0.0.1", "::1", "localhost", "0.0.0.0", "")


def pytest_configure(config):
    """Check shapes and types in signatures of the library; browser tests compute in other
    processes, and views take whatever a back end gives.
    """
    if config.option.markexpr.startswith("browser"):  # the checks take 20 s to set up
        return
    # Before any test module imports the library: afterwards its functions would stand there
    # unchecked. The hook wants an importable name; the tower lets an int stand where a float is
    # asked for.
    beartype.with_tower = beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))
    parts = [path.stem for path in LIBRARY.iterdir() if path.name != "widgets"]
    checked = [f"qanchor.{part}" for part in parts]
    install_import_hook([*checked, "tests.benchmarks"], "beartype.with_tower")


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses by marker
def pytest_collection_modifyitems(items):
    for item in items:
        if HERE / "browser" in Path(item.path).parents:
            item.add_marker(pytest.mark.browser)
    items.sort(key=lambda item: Path(item.path).name not in LONGEST)


def pytest_runtest_setup(item):
    if item.get_closest_marker("weights"):
        from qanchor.utils.io import cache_dir

        if not all((cache_dir() / name / "config.json").exists() for name in ("smollm2", "minilm")):
            pytest.skip("needs the packaged weights: say make weights")


@pytest.fixture(autouse=True, scope="session")
def no_network():
    """Refuse every connection that leaves the machine: a test that needs one would fail for the
    next person.
    """
    connect = socket.socket.connect

    def local_only(self, address):
        host = address[0] if isinstance(address, tuple) else ""
        if host not in LOCAL:
            raise OSError(f"a test tried to reach {address}: tests need no network")
        return connect(self, address)

    patch = pytest.MonkeyPatch()
    patch.setattr(socket.socket, "connect", local_only)
    yield
    patch.undo()
