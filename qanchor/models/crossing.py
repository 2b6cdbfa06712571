"""`LateCrossing`: a language model reads the question, and its last layers look at the user.

The words of a question never see a user, so they run once per distinct question. In the last
layers the anchor token also attends to the user's tokens, with low-rank updates of the pretrained
projections. In the paper (`QAnchor`) the user is a prefix that runs through all layers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from qanchor.errors import WeightsError
from qanchor.models.backbone import CROSSING_PROJECTIONS, add_lora, load_backbone, without_lora
from qanchor.models.pointing import (
    MASKED,
    N_PRIOR_NUMBERS,
    STATE_DIM,
    QueryStates,
    QuestionInput,
    ThingInput,
    TokenInput,
    word_fit,
)
from qanchor.models.user_tokens import N_LEVEL_NUMBERS, N_TOKEN_NUMBERS

CROSSING_LAYERS = 8  # of 30 in SmolLM2
LLAMA_LIKE = ("llama", "qwen2")
TOKEN_DIM = 256
LEVEL_TOKENS = 3  # for the user as a whole
EVIDENCE_DROPOUT = 0.5
LORA_RANK = 8
LORA_ALPHA = 16
FIT_SCALES = (12.0, 8.0, 6.0, 4.0, 4.0)  # start of the first heads' bias; the others start at 0
SHUT = -1.0  # start of the gate of the user's tokens: mostly closed, as they are new to the LLM
QUERIES_PER_PASS = 64
MAX_QUERY_TOKENS = 256
REMEMBERED = 64  # queries whose states are kept


class EvidenceDropout(nn.Module):
    """Leave out what the prior starts from for half of the users in training, so that the tokens
    have to be read.
    """

    def forward(
        self, known: Float[Tensor, "user query prior"]
    ) -> Float[Tensor, "user query prior"]:
        if not self.training:
            return known
        kept = torch.rand(len(known), 1, 1, device=known.device) >= EVIDENCE_DROPOUT
        return known * kept


class LateCrossing(nn.Module):
    """Read user tokens in the last layers of a language model; the body of a `PointingReader`.

    Args:
        backbone: "smollm2", "tiny" (random weights), a Hugging Face id or a local folder.
        text: Width of the text vectors.
        layers: Last layers in which the anchor attends to the user's tokens (default 8; at most
            all of them).
        random: Draw the weights of the language model at random, as a control (default no).

    Raises:
        WeightsError: The language model cannot be loaded, or is not built like Llama.
        ValueError: `layers` is below 1.

    Example:
        >>> body = LateCrossing("tiny", text=384)
        >>> body.encode(["Will this user travel soon?"]).hidden.shape
        torch.Size([1, 64])
    """

    def __init__(
        self, backbone: str, text: int, layers: int = CROSSING_LAYERS, *, random: bool = False
    ):
        super().__init__()
        if layers < 1:
            raise ValueError(f"crossing_layers is {layers}. Pass 1 or more.")
        model, self.tokenizer = load_backbone(backbone, "float32")
        if model.config.model_type not in LLAMA_LIKE:
            raise WeightsError(
                f"The language model {backbone!r} is of type {model.config.model_type!r}. Late"
                f" crossing knows {' and '.join(LLAMA_LIKE)}; give one of these."
            )
        model.requires_grad_(False)
        if random:
            _randomize(model)
        config = model.config
        self.first = max(config.num_hidden_layers - layers, 0)
        self.n_layers = config.num_hidden_layers - self.first
        self.heads = config.num_attention_heads
        self.kv_heads = config.num_key_value_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        width = config.hidden_size
        self.backbone = add_lora(
            model, LORA_RANK, LORA_ALPHA, 0.0, self.n_layers, CROSSING_PROJECTIONS
        )
        self.text = nn.Linear(text, TOKEN_DIM)
        self.number = nn.Linear(N_TOKEN_NUMBERS, TOKEN_DIM)
        self.level_norm = nn.LayerNorm(N_LEVEL_NUMBERS)
        self.level = nn.Linear(N_LEVEL_NUMBERS, LEVEL_TOKENS * TOKEN_DIM)
        self.widen = nn.Linear(TOKEN_DIM, width, bias=False)
        self.evidence = nn.Linear(N_PRIOR_NUMBERS, width)
        self.drop_evidence = EvidenceDropout()
        self.start = nn.Parameter(torch.zeros(width))
        scales = torch.zeros(self.heads)
        scales[: len(FIT_SCALES)] = torch.tensor(FIT_SCALES)[: self.heads]
        self.fit_scale = nn.Parameter(scales.repeat(self.n_layers, 1))
        self.gate = nn.Parameter(torch.full((self.n_layers, self.heads), SHUT))
        self.state = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, STATE_DIM), nn.GELU())
        self._remembered: OrderedDict[str, QueryStates] = OrderedDict()

    @property
    def crossing_layers(self) -> nn.ModuleList:
        """Return the layers in which the anchor attends to users."""
        return self.backbone.model.layers[self.first :]

    # -- questions --

    def encode(self, queries: Sequence[str]) -> QueryStates:
        """Read questions without any user; the latest are remembered.

        Args:
            queries: Questions, with the word "user" for one of the users.

        Raises:
            ValueError: A question has more than 256 tokens.
        """
        new = [query for query in dict.fromkeys(queries) if query not in self._remembered]
        found = {query: self._remembered[query] for query in queries if query not in new}
        for start in range(0, len(new), QUERIES_PER_PASS):
            some = new[start : start + QUERIES_PER_PASS]
            states = self._read(some)
            found |= {query: states.at([row]) for row, query in enumerate(some)}
        for query, states in found.items():
            self._remembered[query] = states
            self._remembered.move_to_end(query)
        while len(self._remembered) > REMEMBERED:
            self._remembered.popitem(last=False)
        return _stack([found[query] for query in queries])

    @torch.inference_mode(False)  # what is remembered may be needed for gradients later
    @torch.no_grad()
    def _read(self, queries: Sequence[str]) -> QueryStates:
        """Run the words of questions, and the anchor behind them, through the language model."""
        ids = [self._tokenize(query) for query in queries]
        length = torch.tensor([len(row) for row in ids])
        width = int(length.max()) + 1  # with the anchor
        rows = torch.arange(len(ids))
        embedding = self.backbone.get_input_embeddings()
        padded = torch.tensor([row + [0] * (width - len(row)) for row in ids])
        vectors = embedding(padded).clone()
        vectors[rows, length] = embedding.weight.mean(0)
        places = torch.arange(width)
        positions = places.expand(len(ids), -1)
        with without_lora(self.backbone):
            hidden = self.backbone.model(
                inputs_embeds=vectors,
                attention_mask=(places <= length[:, None]).long(),
                position_ids=positions,
                output_hidden_states=True,
            ).hidden_states
            keys = []
            values = []
            for number, layer in enumerate(self.crossing_layers, self.first):
                normed = layer.input_layernorm(hidden[number])
                key = layer.self_attn.k_proj(normed).unflatten(-1, (self.kv_heads, -1))
                keys.append(self._rotate(key, positions))
                value = layer.self_attn.v_proj(normed)
                values.append(value.unflatten(-1, (self.kv_heads, -1)))
        return QueryStates(
            hidden=hidden[self.first][rows, length],
            keys=torch.stack(keys, 1),
            values=torch.stack(values, 1),
            mask=places < length[:, None],
            length=length,
        )

    def _tokenize(self, query: str) -> list[int]:
        ids = self.tokenizer(query)
        if len(ids) > MAX_QUERY_TOKENS:
            raise ValueError(
                f"The question has {len(ids):,} tokens, the model reads {MAX_QUERY_TOKENS}. Ask in"
                " fewer words."
            )
        return ids or [self.tokenizer.eos_token_id]

    def _rotate(self, vectors: Tensor, positions: Tensor) -> Tensor:
        """Apply rotary position embeddings to vectors (row, position, head, head_dim)."""
        cos, sin = self.backbone.model.rotary_emb(vectors, positions)
        one, two = vectors.chunk(2, -1)
        return vectors * cos[:, :, None] + torch.cat([-two, one], -1) * sin[:, :, None]

    # -- users --

    def user_tokens(
        self, users: TokenInput, standard: Tensor, things: ThingInput
    ) -> Float[Tensor, "user token dim"]:
        """Return the tokens that the anchor attends to, those of the user as a whole first.

        Args:
            users: Tokens of the users.
            standard: Their numbers, standardised.
            things: What tokens stand for.
        """
        text = self.text(things.vector * things.vector.shape[1] ** 0.5)
        own = F.gelu(text[users.which.clamp(min=0)] + self.number(standard))
        level = F.gelu(self.level(self.level_norm(users.level)))
        tokens = torch.cat([level.unflatten(-1, (LEVEL_TOKENS, -1)), own], 1)
        return tokens * tokens.square().mean(-1, keepdim=True).add(1e-6).rsqrt()

    def forward(
        self,
        users: TokenInput,
        standard: Float[Tensor, "user token number"],
        question: QuestionInput,
        things: ThingInput,
        known: Float[Tensor, "user query prior"],
    ) -> tuple[Float[Tensor, "user query state"], Float[Tensor, "user query token"]]:
        """Return the state behind the score, and the mean attention of the anchor to the tokens.

        Args:
            users: Tokens of the users.
            standard: Their numbers, standardised.
            question: The questions, with `states` from `encode`.
            things: What tokens stand for.
            known: What the prior starts from, standardised; the anchor starts from it, too.
        """
        states = question.states
        tokens = self.user_tokens(users, standard, things)
        presence = F.pad(users.log_presence(), (LEVEL_TOKENS, 0))[:, None, None]
        fit = word_fit(question, things)[:, users.which.clamp(min=0)].transpose(0, 1)
        fit = F.pad(fit, (LEVEL_TOKENS, 0))
        hidden = states.hidden + self.start + self.evidence(self.drop_evidence(known))
        positions = states.length.expand(len(tokens), -1)
        attention = torch.zeros_like(fit)
        for place, layer in enumerate(self.crossing_layers):
            normed = layer.input_layernorm(hidden)
            asked = layer.self_attn.q_proj(normed).unflatten(-1, (self.heads, -1))
            turned = self._grouped(self._rotate(asked, positions))
            bias = fit[:, :, None] * self.fit_scale[place][:, None] + presence
            weight, seen = self._look(layer, self._grouped(asked), tokens, bias)
            own = layer.self_attn.k_proj(normed).unflatten(-1, (self.kv_heads, -1))
            own = self._rotate(own, positions)
            value = layer.self_attn.v_proj(normed).unflatten(-1, (self.kv_heads, -1))
            heard = self._listen(turned, own, value, states, place)
            gate = torch.sigmoid(self.gate[place]).view(self.kv_heads, -1, 1)
            mixed = gate * seen + (1 - gate) * heard
            hidden = hidden + layer.self_attn.o_proj(mixed.flatten(2))
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
            attention = attention + weight.mean((2, 3))
        attention = attention[:, :, LEVEL_TOKENS:] * (users.which >= 0)[:, None]
        attention = attention / attention.sum(-1, keepdim=True).clamp(min=1e-9)
        return self.state(self.backbone.model.norm(hidden)), attention

    def _grouped(self, vectors: Tensor) -> Tensor:
        """Return (user, query, head, head_dim) as (user, query, kv_head, group, head_dim)."""
        return vectors.unflatten(2, (self.kv_heads, -1))

    def _look(
        self, layer: nn.Module, asked: Tensor, tokens: Tensor, bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Attend to the user's tokens, which have no order and so no positions.

        What a layer makes of each dimension of a token is folded into the query, so that no token
        has keys and values of its own. The plain twin is in the tests.
        """
        basis = self.widen.weight.T * layer.input_layernorm.weight
        keys = self._project(layer.self_attn.k_proj, basis)
        values = self._project(layer.self_attn.v_proj, basis)
        reach = torch.einsum("uqngd,ndc->uqngc", asked, keys)
        logits = torch.einsum("uqngc,utc->uqngt", reach, tokens) * self.head_dim**-0.5
        weight = (logits + self._grouped(bias)).softmax(-1)
        read = torch.einsum("uqngt,utc->uqngc", weight, tokens)
        return weight, torch.einsum("uqngc,ndc->uqngd", read, values)

    def _project(
        self, projection: nn.Module, basis: Tensor
    ) -> Float[Tensor, "kv_head head_dim dim"]:
        """Return a projection of the dimensions of a token, without the projection's bias."""
        moved = projection(basis) - projection(torch.zeros_like(basis[:1]))
        return moved.T.unflatten(0, (self.kv_heads, -1))

    def _listen(
        self, turned: Tensor, own: Tensor, value: Tensor, states: QueryStates, place: int
    ) -> Tensor:
        """Attend to the words of the question and to the anchor itself, as the language model does
        when there is no user.
        """
        words = torch.einsum("uqngd,qwnd->uqngw", turned, states.keys[:, place])
        words = words.masked_fill(~states.mask[:, None, None], MASKED)
        itself = torch.einsum("uqngd,uqnd->uqng", turned, own)
        logits = torch.cat([words, itself[..., None]], -1) * self.head_dim**-0.5
        weight = logits.softmax(-1)
        heard = torch.einsum("uqngw,qwnd->uqngd", weight[..., :-1], states.values[:, place])
        return heard + weight[..., -1:] * value[:, :, :, None]


def _stack(parts: Sequence[QueryStates]) -> QueryStates:
    """Return the states of several questions, padded to the longest."""
    width = max(part.mask.shape[1] for part in parts)
    padded = []
    for part in parts:
        missing = width - part.mask.shape[1]
        words = [F.pad(words, (0, 0, 0, 0, 0, missing)) for words in (part.keys, part.values)]
        padded.append(QueryStates(part.hidden, *words, F.pad(part.mask, (0, missing)), part.length))
    return QueryStates(*(torch.cat(column) for column in zip(*padded, strict=True)))


@torch.no_grad()
def _randomize(model: nn.Module) -> None:
    """Draw all matrices of a language model at random; gains become 1 and biases 0."""
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            nn.init.normal_(weight, 0, 0.02)
        else:
            weight.fill_(0.0 if name.endswith("bias") else 1.0)
