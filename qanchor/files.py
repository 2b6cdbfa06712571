"""Files written whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_folder() -> Path:
    """Say where weights, tables and built data are kept: `QANCHOR_CACHE`, else ~/.cache/qanchor."""
    return Path(os.environ.get("QANCHOR_CACHE") or Path.home() / ".cache" / "qanchor")


def whole(text: str) -> str:
    """Put a question mark for each half of a character (a lone surrogate), which neither file nor tokenizer takes.

    Example:
        >>> whole("tea " + chr(0xD83C))
        'tea ?'
    """
    return text.encode("utf-8", "replace").decode()


@contextmanager
def disk_faults(path: Path) -> Iterator[None]:
    """Say a full disk or a forbidden folder as OSError, where the writer of tensors has an error of its own."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise OSError(f"{path}: {error}: free some disk, or name another folder") from error


def write_whole(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a file beside `path`, then rename it: whoever reads or kills finds the old file or the new one.

    The file beside it bears the number of the process: of two that write at once, the last wins. A fault leaves nothing.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "about.json"
        >>> write_whole(path, lambda aside: aside.write_text("{}")).read_text()
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
def written_aside(target: Path):
    """Give a folder to write into; it becomes `target` only when everything went well."""
    target.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield aside
        if not target.exists():  # another process may have been first: theirs is as good
            try:
                aside.rename(target)
            except OSError:
                if not target.exists():
                    raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def sha256(path: Path) -> str:
    """Hash a file without reading it whole into memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
