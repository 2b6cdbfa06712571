"""The functions of the views' scripts, in node."""

import subprocess
from pathlib import Path

import pytest

from tests.programs import find_program

SCRIPTS = sorted(Path(__file__).parents[1].glob("js/*.test.mjs"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_the_functions_of_a_script_are_right(script):
    node = find_program("nodejs")
    if node is None:
        pytest.skip("needs node, to run the views' own tests")
    done = subprocess.run([node, "--test", str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
