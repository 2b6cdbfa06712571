"""Sixty sample users and a model fitted on them, made once and shared by several test files."""

import functools
from dataclasses import replace

from qanchor.data.sample import make_sample_users
from qanchor.data.users import Users
from qanchor.inference.engine import Engine
from qanchor.inference.prefix_cache import PrefixCache
from qanchor.training.fit import fit
from tests.tiny import brief_fits


@functools.cache
def sample_users() -> Users:
    return make_sample_users(60)


@functools.cache
def fitted_engine() -> Engine:
    """Return an engine; a test that changes it must undo that (`monkeypatch`)."""
    with brief_fits():
        return Engine(fit(sample_users(), text_encoder="hash", steps=10, progress=False))


def cache_of(ids: tuple[str, ...]) -> PrefixCache:
    """Return a cache of users that are told apart by nothing but their ids."""
    tokens = fitted_engine().prefill(sample_users()).tokens.select([0] * len(ids))
    return PrefixCache(replace(tokens, ids=ids, unit="user"))
