"""User tokens: the things that each user has, with numeric features, as padded arrays."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from qanchor.data.things import KINDS, MAX_TEXTS, Thing, ThingEvents, share_of_bases
from qanchor.data.users import Users
from qanchor.models.aliases import Aliases, topic_aliases
from qanchor.models.associations import Associations
from qanchor.models.compatibility import input_differences
from qanchor.models.population import Population
from qanchor.models.text_encoder import text_vectors
from qanchor.models.words import spelling_vectors
from qanchor.utils.text import count
from qanchor.utils.types import UserInts

SECONDS_PER_DAY = 86400
MAX_TOKENS = 320  # tokens per user; of more, those with the highest tf-idf are kept
TOKEN_NUMBERS = (
    "count",
    "count in the last horizon",
    "count in the last quarter of a horizon",
    "days since the last",
    "days since the first",
    "amount",
    "mean amount",
    "largest amount",
    "share of all that the user did",
    "percentile among users that have it",
    "rarity",
)
N_TOKEN_NUMBERS = len(TOKEN_NUMBERS) + len(KINDS)
LEVEL_NUMBERS = [
    "count",
    "days since the last",
    "days since the first",
    "days in the last horizon",
    "days in the last quarter of a horizon",
    "days",
    "amount",
    "mean amount",
    "span",
]
N_LEVEL_NUMBERS = 2 * len(LEVEL_NUMBERS)  # user-level numbers and their percentiles


def token_columns(*names: str) -> list[int]:
    """Return the columns of some numbers of tokens.

    Args:
        *names: Names in `TOKEN_NUMBERS`.
    """
    return [TOKEN_NUMBERS.index(name) for name in names]


@dataclass(frozen=True)
class UserTokens:
    """Hold the tokens of many users at one cut-off, as returned by `TokenReader.read`.

    A token is one thing that a user has, such as a text, a modality or a number column.

    Args:
        ids: Ids of the users.
        unit: Singular noun for a user, such as "customer".
        horizon_days: Number of days that questions look ahead by default.
        things: Things that the tokens refer to.
        vectors: Text vector of each thing.
        spelling: Hashed character trigrams of each thing's label, as unit vectors.
        which: Index of the thing of each token; -1 for padding.
        numbers: Numbers of each token, see `TOKEN_NUMBERS`, followed by its kind (one-hot).
        level: User-level numbers, see `LEVEL_NUMBERS`, followed by their percentiles.
        n_left_out: Number of tokens of each user that were dropped, beyond the 320 that are kept.
        population: Distributions that percentiles were taken from.
        aliases: Names for several things at once.
        fold: Fold of each user in training, see `score_associations` (default: none).
        not_meant: Labels of things that questions must not be matched with (default: none).
    """

    ids: tuple[str, ...]
    unit: str
    horizon_days: int
    things: tuple[Thing, ...]
    vectors: Float[np.ndarray, "thing text"]
    spelling: Float[np.ndarray, "thing spelling"]
    which: Int[np.ndarray, "user token"]
    numbers: Float[np.ndarray, "user token number"]
    level: Float[np.ndarray, "user level"]
    n_left_out: UserInts
    population: Population
    aliases: Aliases
    fold: UserInts | None = None
    not_meant: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.ids)

    def select(self, rows) -> UserTokens:
        """Return the tokens of some users.

        Args:
            rows: Row numbers.
        """
        return replace(
            self,
            ids=tuple(self.ids[row] for row in rows),
            which=self.which[rows],
            numbers=self.numbers[rows],
            level=self.level[rows],
            n_left_out=self.n_left_out[rows],
            fold=None if self.fold is None else self.fold[rows],
        )

    def with_associations(self, associations: Associations | None) -> UserTokens:
        """Return the same tokens with other associations.

        Args:
            associations: Associations of any list of things; None removes them.
        """
        if associations is not None:
            associations = associations.align([thing.name for thing in self.things])
        population = replace(self.population, associations=associations)
        return replace(self, population=population)

    def without(self, hidden: Bool[np.ndarray, " thing"]) -> UserTokens:
        """Return the same users with the tokens of some things removed.

        Args:
            hidden: True for each thing to hide.
        """
        removed = np.append(hidden, False)[self.which]
        return replace(self, which=np.where(removed, -1, self.which))


class TokenReader:
    """Read the tokens of users at any cut-off.

    Texts, modalities and columns are represented by text vectors of their names, so that a model
    can read a table that it was not trained on.

    Args:
        users: The users.
        encoder: Text encoder (default "minilm").
        until: Only texts of events before this time become things (default: the users' cut-off).
        population: Distributions that percentiles are taken from (default: those of the users that
            are read together).
    """

    def __init__(
        self,
        users: Users,
        encoder: str = "minilm",
        until=None,
        population: Population | None = None,
    ):
        self.users = users
        self.population = population
        main_number = None
        share_bases = None
        if population is not None:
            main_number = population.main_number
            share_bases = population.share_bases()
            for message in input_differences(users, population):
                warnings.warn(message, stacklevel=2)
        self.events = ThingEvents(users, until, main_number, share_bases)
        self.horizon_days = users.horizon_days
        self.things = self.events.things
        words = [thing.words for thing in self.things]
        self.vectors = text_vectors(words, encoder).astype(np.float32)
        self.spelling = spelling_vectors(words)
        self.aliases = topic_aliases(self.things, self.vectors, encoder)

    def read(self, cutoff=None) -> UserTokens:
        """Read all users that have an event before a cut-off. Later events have no influence.

        Args:
            cutoff: Time (default: the users' own cut-off; then users without events are read, too).
        """
        own = cutoff is None
        cutoff = pd.Timestamp(self.users.cutoff if own else cutoff)
        end = math.ceil(cutoff.timestamp())  # times are whole seconds
        level = self._levels(end)
        is_read = (level[:, 0] > 0) | own
        users = np.flatnonzero(is_read)
        level = level[users]
        table = self._token_table(end)
        has_past = is_read[table["user"]]  # else only attributes, which have no time
        table = table[has_past].reset_index(drop=True)
        population = self._population(table, level)
        table = self._rank_tokens(table, population)
        is_left_out = table["rank"] >= MAX_TOKENS
        users_left_out = table["user"][is_left_out]
        n_left_out = np.bincount(users_left_out, minlength=len(self.users))[users]
        if own:
            self._warn_of_what_is_left_out(n_left_out)
        which, numbers = self._pad(table[~is_left_out], users)
        level = np.column_stack([level, population.rank_levels(level)])
        return UserTokens(
            ids=tuple(self.users.ids[user] for user in users),
            unit=self.users.unit,
            horizon_days=self.horizon_days,
            things=self.things,
            vectors=self.vectors,
            spelling=self.spelling,
            which=which,
            numbers=numbers,
            level=level.astype(np.float32),
            population=population,
            aliases=self.aliases,
            n_left_out=n_left_out,
        )

    def _pad(self, table: pd.DataFrame, users: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the things and the numbers of the tokens of users as padded arrays."""
        row = pd.Index(users).get_indexer(table["user"])
        place = table["rank"].to_numpy()
        thing = table["thing"].to_numpy()
        width = max(place.max(initial=0) + 1, 1)
        which = np.full((len(users), width), -1, np.int64)
        which[row, place] = thing
        numbers = np.zeros((len(users), width, N_TOKEN_NUMBERS), np.float32)
        kinds = np.array([KINDS.index(thing.kind) for thing in self.things], int)
        one_hot = np.eye(len(KINDS))[kinds[thing]]
        numbers[row, place] = np.column_stack([table[list(TOKEN_NUMBERS)], one_hot])
        return which, numbers

    def _population(self, table: pd.DataFrame, levels: np.ndarray) -> Population:
        """Return the given population, or the one of the users that are read."""
        if self.population is not None:
            return self.population.align([thing.name for thing in self.things])
        thing = table["thing"].to_numpy()
        return Population.fit(self.events, thing, table["value"].to_numpy(), levels)

    def _warn_of_what_is_left_out(self, n_left_out: np.ndarray) -> None:
        """Warn about texts and tokens that questions cannot point at."""
        if self.events.n_texts_left_out:
            warnings.warn(
                f"{self.events.n_texts_left_out:,} rare texts of {self.users.name} are left out:"
                f" questions can only point at the {MAX_TEXTS:,} most frequent ones.",
                stacklevel=3,
            )
        if n_left_out.any():
            users = count(int((n_left_out > 0).sum()), self.users.unit)
            warnings.warn(
                f"{n_left_out.sum():,} tokens of {users} are left out: questions can only point at"
                f" the {MAX_TOKENS} most distinctive texts, modalities and numbers of each.",
                stacklevel=3,
            )

    def _token_table(self, end: int) -> pd.DataFrame:
        """Return one row per (user, thing): the numbers of the token, and its count as `value`."""
        past = self.events.rows["time"] < end
        rows = {name: values[past] for name, values in self.events.rows.items()}
        n_things = len(self.things)
        keys, inverse = np.unique(rows["user"] * n_things + rows["thing"], return_inverse=True)
        age = (end - rows["time"]) / SECONDS_PER_DAY
        totals = _totals(inverse, len(keys), age, rows["value"], self.horizon_days)
        largest = pd.Series(rows["value"]).groupby(inverse).max()
        table = np.log1p(totals).assign(user=keys // n_things, thing=keys % n_things)
        table["largest amount"] = np.log1p(np.maximum(largest, 0))
        table["value"] = totals["count"]
        table["share of all that the user did"] = self._shares(table, totals["amount"].to_numpy())
        return self._with_attributes(table)

    def _shares(self, table: pd.DataFrame, total: np.ndarray) -> np.ndarray:
        """Return the share of each token, see `ThingEvents.shares`."""
        user = table["user"].to_numpy()
        thing = table["thing"].to_numpy()
        count = table["value"].to_numpy()

        def of_user(values: np.ndarray, chosen: np.ndarray) -> np.ndarray:
            return np.bincount(user[chosen], values[chosen], len(self.users))[user]

        events = of_user(count, np.isin(thing, self.events.modality_rows))
        bases = [events, events, events]
        if self.events.main_row >= 0:
            is_main = thing == self.events.main_row
            bases[1] = of_user(count, is_main)
            bases[2] = of_user(total, is_main)
        return share_of_bases(self.events.share_base[thing], count, total, bases)

    def _rank_tokens(self, table: pd.DataFrame, population: Population) -> pd.DataFrame:
        """Add what depends on other users: percentile, rarity, and the rank among the tokens."""
        thing = table["thing"].to_numpy()
        table["percentile among users that have it"] = population.rank_values(
            thing, table["value"].to_numpy()
        )
        table["rarity"] = population.rarity[thing]
        # things other than texts are few and always kept
        is_text = np.array([thing.kind == "text" for thing in self.things], bool)[thing]
        weight = table["count"] * table["rarity"].clip(lower=0.05)
        order = np.lexsort((-weight, is_text, table["user"]))
        table = table.iloc[order].reset_index(drop=True)
        table["rank"] = table.groupby("user").cumcount()
        return table

    def _with_attributes(self, table: pd.DataFrame) -> pd.DataFrame:
        """Add the tokens of the users' attributes."""
        facts = self.users.tabular
        parts = [table]
        for column in facts.columns:
            values = facts[column].to_numpy(float)
            known = np.flatnonzero(np.nan_to_num(values))
            if not len(known):
                continue
            part = pd.DataFrame(0.0, range(len(known)), table.columns)
            part["user"] = known
            part["thing"] = self.events.index[f"attribute:{column}"]
            part["count"] = np.log1p(1)
            part["value"] = values[known]
            part["amount"] = np.sign(part["value"]) * np.log1p(part["value"].abs())
            parts.append(part)
        return pd.concat(parts, ignore_index=True)

    def _levels(self, end: int) -> np.ndarray:
        """Return the user-level numbers, (user, number); zeros for users without past events."""
        events = self.users.events
        time = events["time"].to_numpy().astype("datetime64[s]").astype(np.int64)
        past = time < end
        user = events["user"].cat.codes.to_numpy()[past]
        age = (end - time[past]) / SECONDS_PER_DAY
        amount = self.events.amounts()[past]
        totals = _totals(user, len(self.users), age, amount, self.horizon_days)
        horizon = pd.Timedelta(days=self.horizon_days)
        cutoff = pd.Timestamp(end, unit="s")
        windows = {
            "days": events["time"].min(),
            "days in the last horizon": cutoff - horizon,
            "days in the last quarter of a horizon": cutoff - horizon / 4,
        }
        for name, start in windows.items():
            totals[name] = self.events.days(start, cutoff)
        totals["span"] = totals["days since the first"] - totals["days since the last"]
        return np.log1p(totals[LEVEL_NUMBERS]).to_numpy()


def _totals(
    groups: np.ndarray, n: int, age: np.ndarray, amount: np.ndarray, horizon_days: int
) -> pd.DataFrame:
    """Return counts, ages and amounts of the events in each group; zeros for empty groups."""
    count = np.bincount(groups, minlength=n).astype(float)
    recent = np.bincount(groups[age <= horizon_days], minlength=n)
    most_recent = np.bincount(groups[age <= horizon_days / 4], minlength=n)
    ages = pd.Series(age).groupby(groups)
    total = np.bincount(groups, amount, n)
    totals = {
        "count": count,
        "count in the last horizon": recent,
        "count in the last quarter of a horizon": most_recent,
        "days since the last": ages.min(),
        "days since the first": ages.max(),
        "amount": np.maximum(total, 0),
        "mean amount": np.maximum(total / np.maximum(count, 1), 0),
    }
    return pd.DataFrame(totals, range(n)).fillna(0)
