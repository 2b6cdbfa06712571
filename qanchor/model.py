"""`QAnchor`: two towers that share one language model. The anchor reads a user and a query, the target reads an answer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from .backbone import add_lora, load_backbone, new_cache, recompute_activations
from .batch import USER_EMB, Batch, Branches, branch_mask, branches
from .config import Config
from .encoder import Encoder, Prefix
from .event_texts import EventTexts
from .heads import Asked, Projection, Query, Skip, words_of
from .machine import best_device, working_dtype
from .reader import Reader
from .texts import text_vectors

PORTRAIT = 0.08  # of each number of a strange question's portrait, beside the question's part at unit length


class QAnchor(nn.Module):
    """Embed users for a question in plain words. Built by `build`, trained by `train`, asked through `Engine`.

    Source: paper, section 3.2.

    Example:
        >>> users = qa.make_world(40)
        >>> model = qa.build(qa.TINY, qa.Reader.fit(users, None, qa.TINY))
        >>> batch = qa.batch_users(model.reader.read(users), [0, 1, 2])
        >>> model.embed(batch, "Will this user travel soon?").shape
        torch.Size([3, 32])
    """

    def __init__(self, config: Config, reader: Reader, seed: int = 0, dtype: str | None = None):
        super().__init__()
        self.config, self.reader = config, reader
        self.run = ""  # sha256 of the run it was loaded from
        if config.skip and reader.portrait.shape[1] != config.portrait:
            told = f"the reader's portrait has {reader.portrait.shape[1]} numbers, config.portrait is {config.portrait}"
            raise ValueError(f"{told}: fit the reader with this config")
        self.backbone, self.tokenizer = load_backbone(config.backbone, dtype or config.dtype, config.attention, seed)
        self.backbone.requires_grad_(False)
        if config.checkpointing:
            recompute_activations(self.backbone)
        words = self.backbone.get_input_embeddings().weight
        width = words.shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if config.lora_layers:
                self.backbone = add_lora(
                    self.backbone, config.lora_rank, config.lora_alpha, config.lora_dropout, config.lora_layers
                )
            sizes = reader.sizes()
            shape = (len(reader.modalities), reader.text_dim, sizes, reader.groups(), config.adapter, width)
            self.encoder = Encoder(*shape, words.float().std().item(), config.layout, config.summaries)
            own = config.dim - (config.portrait if config.skip else 0)
            self.projection = Projection(width, config.hidden, own)
            self.skip = None
            if config.skip:
                size = (sizes["coarse"], reader.text_dim, config.skip_hidden, own)
                self.skip = Skip(*size, config.skip_dropout, config.taught)
            self.register_buffer("portrait", torch.from_numpy(reader.portrait))
            self.user_emb = nn.Parameter(words.float().mean(0) + 0.02 * torch.randn(width))
            self.event_texts = EventTexts(config) if config.text_lora_rank else None

    @property
    def device(self) -> torch.device:
        return self.user_emb.device

    # -- words to ids --

    def query_ids(self, query: str, limit: int | None = None) -> list[int]:
        """Spell a query; too long a one is refused, since its end would be lost in silence."""
        ids, limit = self.tokenizer(query), limit or self.config.max_query_asked
        if len(ids) > limit:
            raise ValueError(f"the query has {len(ids):,} tokens, the model allows {limit}: ask in fewer words")
        return ids

    def answer_ids(self, answer: str) -> list[int]:
        """Spell an answer, cut to `max_answer` tokens, and end it."""
        return [*self.tokenizer(answer)[: self.config.max_answer - 1], self.tokenizer.eos_token_id]

    def word_vectors(
        self, ids: Int[Tensor, ...], soft: Float[Tensor, "vector width"] | None = None
    ) -> Float[Tensor, "... width"]:
        """Look up word vectors; USER_EMB gives the learned <USER_EMB> vector, ids below it the rows of `soft`."""
        vectors = self.backbone.get_input_embeddings()(ids.clamp(min=0))
        own = self.user_emb[None] if soft is None else torch.cat([self.user_emb[None], soft])
        return torch.where((ids < 0)[..., None], own.to(vectors.dtype)[(USER_EMB - ids).clamp(min=0)], vectors)

    def spell(self, queries: Sequence[Asked]) -> tuple[list[list[int]], Float[Tensor, "vector width"] | None]:
        """Spell queries, typed or learned; a learned one's vectors stand behind its words, as ids below USER_EMB."""
        ids, soft, below = [], [], USER_EMB - 1
        for query in queries:
            if isinstance(query, str):
                ids.append(self.query_ids(query))
                continue
            if query.run != self.run:
                told = f"run {query.run[:16] or 'unsaved'}, this model is of run {self.run[:16] or 'unsaved'}"
                raise ValueError(f"the soft prompt of {query.query!r} was tuned on {told}: load that run, or tune it anew")
            ids.append([*self.query_ids(query.query), *range(below, below - len(query.vectors), -1)])
            soft.append(query.vectors.to(self.device))
            below -= len(query.vectors)
        return ids, torch.cat(soft) if soft else None

    def lay_out(self, queries: Sequence[Asked], users: int = 1) -> Branches:
        """Lay out queries, typed or learned, behind each of `users` prefixes."""
        ids, soft = self.spell(queries)
        return branches([ids] * users, soft=soft).to(self.device)

    # -- the towers --

    def encode_prefix(self, batch: Batch) -> Prefix:
        """Turn a batch of users into the prefix that stands in front of every query."""
        return self.encoder(batch if self.event_texts is None else self.event_texts.fill(batch))

    def read(
        self, vectors, allow: Bool[Tensor, "user query key"] | None, positions, cache=None
    ) -> Float[Tensor, "user query width"]:
        """Run the language model over `vectors` with an explicit mask (None: causal) and explicit positions."""
        mask = None if allow is None else allow[:, None]
        if mask is not None and self.backbone.config._attn_implementation == "eager":  # it adds the mask: True would add 1
            mask = torch.zeros_like(mask, dtype=vectors.dtype).masked_fill(~mask, torch.finfo(vectors.dtype).min)
        out = self.backbone.model(
            inputs_embeds=vectors,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return out.last_hidden_state

    def forward(
        self, batch: Batch, asked: Branches, query: Query, answers: list[list[int]] = ()
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Read each user once and all K branches behind it (a mask keeps the branches apart).

        query     each branch's query (user, branch, ...), as `ask` gives it.
        answers   token ids of answers to embed in the same call, so that a wrapped model (several processes) sees both towers.
        Returns the anchors (pair, dim), row user * K + branch; the hidden states (token, width) from which the answers' tokens
        are predicted; and the targets (answer, dim) or None.
        """
        anchors, hidden = self.anchors(self.encode_prefix(batch), asked, query)
        targets = self.target(self.read_alone(answers)) if answers else None
        return anchors.flatten(0, 1), hidden[asked.writes], targets

    def anchors(
        self, prefix: Prefix, asked: Branches, query: Query
    ) -> tuple[Float[Tensor, "user branch dim"], Float[Tensor, "user token width"]]:
        """Embed users whose prefix is made: the anchors, and the hidden states of all tokens behind the prefix."""
        # through a cache no branch is compared with another's keys; recomputed activations know no cache
        alone = self.config.checkpointing
        hidden = self._tree(prefix, asked) if alone else self.behind(prefix, asked, self.prefill(prefix))
        return self.ends(hidden, asked, prefix, query), hidden

    def ends(
        self, hidden: Float[Tensor, "user token width"], asked: Branches, prefix: Prefix, query: Query
    ) -> Float[Tensor, "user branch dim"]:
        """Project what stands at each branch's <USER_EMB>; `asked` may be one row for all users."""
        at = asked.anchor[..., None].expand(len(hidden), -1, hidden.shape[-1])
        return self.anchor(hidden.gather(1, at), prefix.coarse, query)

    def behind(self, prefix: Prefix, asked: Branches, cache) -> Float[Tensor, "user token width"]:
        """Read tokens, the same for all users or each one's own, behind prefixes that `cache` holds; it grows by them."""
        users = len(prefix.mask)
        words = self.word_vectors(asked.ids, asked.soft).expand(users, -1, -1)
        allow = branch_mask(prefix.mask, asked.branch.expand(users, -1))
        # cached keys keep their positions: a query starts at each user's own length
        return self.read(words, allow, prefix.length()[:, None] + asked.offset, cache)

    def _tree(self, prefix: Prefix, asked: Branches) -> Float[Tensor, "user token width"]:
        """Read prefixes and branches in one pass with no cache: the plain twin of `behind`."""
        words = self.word_vectors(asked.ids, asked.soft)
        vectors = torch.cat([prefix.slots.to(words.dtype), words], 1)
        positions = torch.cat([prefix.positions(), prefix.length()[:, None] + asked.offset], 1)
        slots = prefix.mask.shape[1]
        own = self._causal(prefix.mask)
        top = torch.cat([own, own.new_zeros(len(own), slots, words.shape[1])], -1)
        allow = torch.cat([top, branch_mask(prefix.mask, asked.branch)], 1)
        return self.read(vectors, allow, positions)[:, slots:]

    @staticmethod
    def _causal(mask: Bool[Tensor, "user slot"]) -> Bool[Tensor, "user slot slot"]:
        square = torch.ones(mask.shape[1], mask.shape[1], dtype=torch.bool, device=mask.device).tril() & mask[:, None, :]
        return square | torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)  # a row that sees nothing is NaN

    def anchor(
        self,
        hidden: Float[Tensor, "user branch width"],
        coarse: Float[Tensor, "user number"],
        query: Query,
    ) -> Float[Tensor, "user branch dim"]:
        """Project hidden states at <USER_EMB> to unit embeddings; the last `portrait` numbers are for strange queries."""
        if self.skip is None:
            return F.normalize(self.projection(hidden), dim=-1)
        alone = query.alone.float()
        own = self.projection(alone + self.skip.share * (hidden.float() - alone)) + self.skip(coarse, query.meaning)
        # the more a question is unlike all that were taught, the more the embedding says of who the user is altogether
        known = PORTRAIT * (coarse @ self.portrait).clamp(-3, 3)[:, None] * self.skip.strangeness(query.meaning)
        return F.normalize(torch.cat([F.normalize(own, dim=-1), known], -1), dim=-1)

    def target(self, hidden: Float[Tensor, "answer width"]) -> Float[Tensor, "answer dim"]:
        """Project hidden states at the answers' ends to unit embeddings; an answer has no portrait."""
        out = F.normalize(self.projection(hidden), dim=-1)
        return F.pad(out, (0, self.config.dim - out.shape[-1]))

    def embed(self, batch: Batch, query: Asked) -> Float[Tensor, "user dim"]:
        """Embed each user for `query` in one pass with no cache: the plain twin of `Engine.embed`, gradients included."""
        users, prefix = len(batch.coarse), self.encode_prefix(batch)
        asked = self.lay_out([query], users)
        return self.ends(self._tree(prefix, asked), asked, prefix, self.ask([query]).to_each(users))[:, 0]

    def answer_hidden(self, answers: list[str]) -> Float[Tensor, "answer width"]:
        """Read answers alone; the hidden state at each one's last token."""
        return self.read_alone([self.answer_ids(a) for a in answers])

    def ask(self, queries: Sequence[Asked]) -> Query:
        """Read queries with no user in front: the state at each one's <USER_EMB>, and the text vector of its words.

        To a learned query's text vector its offset is added; gradients reach its vectors and its offset.
        """
        ids, soft = self.spell(queries)
        meaning = self.meaning([words_of(q) for q in queries])
        if soft is not None:
            meaning = torch.stack(
                [m if isinstance(q, str) else m + q.offset.to(m) for q, m in zip(queries, meaning, strict=True)]
            )
        return Query(self.read_alone([[*row, USER_EMB] for row in ids], soft), meaning)

    @torch.no_grad()
    def query_hidden(self, queries: list[list[int]]) -> Float[Tensor, "query width"]:
        """Read queries (token ids) with no user in front; the hidden state at each one's <USER_EMB>."""
        return self.read_alone([[*ids, USER_EMB] for ids in queries])

    def meaning(self, queries: list[str]) -> Float[Tensor, "query text"]:
        """Give the queries' text vectors, by the encoder that also reads the events; each number about 1 in size.

        Nothing (query, 0) without the skip, which alone looks at it. Of a very long query the text encoder reads the beginning.
        """
        if self.skip is None:
            return torch.zeros(len(queries), 0, device=self.device)
        vectors = text_vectors(queries, self.config.text_encoder).astype(np.float32)
        return torch.from_numpy(vectors * vectors.shape[1] ** 0.5).to(self.device)

    def read_alone(
        self, rows: list[list[int]], soft: Float[Tensor, "vector width"] | None = None
    ) -> Float[Tensor, "row width"]:
        """Read rows of token ids with no user in front; the hidden state at each one's last token."""
        width = max(len(r) for r in rows)
        ids = torch.tensor([r + [0] * (width - len(r)) for r in rows], device=self.device)
        length = torch.tensor([len(r) for r in rows], device=self.device)
        allow = torch.ones(width, width, dtype=torch.bool, device=self.device).tril().expand(len(rows), -1, -1)
        positions = torch.arange(width, device=self.device).expand(len(rows), -1)
        hidden = self.read(self.word_vectors(ids, soft), allow, positions)  # pads stand after the last token: never seen by it
        return hidden[torch.arange(len(rows), device=self.device), length - 1]

    def embed_answer(self, answers: list[str]) -> Float[Tensor, "answer dim"]:
        """Embed each answer text: what the anchors of users it is true of should be near."""
        return self.target(self.answer_hidden(answers))

    def logits(self, hidden: Float[Tensor, "token width"]) -> Float[Tensor, "token vocabulary"]:
        """Score the next token, for the answer tokens alone."""
        return self.backbone.lm_head(hidden)

    def prefill(self, prefix: Prefix):
        """Run the prefix once; returns its key-value cache."""
        cache, nothing = new_cache(self.backbone), prefix.mask[:, :0]
        if prefix.pads_last():  # no slot sees them: the kernels' own causal mask does, at half the work of an explicit one
            self.read(prefix.slots.to(self.backbone.dtype), None, prefix.positions(), cache)
        else:
            self.extend(prefix, nothing, nothing.sum(1), cache)
        return cache

    def extend(self, new: Prefix, seen: Bool[Tensor, "user held"], start: Int[Tensor, " user"], cache) -> None:
        """Run slots behind those that the cache holds; `seen` are those of it that are no pads, `start` counts them."""
        allow = torch.cat([seen[:, None, :].expand(-1, new.mask.shape[1], -1), self._causal(new.mask)], -1)
        self.read(new.slots.to(self.backbone.dtype), allow, start[:, None] + new.positions(), cache)


def build(config: Config, reader: Reader, seed: int = 0, device: str | None = None, dtype: str | None = None) -> QAnchor:
    """Build an untrained model for users that `reader` was fitted on.

    dtype   of the backbone; without it config's, but float32 on a processor whose products in bfloat16 crawl (`working_dtype`).

    Example:
        >>> users = qa.make_world(40)
        >>> model = qa.build(qa.TINY, qa.Reader.fit(users, None, qa.TINY))
        >>> model.config.dim
        32
    """
    device = device or best_device()
    return QAnchor(config, reader, seed, dtype or working_dtype(config.dtype, device)).to(device)
