"""Gradient times input of each modality, to compare attention and deletion with."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from qanchor.analysis.attention import (
    SUMMARY_GROUPS,
    TABULAR,
    row_membership,
    row_names,
    slot_row_codes,
)
from qanchor.data.users import Users
from qanchor.inference.engine import Engine
from qanchor.models.collate import collate_users, group_by_length
from qanchor.models.heads import QueryLike, query_text
from qanchor.models.preprocessor import UserPreprocessor


def gradient_x_input(
    engine: Engine,
    users: Users,
    query: QueryLike,
    anchors: Float[np.ndarray, "user dim"],
    middle: Float[np.ndarray, " dim"] | None = None,
) -> dict[str, np.ndarray]:
    """Return gradient times input of each row as |sum| over its tokens and numbers, divided by the
    sum over all rows.

    Args:
        engine: The model.
        users: The users.
        query: The query.
        anchors: Their embeddings under the query.
        middle: The embedding that a user is compared with; default: the mean of `anchors`.

    Returns:
        One number per user, by name of the row.
    """
    model, features = engine.model, engine.model.preprocessor.transform(users)
    apart = (
        torch.from_numpy(anchors - (anchors.mean(0) if middle is None else middle))
        .float()
        .to(model.device)
    )
    asked = model.encode_queries([query])
    names = row_names(model.preprocessor)
    out = torch.zeros(len(users), len(names))
    for rows in group_by_length(features.lengths() + 1, 2048, most=16):
        prefix = model.encode_prefix(collate_users(features, rows).to(model.device))
        slots, coarse = (
            prefix.tokens.clone().requires_grad_(),
            prefix.coarse.clone().requires_grad_(),
        )
        one = replace(prefix, tokens=slots, coarse=coarse)
        anchor = model.anchors(
            one, model.build_query_batch([query], len(rows)), asked.expand_to(len(rows))
        )[0][:, 0]
        score = (anchor * apart[torch.as_tensor(rows, device=model.device)]).sum()
        by_slot, by_number = torch.autograd.grad(
            score, [slots, coarse], allow_unused=True, materialize_grads=True
        )
        member = row_membership(slot_row_codes(model.preprocessor, one), len(names))
        from_slots = torch.einsum("us,usr->ur", (by_slot * slots).sum(-1), member)
        row_of_number = coarse_row_matrix(model.preprocessor).to(coarse.device)
        from_numbers = torch.einsum("un,nr->ur", by_number * coarse, row_of_number)
        size = (from_slots + from_numbers).abs()
        out[torch.as_tensor(rows)] = (
            (size / size.sum(1, keepdim=True).clamp(min=1e-12)).detach().cpu()
        )
    return {name: out[:, i].numpy().astype(float) for i, name in enumerate(names)}


def coarse_row_matrix(preprocessor: UserPreprocessor) -> Float[Tensor, "number row"]:
    """Return the row that each coarse number belongs to, one-hot: first those of the modalities,
    then of the groups.
    """
    names, groups = row_names(preprocessor), preprocessor.groups()
    each = preprocessor.sizes()["modal_number"]
    code = np.repeat(np.arange(len(preprocessor.modalities)), each)
    code = np.append(code, np.zeros(preprocessor.sizes()["coarse"] - len(code), int))
    for name, place in groups.items():
        code[place] = names.index("summary" if name in SUMMARY_GROUPS else TABULAR)
    return F.one_hot(torch.from_numpy(code), len(names)).float()


def add_gradients(engine: Engine, users: Users, queries: list[QueryLike], importance):
    """Add the column `gradient` to a frame of `modality_importance`."""
    cache = engine.prefill(users)
    gradients = {}
    for query in queries:
        anchors = engine.embed(cache, query).astype(float)
        shares = gradient_x_input(engine, users, query, anchors)
        for name, values in shares.items():
            for user, value in zip(users.ids, values, strict=True):
                gradients[query_text(query), user, name] = value
    keys = zip(importance["query"], importance["user"], importance["modality"], strict=True)
    return importance.assign(gradient=[gradients[key] for key in keys])
