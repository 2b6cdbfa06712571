"""`LateCrossing`: a language model reads the question, and its last layers attend to the user.

The words of a question do not attend to users, so each distinct question runs only once. In the
last layers, the anchor token also attends to the user's tokens, through the pretrained projections
with LoRA. In the paper's form (`UserPrefix`), the user is a prefix that runs through all layers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from qanchor.models.defaults import CROSSING_LAYERS
from qanchor.models.language_body import LEVEL_TOKENS, LanguageBody, on_own_device
from qanchor.models.pointing import (
    Anchor,
    BodyInput,
    TokenAttention,
    of_tokens,
    word_fit,
)

FIT_SCALES = (12.0, 8.0, 6.0, 4.0, 4.0)  # initial bias scale of the first heads; 0 for the others
SHUT = -1.0  # initial gate of the user's tokens: mostly closed, since they are new to the LLM


class LateCrossing(LanguageBody):
    """Attend to user tokens in the last layers of a language model.

    Args:
        backbone: "smollm2", "tiny" (random weights), a Hugging Face id or a local folder.
        text: Dimension of the text vectors.
        layers: Number of last layers in which the anchor attends to the user's tokens (default 8;
            at most all of them).

    Raises:
        WeightsError: The language model cannot be loaded, or has another architecture than Llama.
        ValueError: `layers` is below 1.

    Example:
        >>> body = LateCrossing("tiny", text=384)
        >>> body.encode(["Will this user travel soon?"]).hidden.shape
        torch.Size([1, 64])
    """

    def __init__(self, backbone: str, text: int, layers: int = CROSSING_LAYERS):
        if layers < 1:
            raise ValueError(f"layers is {layers}. Pass 1 or more.")
        super().__init__(backbone, text, layers)
        scales = F.pad(torch.tensor(FIT_SCALES), (0, self.heads - len(FIT_SCALES)))
        self.fit_scale = nn.Parameter(scales.repeat(self.n_layers, 1))
        self.gate = nn.Parameter(torch.full((self.n_layers, self.heads), SHUT))

    @on_own_device
    def anchor(self, inputs: BodyInput) -> tuple[Anchor, TokenAttention]:
        """Return the anchor of each user and question, and its mean attention to the tokens.

        Args:
            inputs: Users and questions.
        """
        users, standard, question, things, known = inputs
        tokens = self.user_tokens(users, standard, things)
        presence = F.pad(users.log_presence(), (LEVEL_TOKENS, 0))[:, None, None]
        fit = of_tokens(word_fit(question, things), users)
        fit = F.pad(fit, (LEVEL_TOKENS, 0))[:, :, None]
        attention = []

        def attend(place: int, query: Tensor, without_user: Tensor) -> Tensor:
            bias = fit * self.fit_scale[place][:, None] + presence
            weight, from_user = self._look(self.layers[place], query, tokens, bias)
            attention.append(weight.mean((2, 3)))
            gate = torch.sigmoid(self.gate[place]).view(self.kv_heads, -1, 1)
            return gate * from_user + (1 - gate) * without_user

        evidence = self.evidence(self.drop_evidence(known))
        anchor = self._cross(question.states, evidence, attend)
        return anchor, self.share_of_tokens(sum(attention), users)

    def _look(
        self, layer: nn.Module, query: Tensor, tokens: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Attend to the user's tokens, without positions, since they are unordered.

        The key projection is folded into the query and the value projection is applied after the
        weighted sum, so that no keys and values are computed per token. The tests compare this with
        a plain version.

        Returns:
            Attention weights, and the attention output.
        """
        basis = self.widen.weight.T * layer.input_layernorm.weight
        to_keys = self._project(layer.self_attn.k_proj, basis)
        to_values = self._project(layer.self_attn.v_proj, basis)
        token_query = torch.einsum("uqngd,ndc->uqngc", query, to_keys)
        logits = torch.einsum("uqngc,utc->uqngt", token_query, tokens) * self.head_dim**-0.5
        weight = (logits + self._grouped(bias)).softmax(-1)
        mean_token = torch.einsum("uqngt,utc->uqngc", weight, tokens)
        return weight, torch.einsum("uqngc,ndc->uqngd", mean_token, to_values)

    def _project(
        self, projection: nn.Module, basis: Tensor
    ) -> Float[Tensor, "kv_head head_dim dim"]:
        """Apply a projection, without its bias, to the basis vectors of the token space."""
        moved = projection(basis) - projection(torch.zeros_like(basis[:1]))
        return moved.T.unflatten(0, (self.kv_heads, -1))
