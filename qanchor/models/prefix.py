"""`UserPrefix`: the paper's form, in which a user is a prefix in front of the question.

The prefix goes from coarse (user-level tokens, modalities, numbers) to fine (texts) and runs
through all layers of the language model. It does not depend on the question, so its keys and values
are computed once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from qanchor.models.language_body import (
    LEVEL_TOKENS,
    LanguageBody,
    in_bfloat16_if_training,
    on_own_device,
)
from qanchor.models.pointing import (
    MASKED,
    TOLD_DIM,
    Anchor,
    BodyInput,
    PrefixStates,
    QueryStates,
    ThingInput,
    TokenInput,
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
        self, users: TokenInput, standard: Float[Tensor, "user token number"], things: ThingInput
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
        causal = torch.full(positions.shape[1:] * 2, MASKED).triu(1)
        mask = log_presence[:, None, None] + causal
        keys = []
        values = []
        for layer in self.layers:
            hidden, key, value = self._layer(layer, hidden, positions, mask)
            keys.append(key)
            values.append(value)
        return PrefixStates(torch.stack(keys, 1), torch.stack(values, 1), log_presence, length)

    @on_own_device
    @in_bfloat16_if_training
    def anchor(self, inputs: BodyInput) -> tuple[Anchor, Float[Tensor, "user query token"]]:
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
            anchor, weight = self._anchor_behind(prefix, one, one.hidden + evidence[:, place])
            anchors.append(anchor)
            attention.append(weight)
        anchor = Anchor(*(torch.stack(parts, 1) for parts in zip(*anchors, strict=True)))
        return anchor, self.share_of_tokens(torch.stack(attention, 1), users)

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
        n = hidden.shape[1]
        positions = prefix.length[:, None] + torch.arange(n)
        seen = prefix.log_presence[:, None, None].expand(-1, -1, n, -1)
        causal = torch.full((n, n), MASKED).triu(1).expand(len(start), 1, -1, -1)
        mask = torch.cat([seen, causal], -1)
        attention = torch.zeros_like(prefix.log_presence)
        keys = []
        values = []
        for number, layer in enumerate(self.layers):
            before = hidden[:, -1:]
            stored = prefix.keys[:, number], prefix.values[:, number]
            hidden, key, value = self._layer(layer, hidden, positions, mask, *stored)
            attention = attention + self._weight(layer, before, positions, mask, stored[0], key)
            # answers are positioned as if there were no prefix in front of the question
            own = layer.self_attn.k_proj(layer.input_layernorm(before))
            own = own.unflatten(-1, (self.kv_heads, -1))
            keys.append(self._rotate(own, question.length.expand(len(own), 1))[:, 0])
            values.append(value[:, -1])
        hidden = self.backbone.model.norm(hidden[:, -1])
        keys, values = (torch.stack(parts, 1).float() for parts in (keys, values))
        return Anchor(hidden, keys, values, hidden.new_zeros(len(hidden), TOLD_DIM)), attention

    def _weight(
        self,
        layer: nn.Module,
        anchor: Tensor,
        positions: Tensor,
        mask: Tensor,
        stored: Tensor,
        own: Tensor,
    ) -> Float[Tensor, "user place"]:
        """Return the mean attention of the anchor to the prefix in one layer."""
        asked = layer.self_attn.q_proj(layer.input_layernorm(anchor))
        asked = self._rotate(asked.unflatten(-1, (self.heads, -1)), positions[:, -1:])
        grouped = asked[:, 0].unflatten(1, (self.kv_heads, -1))
        logits = torch.einsum("ungd,utnd->ungt", grouped, torch.cat([stored, own], 1))
        weight = (logits * self.head_dim**-0.5 + mask[:, :, -1:]).softmax(-1)
        return weight.mean((1, 2))[:, : stored.shape[1]]
