"""`UserPreprocessor`: vocabulary and statistics fitted on the training users, and the transform."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from qanchor.config import Config
from qanchor.data.users import Users
from qanchor.models.compatibility import LEFT_OUT, warn_of_differences
from qanchor.models.features import UserFeatures, user_summary
from qanchor.models.text_encoder import text_vectors
from qanchor.utils.types import Progress

DAY = np.timedelta64(1, "D")
CLIP = 4.0  # standard deviations; one extreme purchase must not dominate a token
MIN_TEXT_USERS = 2  # samples that must have a text for it to enter the vocabulary
MIN_TEXT_SHARE = 0.002  # and the share of all samples
PROGRESS_INTERVAL = 256  # samples between two progress reports


@dataclass
class UserPreprocessor:
    """Convert users to model inputs. Holds the vocabulary and statistics of the training users.

    Fit it once on training users at their cut-offs; it is saved with the run. Afterwards
    `transform` treats every user alike.

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
    # (coarse number, component): main directions of the coarse numbers, scaled to unit variance
    profile: np.ndarray

    @classmethod
    def fit(
        cls,
        users: Users,
        cutoffs: pd.DataFrame | None,
        config: Config,
        progress: Progress | None = None,
    ) -> UserPreprocessor:
        """Fit the vocabulary and the statistics.

        Args:
            users: Training users.
            cutoffs: Samples to fit on, columns user and cutoff; None: every user at the cut-off of
                `users`.
            config: Configuration of the model.
            progress: Called with (done, total) texts and samples. Default: none.

        Returns:
            The fitted preprocessor.
        """
        return cls._fitted(users, cutoffs, config, progress)[0]

    @classmethod
    def fit_transform(
        cls,
        users: Users,
        cutoffs: pd.DataFrame | None,
        config: Config,
        progress: Progress | None = None,
    ) -> tuple[UserPreprocessor, UserFeatures]:
        """Fit on samples and transform the same samples, reading the users' events only once.

        Args:
            users: Training users.
            cutoffs: Samples, columns user and cutoff; None: every user at the cut-off of `users`.
            config: Configuration of the model.
            progress: Called with (done, total) texts and samples. Default: none.

        Returns:
            The preprocessor and the features that `fit` followed by `transform` give.

        Example:
            >>> users = qa.make_sample_users(40)
            >>> preprocessor, features = qa.UserPreprocessor.fit_transform(users, None, qa.TINY)
            >>> features.coarse.shape == (40, preprocessor.sizes()["coarse"])
            True
        """
        preprocessor, raw = cls._fitted(users, cutoffs, config, progress)
        return preprocessor, preprocessor._features(users, raw)

    def transform(
        self,
        users: Users,
        cutoffs: pd.DataFrame | None = None,
        progress: Progress | None = None,
    ) -> UserFeatures:
        """Compute the features of each sample. Only events before its cut-off are read.

        Args:
            users: Users. Events of modalities that the training users did not have are left out,
                with a warning that counts them.
            cutoffs: Samples, columns user and cutoff. Default: every user at the cut-off of
                `users`.
            progress: Called with (done, total) texts and samples. Default: none.

        Returns:
            Features in the order of the samples.
        """
        warn_of_differences(users, self.modalities, self.numbers, LEFT_OUT)
        is_known = users.events["modality"].isin(self.modalities)
        if not is_known.all():
            users = replace(users, events=users.events[is_known].reset_index(drop=True))
        return self._features(users, self._raw_features(users, cutoffs, progress))

    @property
    def text_dim(self) -> int:
        """Return the width of the text vectors."""
        return len(self.words)

    def sizes(self) -> dict[str, int]:
        """Return the widths of the inputs of `PrefixEncoder`: coarse, modal and event numbers."""
        return {
            "coarse": sum(self._width(name) for name in self._coarse_names()),
            "modal_number": self.mean["modal"].size,
            "event_number": self.mean["event"].size,
        }

    def groups(self) -> dict[str, slice]:
        """Return which coarse numbers belong to which group token: time, counts, words, facts.

        The numbers of the modalities are left out; they belong to the modality tokens.
        """
        groups = {}
        start = 0
        for name in self._coarse_names():
            end = start + self._width(name)
            if name != "modal":
                groups[name] = slice(start, end)
            start = end
        return groups

    # -- fitting --

    @classmethod
    def _fitted(
        cls, users: Users, cutoffs: pd.DataFrame | None, config: Config, progress: Progress | None
    ) -> tuple[UserPreprocessor, dict]:
        """Return a fitted preprocessor, and the raw features of the samples it was fitted on."""
        empty = np.zeros((0, 0), np.float32)
        preprocessor = cls(
            modalities=users.modalities,
            numbers=users.numbers,
            facts=tuple(users.tabular.columns),
            max_frequent_events=config.max_frequent_events,
            max_recent_events=config.max_recent_events,
            encoder=config.text_encoder,
            token_order=config.token_order,
            vocabulary={},
            idf=np.zeros(0, np.float32),
            counts=empty,
            words=empty,
            mean={},
            std={},
            profile=empty,
        )
        raw = preprocessor._raw_features(users, cutoffs, progress)
        preprocessor._fit(users, raw, config)
        return preprocessor, raw

    def _fit(self, users: Users, raw: dict, config: Config) -> None:
        """Fit the vocabulary and the statistics on raw features."""
        n_samples = len(raw["users"])
        texts = list(users.events["text"].cat.categories)
        samples_with_text = pd.Series([key for keys, _ in raw["habits"] for key in keys])
        frequency = samples_with_text.value_counts()
        minimum = max(MIN_TEXT_USERS, MIN_TEXT_SHARE * n_samples)
        frequency = frequency[frequency >= minimum].sort_index()
        names = [_vocabulary_name(self.modalities, texts, code) for code in frequency.index]
        self.vocabulary = {name: i for i, name in enumerate(names)}
        self.idf = np.log(1 + n_samples / frequency.to_numpy(np.float32))
        self.counts = _components(self._count_matrix(users, raw["habits"]), config.svd_components)
        self.words = _components(raw["words"], config.svd_components)
        for name, values in self._coarse_parts(users, raw).items():
            axis = tuple(range(values.ndim - 1))
            self.mean[name] = values.mean(axis).astype(np.float32)
            self.std[name] = np.maximum(values.std(axis), 1e-3).astype(np.float32)
        no_event = np.zeros((1, 7 + 2 * len(users.numbers)))
        event_numbers = np.concatenate([numbers for _, numbers in raw["habits"]] or [no_event])
        self.mean["event"] = event_numbers.mean(0)
        self.std["event"] = np.maximum(event_numbers.std(0), 1e-2)
        coarse = self._coarse(self._coarse_parts(users, raw))
        directions = _components(coarse, config.profile_dim)
        spread = np.maximum((coarse @ directions).std(0), 1e-3)
        self.profile = np.zeros((coarse.shape[1], config.profile_dim), np.float32)
        self.profile[:, : directions.shape[1]] = directions / spread

    # -- features --

    def _raw_features(
        self, users: Users, cutoffs: pd.DataFrame | None, progress: Progress | None = None
    ) -> dict:
        """Compute the features of each sample that need no statistics: arrays by name."""
        if cutoffs is None:
            cutoffs = pd.DataFrame({"user": list(users.ids), "cutoff": users.cutoff})
        n_samples = len(cutoffs)
        n_texts = 0  # texts that are encoded for the first time; they may take longer than users

        def report_texts(done: int, total: int) -> None:
            nonlocal n_texts
            n_texts = total
            if progress:
                progress(done, n_texts + n_samples)

        events = users.events
        vectors = self._vectors(users, report_texts)
        codes = self._codes(users)
        time = events["time"].to_numpy()
        number = events.reindex(columns=list(self.numbers)).to_numpy(np.float32)
        number = np.nan_to_num(number)
        user_code = pd.Series(events["user"].cat.codes.to_numpy())
        first = np.searchsorted(user_code, np.arange(len(users) + 1))
        position = {user: i for i, user in enumerate(users.ids)}
        rows = []
        samples = zip(cutoffs["user"], cutoffs["cutoff"].to_numpy(), strict=True)
        for done, (user, cutoff) in enumerate(samples, 1):
            low = first[position[user]]
            high = first[position[user] + 1]
            # strictly before the cut-off: nothing later is ever read
            high = low + np.searchsorted(time[low:high], cutoff)
            summary = user_summary(
                age=(cutoff - time[low:high]) / DAY,
                time=time[low:high],
                key=codes[low:high],
                number=number[low:high],
                vectors=vectors,
                modalities=len(self.modalities),
                recent=self.max_recent_events,
                appendable=self.token_order == "append_only",
            )
            rows.append(summary)
            if progress and (done % PROGRESS_INTERVAL == 0 or done == n_samples):
                progress(n_texts + done, n_texts + n_samples)
        raw = {"users": list(cutoffs["user"]), "vectors": vectors}
        for name in ("modal_text", "modal", "time", "words", "present"):
            raw[name] = np.stack([row[name] for row in rows])
        for name in ("habits", "events"):
            raw[name] = [row[name] for row in rows]
        return raw

    def _features(self, users: Users, raw: dict) -> UserFeatures:
        """Standardize raw features and choose the event tokens."""
        parts = self._coarse_parts(users, raw)
        texts = list(users.events["text"].cat.categories)
        # column -1, a text outside the vocabulary, counts as the rarest
        idf = np.append(self.idf, self.idf.max(initial=1.0))[self._columns(users)]
        events = [
            self._event_tokens(idf, len(texts), frequent, recent)
            for frequent, recent in zip(raw["habits"], raw["events"], strict=True)
        ]
        return UserFeatures(
            users=tuple(raw["users"]),
            coarse=self._coarse(parts),
            modal_text=raw["modal_text"],
            modal_number=self._standardize("modal", parts["modal"]),
            present=raw["present"],
            events=events,
            vectors=raw["vectors"],
        )

    def _coarse_names(self) -> list[str]:
        """Return the parts of the coarse numbers, in their order."""
        return [name for name in self.mean if name != "event"]

    def _width(self, name: str) -> int:
        """Return how many coarse numbers a part has."""
        copies = len(self.modalities) if name == "modal" else 1
        return self.mean[name].size * copies

    def _standardize(self, name: str, values: np.ndarray) -> np.ndarray:
        standardized = (values - self.mean[name]) / self.std[name]
        return np.clip(standardized, -CLIP, CLIP).astype(np.float32)

    def _coarse(self, parts: dict[str, np.ndarray]) -> np.ndarray:
        """Concatenate all coarse numbers, standardized: (user, number)."""
        columns = [
            self._standardize(name, values).reshape(len(values), -1)
            for name, values in parts.items()
        ]
        return np.concatenate(columns, 1)

    def _columns(self, users: Users) -> np.ndarray:
        """Return the vocabulary row of each code (modality * texts + text), -1 if it has none."""
        texts = list(users.events["text"].cat.categories)
        columns = np.full(len(self.modalities) * len(texts), -1)
        for code in np.unique(self._codes(users)).tolist():
            name = _vocabulary_name(self.modalities, texts, code)
            columns[code] = self.vocabulary.get(name, -1)
        return columns

    def _codes(self, users: Users) -> np.ndarray:
        """Return the code of each event: modality * texts + text."""
        modality = users.events["modality"].cat.set_categories(list(self.modalities))
        text = users.events["text"].cat
        modality_codes = modality.cat.codes.to_numpy(np.int64)
        return modality_codes * len(text.categories) + text.codes.to_numpy(np.int64)

    def _vectors(self, users: Users, progress: Progress | None = None) -> np.ndarray:
        texts = list(users.events["text"].cat.categories)
        return text_vectors(texts, self.encoder, progress=progress)

    def _count_matrix(self, users: Users, frequent: list):
        """Return the log counts of the vocabulary's texts: sparse (sample, vocabulary)."""
        from scipy.sparse import csr_matrix

        columns = self._columns(users)
        rows = []
        cols = []
        values = []
        for i, (keys, numbers) in enumerate(frequent):
            known = columns[keys]
            in_vocabulary = known >= 0
            rows.append(np.full(in_vocabulary.sum(), i))
            cols.append(known[in_vocabulary])
            values.append(numbers[in_vocabulary, 0])
        shape = (len(frequent), max(len(self.vocabulary), 1))
        cells = (np.concatenate(rows), np.concatenate(cols))
        return csr_matrix((np.concatenate(values), cells), shape, np.float32)

    def _coarse_parts(self, users: Users, raw: dict) -> dict[str, np.ndarray]:
        """Return the coarse numbers by part; their order is that of the coarse vector."""
        parts = {"modal": raw["modal"], "time": raw["time"]}
        parts["counts"] = self._count_matrix(users, raw["habits"]) @ self.counts
        parts["words"] = raw["words"] @ self.words
        table = users.tabular.reindex(columns=list(self.facts)).reindex(raw["users"])
        facts = table.to_numpy(np.float32)
        group_of_fact = [fact.split(".")[0] for fact in self.facts]
        for group in dict.fromkeys(group_of_fact):
            columns = [i for i, name in enumerate(group_of_fact) if name == group]
            values = facts[:, columns]
            missing = np.isnan(values)
            if group in self.mean:
                fill = self.mean[group][: len(columns)]
            else:
                fill = np.nan_to_num(np.nanmedian(np.where(missing.all(0), 0, values), axis=0))
            parts[group] = np.concatenate([np.where(missing, fill, values), missing], 1)
        return parts

    def _event_tokens(self, idf: np.ndarray, n_texts: int, frequent, recent):
        """Choose the frequent texts with the highest tf-idf, and the recent events, oldest first.

        Returns text index, numbers, modality index, and whether it is one recent event.
        """
        keys, numbers = frequent
        score = numbers[:, 0] * idf[keys]
        best = np.argsort(-score, kind="stable")[: self.max_frequent_events]
        parts = [
            (keys[best], numbers[best], np.zeros(len(best), bool)),
            (*recent, np.ones(len(recent[0]), bool)),
        ]
        if (
            self.token_order == "append_only"
        ):  # frequent texts change with every event: they go last
            parts.reverse()
        codes, values, is_recent = (np.concatenate(column) for column in zip(*parts, strict=True))
        codes = codes.astype(np.int64)
        return codes % n_texts, self._standardize("event", values), codes // n_texts, is_recent


def _vocabulary_name(modalities: tuple[str, ...], texts: list[str], code: int) -> str:
    return f"{modalities[code // len(texts)]}\t{texts[code % len(texts)]}"


def _components(matrix, n: int) -> np.ndarray:
    """Return the first n right singular vectors of a (sample, feature) matrix: (feature, n)."""
    from sklearn.decomposition import TruncatedSVD

    n = min(n, min(matrix.shape) - 1)
    if n < 1:
        return np.zeros((matrix.shape[1], 1), np.float32)
    svd = TruncatedSVD(n, random_state=0, n_iter=7).fit(matrix)
    return svd.components_.T.astype(np.float32)
