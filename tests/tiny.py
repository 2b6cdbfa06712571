"""Small ragged users, and models of them that are fitted in a moment, once for all test files."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

import qanchor as qa
from qanchor.data.users import Users
from qanchor.training import concept_task, fit, reader

CUTOFF = pd.Timestamp("2025-06-01")
QUERIES = (
    "Will this user buy tea next month?",
    "",
    "Why?",
    "Is this user price-conscious, and if so, since when, and on what?",
)
FORMS = {  # how users are read: without a language model, by late crossing, in the paper's form
    "plain": {},
    "crossing": {"backbone": "tiny"},
    "prefix": {"backbone": "tiny", "crossing_layers": 0},
}


def habits(n_users: int = 120, seed: int = 0) -> pd.DataFrame:
    """Return events of users that each keep to two of six texts, some of them rarely active."""
    rng = np.random.default_rng(seed)
    texts = ["buy_tea", "buy_bread", "read_news", "play_chess", "send_money", "watch_film"]
    rows = []
    for user in range(n_users):
        own = rng.choice(texts, 2, replace=False)
        for day in range(-29, 120):
            if rng.random() < (0.15 if user % 2 else 0.03):
                time = CUTOFF - pd.Timedelta(days=day, hours=int(rng.integers(1, 24)))
                rows.append([f"u{user:03}", time, "log", rng.choice(own)])
    return pd.DataFrame(rows, columns=["user", "time", "modality", "text"])


@functools.cache
def make_users() -> Users:
    """Return 42 users with different numbers of events; all events of `later` are in the future,
    and `none` has no event at all.
    """
    events = habits(40)
    is_shop = events["text"].str.startswith("buy")
    events["modality"] = np.where(is_shop, "shop", "app")
    amount = np.random.default_rng(0).gamma(2.0, 9.0, len(events))
    events["amount"] = np.where(is_shop, amount, np.nan)
    later = events.head(4).assign(user="later", time=CUTOFF + pd.Timedelta(days=3))
    ids = pd.Index([*events["user"].unique(), "later", "none"], name="user")
    facts = pd.DataFrame({"age.years": np.arange(20.0, 20 + len(ids))}, ids)
    labels = pd.DataFrame({"odd": np.arange(len(ids)) % 2}, ids).astype(float)
    return Users.from_events(pd.concat([events, later]), CUTOFF, tabular=facts, labels=labels)


@functools.cache
def make_task() -> concept_task.ConceptTask:
    """Return what the models of these users are trained on."""
    return concept_task.make_concept_task(make_users(), "hash")


@contextmanager
def brief_fits(sense_steps: int = 250) -> Iterator[pytest.MonkeyPatch]:
    """Let fits learn the sense of questions and the prior from little, and yield the patch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "SENSE_STEPS", sense_steps)
        patch.setattr(reader, "PRIOR_DRAWS", 3)
        yield patch


def fit_quickly(steps: int = 5, **options) -> qa.QAnchor:
    """Fit a model of these users, with a task that is made once, and few questions and steps."""
    with brief_fits(sense_steps=10) as patch:
        patch.setattr(fit, "make_concept_task", lambda *_: make_task())
        for name in ("LANGUAGE_BUDGET", "PREFIX_BUDGET"):
            few = replace(getattr(reader, name), users=12, questions=48, judged=12, scaled=8)
            patch.setattr(reader, name, few)
        return fit.fit(
            make_users(), text_encoder="hash", steps=steps, **{"progress": False} | options
        )


@functools.cache
def make_model(form: str = "plain", seed: int = 0) -> qa.QAnchor:
    """Return a model of these users. Do not change it: other tests use it, too.

    Args:
        form: One of `FORMS`.
        seed: Seed of its weights and draws.
    """
    return fit_quickly(seed=seed, **FORMS[form])
