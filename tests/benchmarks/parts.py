"""Parts of embeddings: what they are without a part of the model, or with the language model's
state of another user.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from qanchor.inference.engine import Engine
from qanchor.inference.prefix_cache import PrefixCache, fork_kv
from qanchor.models.collate import collate_queries, pack_queries
from qanchor.models.heads import QueryEncoding
from qanchor.models.model import QAnchor


class UserStates(NamedTuple):
    """Hold what embeddings are made of: of every user, and of every query behind every user."""

    hidden: Float[Tensor, "user query width"]  # at <USER_EMB>, float32
    coarse: Float[Tensor, "user number"]
    query: QueryEncoding  # (query, ...)


@torch.inference_mode()
def read_states(engine: Engine, cache: PrefixCache, queries: Sequence[str]) -> UserStates:
    """Run queries behind every user's prefix and keep the states that embeddings are made of.

    Args:
        engine: Engine of a run with a language model.
        cache: From its `prefill`.
        queries: Texts.

    Returns:
        States in the order of `cache.ids`.
    """
    model = engine.model
    encoded = engine.encode_queries(queries)
    lengths = [len(ids) + 1 for ids in encoded.ids]  # with <USER_EMB>
    width = encoded.encoding.hidden.shape[-1]
    hidden = torch.zeros(len(cache), len(queries), width, device=model.device)
    coarse = torch.zeros(len(cache), model.preprocessor.sizes()["coarse"], device=model.device)
    for batch in cache.groups:
        rows = torch.from_numpy(batch.rows).to(model.device)
        coarse[rows] = batch.prefix.coarse
        kv = engine.kv(batch)
        for part in pack_queries(lengths, len(rows)):
            asked = collate_queries([encoded.ids[part]], soft=encoded.soft).to(model.device)
            states = model.decode_with_cache(batch.prefix, asked, fork_kv(kv))
            hidden[rows, part] = states[:, asked.anchor[0]].float()
    return UserStates(hidden, coarse, encoded.encoding)


def shuffled_rows(users: int, seed: int = 0) -> Int[np.ndarray, " user"]:
    """Give every user the row of another, each row once.

    Args:
        users: Number of users.
        seed: Seed of the permutation. Default: 0.

    Returns:
        A permutation of one cycle, so that with two users or more nobody keeps the own row.
    """
    order = np.random.default_rng(seed).permutation(users)
    rows = np.empty(users, int)
    rows[order] = np.roll(order, 1)
    return rows


@torch.inference_mode()
def whole_embeddings(model: QAnchor, states: UserStates) -> Float[np.ndarray, "user query dim"]:
    """Put embeddings together as the model does: the same as `Engine.embed`.

    Args:
        model: Model that the states are from.
        states: From `read_states`.
    """
    query = states.query.expand_to(len(states.hidden))
    return model.project_anchor(states.hidden, states.coarse, query).cpu().numpy()


@torch.inference_mode()
def language_embeddings(model: QAnchor, states: UserStates) -> Float[np.ndarray, "user query dim"]:
    """Embed by the language model alone: no skip, and zeros in the profile dimensions.

    Args:
        model: Model that the states are from.
        states: From `read_states`.
    """
    query = states.query.expand_to(len(states.hidden))
    own = F.normalize(model.project_hidden(states.hidden, query), dim=-1)
    return F.pad(own, (0, model.config.embedding_dim - own.shape[-1])).cpu().numpy()


@torch.inference_mode()
def skip_embeddings(model: QAnchor, states: UserStates) -> Float[np.ndarray, "user query dim"]:
    """Embed by the gated skip alone: the language model's state is left out of the sum.

    Args:
        model: Model with a skip that the states are from.
        states: From `read_states`.
    """
    query = states.query.expand_to(len(states.hidden))
    own = model.skip(states.coarse, query.text_embedding)
    return model.append_profile(own, states.coarse, query).cpu().numpy()


def control_embeddings(
    model: QAnchor, states: UserStates, seed: int = 0
) -> dict[str, Float[np.ndarray, "user query dim"]]:
    """Embed users in every way that leaves out, or takes from another user, a part of the model.

    Args:
        model: Model that the states are from.
        states: From `read_states`.
        seed: Seed of the shuffle. Default: 0.

    Returns:
        Embeddings by control; anchor: as the model gives them. skip_alone (absent without a skip): the gated skip, no state of the
        language model. llm_alone: the language model's projected state, no skip and no profile.
        shuffled: the state of another user, skip and profile as they are. llm_alone_shuffled: the
        state of another user alone. hidden_alone: the state of the question with no user in front,
        skip and profile as they are.
    """
    rows = torch.from_numpy(shuffled_rows(len(states.hidden), seed)).to(states.hidden.device)
    of_another = states._replace(hidden=states.hidden[rows])
    of_nobody = states._replace(hidden=states.query.hidden.float().expand_as(states.hidden))
    embeddings = {"anchor": whole_embeddings(model, states)}
    if model.skip is not None:
        embeddings["skip_alone"] = skip_embeddings(model, states)
    embeddings["llm_alone"] = language_embeddings(model, states)
    embeddings["shuffled"] = whole_embeddings(model, of_another)
    embeddings["llm_alone_shuffled"] = language_embeddings(model, of_another)
    embeddings["hidden_alone"] = whole_embeddings(model, of_nobody)
    return embeddings
