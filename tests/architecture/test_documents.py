"""The Markdown documents: what they show exists, links resolve, and the README stays short."""

import ast
import importlib
import re
from pathlib import Path

import pytest

import qanchor

ROOT = next(folder for folder in Path(__file__).parents if (folder / "pyproject.toml").exists())
DOCUMENTS = [
    "README.md",
    "data/README.md",
    "data/runs/README.md",
    "notebooks/README.md",
    "tests/README.md",
    ".github/CHANGELOG.md",
    ".github/CONTRIBUTING.md",
]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_the_readme_starts_with_the_two_commands():
    first = re.findall(r"```\w*\n(.*?)```", read("README.md"), re.S)[0]
    assert "make lab" in first and "make test" in first, first


def test_the_readme_is_short():
    assert len(read("README.md").splitlines()) <= 200 and len(read("README.md").encode()) <= 20_000


@pytest.mark.parametrize("name", ["README.md", "data/README.md"])
def test_python_examples_use_public_names(name):
    blocks = re.findall(r"```python\n(.*?)```", read(name), re.S)
    assert blocks, f"{name} has no Python example"
    for node in (node for block in blocks for node in ast.walk(ast.parse(block))):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "qa":
            assert node.attr in qanchor.__all__, f"{name} uses qa.{node.attr}, which is not public"
        if isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert hasattr(module, alias.name), (
                    f"{name} imports {alias.name} from {node.module}, which lacks it"
                )


def test_the_tests_in_the_table_of_faults_exist():
    sources = "".join(
        path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py")
    )
    named = re.findall(r"`(test_\w+)`", read("tests/README.md"))
    assert len(named) >= 20
    assert not [name for name in named if f"def {name}(" not in sources]


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_resolve(name):
    for target in re.findall(r"\]\(([^)\s]+)\)", read(name)):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / name).parent / path if path else ROOT / name
        assert file.exists(), f"{name} links to {target}, and {file} does not exist"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.M)
            anchors = [
                re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings
            ]
            assert anchor in anchors, (
                f"{name} links to {target}, and {file.name} has no such heading"
            )
