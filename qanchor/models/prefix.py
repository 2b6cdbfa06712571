"""`UserPrefix`: the paper's form, in which a user is a prefix in front of the question.

The prefix goes from coarse (user-level tokens, modalities, numbers) to fine (texts) and runs
through all layers of the language model. It does not depend on the question, so its keys and values
are computed once.
"""

from __future__ import annotations

from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from qanchor.models.language_body import (
    LEVEL_TOKENS,
    LanguageBody,
    in_bfloat16_if_training,
    on_own_device,
    stack_layers,
)
from qanchor.models.pointing import (
    MASKED,
    Anchor,
    BodyInput,
    PrefixStates,
    QueryStates,
    ThingInput,
    TokenAttention,
    TokenInput,
    TokenNumbers,
    join,
)


class UserPrefix(LanguageBody):
    """Read the user as a prefix, then the question, in all layers of a language model.

    Source: paper, section 3.2.

    Args:
        backbone: "smollm2", "tiny" (random weights), a Hugging Face id or a local folder.
        text: Dimension of the text vectors.

    Raises:
        WeightsError: The language model cannot be loaded, or has another architecture than Llama.

    Example:
        >>> UserPrefix("tiny", text=384).n_layers
        2
    """

    @on_own_device
    def prefill(
        self, users: TokenInput, standard: TokenNumbers, things: ThingInput
    ) -> PrefixStates:
        """Run users through the language model, once for all questions.

        Args:
            users: Tokens of the users.
            standard: Numbers of the tokens, standardized.
            things: Things that the tokens refer to.
        """
        hidden = self.widen(self.user_tokens(users, standard, things))
        log_presence = F.pad(users.log_presence(), (LEVEL_TOKENS, 0))
        length = LEVEL_TOKENS + (users.which >= 0).sum(1)
        positions = torch.arange(hidden.shape[1]).expand(len(hidden), -1)
        mask = log_presence[:, None, None] + _causal_mask(hidden.shape[1])
        layers = []
        for layer in self.layers:
            hidden, own = self._layer(layer, hidden, positions, mask)
            layers.append(own)
        return PrefixStates(*stack_layers(layers, 1), log_presence, length)

    @on_own_device
    @in_bfloat16_if_training
    def anchor(self, inputs: BodyInput) -> tuple[Anchor, TokenAttention]:
        """Return the anchor of each user and question, and its mean attention to the tokens.

        Args:
            inputs: Users and questions. A cached `prefix` is used, unless `presence` is set.
        """
        users, standard, question, things, known = inputs
        prefix = users.prefix
        if prefix is None or users.presence is not None:
            prefix = self.prefill(users, standard, things)
        evidence = self.start + self.evidence(self.drop_evidence(known))
        anchors = []
        attention = []
        for place in range(known.shape[1]):
            one = question.states.at([place])
            start = one.hidden + evidence[:, place]
            anchor, weight = self._anchor_behind(prefix, one, start)
            anchors.append(anchor)
            attention.append(weight)
        attention = self.share_of_tokens(torch.stack(attention, 1), users)
        return join(anchors, partial(torch.stack, dim=1)), attention

    def _anchor_behind(
        self, prefix: PrefixStates, question: QueryStates, start: Float[Tensor, "user width"]
    ) -> tuple[Anchor, Float[Tensor, "user place"]]:
        """Run one question and its anchor after the prefix of each user.

        Args:
            prefix: Prefixes of the users.
            question: The question.
            start: Input vector of the anchor of each user.

        Returns:
            The anchor of each user, and its attention to the prefix, summed over the layers.
        """
        words = question.words.expand(len(start), -1, -1)
        hidden = torch.cat([words, start[:, None]], 1)
        n_tokens = hidden.shape[1]
        positions = prefix.length[:, None] + torch.arange(n_tokens)
        position_alone = question.length.expand(len(start), 1)
        presence = prefix.log_presence[:, None, None].expand(-1, -1, n_tokens, -1)
        causal = _causal_mask(n_tokens).expand(len(start), 1, -1, -1)
        mask = torch.cat([presence, causal], -1)
        attention = torch.zeros_like(prefix.log_presence)
        layers = []
        for number, layer in enumerate(self.layers):
            normed = layer.input_layernorm(hidden[:, -1:])
            stored = prefix.keys[:, number], prefix.values[:, number]
            hidden, (keys, values) = self._layer(layer, hidden, positions, mask, stored)
            query = self._heads(layer.self_attn.q_proj(normed))
            query = self._rotate(query, positions[:, -1:])
            keys = torch.cat([stored[0], keys], 1)
            weight = self._mean_weight(query, keys, mask)
            attention = attention + weight[:, : attention.shape[1]]
            # answers are positioned as if there were no prefix in front of the question
            key = self._heads(layer.self_attn.k_proj(normed))
            key = self._rotate(key, position_alone)
            layers.append((key[:, 0], values[:, -1]))
        return self._finish_anchor(hidden[:, -1], layers), attention

    def _mean_weight(
        self, query: Tensor, keys: Tensor, mask: Tensor
    ) -> Float[Tensor, "user place"]:
        """Return the attention of the anchor, the last token, averaged over heads."""
        grouped = query[:, 0].unflatten(1, (self.kv_heads, -1))
        logits = torch.einsum("ungd,utnd->ungt", grouped, keys)
        logits = logits * self.head_dim**-0.5 + mask[:, :, -1:]
        weight = logits.softmax(-1)
        return weight.mean((1, 2))


def _causal_mask(n_tokens: int) -> Tensor:
    """Return attention logits that hide later tokens."""
    return torch.full((n_tokens, n_tokens), MASKED).triu(1)
