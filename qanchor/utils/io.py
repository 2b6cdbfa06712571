"""Atomic file writes, the cache folder, and files shipped with the package."""

from __future__ import annotations

import csv
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path


def cache_dir() -> Path:
    """Return the cache folder of weights, text vectors and built data sets.

    Returns:
        The environment variable `QANCHOR_CACHE` if set, otherwise `~/.cache/qanchor`.
    """
    return Path(os.environ.get("QANCHOR_CACHE") or Path.home() / ".cache" / "qanchor")


def read_resource(package: str, name: str) -> str:
    """Return the text of a file that is shipped with a package.

    Args:
        package: Package that holds the file, such as "qanchor.data".
        name: Path of the file inside the package.

    Returns:
        The text, decoded as UTF-8.

    Example:
        >>> read_resource("qanchor.useru", "topics.csv").partition(",")[0]
        'name'
    """
    return resources.files(package).joinpath(name).read_text(encoding="utf-8")


def read_resource_rows(package: str, name: str) -> list[dict[str, str]]:
    """Return the rows of a CSV file that is shipped with a package, each as a dict of strings.

    Args:
        package: Package that holds the file, such as "qanchor.data".
        name: Path of the file inside the package.

    Returns:
        One dict per row, keys in the order of the header.

    Example:
        >>> read_resource_rows("qanchor.useru", "topics.csv")[0]["name"]
        'credit'
    """
    return list(csv.DictReader(read_resource(package, name).splitlines()))


def replace_surrogates(text: str) -> str:
    """Replace lone surrogates (half characters), which files and tokenizers reject, with "?".

    Args:
        text: Any string.

    Returns:
        The text, valid as UTF-8.

    Example:
        >>> replace_surrogates("tea " + chr(0xD83C))
        'tea ?'
    """
    return text.encode("utf-8", "replace").decode()


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn safetensors' own error for a full disk or a read-only folder into OSError.

    Args:
        path: File that is being written; named in the error.

    Raises:
        OSError: safetensors could not write.
    """
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise OSError(f"{path}: {error}. Free disk space or choose another folder.") from error


def atomic_write(path: Path, write: Callable[[Path], object]) -> Path:
    """Write a file under a temporary name, then rename it to `path`.

    Readers see the old file or the new one, never a partial one, even if the process is killed. The
    temporary name contains the process id; if two processes write at once, the last one wins.

    Args:
        path: File to write.
        write: Called with the temporary path; must write that file.

    Returns:
        `path`.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "about.json"
        >>> atomic_write(path, lambda aside: aside.write_text("{}")).read_text()
        '{}'
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        write(aside)
        return aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


@contextmanager
def atomic_directory(target: Path) -> Iterator[Path]:
    """Yield a temporary folder that is renamed to `target` if the block ends without an error.

    Args:
        target: Folder to create. If another process creates it first, that folder is kept.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield aside
        if not target.exists():  # otherwise another process was first: keep its folder
            try:
                aside.rename(target)
            except OSError:
                if not target.exists():
                    raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def read_json(path: Path) -> dict | list:
    """Return the content of a JSON file.

    Args:
        path: The file.
    """
    return json.loads(path.read_text())


def write_json(path: Path, content: dict | list) -> None:
    """Write a JSON file atomically.

    Args:
        path: The file.
        content: Anything JSON can hold.
    """
    text = json.dumps(content, indent=1) + "\n"
    atomic_write(path, lambda aside: aside.write_text(text))
