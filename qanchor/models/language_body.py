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
    KnownNumbers,
    QueryStates,
    States,
    ThingInput,
    TokenAttention,
    TokenInput,
    TokenNumbers,
    join,
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

AnswerStates = Float[Tensor, "pair token width"]
AnswerMask = Bool[Tensor, "pair token"]
Embeddings = Float[Tensor, "pair dim"]
KeysAndValues = tuple[Tensor, Tensor]


class Answers(NamedTuple):
    """Answers, each after its question, without users; from `LanguageBody.encode_answers`."""

    ids: Int[Tensor, "pair token"]
    hidden: AnswerStates  # input of the first user layer
    mask: AnswerMask

    def at(self, index) -> Answers:
        """Select answers.

        Args:
            index: Index array.
        """
        return Answers(*(part[index] for part in self))


class EvidenceDropout(nn.Module):
    """Zero the inputs of the prior for half of the users in training, so that tokens are read."""

    def forward(self, known: KnownNumbers) -> KnownNumbers:
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

    Raises:
        WeightsError: The language model cannot be loaded, or has another architecture than Llama.
    """

    def __init__(self, backbone: str, text: int, layers: int | None = None):
        super().__init__()
        model, self.tokenizer = load_backbone(backbone)
        if model.config.model_type not in LLAMA_LIKE:
            raise WeightsError(
                f"The language model {backbone!r} is of type {model.config.model_type!r}; only"
                f" {' and '.join(LLAMA_LIKE)} are supported. Pass a model of one of these types."
            )
        model.requires_grad_(False)
        config = model.config
        depth = config.num_hidden_layers
        self.first = 0 if layers is None else max(depth - layers, 0)
        self.n_layers = depth - self.first
        self.heads = config.num_attention_heads
        self.kv_heads = config.num_key_value_heads
        self.head_dim = model.model.layers[0].self_attn.head_dim
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
        return _concatenate(_recall(self._remembered, queries, self._read, QUERIES_PER_PASS))

    @torch.inference_mode(False)  # cached states may take part in a backward pass later
    @torch.no_grad()
    def _read(self, queries: Sequence[str]) -> list[QueryStates]:
        """Run the words of questions, and the anchor after them, through the language model."""
        vectors, length = self._embed(queries, [[]] * len(queries))
        places = torch.arange(vectors.shape[1])
        positions = places.expand(len(queries), -1)
        layers = []
        with without_lora(self.backbone):
            hidden = self.backbone.model(
                inputs_embeds=vectors,
                attention_mask=(places <= length[:, None]).long(),
                position_ids=positions,
                output_hidden_states=True,
            ).hidden_states
            for number, layer in enumerate(self.layers, self.first):
                normed = layer.input_layernorm(hidden[number])
                layers.append(self._keys_and_values(layer, normed, positions))
        keys, values = stack_layers(layers, 1)
        words = hidden[self.first]
        anchors = words[torch.arange(len(queries)), length]
        states = QueryStates(anchors, words, keys, values, places < length[:, None], length)
        return [states.at([row]) for row in range(len(queries))]

    def _embed(self, queries: Sequence[str], answers: Sequence[list[int]]) -> tuple[Tensor, Tensor]:
        """Return input embeddings of question, anchor and answer, and lengths of the questions."""
        ids = [self._tokenize(query) for query in queries]
        length = torch.tensor([len(query) for query in ids])
        rows = []
        for query, answer in zip(ids, answers, strict=True):
            rows.append(torch.tensor([*query, 0, *answer]))
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
        turned = torch.cat([-two, one], -1)
        return vectors * cos[:, :, None] + turned * sin[:, :, None]

    def _heads(self, projected: Tensor) -> Tensor:
        """Split the last axis of projected states into heads."""
        return projected.unflatten(-1, (-1, self.head_dim))

    def _keys_and_values(
        self, layer: nn.Module, normed: Tensor, positions: Tensor
    ) -> KeysAndValues:
        """Return the keys, after rotary embedding, and the values of tokens in a layer."""
        keys = self._heads(layer.self_attn.k_proj(normed))
        values = self._heads(layer.self_attn.v_proj(normed))
        return self._rotate(keys, positions), values

    def _after_attention(self, layer: nn.Module, hidden: Tensor, mixed: Tensor) -> Tensor:
        """Return the output of a layer, given its input and the attention output of its heads."""
        hidden = hidden + layer.self_attn.o_proj(mixed)
        return hidden + layer.mlp(layer.post_attention_layernorm(hidden))

    # -- users --

    def user_tokens(
        self, users: TokenInput, standard: TokenNumbers, things: ThingInput
    ) -> Float[Tensor, "user place dim"]:
        """Return the vectors that the anchor attends to: user-level tokens, then the user's tokens.

        Args:
            users: Tokens of the users.
            standard: Numbers of the tokens, standardized.
            things: Things that the tokens refer to.
        """
        scale = things.vector.shape[1] ** 0.5
        text = self.text(things.vector * scale)[users.which.clamp(min=0)]
        own = F.gelu(text + self.number(standard))
        level = F.gelu(self.level(self.level_norm(users.level)))
        level = level.unflatten(-1, (LEVEL_TOKENS, -1))
        tokens = torch.cat([level, own], 1)
        return tokens * tokens.square().mean(-1, keepdim=True).add(1e-6).rsqrt()

    @on_own_device
    def forward(self, inputs: BodyInput) -> tuple[States, TokenAttention]:
        """Return the state that scores are computed from, and the mean attention to the tokens.

        Args:
            inputs: Users and questions.
        """
        anchor, attention = self.anchor(inputs)
        return self.state(anchor.hidden).cpu(), attention.cpu()

    def anchor(self, inputs: BodyInput) -> tuple[Anchor, TokenAttention]:
        """Return the anchor of each user and question, and its mean attention to the tokens.

        Args:
            inputs: Users and questions.
        """
        raise NotImplementedError

    def share_of_tokens(
        self, attention: Float[Tensor, "user query place"], users: TokenInput
    ) -> TokenAttention:
        """Return the attention to the user's tokens, without user-level tokens, scaled to sum to 1.

        Args:
            attention: Attention to the user-level tokens, then to the user's tokens.
            users: Tokens of the users.
        """
        is_token = (users.which >= 0)[:, None]
        attention = attention[:, :, LEVEL_TOKENS:] * is_token
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
        attend: Callable[[int, Tensor, Tensor], Tensor] | None = None,
    ) -> Anchor:
        """Run anchors through the user layers.

        Args:
            states: States of the questions.
            evidence: Projected inputs of the prior, which are added to the anchors.
            attend: Function that adds what the anchors take from users, called with the index of a
                user layer, the attention queries before rotary embedding, and the attention output
                without users (default: there are no users).
        """
        hidden = states.hidden + self.start + evidence
        positions = states.length.expand(len(hidden), -1)
        layers = []
        for place, layer in enumerate(self.layers):
            normed = layer.input_layernorm(hidden)
            query = self._heads(layer.self_attn.q_proj(normed))
            rotated = self._grouped(self._rotate(query, positions))
            own = self._keys_and_values(layer, normed, positions)
            words = states.keys[:, place], states.values[:, place]
            mixed = self._attend_to_question(rotated, own, words, states.mask)
            if attend is not None:
                mixed = attend(place, self._grouped(query), mixed)
            hidden = self._after_attention(layer, hidden, mixed.flatten(2))
            layers.append(own)
        return self._finish_anchor(hidden, layers)

    def _finish_anchor(self, hidden: Tensor, layers: Sequence[KeysAndValues]) -> Anchor:
        """Return anchors, given their output, keys and values in the user layers."""
        keys, values = stack_layers(layers, hidden.dim() - 1)
        hidden = self.backbone.model.norm(hidden)
        told = hidden.new_zeros(*hidden.shape[:-1], TOLD_DIM)
        return Anchor(hidden, keys.float(), values.float(), told)

    def _grouped(self, vectors: Tensor) -> Tensor:
        """Return (user, query, head, head_dim) as (user, query, kv_head, group, head_dim)."""
        return vectors.unflatten(2, (self.kv_heads, -1))

    def _attend_to_question(
        self, query: Tensor, own: KeysAndValues, words: KeysAndValues, mask: Tensor
    ) -> Tensor:
        """Attend to the words of the question and to the anchor itself, as without a user."""
        own_key, own_value = own
        keys, values = words
        to_words = torch.einsum("uqngd,qwnd->uqngw", query, keys)
        to_words = to_words.masked_fill(~mask[:, None, None], MASKED)
        to_itself = torch.einsum("uqngd,uqnd->uqng", query, own_key)
        logits = torch.cat([to_words, to_itself[..., None]], -1)
        weight = (logits * self.head_dim**-0.5).softmax(-1)
        from_words = torch.einsum("uqngw,qwnd->uqngd", weight[..., :-1], values)
        return from_words + weight[..., -1:] * own_value[:, :, :, None]

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
            hidden, _ = self._layer(layer, hidden, positions, causal)
        read = []
        for row, answer, start in zip(hidden, ids, (length + 1).tolist(), strict=True):
            read.append((torch.tensor(answer), row[start : start + len(answer)]))
        return read

    @on_own_device
    @in_bfloat16_if_training
    def answer_states(self, states: QueryStates, anchor: Anchor, answers: Answers) -> AnswerStates:
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
        before = F.pad(states.mask, (0, 1), value=True)  # the question and the anchor
        before = before[:, None].expand(-1, n_tokens, -1)
        causal = causal.expand(n_pairs, -1, -1)
        mask = torch.cat([before, causal], -1)[:, None]
        hidden = answers.hidden + self.tell(anchor.told)[:, None]
        keys = torch.cat([states.keys, anchor.keys[:, :, None]], 2)
        values = torch.cat([states.values, anchor.values[:, :, None]], 2)
        for place, layer in enumerate(self.layers):
            earlier = keys[:, place], values[:, place]
            hidden, _ = self._layer(layer, hidden, positions, mask, earlier)
        return self.backbone.model.norm(hidden)

    def _layer(
        self,
        layer: nn.Module,
        hidden: Tensor,
        positions: Tensor,
        mask: Tensor,
        earlier: KeysAndValues | None = None,
    ) -> tuple[Tensor, KeysAndValues]:
        """Run tokens through one layer of the language model.

        `earlier` holds keys and values of the tokens before them, if there are any.

        Returns:
            Output of the layer, and the keys and values of the tokens.
        """
        normed = layer.input_layernorm(hidden)
        query = self._heads(layer.self_attn.q_proj(normed))
        own = self._keys_and_values(layer, normed, positions)
        keys, values = own
        if earlier is not None:
            keys = torch.cat([earlier[0], keys], 1)
            values = torch.cat([earlier[1], values], 1)
        mixed = F.scaled_dot_product_attention(
            self._rotate(query, positions).transpose(1, 2),
            keys.transpose(1, 2),
            values.transpose(1, 2),
            attn_mask=mask,
            enable_gqa=True,
        )
        return self._after_attention(layer, hidden, mixed.transpose(1, 2).flatten(2)), own

    @on_own_device
    def project_anchors(self, anchor: Anchor) -> Embeddings:
        """Return unit embeddings of anchors, in the same space as those of answers.

        Args:
            anchor: Anchors of pairs of a user and a question.
        """
        return F.normalize(self.project(self.anchor_norm(anchor.hidden)), dim=-1)

    @on_own_device
    def project_answers(self, hidden: AnswerStates, mask: AnswerMask) -> Embeddings:
        """Return unit embeddings of answers, from the state of their last token.

        Args:
            hidden: From `answer_states`, without users.
            mask: False for padding.
        """
        place = mask.sum(1) - 1
        last = hidden[torch.arange(len(mask)), place]
        return F.normalize(self.project(self.answer_norm(last)), dim=-1)

    @on_own_device
    @in_bfloat16_if_training
    def answer_logits(
        self,
        anchor: Anchor,
        hidden: AnswerStates,
        mask: AnswerMask,
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
        anchor = join([anchor, self.anchor_alone(states)])
        anchor = anchor.at(slice(None), 0)
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


def stack_layers(layers: Sequence[KeysAndValues], axis: int) -> KeysAndValues:
    """Stack the keys, and the values, of all layers.

    Args:
        layers: Keys and values in each layer.
        axis: New axis for the layers.
    """
    keys, values = zip(*layers, strict=True)
    return torch.stack(keys, axis), torch.stack(values, axis)


def _concatenate(parts: Sequence[QueryStates]) -> QueryStates:
    """Return the states of several questions, padded to the longest."""
    width = max(part.mask.shape[1] for part in parts)
    padded = []
    for part in parts:
        missing = width - part.mask.shape[1]
        states = part._replace(
            words=F.pad(part.words, (0, 0, 0, missing)),
            keys=F.pad(part.keys, (0, 0, 0, 0, 0, missing)),
            values=F.pad(part.values, (0, 0, 0, 0, 0, missing)),
            mask=F.pad(part.mask, (0, missing)),
        )
        padded.append(states)
    return join(padded)
