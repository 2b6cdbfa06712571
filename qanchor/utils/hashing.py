"""Hashes of files."""

from __future__ import annotations

import hashlib
from pathlib import Path


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file as hex digits, reading it in chunks.

    Args:
        path: The file.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "empty"
        >>> path.touch()
        >>> sha256_file(path)[:6]
        'e3b0c4'
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
