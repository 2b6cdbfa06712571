"""The public names: listed in one place, imported when they are used, and plain otherwise."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import qanchor

ROOT = Path(__file__).parents[2]
LIGHT = """
import sys
{statement}
heavy = {{"torch", "pandas", "sklearn", "transformers"}} & set(sys.modules)
assert not heavy, heavy
"""


@pytest.mark.parametrize(
    "statement",
    [
        "import qanchor; dir(qanchor)",
        "from qanchor import cli; sys.argv = ['qanchor', '--version']; assert cli.main() == 0",
        "from qanchor import cli; sys.argv = ['qanchor', 'fit', '--help']; assert cli.main() == 0",
    ],
)
def test_nothing_heavy_is_imported_before_it_is_used(statement):
    code = LIGHT.format(statement=statement)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_star_import_gives_all_names():
    names = {}
    exec("from qanchor import *", names)
    assert set(qanchor.__all__) == set(dir(qanchor)) == set(names) - {"__builtins__"}


def test_classes_are_pickled_by_the_module_that_defines_them():
    assert pickle.loads(pickle.dumps(qanchor.Users)) is qanchor.Users
    assert qanchor.Users.__module__ == "qanchor.data.users"


def test_a_misspelt_name_is_named():
    with pytest.raises(AttributeError, match="Userz"):
        qanchor.Userz  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'Userz' from 'qanchor'"):
        exec("from qanchor import Userz")
