"""`LanguageBody`: common base of the bodies in which a language model reads users.

It encodes questions, answers and user tokens, and has the two towers of the contrastive loss. An
answer follows the anchor, through which alone it sees the user, and is also given the score and the
state that the score is computed from. The same pass with an anchor that has seen no user is the
second tower.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from qanchor.errors import WeightsError
from qanchor.models.backbone import add_lora, load_backbone, without_lora
from qanchor.models.pointing import (
    MASKED,
    N_PRIOR_NUMBERS,
    STATE_DIM,
    TOLD_DIM,
    Anchor,
    BodyInput,
    QueryStates,
    ThingInput,
    TokenInput,
)
from qanchor.models.user_tokens import N_LEVEL_NUMBERS, N_TOKEN_NUMBERS
from qanchor.utils.arrays import LRUCache
from qanchor.utils.device import has_fast_bf16

LLAMA_LIKE = ("llama", "qwen2")
TOKEN_DIM = 256
LEVEL_TOKENS = 3  # tokens made of the user-level numbers
EVIDENCE_DROPOUT = 0.5  # share of the users
LORA_RANK = 8
LORA_ALPHA = 16
QUERIES_PER_PASS = 64
MAX_QUERY_TOKENS = 256
REMEMBERED = 64  # queries whose states are cached
REMEMBERED_ANSWERS = 2048
PADDING = -1
MIN_BFLOAT16_WIDTH = 256  # smaller models gain nothing
ANSWERS_PER_PASS = 64
PROJECTION_HIDDEN = 512
PROJECTION_DIM = 128


class Answers(NamedTuple):
    """Answers, each after its question, without users; from `LanguageBody.encode_answers`."""

    ids: Int[Tensor, "pair token"]
    hidden: Float[Tensor, "pair token width"]  # input of the first user layer
    mask: Bool[Tensor, "pair token"]

    def at(self, index) -> Answers:
        """Select answers.

        Args:
            index: Index array.
        """
        return Answers(*(part[index] for part in self))


class EvidenceDropout(nn.Module):
    """Zero the inputs of the prior for half of the users in training, so that tokens are read."""

    def forward(
        self, known: Float[Tensor, "user query prior"]
    ) -> Float[Tensor, "user query prior"]:
        if not self.training:
            return known
        mask = torch.rand(len(known), 1, 1, device=known.device) >= EVIDENCE_DROPOUT
        return known * mask


def on_own_device(method: Callable) -> Callable:
    """Decorate a method of a module to move its arguments to, and compute on, the module's device.

    Args:
        method: Method of a module with a property `device`.
    """

    @wraps(method)
    def run(self, *args):
        if self.device.type == "cpu":
            return method(self, *args)
        with self.device:
            return method(self, *_move(args, self.device))

    return run


def in_bfloat16_if_training(method: Callable) -> Callable:
    """Decorate a method of a `LanguageBody` to compute in bfloat16 in training if that is faster.

    It is faster on devices with native bfloat16 products, unless the language model is tiny.

    Args:
        method: The method.
    """

    @wraps(method)
    def run(self, *args):
        is_large = self.backbone.config.hidden_size >= MIN_BFLOAT16_WIDTH
        enabled = self.training and is_large and has_fast_bf16(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=enabled):
            return method(self, *args)

    return run


def _move(value, device: torch.device):
    """Move tensors, and tuples and named tuples of them, to a device; return all else unchanged."""
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, tuple):
        moved = [_move(part, device) for part in value]
        return type(value)(*moved) if hasattr(value, "_fields") else tuple(moved)
    return value


class LanguageBody(nn.Module):
    """A language model that reads users and questions; the body of a `PointingReader`.

    Its last `layers` layers are the user layers: in them the anchor depends on the user, and they
    are trained with LoRA. The layers below read questions and answers with the pretrained weights.
    Subclasses define in `anchor` how a question attends to a user.

    Args:
        backbone: "smollm2", "tiny" (random weights), a Hugging Face id or a local folder.
        text: Dimension of the text vectors.
        layers: Number of user layers, counted from the last (default: all).
        random: Randomize the weights of the language model, as a control (default False).

    Raises:
        WeightsError: The language model cannot be loaded, or has another architecture than Llama.
    """

    def __init__(
        self, backbone: str, text: int, layers: int | None = None, *, random: bool = False
    ):
        super().__init__()
        model, self.tokenizer = load_backbone(backbone)
        if model.config.model_type not in LLAMA_LIKE:
            raise WeightsError(
                f"The language model {backbone!r} is of type {model.config.model_type!r}; only"
                f" {' and '.join(LLAMA_LIKE)} are supported. Pass a model of one of these types."
            )
        model.requires_grad_(False)
        if random:
            _randomize(model)
        config = model.config
        depth = config.num_hidden_layers
        self.first = 0 if layers is None else max(depth - layers, 0)
        self.n_layers = depth - self.first
        self.heads = config.num_attention_heads
        self.kv_heads = config.num_key_value_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        width = config.hidden_size
        self.backbone = add_lora(model, LORA_RANK, LORA_ALPHA, self.n_layers)
        self.text = nn.Linear(text, TOKEN_DIM)
        self.number = nn.Linear(N_TOKEN_NUMBERS, TOKEN_DIM)
        self.level_norm = nn.LayerNorm(N_LEVEL_NUMBERS)
        self.level = nn.Linear(N_LEVEL_NUMBERS, LEVEL_TOKENS * TOKEN_DIM)
        self.widen = nn.Linear(TOKEN_DIM, width, bias=False)
        self.evidence = nn.Linear(N_PRIOR_NUMBERS, width)
        self.drop_evidence = EvidenceDropout()
        self.start = nn.Parameter(torch.zeros(width))
        self.state = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, STATE_DIM), nn.GELU())
        with torch.random.fork_rng(devices=[]):  # keeps the random draws of other weights
            # hidden states of a language model are nearly parallel, so each tower is normalized
            self.anchor_norm = nn.BatchNorm1d(width, affine=False)
            self.answer_norm = nn.BatchNorm1d(width, affine=False)
            self.tell = nn.Linear(TOLD_DIM, width, bias=False)
            nn.init.zeros_(self.tell.weight)
            self.project = nn.Sequential(
                nn.Linear(width, PROJECTION_HIDDEN),
                nn.ReLU(),
                nn.Linear(PROJECTION_HIDDEN, PROJECTION_DIM),
            )
        self._remembered = LRUCache(REMEMBERED)
        self._remembered_answers = LRUCache(REMEMBERED_ANSWERS)

    @property
    def device(self) -> torch.device:
        """Return the device of the language model."""
        return self.start.device

    @property
    def layers(self) -> nn.ModuleList:
        """Return the user layers."""
        return self.backbone.model.layers[self.first :]

    # -- questions --

    @on_own_device
    def encode(self, queries: Sequence[str]) -> QueryStates:
        """Run questions through the language model, without users; recent ones are cached.

        Args:
            queries: Questions, with "user" in place of the unit word.

        Raises:
            ValueError: A question has more than 256 tokens.
        """
        return _stack(_recall(self._remembered, queries, self._read, QUERIES_PER_PASS))

    @torch.inference_mode(False)  # cached states may take part in a backward pass later
    @torch.no_grad()
    def _read(self, queries: Sequence[str]) -> list[QueryStates]:
        """Run the words of questions, and the anchor after them, through the language model."""
        vectors, length = self._embed(queries, [[]] * len(queries))
        rows = torch.arange(len(queries))
        places = torch.arange(vectors.shape[1])
        positions = places.expand(len(queries), -1)
        with without_lora(self.backbone):
            hidden = self.backbone.model(
                inputs_embeds=vectors,
                attention_mask=(places <= length[:, None]).long(),
                position_ids=positions,
                output_hidden_states=True,
            ).hidden_states
            keys = []
            values = []
            for number, layer in enumerate(self.layers, self.first):
                normed = layer.input_layernorm(hidden[number])
                key = layer.self_attn.k_proj(normed).unflatten(-1, (self.kv_heads, -1))
                keys.append(self._rotate(key, positions))
                value = layer.self_attn.v_proj(normed)
                values.append(value.unflatten(-1, (self.kv_heads, -1)))
        states = QueryStates(
            hidden=hidden[self.first][rows, length],
            words=hidden[self.first],
            keys=torch.stack(keys, 1),
            values=torch.stack(values, 1),
            mask=places < length[:, None],
            length=length,
        )
        return [states.at([row]) for row in range(len(queries))]

    def _embed(self, queries: Sequence[str], answers: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        """Return input embeddings of question, anchor and answer, and lengths of the questions."""
        ids = [self._tokenize(query) for query in queries]
        length = torch.tensor([len(row) for row in ids])
        rows = [
            torch.tensor([*query, 0, *answer]) for query, answer in zip(ids, answers, strict=True)
        ]
        embedding = self.backbone.get_input_embeddings()
        vectors = embedding(pad_sequence(rows, batch_first=True)).clone()
        vectors[torch.arange(len(rows)), length] = embedding.weight.mean(0)
        return vectors, length

    def _tokenize(self, query: str) -> list[int]:
        ids = self.tokenizer(query)
        if len(ids) > MAX_QUERY_TOKENS:
            raise ValueError(
                f"The question has {len(ids):,} tokens, but the model reads at most"
                f" {MAX_QUERY_TOKENS}. Use fewer words."
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
        """Return the vectors that the anchor attends to: user-level tokens, then the user's tokens.

        Args:
            users: Tokens of the users.
            standard: Numbers of the tokens, standardized.
            things: Things that the tokens refer to.
        """
        text = self.text(things.vector * things.vector.shape[1] ** 0.5)
        own = F.gelu(text[users.which.clamp(min=0)] + self.number(standard))
        level = F.gelu(self.level(self.level_norm(users.level)))
        tokens = torch.cat([level.unflatten(-1, (LEVEL_TOKENS, -1)), own], 1)
        return tokens * tokens.square().mean(-1, keepdim=True).add(1e-6).rsqrt()

    @on_own_device
    def forward(
        self, inputs: BodyInput
    ) -> tuple[Float[Tensor, "user query state"], Float[Tensor, "user query token"]]:
        """Return the state that scores are computed from, and the mean attention to the tokens.

        Args:
            inputs: Users and questions.
        """
        anchor, attention = self.anchor(inputs)
        return self.state(anchor.hidden).cpu(), attention.cpu()

    def anchor(self, inputs: BodyInput) -> tuple[Anchor, Float[Tensor, "user query token"]]:
        """Return the anchor of each user and question, and its mean attention to the tokens.

        Args:
            inputs: Users and questions.
        """
        raise NotImplementedError

    def share_of_tokens(
        self, attention: Float[Tensor, "user query place"], users: TokenInput
    ) -> Float[Tensor, "user query token"]:
        """Return the attention to the user's tokens, without user-level tokens, scaled to sum to 1.

        Args:
            attention: Attention to the user-level tokens, then to the user's tokens.
            users: Tokens of the users.
        """
        attention = attention[:, :, LEVEL_TOKENS:] * (users.which >= 0)[:, None]
        return attention / attention.sum(-1, keepdim=True).clamp(min=1e-9)

    @on_own_device
    def anchor_alone(self, states: QueryStates) -> Anchor:
        """Return the anchors of questions without a user; the user axis has length 1.

        Args:
            states: States of the questions, from `encode`.
        """
        return self._cross(states, self.evidence.bias.expand(1, len(states.length), -1))

    @in_bfloat16_if_training
    def _cross(
        self,
        states: QueryStates,
        evidence: Tensor,
        look: Callable[[int, Tensor], Tensor] | None = None,
    ) -> Anchor:
        """Run anchors through the user layers.

        Args:
            states: States of the questions.
            evidence: Projected inputs of the prior, which are added to the anchors.
            look: Function that attends to users, called with the index of a user layer and the
                attention queries before rotary embedding (default: there are no users).
        """
        hidden = states.hidden + self.start + evidence
        positions = states.length.expand(len(hidden), -1)
        keys = []
        values = []
        for place, layer in enumerate(self.layers):
            normed = layer.input_layernorm(hidden)
            asked = layer.self_attn.q_proj(normed).unflatten(-1, (self.heads, -1))
            turned = self._grouped(self._rotate(asked, positions))
            own = layer.self_attn.k_proj(normed).unflatten(-1, (self.kv_heads, -1))
            own = self._rotate(own, positions)
            value = layer.self_attn.v_proj(normed).unflatten(-1, (self.kv_heads, -1))
            mixed = self._listen(turned, own, value, states, place)
            if look is not None:
                gate = torch.sigmoid(self.gate[place]).view(self.kv_heads, -1, 1)
                mixed = gate * look(place, self._grouped(asked)) + (1 - gate) * mixed
            hidden = hidden + layer.self_attn.o_proj(mixed.flatten(2))
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
            keys.append(own)
            values.append(value)
        hidden = self.backbone.model.norm(hidden)
        keys, values = (torch.stack(parts, 2).float() for parts in (keys, values))
        return Anchor(hidden, keys, values, hidden.new_zeros(*hidden.shape[:-1], TOLD_DIM))

    def _grouped(self, vectors: Tensor) -> Tensor:
        """Return (user, query, head, head_dim) as (user, query, kv_head, group, head_dim)."""
        return vectors.unflatten(2, (self.kv_heads, -1))

    def _listen(
        self, turned: Tensor, own: Tensor, value: Tensor, states: QueryStates, place: int
    ) -> Tensor:
        """Attend to the words of the question and to the anchor itself, as without a user."""
        words = torch.einsum("uqngd,qwnd->uqngw", turned, states.keys[:, place])
        words = words.masked_fill(~states.mask[:, None, None], MASKED)
        itself = torch.einsum("uqngd,uqnd->uqng", turned, own)
        logits = torch.cat([words, itself[..., None]], -1) * self.head_dim**-0.5
        weight = logits.softmax(-1)
        heard = torch.einsum("uqngw,qwnd->uqngd", weight[..., :-1], states.values[:, place])
        return heard + weight[..., -1:] * value[:, :, :, None]

    # -- answers --

    @on_own_device
    def encode_answers(self, queries: Sequence[str], answers: Sequence[str]) -> Answers:
        """Run answers, after their questions, through the layers below the user layers.

        Recent ones are cached.

        Args:
            queries: Question of each answer, as for `encode`.
            answers: The answers.

        Raises:
            ValueError: A question has more than 256 tokens.
        """
        pairs = list(zip(queries, answers, strict=True))
        read = _recall(self._remembered_answers, pairs, self._read_answers, ANSWERS_PER_PASS)
        ids = pad_sequence([ids for ids, _ in read], batch_first=True, padding_value=PADDING)
        hidden = pad_sequence([hidden for _, hidden in read], batch_first=True)
        return Answers(ids.clamp(min=0), hidden, ids != PADDING)

    @torch.inference_mode(False)
    @torch.no_grad()
    def _read_answers(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[Tensor, Tensor]]:
        """Run questions, anchor and answers through these layers; return answer ids and states."""
        queries = [query for query, _ in pairs]
        ids = [self.tokenizer(f" {answer}") for _, answer in pairs]
        hidden, length = self._embed(queries, ids)
        width = hidden.shape[1]
        positions = torch.arange(width).expand(len(pairs), -1)
        causal = torch.ones(width, width, dtype=torch.bool).tril()
        for layer in self.backbone.model.layers[: self.first]:
            hidden, _, _ = self._layer(layer, hidden, positions, causal)
        return [
            (torch.tensor(row), hidden[place, start : start + len(row)])
            for place, (row, start) in enumerate(zip(ids, (length + 1).tolist(), strict=True))
        ]

    @on_own_device
    @in_bfloat16_if_training
    def answer_states(
        self, states: QueryStates, anchor: Anchor, answers: Answers
    ) -> Float[Tensor, "pair token width"]:
        """Run answers through the user layers, and return their states after the last one.

        They attend to the words of the question, to the anchor and to earlier answer tokens. The
        score and state in `anchor.told` are projected and added to their inputs.

        Args:
            states: States of the question of each answer, from `encode`.
            anchor: Anchor of each answer.
            answers: Answers from `encode_answers`.
        """
        n_pairs, n_tokens = answers.ids.shape
        positions = states.length[:, None] + 1 + torch.arange(n_tokens)
        causal = torch.ones(n_tokens, n_tokens, dtype=torch.bool).tril()
        before = F.pad(states.mask, (0, 1), value=True)[:, None].expand(-1, n_tokens, -1)
        mask = torch.cat([before, causal.expand(n_pairs, -1, -1)], -1)[:, None]
        hidden = answers.hidden + self.tell(anchor.told)[:, None]
        for place, layer in enumerate(self.layers):
            keys = torch.cat([states.keys[:, place], anchor.keys[:, None, place]], 1)
            values = torch.cat([states.values[:, place], anchor.values[:, None, place]], 1)
            hidden, _, _ = self._layer(layer, hidden, positions, mask, keys, values)
        return self.backbone.model.norm(hidden)

    def _layer(
        self,
        layer: nn.Module,
        hidden: Tensor,
        positions: Tensor,
        mask: Tensor,
        keys: Tensor | None = None,
        values: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Run tokens through one layer of the language model.

        `keys` and `values` are those of the tokens before them, if there are any.

        Returns:
            Output of the layer, and the keys and values of the tokens.
        """
        normed = layer.input_layernorm(hidden)
        asked = layer.self_attn.q_proj(normed).unflatten(-1, (self.heads, -1))
        key = layer.self_attn.k_proj(normed).unflatten(-1, (self.kv_heads, -1))
        key = self._rotate(key, positions)
        value = layer.self_attn.v_proj(normed).unflatten(-1, (self.kv_heads, -1))
        all_keys = key if keys is None else torch.cat([keys, key], 1)
        all_values = value if values is None else torch.cat([values, value], 1)
        mixed = F.scaled_dot_product_attention(
            self._rotate(asked, positions).transpose(1, 2),
            all_keys.transpose(1, 2),
            all_values.transpose(1, 2),
            attn_mask=mask,
            enable_gqa=True,
        )
        hidden = hidden + layer.self_attn.o_proj(mixed.transpose(1, 2).flatten(2))
        return hidden + layer.mlp(layer.post_attention_layernorm(hidden)), key, value

    @on_own_device
    def project_anchors(self, anchor: Anchor) -> Float[Tensor, "pair dim"]:
        """Return unit embeddings of anchors, in the same space as those of answers.

        Args:
            anchor: Anchors of pairs of a user and a question.
        """
        return F.normalize(self.project(self.anchor_norm(anchor.hidden)), dim=-1)

    @on_own_device
    def project_answers(
        self, hidden: Float[Tensor, "pair token width"], mask: Bool[Tensor, "pair token"]
    ) -> Float[Tensor, "pair dim"]:
        """Return unit embeddings of answers, from the state of their last token.

        Args:
            hidden: From `answer_states`, without users.
            mask: False for padding.
        """
        last = hidden[torch.arange(len(mask)), mask.sum(1) - 1]
        return F.normalize(self.project(self.answer_norm(last)), dim=-1)

    @on_own_device
    @in_bfloat16_if_training
    def answer_logits(
        self,
        anchor: Anchor,
        hidden: Float[Tensor, "pair token width"],
        mask: Bool[Tensor, "pair token"],
    ) -> Float[Tensor, "answer_token vocabulary"]:
        """Return the next-token logits of all answer tokens, one pair after another.

        Args:
            anchor: Anchor of each answer.
            hidden: From `answer_states`.
            mask: False for padding.
        """
        first = anchor.hidden + self.tell(anchor.told)
        before = torch.cat([first[:, None], hidden[:, :-1]], 1)
        return self.backbone.lm_head(before[mask])

    @on_own_device
    def score_answers(
        self, anchor: Anchor, states: QueryStates, answers: Answers
    ) -> Float[Tensor, "user answer"]:
        """Return the log-likelihood of each answer for each user, relative to an unknown user.

        Args:
            anchor: Anchors of the users and one question.
            states: States of the question, from `encode`.
            answers: Answers to the question, from `encode_answers`.

        Returns:
            log p(answer | user, question) - log p(answer | question).
        """
        alone = self.anchor_alone(states)
        anchor = Anchor(*(torch.cat(parts)[:, 0] for parts in zip(anchor, alone, strict=True)))
        states = states.at([0] * len(anchor.hidden))
        scores = []
        for place in range(len(answers.ids)):
            answer = answers.at([place] * len(anchor.hidden))
            hidden = self.answer_states(states, anchor, answer)
            logits = self.answer_logits(anchor, hidden, answer.mask)
            loss = F.cross_entropy(logits, answer.ids[answer.mask], reduction="none")
            log_prob = -loss.view(len(hidden), -1).sum(1)
            scores.append(log_prob[:-1] - log_prob[-1])
        return torch.stack(scores, 1).cpu()


def _recall(remembered: LRUCache, keys: Sequence, read: Callable, per_pass: int) -> list:
    """Return the cached value of each key; compute and cache missing ones.

    Args:
        remembered: The cache; modified in place.
        keys: Keys to look up.
        read: Function that returns a list of values for a batch of keys.
        per_pass: Maximum number of keys per batch.
    """
    by_key = {key: remembered[key] for key in keys if key in remembered}
    new = [key for key in dict.fromkeys(keys) if key not in by_key]
    for start in range(0, len(new), per_pass):
        batch = new[start : start + per_pass]
        by_key |= zip(batch, read(batch), strict=True)
    remembered.update(by_key)
    return [by_key[key] for key in keys]


def _stack(parts: Sequence[QueryStates]) -> QueryStates:
    """Return the states of several questions, padded to the longest."""
    width = max(part.mask.shape[1] for part in parts)
    padded = []
    for part in parts:
        missing = width - part.mask.shape[1]
        words = F.pad(part.words, (0, 0, 0, missing))
        kv = [F.pad(states, (0, 0, 0, 0, 0, missing)) for states in (part.keys, part.values)]
        mask = F.pad(part.mask, (0, missing))
        padded.append(QueryStates(part.hidden, words, *kv, mask, part.length))
    return QueryStates(*(torch.cat(column) for column in zip(*padded, strict=True)))


@torch.no_grad()
def _randomize(model: nn.Module) -> None:
    """Randomize all matrices of a language model; norm weights become 1 and biases 0."""
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            nn.init.normal_(weight, 0, 0.02)
        else:
            weight.fill_(0.0 if name.endswith("bias") else 1.0)
