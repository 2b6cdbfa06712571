"""Files written whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_dir() -> Path:
    """Say where weights, tables and built data are kept: `QANCHOR_CACHE`, else ~/.cache/qanchor."""
    return Path(os.environ.get("QANCHOR_CACHE") or Path.home() / ".cache" / "qanchor")


def replace_surrogates(text: str) -> str:
    """Put a question mark for each half of a character (a lone surrogate), which neither file nor tokenizer takes.

    Example:
        >>> replace_surrogates("tea " + chr(0xD83C))
        'tea ?'
    """
    return text.encode("utf-8", "replace").decode()


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Say a full disk or a forbidden folder as OSError, where the writer of tensors has an error of its own."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        raise OSError(f"{path}: {error}: free some disk, or name another folder") from error


def atomic_write(path: Path, write: Callable[[Path], object]) -> Path:
    """Let `write` fill a file beside `path`, then rename it: whoever reads or kills finds the old file or the new one.

    The file beside it bears the number of the process: of two that write at once, the last wins. A fault leaves nothing.

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
def atomic_directory(target: Path):
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
