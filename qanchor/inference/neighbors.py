"""Nearest users in a folder of embeddings, by exact search or through a faiss index."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from qanchor.data.metadata import read_manifest
from qanchor.errors import DataError
from qanchor.useru.pairs import user_hash
from qanchor.utils.io import atomic_write


def nearest_users(
    folder: Path | str, query: str, user: str, k: int = 10, index: str | None = None
) -> pd.DataFrame:
    """Find the users nearest to one user, for one query.

    Args:
        folder: Folder written by `embed_dataset`.
        query: One of its queries.
        user: Id of the user.
        k: Users to return. Default: 10.
        index: None (default): exact search, reading all embeddings of the query, part by part. A
            faiss factory string such as "HNSW32_SQfp16": approximate and fast; the index is built
            once, in memory, and stored in the folder. Needs `pip install 'qanchor[scale]'`.

    Returns:
        Columns user and similarity (cosine), nearest first, without the user.

    Raises:
        KeyError: If the user or the query is not in the folder.
        FileNotFoundError: If the folder is not complete.
        DataError: If a part is damaged.
        ValueError: If faiss is needed and not installed.

    Example:
        >>> import tempfile
        >>> users, folder = qa.make_sample_users(40), Path(tempfile.mkdtemp())
        >>> model = qa.QAnchor(qa.TINY, qa.UserPreprocessor.fit(users, None, qa.TINY))
        >>> run = model.save_pretrained(folder / "run")
        >>> query = "Will this user travel soon?"
        >>> _ = qa.embed_dataset(users, run, [query], folder / "out")
        >>> len(qa.nearest_users(folder / "out", query, users.ids[0], k=3))
        3
    """
    folder = Path(folder)
    manifest = _read_dataset_manifest(folder, query)
    ids, vectors = read_embeddings(
        folder, _part_of_user(manifest, user), manifest["queries"].index(query)
    )
    if not (at := np.flatnonzero(ids == user)).size:
        raise KeyError(f"user {user!r} is not among the {manifest['users']:,} of {folder}")
    vector = vectors[at[0]]
    find = _exact_search if index is None else partial(_index_search, index)
    nearest = find(folder, manifest, query, vector, k + 1)  # the user itself is left out
    nearest = nearest[nearest["user"] != user].sort_values(
        ["similarity", "user"], ascending=[False, True], ignore_index=True
    )
    return nearest.head(k)


def read_embeddings(folder: Path, part: dict, query: int) -> tuple[np.ndarray, np.ndarray]:
    """Read the embeddings of one query from one part.

    Args:
        folder: Folder of the embeddings.
        part: The part's entry in the manifest.
        query: Number of the query.

    Returns:
        Ids of the users, and embeddings (user, dim) in float32.

    Raises:
        DataError: If the part is missing or damaged.
    """
    path = folder / part["file"]
    try:
        table = pq.ParquetFile(path).read_row_group(query, ["user", "embedding"])
    except (ValueError, OSError, IndexError) as error:
        raise DataError(
            path.name,
            None,
            "embedding",
            str(error),
            "torn or gone: run `embed` on the folder again",
        ) from error
    column = table["embedding"].combine_chunks()
    vectors = column.flatten().to_numpy().reshape(len(column), -1).astype(np.float32)
    return table["user"].to_numpy(), vectors


def _read_dataset_manifest(folder: Path, query: str) -> dict:
    path = folder / "_manifest.json"
    if not path.exists():
        raise FileNotFoundError(f"{folder} has no _manifest.json: let `embed_dataset` end first")
    manifest = read_manifest(path, queries=list, parts=list, shards=int, users=int)
    if query not in manifest["queries"]:
        raise KeyError(
            f"query {query!r} is not one of the {len(manifest['queries'])} of {folder}: "
            "embed it first"
        )
    return manifest


def _part_of_user(manifest: dict, user: str) -> dict:
    """Return the part that holds a user, which depends on the hash of its id."""
    number = int(user_hash([user])[0]) % manifest["shards"]
    return next(
        (part for part in manifest["parts"] if part["shard"] == number), manifest["parts"][0]
    )


def _exact_search(
    folder: Path, manifest: dict, query: str, vector: np.ndarray, k: int
) -> pd.DataFrame:
    best, place = [pd.DataFrame({"user": [], "similarity": []})], manifest["queries"].index(query)
    for part in manifest["parts"]:
        ids, vectors = read_embeddings(folder, part, place)
        here = pd.DataFrame({"user": ids, "similarity": vectors @ vector})
        best = [pd.concat([*best, here]) if len(best[0]) else here]
        best = [best[0].sort_values(["similarity", "user"], ascending=[False, True]).head(k)]
    return best[0]


def _index_search(
    factory: str, folder: Path, manifest: dict, query: str, vector: np.ndarray, k: int
) -> pd.DataFrame:
    try:
        import faiss
    except ImportError as error:
        raise ValueError(
            f"index {factory!r} needs faiss: pip install 'qanchor[scale]', or leave index out"
        ) from error
    place = manifest["queries"].index(query)
    parts = manifest["parts"]
    key = json.dumps([factory, query, [part["sha256"] for part in parts]])
    path = folder / f"_{hashlib.sha256(key.encode()).hexdigest()[:16]}.faiss"
    if not path.exists():
        built = _build_index(faiss, factory, folder, manifest, place)
        atomic_write(path, lambda aside: faiss.write_index(built, str(aside)))
    score, rows = faiss.read_index(str(path)).search(vector[None], min(k, manifest["users"]))
    is_found = rows[0] >= 0  # an approximate index may find fewer
    rows, score = rows[0][is_found], score[0][is_found]
    first = np.cumsum([0, *(part["users"] for part in parts)])  # first row of each part
    homes = np.searchsorted(first, rows, side="right") - 1
    names = {
        home: read_embeddings(folder, manifest["parts"][home], place)[0]
        for home in np.unique(homes)
    }
    users = [names[home][row - first[home]] for home, row in zip(homes, rows, strict=True)]
    return pd.DataFrame({"user": users, "similarity": score})


def _build_index(faiss, factory: str, folder: Path, manifest: dict, place: int):
    """Build an index of one query, trained on the first part: users are assigned at random."""
    index = None
    for part in manifest["parts"]:
        vectors = read_embeddings(folder, part, place)[1]
        if index is None:
            index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
            index.train(vectors)
        index.add(vectors)
    return index
