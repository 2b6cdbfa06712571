"""Who is like this user, for this question: nearest neighbours in a folder of embeddings, exactly or through an index."""

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


def nearest_users(folder: Path | str, query: str, user: str, k: int = 10, index: str | None = None) -> pd.DataFrame:
    """Find the `k` users nearest to a user as answers to `query`: columns user, similarity (cosine), nearest first.

    folder  as `embed_dataset` wrote it;  query  one of those it was asked.
    index   None: exact, all embeddings of the query are read, one part at a time. A faiss factory string, as "HNSW32_SQfp16":
            approximate and fast; built once, in memory, and kept in the folder. Needs `pip install 'qanchor[scale]'`.

    Example:
        >>> import tempfile
        >>> users, folder = qa.make_sample_users(40), Path(tempfile.mkdtemp())
        >>> run = qa.QAnchor(qa.TINY, qa.UserPreprocessor.fit(users, None, qa.TINY)).save_pretrained(folder / "run")
        >>> told = qa.embed_dataset(users, run, ["Will this user travel soon?"], folder / "out")
        >>> len(qa.nearest_users(folder / "out", "Will this user travel soon?", users.ids[0], k=3))
        3
    """
    folder = Path(folder)
    manifest = _read_dataset_manifest(folder, query)
    ids, vectors = read_embeddings(folder, _part_of_user(manifest, user), manifest["queries"].index(query))
    if not (at := np.flatnonzero(ids == user)).size:
        raise KeyError(f"user {user!r} is not among the {manifest['users']:,} of {folder}")
    vector = vectors[at[0]]
    find = _exact_search if index is None else partial(_index_search, index)
    found = find(folder, manifest, query, vector, k + 1)  # the user, who is nearest, is left out
    found = found[found["user"] != user].sort_values(["similarity", "user"], ascending=[False, True], ignore_index=True)
    return found.head(k)


def read_embeddings(folder: Path, part: dict, query: int) -> tuple[np.ndarray, np.ndarray]:
    """Read one query of one part: the users' ids, and their embeddings (user, dim) in float32."""
    path = folder / part["file"]
    try:
        table = pq.ParquetFile(path).read_row_group(query, ["user", "embedding"])
    except (ValueError, OSError, IndexError) as error:
        raise DataError(path.name, None, "embedding", str(error), "torn or gone: run `embed` on the folder again") from error
    column = table["embedding"].combine_chunks()
    vectors = column.flatten().to_numpy().reshape(len(column), -1).astype(np.float32)
    return table["user"].to_numpy(), vectors


def _read_dataset_manifest(folder: Path, query: str) -> dict:
    path = folder / "_manifest.json"
    if not path.exists():
        raise FileNotFoundError(f"{folder} has no _manifest.json: let `embed_dataset` end first")
    manifest = read_manifest(path, queries=list, parts=list, shards=int, users=int)
    if query not in manifest["queries"]:
        raise KeyError(f"query {query!r} is not one of the {len(manifest['queries'])} of {folder}: embed it first")
    return manifest


def _part_of_user(manifest: dict, user: str) -> dict:
    """Say in which part a user is: the one of its hash."""
    number = int(user_hash([user])[0]) % manifest["shards"]
    return next((part for part in manifest["parts"] if part["shard"] == number), manifest["parts"][0])


def _exact_search(folder: Path, manifest: dict, query: str, vector: np.ndarray, k: int) -> pd.DataFrame:
    best, place = [pd.DataFrame({"user": [], "similarity": []})], manifest["queries"].index(query)
    for part in manifest["parts"]:
        ids, vectors = read_embeddings(folder, part, place)
        here = pd.DataFrame({"user": ids, "similarity": vectors @ vector})
        best = [pd.concat([*best, here]) if len(best[0]) else here]
        best = [best[0].sort_values(["similarity", "user"], ascending=[False, True]).head(k)]
    return best[0]


def _index_search(factory: str, folder: Path, manifest: dict, query: str, vector: np.ndarray, k: int) -> pd.DataFrame:
    try:
        import faiss
    except ImportError as error:
        raise ValueError(f"index {factory!r} needs faiss: pip install 'qanchor[scale]', or leave index out") from error
    place, told = manifest["queries"].index(query), [factory, query, [part["sha256"] for part in manifest["parts"]]]
    path = folder / f"_{hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]}.faiss"
    if not path.exists():
        atomic_write(path, lambda aside: faiss.write_index(_build_index(faiss, factory, folder, manifest, place), str(aside)))
    score, rows = faiss.read_index(str(path)).search(vector[None], min(k, manifest["users"]))
    rows, score = rows[0][rows[0] >= 0], score[0][rows[0] >= 0]  # an approximate index may find fewer
    first = np.cumsum([0, *(part["users"] for part in manifest["parts"])])  # rows stand part by part, as they were added
    homes = np.searchsorted(first, rows, side="right") - 1
    names = {home: read_embeddings(folder, manifest["parts"][home], place)[0] for home in np.unique(homes)}
    users = [names[home][row - first[home]] for home, row in zip(homes, rows, strict=True)]
    return pd.DataFrame({"user": users, "similarity": score})


def _build_index(faiss, factory: str, folder: Path, manifest: dict, place: int):
    """Build an index of one query; what it must learn it learns from the first part (users fall into parts by chance)."""
    made = None
    for part in manifest["parts"]:
        vectors = read_embeddings(folder, part, place)[1]
        if made is None:
            made = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
            made.train(vectors)
        made.add(vectors)
    return made
