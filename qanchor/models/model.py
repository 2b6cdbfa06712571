"""`QAnchor`: two towers that share one language model. The anchor reads a user and a query, the target reads an answer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from qanchor.config import Config
from qanchor.models.backbone import add_lora, enable_gradient_checkpointing, load_backbone, new_kv_cache
from qanchor.models.collate import USER_EMB, PaddedBatch, QueryBatch, branch_mask, collate_queries
from qanchor.models.heads import GatedSkip, Projection, QueryEncoding, QueryLike, query_text
from qanchor.models.prefix_encoder import Prefix, PrefixEncoder
from qanchor.models.preprocessor import UserPreprocessor
from qanchor.models.text_encoder import TrainableTextEncoder, text_vectors
from qanchor.utils.device import best_device, compute_dtype

PORTRAIT = 0.08  # of each number of a strange question's portrait, beside the question's part at unit length


class QAnchor(nn.Module):
    """Embed users for a question in plain words. Trained by `train`, asked through `Engine`.

    Source: paper, section 3.2.

    Example:
        >>> users = qa.make_sample_users(40)
        >>> model = qa.QAnchor(qa.TINY, qa.UserPreprocessor.fit(users, None, qa.TINY))
        >>> batch = qa.collate_users(model.preprocessor.transform(users), [0, 1, 2])
        >>> model.embed(batch, "Will this user travel soon?").shape
        torch.Size([3, 32])
    """

    def __init__(
        self,
        config: Config,
        preprocessor: UserPreprocessor,
        seed: int = 0,
        device: str | None = None,
        dtype: str | None = None,
    ):
        super().__init__()
        device = device or best_device()
        dtype = dtype or compute_dtype(config.dtype, device)
        self.config, self.preprocessor = config, preprocessor
        self.run = ""  # sha256 of the run it was loaded from
        if config.gated_skip and preprocessor.profile.shape[1] != config.profile_dim:
            told = f"the preprocessor's portrait has {preprocessor.profile.shape[1]} numbers, config.profile_dim is {config.profile_dim}"
            raise ValueError(f"{told}: fit the preprocessor with this config")
        self.backbone, self.tokenizer = load_backbone(config.backbone, dtype, config.attention, seed)
        self.backbone.requires_grad_(False)
        if config.gradient_checkpointing:
            enable_gradient_checkpointing(self.backbone)
        words = self.backbone.get_input_embeddings().weight
        width = words.shape[1]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if config.lora_num_layers:
                self.backbone = add_lora(
                    self.backbone, config.lora_rank, config.lora_alpha, config.lora_dropout, config.lora_num_layers
                )
            sizes = preprocessor.sizes()
            shape = (
                len(preprocessor.modalities),
                preprocessor.text_dim,
                sizes,
                preprocessor.groups(),
                config.adapter_dim,
                width,
            )
            self.encoder = PrefixEncoder(*shape, words.float().std().item(), config.token_order, config.use_summary_tokens)
            own = config.embedding_dim - (config.profile_dim if config.gated_skip else 0)
            self.projection = Projection(width, config.projection_dim, own)
            self.skip = None
            if config.gated_skip:
                size = (sizes["coarse"], preprocessor.text_dim, config.gated_skip_dim, own)
                self.skip = GatedSkip(*size, config.gated_skip_dropout, config.query_memory_size)
            self.register_buffer("profile", torch.from_numpy(preprocessor.profile))
            self.user_emb = nn.Parameter(words.float().mean(0) + 0.02 * torch.randn(width))
            self.event_texts = TrainableTextEncoder(config) if config.text_lora_rank else None
        self.to(device)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        device: str | None = None,
        dtype: str | None = None,
        attention: str | None = None,
    ) -> QAnchor:
        """Load a run from a folder.

        Args:
            path: Folder written by `save_pretrained`.
            device: Torch device; default: the GPU if there is one, else the CPU.
            dtype: Dtype of the backbone, "bfloat16" or "float32"; default: the run's own, or
                float32 on CPUs without fast bfloat16 products.
            attention: "sdpa" or "eager"; default: the run's own.

        Returns:
            The model, in evaluation mode.

        Raises:
            RunError: If a file is missing, damaged, or of another format.

        Example:
            >>> import tempfile
            >>> users = qa.make_sample_users(40)
            >>> model = qa.QAnchor(qa.TINY, qa.UserPreprocessor.fit(users, None, qa.TINY))
            >>> folder = model.save_pretrained(tempfile.mkdtemp() + "/run")
            >>> qa.QAnchor.from_pretrained(folder).config == qa.TINY
            True
        """
        from qanchor.models.serialization import load_model

        return load_model(path, device, dtype, attention)

    def save_pretrained(
        self,
        path: str | Path,
        history: pd.DataFrame | None = None,
        metrics: dict | None = None,
    ) -> Path:
        """Save the trained weights and the preprocessor as a folder (a *run*).

        The folder holds config.json, adapter.safetensors and, if given, history.json and
        metrics.json. Tensors are stored in half precision, so evaluate the loaded model, not
        the one in memory. An existing run is replaced only when the new one is complete.

        Args:
            path: Folder to write.
            history: Training history from `train`.
            metrics: Anything JSON can hold.

        Returns:
            The folder.

        Raises:
            ValueError: If `Engine` has already merged LoRA into the weights.
            OSError: If the disk is full or the folder cannot be written.
        """
        from qanchor.models.serialization import save_model

        return save_model(self, path, history, metrics)


    @property
    def device(self) -> torch.device:
        return self.user_emb.device

    # -- words to ids --

    def tokenize_query(self, query: str, limit: int | None = None) -> list[int]:
        """Spell a query; too long a one is refused, since its end would be lost in silence."""
        ids, limit = self.tokenizer(query), limit or self.config.max_query_tokens_inference
        if len(ids) > limit:
            raise ValueError(f"the query has {len(ids):,} tokens, the model allows {limit}: ask in fewer words")
        return ids

    def tokenize_answer(self, answer: str) -> list[int]:
        """Spell an answer, cut to `max_answer` tokens, and end it."""
        return [*self.tokenizer(answer)[: self.config.max_answer_tokens - 1], self.tokenizer.eos_token_id]

    def embed_tokens(
        self, ids: Int[Tensor, ...], soft: Float[Tensor, "vector width"] | None = None
    ) -> Float[Tensor, "... width"]:
        """Look up word vectors; USER_EMB gives the learned <USER_EMB> vector, ids below it the rows of `soft`."""
        vectors = self.backbone.get_input_embeddings()(ids.clamp(min=0))
        own = self.user_emb[None] if soft is None else torch.cat([self.user_emb[None], soft])
        return torch.where((ids < 0)[..., None], own.to(vectors.dtype)[(USER_EMB - ids).clamp(min=0)], vectors)

    def tokenize(self, queries: Sequence[QueryLike]) -> tuple[list[list[int]], Float[Tensor, "vector width"] | None]:
        """Spell queries, typed or learned; a learned one's vectors stand behind its words, as ids below USER_EMB."""
        ids, soft, below = [], [], USER_EMB - 1
        for query in queries:
            if isinstance(query, str):
                ids.append(self.tokenize_query(query))
                continue
            if query.run != self.run:
                told = f"run {query.run[:16] or 'unsaved'}, this model is of run {self.run[:16] or 'unsaved'}"
                raise ValueError(f"the soft prompt of {query.query!r} was tuned on {told}: load that run, or tune it anew")
            ids.append([*self.tokenize_query(query.query), *range(below, below - len(query.vectors), -1)])
            soft.append(query.vectors.to(self.device))
            below -= len(query.vectors)
        return ids, torch.cat(soft) if soft else None

    def build_query_batch(self, queries: Sequence[QueryLike], users: int = 1) -> QueryBatch:
        """Lay out queries, typed or learned, behind each of `users` prefixes."""
        ids, soft = self.tokenize(queries)
        return collate_queries([ids] * users, soft=soft).to(self.device)

    # -- the towers --

    def encode_prefix(self, batch: PaddedBatch) -> Prefix:
        """Turn a batch of users into the prefix that stands in front of every query."""
        return self.encoder(batch if self.event_texts is None else self.event_texts.fill(batch))

    def run_backbone(
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
        self, batch: PaddedBatch, asked: QueryBatch, query: QueryEncoding, answers: list[list[int]] = ()
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Read each user once and all K branches behind it (a mask keeps the branches apart).

        query     each branch's query (user, branch, ...), as `encode_queries` gives it.
        answers   token ids of answers to embed in the same call, so that a wrapped model (several processes) sees both towers.
        Returns the anchors (pair, dim), row user * K + branch; the hidden states (token, width) from which the answers' tokens
        are predicted; and the targets (answer, dim) or None.
        """
        anchors, hidden = self.anchors(self.encode_prefix(batch), asked, query)
        targets = self.project_target(self.encode_text(answers)) if answers else None
        return anchors.flatten(0, 1), hidden[asked.writes], targets

    def anchors(
        self, prefix: Prefix, asked: QueryBatch, query: QueryEncoding
    ) -> tuple[Float[Tensor, "user branch dim"], Float[Tensor, "user token width"]]:
        """Embed users whose prefix is made: the anchors, and the hidden states of all tokens behind the prefix."""
        # through a cache no branch is compared with another's keys; recomputed activations know no cache
        alone = self.config.gradient_checkpointing
        hidden = self.forward_uncached(prefix, asked) if alone else self.decode_with_cache(prefix, asked, self.prefill(prefix))
        return self.pool_anchors(hidden, asked, prefix, query), hidden

    def pool_anchors(
        self, hidden: Float[Tensor, "user token width"], asked: QueryBatch, prefix: Prefix, query: QueryEncoding
    ) -> Float[Tensor, "user branch dim"]:
        """Project what stands at each branch's <USER_EMB>; `asked` may be one row for all users."""
        at = asked.anchor[..., None].expand(len(hidden), -1, hidden.shape[-1])
        return self.project_anchor(hidden.gather(1, at), prefix.coarse, query)

    def decode_with_cache(self, prefix: Prefix, asked: QueryBatch, cache) -> Float[Tensor, "user token width"]:
        """Read tokens, the same for all users or each one's own, behind prefixes that `cache` holds; it grows by them."""
        users = len(prefix.mask)
        words = self.embed_tokens(asked.ids, asked.soft).expand(users, -1, -1)
        allow = branch_mask(prefix.mask, asked.branch.expand(users, -1))
        # cached keys keep their positions: a query starts at each user's own length
        return self.run_backbone(words, allow, prefix.length()[:, None] + asked.offset, cache)

    def forward_uncached(self, prefix: Prefix, asked: QueryBatch) -> Float[Tensor, "user token width"]:
        """Read prefixes and branches in one pass with no cache: the plain twin of `behind`."""
        words = self.embed_tokens(asked.ids, asked.soft)
        vectors = torch.cat([prefix.slots.to(words.dtype), words], 1)
        positions = torch.cat([prefix.positions(), prefix.length()[:, None] + asked.offset], 1)
        slots = prefix.mask.shape[1]
        own = self._causal(prefix.mask)
        top = torch.cat([own, own.new_zeros(len(own), slots, words.shape[1])], -1)
        allow = torch.cat([top, branch_mask(prefix.mask, asked.branch)], 1)
        return self.run_backbone(vectors, allow, positions)[:, slots:]

    @staticmethod
    def _causal(mask: Bool[Tensor, "user slot"]) -> Bool[Tensor, "user slot slot"]:
        square = torch.ones(mask.shape[1], mask.shape[1], dtype=torch.bool, device=mask.device).tril() & mask[:, None, :]
        return square | torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)  # a row that sees nothing is NaN

    def project_anchor(
        self,
        hidden: Float[Tensor, "user branch width"],
        coarse: Float[Tensor, "user number"],
        query: QueryEncoding,
    ) -> Float[Tensor, "user branch dim"]:
        """Project hidden states at <USER_EMB> to unit embeddings; the last `portrait` numbers are for strange queries."""
        if self.skip is None:
            return F.normalize(self.projection(hidden), dim=-1)
        alone = query.hidden.float()
        own = self.projection(alone + self.skip.share * (hidden.float() - alone)) + self.skip(coarse, query.text_embedding)
        # the more a question is unlike all that were taught, the more the embedding says of who the user is altogether
        known = PORTRAIT * (coarse @ self.profile).clamp(-3, 3)[:, None] * self.skip.novelty(query.text_embedding)
        return F.normalize(torch.cat([F.normalize(own, dim=-1), known], -1), dim=-1)

    def project_target(self, hidden: Float[Tensor, "answer width"]) -> Float[Tensor, "answer dim"]:
        """Project hidden states at the answers' ends to unit embeddings; an answer has no portrait."""
        out = F.normalize(self.projection(hidden), dim=-1)
        return F.pad(out, (0, self.config.embedding_dim - out.shape[-1]))

    def embed(self, batch: PaddedBatch, query: QueryLike) -> Float[Tensor, "user dim"]:
        """Embed each user for `query` in one pass with no cache: the plain twin of `Engine.embed`, gradients included."""
        users, prefix = len(batch.coarse), self.encode_prefix(batch)
        asked = self.build_query_batch([query], users)
        return self.pool_anchors(
            self.forward_uncached(prefix, asked), asked, prefix, self.encode_queries([query]).expand_to(users)
        )[:, 0]

    def answer_hidden(self, answers: list[str]) -> Float[Tensor, "answer width"]:
        """Read answers alone; the hidden state at each one's last token."""
        return self.encode_text([self.tokenize_answer(a) for a in answers])

    def encode_queries(self, queries: Sequence[QueryLike]) -> QueryEncoding:
        """Read queries with no user in front: the state at each one's <USER_EMB>, and the text vector of its words.

        To a learned query's text vector its offset is added; gradients reach its vectors and its offset.
        """
        ids, soft = self.tokenize(queries)
        meaning = self.query_text_embeddings([query_text(q) for q in queries])
        if soft is not None:
            meaning = torch.stack(
                [m if isinstance(q, str) else m + q.offset.to(m) for q, m in zip(queries, meaning, strict=True)]
            )
        return QueryEncoding(self.encode_text([[*row, USER_EMB] for row in ids], soft), meaning)

    @torch.no_grad()
    def encode_query_tokens(self, queries: list[list[int]]) -> Float[Tensor, "query width"]:
        """Read queries (token ids) with no user in front; the hidden state at each one's <USER_EMB>."""
        return self.encode_text([[*ids, USER_EMB] for ids in queries])

    def query_text_embeddings(self, queries: list[str]) -> Float[Tensor, "query text"]:
        """Give the queries' text vectors, by the encoder that also reads the events; each number about 1 in size.

        Nothing (query, 0) without the skip, which alone looks at it. Of a very long query the text encoder reads the beginning.
        """
        if self.skip is None:
            return torch.zeros(len(queries), 0, device=self.device)
        vectors = text_vectors(queries, self.config.text_encoder).astype(np.float32)
        return torch.from_numpy(vectors * vectors.shape[1] ** 0.5).to(self.device)

    def encode_text(
        self, rows: list[list[int]], soft: Float[Tensor, "vector width"] | None = None
    ) -> Float[Tensor, "row width"]:
        """Read rows of token ids with no user in front; the hidden state at each one's last token."""
        width = max(len(r) for r in rows)
        ids = torch.tensor([r + [0] * (width - len(r)) for r in rows], device=self.device)
        length = torch.tensor([len(r) for r in rows], device=self.device)
        allow = torch.ones(width, width, dtype=torch.bool, device=self.device).tril().expand(len(rows), -1, -1)
        positions = torch.arange(width, device=self.device).expand(len(rows), -1)
        hidden = self.run_backbone(
            self.embed_tokens(ids, soft), allow, positions
        )  # pads stand after the last token: never seen by it
        return hidden[torch.arange(len(rows), device=self.device), length - 1]

    def embed_answer(self, answers: list[str]) -> Float[Tensor, "answer dim"]:
        """Embed each answer text: what the anchors of users it is true of should be near."""
        return self.project_target(self.answer_hidden(answers))

    def logits(self, hidden: Float[Tensor, "token width"]) -> Float[Tensor, "token vocabulary"]:
        """Score the next token, for the answer tokens alone."""
        return self.backbone.lm_head(hidden)

    def prefill(self, prefix: Prefix):
        """Run the prefix once; returns its key-value cache."""
        cache, nothing = new_kv_cache(self.backbone), prefix.mask[:, :0]
        if prefix.pads_last():  # no slot sees them: the kernels' own causal mask does, at half the work of an explicit one
            self.run_backbone(prefix.slots.to(self.backbone.dtype), None, prefix.positions(), cache)
        else:
            self.extend(prefix, nothing, nothing.sum(1), cache)
        return cache

    def extend(self, new: Prefix, seen: Bool[Tensor, "user held"], start: Int[Tensor, " user"], cache) -> None:
        """Run slots behind those that the cache holds; `seen` are those of it that are no pads, `start` counts them."""
        allow = torch.cat([seen[:, None, :].expand(-1, new.mask.shape[1], -1), self._causal(new.mask)], -1)
        self.run_backbone(new.slots.to(self.backbone.dtype), allow, start[:, None] + new.positions(), cache)
