"""Users to readings: the `UserPreprocessor` turns each user's events into slots, modality means and coarse numbers (numpy alone)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

from qanchor.config import Config
from qanchor.data.users import Users
from qanchor.models.features import UserFeatures, user_summary
from qanchor.models.text_encoder import text_vectors

DAY = np.timedelta64(1, "D")
CLIP = 4.0  # standard deviations; one odd purchase must not drown a slot


@dataclass
class UserPreprocessor:
    """Know how to read users: modalities, number columns, and the statistics fitted on the training users.

    Fit once on training users at their cut-offs, saved with the run; afterwards `transform` is the same for everybody.

    Example:
        >>> users = qa.make_sample_users(40)
        >>> preprocessor = qa.UserPreprocessor.fit(users, None, qa.TINY)
        >>> len(preprocessor.transform(users))
        40
    """

    modalities: tuple[str, ...]
    numbers: tuple[str, ...]
    facts: tuple[str, ...]
    max_frequent_events: int
    max_recent_events: int
    encoder: str
    token_order: str
    vocabulary: dict[str, int]  # "modality\ttext" -> row of `counts`
    idf: np.ndarray  # (vocabulary,)
    counts: np.ndarray  # (vocabulary, component): log counts -> components
    words: np.ndarray  # (text, component): mean text vector -> components
    mean: dict[str, np.ndarray]
    std: dict[str, np.ndarray]
    profile: np.ndarray  # (coarse number, component): the directions in which users differ most, each of unit spread

    @classmethod
    def fit(cls, users: Users, cutoffs: pd.DataFrame | None, config: Config, progress=None) -> UserPreprocessor:
        """Learn the statistics from the samples `cutoffs`: columns user, cutoff (None: every user, at the users' own)."""
        empty = np.zeros((0, 0), np.float32)
        preprocessor = cls(
            users.modalities,
            users.numbers,
            tuple(users.tabular.columns),
            config.max_frequent_events,
            config.max_recent_events,
            config.text_encoder,
            config.token_order,
            {},
            np.zeros(0, np.float32),
            empty,
            empty,
            {},
            {},
            empty,
        )
        raw = preprocessor._raw(users, cutoffs, progress)
        seen = pd.Series([k for r in raw["habits"] for k in r[0]]).value_counts()
        texts = list(users.events["text"].cat.categories)
        seen = seen[seen >= max(2, 0.002 * len(raw["users"]))].sort_index()
        preprocessor.vocabulary = {_name(preprocessor.modalities, texts, code): i for i, code in enumerate(seen.index)}
        preprocessor.idf = np.log(1 + len(raw["users"]) / seen.to_numpy(np.float32))
        matrix = preprocessor._count_matrix(users, raw["habits"])
        preprocessor.counts = _components(matrix, config.svd_components)
        preprocessor.words = _components(raw["words"], config.svd_components)
        for name, values in preprocessor._parts(users, raw).items():
            axis = tuple(range(values.ndim - 1))
            preprocessor.mean[name] = values.mean(axis).astype(np.float32)
            preprocessor.std[name] = np.maximum(values.std(axis), 1e-3).astype(np.float32)
        every = np.concatenate([r[1] for r in raw["habits"]] or [np.zeros((1, 7 + 2 * len(users.numbers)))])
        preprocessor.mean["event"], preprocessor.std["event"] = every.mean(0), np.maximum(every.std(0), 1e-2)
        coarse = preprocessor._coarse(preprocessor._parts(users, raw))
        directions = _components(coarse, config.profile_dim)
        preprocessor.profile = np.zeros((coarse.shape[1], config.profile_dim), np.float32)
        preprocessor.profile[:, : directions.shape[1]] = directions / np.maximum((coarse @ directions).std(0), 1e-3)
        return preprocessor

    def transform(
        self, users: Users, cutoffs: pd.DataFrame | None = None, progress: Callable[[int, int], None] | None = None
    ) -> UserFeatures:
        """Read each user up to the cut-off: `cutoffs` has columns user, cutoff (default: every user, the users' own)."""
        unknown = [m for m in users.modalities if m not in self.modalities]
        if unknown:
            raise ValueError(
                f"{users.name} has modality {unknown[0]!r}, the run knows {self.modalities}: "
                "train on these users, or drop the modality"
            )
        raw = self._raw(users, cutoffs, progress)
        parts = self._parts(users, raw)
        idf = np.append(self.idf, self.idf.max(initial=1.0))[self._columns(users)]  # column -1, unseen, is as rare as can be
        size = len(users.events["text"].cat.categories)
        slots = [self._slots(idf, size, *one) for one in zip(raw["habits"], raw["events"], strict=True)]
        return UserFeatures(
            tuple(raw["users"]),
            self._coarse(parts),
            raw["modal_text"],
            self._standard("modal", parts["modal"]),
            raw["present"],
            slots,
            list(users.events["text"].cat.categories),
            raw["vectors"],
        )

    @property
    def text_dim(self) -> int:
        """Say how wide the text vectors are."""
        return len(self.words)

    def sizes(self) -> dict[str, int]:
        """Say how wide each input of the encoder is."""
        parts = [self.mean[k].size * (len(self.modalities) if k == "modal" else 1) for k in self.mean if k != "event"]
        return {"coarse": sum(parts), "modal_number": self.mean["modal"].size, "event_number": self.mean["event"].size}

    def groups(self) -> dict[str, slice]:
        """Say which coarse numbers make up which slot: time, counts, words, and one for each group of facts."""
        out, start = {}, 0
        for name, mean in self.mean.items():
            if name == "event":
                continue
            width = mean.size * (len(self.modalities) if name == "modal" else 1)
            if name != "modal":  # those stand in the modality tokens
                out[name] = slice(start, start + width)
            start += width
        return out

    # -- from here on: how it is done --

    def _standard(self, name: str, values: np.ndarray) -> np.ndarray:
        return np.clip((values - self.mean[name]) / self.std[name], -CLIP, CLIP).astype(np.float32)

    def _coarse(self, parts: dict[str, np.ndarray]) -> np.ndarray:
        """Lay all coarse numbers side by side, standardised: (user, number)."""
        return np.concatenate([self._standard(name, values).reshape(len(values), -1) for name, values in parts.items()], 1)

    def _columns(self, users: Users) -> np.ndarray:
        """Say for each code (modality * texts + text) of these users which row of the vocabulary it is, or -1."""
        codes, names = self._codes(users), {}
        texts = list(users.events["text"].cat.categories)
        out = np.full(len(self.modalities) * len(texts), -1)
        for code in np.unique(codes).tolist():
            names[code] = self.vocabulary.get(_name(self.modalities, texts, code), -1)
        out[list(names)] = list(names.values())
        return out

    def _codes(self, users: Users) -> np.ndarray:
        modality = users.events["modality"].cat.set_categories(list(self.modalities)).cat.codes.to_numpy(np.int64)
        return modality * len(users.events["text"].cat.categories) + users.events["text"].cat.codes.to_numpy(np.int64)

    def _vectors(self, users: Users, progress=None) -> np.ndarray:
        return text_vectors(list(users.events["text"].cat.categories), self.encoder, progress=progress)

    def _count_matrix(self, users: Users, habits: list):
        from scipy.sparse import csr_matrix

        columns, rows, cols, values = self._columns(users), [], [], []
        for i, (keys, numbers) in enumerate(habits):
            known = columns[keys]
            keep = known >= 0
            rows.append(np.full(keep.sum(), i))
            cols.append(known[keep])
            values.append(numbers[keep, 0])
        shape = (len(habits), max(len(self.vocabulary), 1))
        return csr_matrix((np.concatenate(values), (np.concatenate(rows), np.concatenate(cols))), shape, np.float32)

    def _parts(self, users: Users, raw: dict) -> dict[str, np.ndarray]:
        """Give the coarse numbers, part by part; their order is the order of the coarse vector."""
        parts = {"modal": raw["modal"], "time": raw["time"]}
        parts["counts"] = self._count_matrix(users, raw["habits"]) @ self.counts
        parts["words"] = raw["words"] @ self.words
        facts = users.tabular.reindex(columns=list(self.facts)).reindex(raw["users"]).to_numpy(np.float32)
        for group in dict.fromkeys(f.split(".")[0] for f in self.facts):
            columns = [i for i, f in enumerate(self.facts) if f.split(".")[0] == group]
            missing = np.isnan(facts[:, columns])
            middle = np.nan_to_num(np.nanmedian(np.where(missing.all(0), 0, facts[:, columns]), axis=0))
            filled = np.where(missing, self.mean[group][: len(columns)] if group in self.mean else middle, facts[:, columns])
            parts[group] = np.concatenate([filled, missing], 1)
        return parts

    def _raw(self, users: Users, cutoffs: pd.DataFrame | None, progress=None) -> dict:
        if cutoffs is None:
            cutoffs = pd.DataFrame({"user": list(users.ids), "cutoff": users.cutoff})
        events, texts = users.events, 0

        def encoded(done: int, total: int) -> None:  # texts that are new: they may take longer than the users
            nonlocal texts
            texts = total
            if progress:
                progress(done, texts + len(cutoffs))

        vectors = self._vectors(users, encoded)
        codes = self._codes(users)
        time = events["time"].to_numpy()
        number = np.nan_to_num(events.reindex(columns=list(self.numbers)).to_numpy(np.float32))
        code = pd.Series(events["user"].cat.codes.to_numpy())
        first = np.searchsorted(code, np.arange(len(users) + 1))
        at = {u: i for i, u in enumerate(users.ids)}
        out: dict[str, list] = {k: [] for k in ("modal_text", "modal", "time", "words", "present", "habits", "events")}
        for i, (user, cutoff) in enumerate(zip(cutoffs["user"], cutoffs["cutoff"].to_numpy(), strict=True)):
            low, high = first[at[user]], first[at[user] + 1]
            high = low + np.searchsorted(time[low:high], cutoff)  # strictly before the cut-off: nothing later is ever read
            row = user_summary(
                (cutoff - time[low:high]) / DAY,
                time[low:high],
                codes[low:high],
                number[low:high],
                vectors,
                len(self.modalities),
                self.max_recent_events,
                self.token_order == "append_only",
            )
            for key, value in row.items():
                out[key].append(value)
            if progress and ((i + 1) % 256 == 0 or i + 1 == len(cutoffs)):
                progress(texts + i + 1, texts + len(cutoffs))
        raw = {k: (v if k in ("habits", "events") else np.stack(v)) for k, v in out.items()}
        return raw | {"users": list(cutoffs["user"]), "vectors": vectors}

    def _slots(self, idf: np.ndarray, size: int, habits, events):
        """Choose the habits that tell most (often here, rare elsewhere), and the newest events, oldest first."""
        keys, numbers = habits
        best = np.argsort(-(numbers[:, 0] * idf[keys]), kind="stable")[: self.max_frequent_events]
        parts = [(keys[best], numbers[best], np.zeros(len(best), bool)), (*events, np.ones(len(events[0]), bool))]
        if self.token_order == "append_only":  # habits change with every event: they stand behind what stays
            parts.reverse()
        ids, values, recent = (np.concatenate(part) for part in zip(*parts, strict=True))
        ids = ids.astype(np.int64)
        return ids % size, self._standard("event", values), ids // size, recent


def _name(modalities, texts: list[str], code: int) -> str:
    return f"{modalities[code // len(texts)]}\t{texts[code % len(texts)]}"


def _components(matrix, n: int) -> np.ndarray:
    """Give the n directions that hold most of a (sample, feature) matrix, as (feature, n)."""
    from sklearn.decomposition import TruncatedSVD

    n = min(n, min(matrix.shape) - 1)
    if n < 1:
        return np.zeros((matrix.shape[1], 1), np.float32)
    return TruncatedSVD(n, random_state=0, n_iter=7).fit(matrix).components_.T.astype(np.float32)
