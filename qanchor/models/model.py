"""`QAnchor`: an anchor tower (user and query) and a target tower (answer) on one language model."""

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
from qanchor.models.backbone import (
    add_lora,
    enable_gradient_checkpointing,
    load_backbone,
    new_kv_cache,
)
from qanchor.models.collate import (
    USER_EMB,
    PaddedBatch,
    QueryBatch,
    branch_mask,
    collate_queries,
)
from qanchor.models.heads import (
    GatedSkip,
    Projection,
    QueryEncoding,
    QueryLike,
    query_text,
    require_own_prompt,
)
from qanchor.models.pointing_model import PointingModel
from qanchor.models.prefix_encoder import Prefix, PrefixEncoder
from qanchor.models.preprocessor import UserPreprocessor
from qanchor.models.text_encoder import text_vectors
from qanchor.utils.device import best_device, compute_dtype

# Size of each profile dimension for a fully novel query; the rest of the embedding has length 1.
PROFILE_SCALE = 0.08
MAX_PROFILE = 3.0  # standard deviations at which profile dimensions are clipped


class QAnchor(nn.Module):
    """Embed users for a question in plain words.

    Train it with `train`, query it through `Engine`. Source: paper, section 3.2.

    Args:
        config: Configuration.
        preprocessor: Fitted on the training users, with the same config.
        seed: Seed of the initial weights. Default: 0.
        device: Torch device; default: the GPU if there is one, else the CPU.
        dtype: Dtype of the backbone, "bfloat16" or "float32"; default: `config.dtype`, or float32
            on CPUs without fast bfloat16 products.

    Raises:
        ValueError: If the preprocessor was fitted with another `profile_dim`.
        WeightsError: If the backbone or the text encoder cannot be loaded.

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
        self.config = config
        self.preprocessor = preprocessor
        self.run = ""  # sha256 of the run that the weights were loaded from
        self.pointing: PointingModel | None = None  # ranks users for typed questions, see `fit`
        profile_dim = preprocessor.profile.shape[1]
        if config.gated_skip and profile_dim != config.profile_dim:
            raise ValueError(
                f"the preprocessor's profile has {profile_dim} numbers, config.profile_dim is "
                f"{config.profile_dim}: fit the preprocessor with this config"
            )
        self.backbone, self.tokenizer = load_backbone(
            config.backbone, dtype, config.attention, seed
        )
        self.backbone.requires_grad_(False)
        if config.gradient_checkpointing:
            enable_gradient_checkpointing(self.backbone)
        word_vectors = self.backbone.get_input_embeddings().weight
        width = word_vectors.shape[1]
        sizes = preprocessor.sizes()
        query_dim = config.embedding_dim - (config.profile_dim if config.gated_skip else 0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if config.lora_num_layers:
                self.backbone = add_lora(
                    self.backbone,
                    config.lora_rank,
                    config.lora_alpha,
                    config.lora_dropout,
                    config.lora_num_layers,
                )
            self.encoder = PrefixEncoder(
                modalities=len(preprocessor.modalities),
                text=preprocessor.text_dim,
                sizes=sizes,
                groups=preprocessor.groups(),
                hidden=config.adapter_dim,
                width=width,
                scale=word_vectors.float().std().item(),
                token_order=config.token_order,
                use_summary_tokens=config.use_summary_tokens,
            )
            self.projection = Projection(width, config.projection_dim, query_dim)
            self.skip = None
            if config.gated_skip:
                self.skip = GatedSkip(
                    coarse=sizes["coarse"],
                    text=preprocessor.text_dim,
                    hidden=config.gated_skip_dim,
                    dim=query_dim,
                    dropout=config.gated_skip_dropout,
                    memory=config.query_memory_size,
                )
            self.register_buffer("profile", torch.from_numpy(preprocessor.profile))
            mean_word = word_vectors.float().mean(0)
            self.user_emb = nn.Parameter(mean_word + 0.02 * torch.randn(width))
        self.to(device)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        device: str | None = None,
        dtype: str | None = None,
        attention: str | None = None,
    ) -> QAnchor | PointingModel:
        """Load a run from a folder.

        Args:
            path: Folder written by `save_pretrained`.
            device: Torch device; default: the GPU if there is one, else the CPU.
            dtype: Dtype of the backbone, "bfloat16" or "float32"; default: the run's own, or
                float32 on CPUs without fast bfloat16 products.
            attention: "sdpa" or "eager"; default: the run's own.

        Returns:
            The model in evaluation mode: a `QAnchor`, or the `PointingModel` that `fit` trained.

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
        metrics.json. Tensors are stored in half precision, so evaluate the loaded model, not the
        one in memory. An existing run is replaced only when the new one is complete.

        Args:
            path: Folder to write.
            history: Training history from `train`. Default: none.
            metrics: Anything JSON can hold. Default: none.

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
        """Return the device of the weights."""
        return self.user_emb.device

    # -- tokens --

    def tokenize_query(self, query: str, limit: int | None = None) -> list[int]:
        """Tokenize a query.

        Args:
            query: Text.
            limit: Tokens allowed; default: `config.max_query_tokens_inference`.

        Returns:
            Token ids.

        Raises:
            ValueError: If the query is longer; cutting it could lose its meaning unnoticed.
        """
        ids = self.tokenizer(query)
        limit = limit or self.config.max_query_tokens_inference
        if len(ids) > limit:
            raise ValueError(
                f"the query has {len(ids):,} tokens, the model allows {limit}: ask in fewer words"
            )
        return ids

    def tokenize_answer(self, answer: str) -> list[int]:
        """Tokenize an answer, cut to `config.max_answer_tokens`, and append the eos token.

        Args:
            answer: Text.
        """
        ids = self.tokenizer(answer)[: self.config.max_answer_tokens - 1]
        return [*ids, self.tokenizer.eos_token_id]

    def embed_tokens(
        self, ids: Int[Tensor, ...], soft: Float[Tensor, "vector width"] | None = None
    ) -> Float[Tensor, "... width"]:
        """Look up the input vectors of tokens.

        Args:
            ids: Token ids; USER_EMB is the learned <USER_EMB> vector, ids below it are rows of
                `soft`.
            soft: Vectors of soft prompts. Default: none.
        """
        vectors = self.backbone.get_input_embeddings()(ids.clamp(min=0))
        learned = self.user_emb[None]
        if soft is not None:
            learned = torch.cat([learned, soft])
        learned = learned.to(vectors.dtype)[(USER_EMB - ids).clamp(min=0)]
        return torch.where((ids < 0)[..., None], learned, vectors)

    def tokenize(
        self, queries: Sequence[QueryLike]
    ) -> tuple[list[list[int]], Float[Tensor, "vector width"] | None]:
        """Tokenize queries; the vectors of a soft prompt follow its words as ids below USER_EMB.

        Args:
            queries: Texts and soft prompts.

        Returns:
            Token ids of each query, and the vectors of all soft prompts (None without any).

        Raises:
            ValueError: If a query is too long, or a soft prompt was tuned on another run.
        """
        ids = []
        soft = []
        next_id = USER_EMB - 1
        for query in queries:
            if isinstance(query, str):
                ids.append(self.tokenize_query(query))
                continue
            require_own_prompt(query, self.run)
            after = next_id - len(query.vectors)
            ids.append([*self.tokenize_query(query.query), *range(next_id, after, -1)])
            soft.append(query.vectors.to(self.device))
            next_id = after
        return ids, torch.cat(soft) if soft else None

    def build_query_batch(self, queries: Sequence[QueryLike], users: int = 1) -> QueryBatch:
        """Tokenize queries and lay them out behind the prefix of each user.

        Args:
            queries: Texts and soft prompts; each is one branch.
            users: Number of users. Default: 1, which also serves any number of users at once.
        """
        ids, soft = self.tokenize(queries)
        return collate_queries([ids] * users, soft=soft).to(self.device)

    # -- towers --

    def encode_prefix(self, batch: PaddedBatch) -> Prefix:
        """Encode a batch of users into the prefix in front of every query.

        Args:
            batch: From `collate_users`.
        """
        return self.encoder(batch)

    def run_backbone(
        self, vectors, allow: Bool[Tensor, "user query key"] | None, positions, cache=None
    ) -> Float[Tensor, "user query width"]:
        """Run the language model on input vectors.

        Args:
            vectors: Input vectors, (user, query, width).
            allow: True where a token may attend to a key; None: causal.
            positions: Position of each token, (user, query).
            cache: Key-value cache of earlier tokens, extended in place. Default: none.

        Returns:
            Last hidden states.
        """
        mask = None if allow is None else allow[:, None]
        eager = self.backbone.config._attn_implementation == "eager"
        if mask is not None and eager:  # it adds the mask, and True would add 1
            lowest = torch.finfo(vectors.dtype).min
            mask = torch.zeros_like(mask, dtype=vectors.dtype).masked_fill(~mask, lowest)
        out = self.backbone.model(
            inputs_embeds=vectors,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return out.last_hidden_state

    def forward(
        self,
        batch: PaddedBatch,
        asked: QueryBatch,
        query: QueryEncoding,
        answers: list[list[int]] = (),
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Encode each user once and all K branches behind it; a mask separates the branches.

        Args:
            batch: Users.
            asked: Queries and answers of each user.
            query: Encoding of each branch's query, (user, branch, ...).
            answers: Token ids of answers to embed in the same call, so that a wrapped model
                (several processes) sees both towers. Default: none.

        Returns:
            Anchors (pair, dim), row user * K + branch; hidden states (token, width) from which the
            answers' tokens are predicted; and targets (answer, dim) or None.
        """
        anchors, hidden = self.anchors(self.encode_prefix(batch), asked, query)
        targets = self.project_target(self.encode_text(answers)) if answers else None
        return anchors.flatten(0, 1), hidden[asked.writes], targets

    def anchors(
        self, prefix: Prefix, asked: QueryBatch, query: QueryEncoding
    ) -> tuple[Float[Tensor, "user branch dim"], Float[Tensor, "user token width"]]:
        """Embed users from their prefixes.

        Args:
            prefix: Prefixes of the users.
            asked: Queries of each user.
            query: Encoding of each branch's query, (user, branch, ...).

        Returns:
            Anchors, and the hidden states of all tokens behind the prefix.
        """
        if self.config.gradient_checkpointing:  # recomputed activations do not support a cache
            hidden = self.forward_uncached(prefix, asked)
        else:  # with a cache, no branch computes scores with the keys of another
            hidden = self.decode_with_cache(prefix, asked, self.prefill(prefix))
        return self.pool_anchors(hidden, asked, prefix, query), hidden

    def pool_anchors(
        self,
        hidden: Float[Tensor, "user token width"],
        asked: QueryBatch,
        prefix: Prefix,
        query: QueryEncoding,
    ) -> Float[Tensor, "user branch dim"]:
        """Project the hidden state at each branch's <USER_EMB>.

        Args:
            hidden: Hidden states of all tokens behind the prefix.
            asked: Queries; one row may serve all users.
            prefix: Prefixes of the users.
            query: Encoding of each branch's query, (user, branch, ...).
        """
        index = asked.anchor[..., None].expand(len(hidden), -1, hidden.shape[-1])
        return self.project_anchor(hidden.gather(1, index), prefix.coarse, query)

    def decode_with_cache(
        self, prefix: Prefix, asked: QueryBatch, cache
    ) -> Float[Tensor, "user token width"]:
        """Run query tokens behind cached prefixes.

        Args:
            prefix: Prefixes of the users.
            asked: Queries; one row may serve all users.
            cache: Key-value cache of the prefixes; it is extended by the query tokens.

        Returns:
            Hidden states of the query tokens.
        """
        users = len(prefix.mask)
        vectors = self.embed_tokens(asked.ids, asked.soft).expand(users, -1, -1)
        allow = branch_mask(prefix.mask, asked.branch.expand(users, -1))
        # cached keys keep their positions: a query starts at each user's own length
        positions = prefix.length()[:, None] + asked.offset
        return self.run_backbone(vectors, allow, positions, cache)

    def forward_uncached(
        self, prefix: Prefix, asked: QueryBatch
    ) -> Float[Tensor, "user token width"]:
        """Run prefixes and queries in one pass: the plain twin of `decode_with_cache`.

        Args:
            prefix: Prefixes of the users.
            asked: Queries, one row for each user.

        Returns:
            Hidden states of the query tokens.
        """
        query_vectors = self.embed_tokens(asked.ids, asked.soft)
        vectors = torch.cat([prefix.tokens.to(query_vectors.dtype), query_vectors], 1)
        query_positions = prefix.length()[:, None] + asked.offset
        positions = torch.cat([prefix.positions(), query_positions], 1)
        prefix_width = prefix.mask.shape[1]
        prefix_allow = self._causal(prefix.mask)
        nothing = prefix_allow.new_zeros(len(vectors), prefix_width, query_vectors.shape[1])
        prefix_rows = torch.cat([prefix_allow, nothing], -1)
        allow = torch.cat([prefix_rows, branch_mask(prefix.mask, asked.branch)], 1)
        return self.run_backbone(vectors, allow, positions)[:, prefix_width:]

    @staticmethod
    def _causal(
        mask: Bool[Tensor, "user prefix_token"],
    ) -> Bool[Tensor, "user prefix_token prefix_token"]:
        width = mask.shape[1]
        ones = torch.ones(width, width, dtype=torch.bool, device=mask.device)
        own = torch.eye(width, dtype=torch.bool, device=mask.device)
        return (ones.tril() & mask[:, None, :]) | own  # a row that attends to nothing gives NaN

    def project_anchor(
        self,
        hidden: Float[Tensor, "user branch width"],
        coarse: Float[Tensor, "user number"],
        query: QueryEncoding,
    ) -> Float[Tensor, "user branch dim"]:
        """Project hidden states at <USER_EMB> to unit embeddings.

        With the skip, the last `config.profile_dim` dimensions describe the user in general. The
        more novel the query, the larger they are.

        Args:
            hidden: Hidden states at <USER_EMB>.
            coarse: Coarse numbers of the users.
            query: Encoding of each branch's query, (user, branch, ...).
        """
        own = self.project_hidden(hidden, query)
        if self.skip is None:
            return F.normalize(own, dim=-1)
        own = own + self.skip(coarse, query.text_embedding)
        return self.append_profile(own, coarse, query)

    def project_hidden(
        self, hidden: Float[Tensor, "user branch width"], query: QueryEncoding
    ) -> Float[Tensor, "user branch query_dim"]:
        """Project hidden states at <USER_EMB>: what the language model adds to an embedding.

        Args:
            hidden: Hidden states at <USER_EMB>.
            query: Encoding of each branch's query, (user, branch, ...).

        Returns:
            Projected states, not normalized, without the profile dimensions.
        """
        if self.skip is None:
            return self.projection(hidden)
        query_hidden = query.hidden.float()
        moved = query_hidden + self.skip.share * (hidden.float() - query_hidden)
        return self.projection(moved)

    def append_profile(
        self,
        own: Float[Tensor, "user branch query_dim"],
        coarse: Float[Tensor, "user number"],
        query: QueryEncoding,
    ) -> Float[Tensor, "user branch dim"]:
        """Normalize embeddings and append the profile dimensions.

        Args:
            own: Embeddings before normalization.
            coarse: Coarse numbers of the users.
            query: Encoding of each branch's query, (user, branch, ...).

        Returns:
            Unit embeddings.
        """
        profile = PROFILE_SCALE * (coarse @ self.profile).clamp(-MAX_PROFILE, MAX_PROFILE)
        profile = profile[:, None] * self.skip.novelty(query.text_embedding)
        return F.normalize(torch.cat([F.normalize(own, dim=-1), profile], -1), dim=-1)

    def project_target(self, hidden: Float[Tensor, "answer width"]) -> Float[Tensor, "answer dim"]:
        """Project hidden states at the last tokens of answers to unit embeddings.

        Args:
            hidden: Hidden states from `encode_text`.

        Returns:
            Unit embeddings; the profile dimensions are zero.
        """
        out = F.normalize(self.projection(hidden), dim=-1)
        return F.pad(out, (0, self.config.embedding_dim - out.shape[-1]))

    def embed(self, batch: PaddedBatch, query: QueryLike) -> Float[Tensor, "user dim"]:
        """Embed users for a query in one pass without a cache: the plain twin of `Engine.embed`.

        Args:
            batch: From `collate_users`.
            query: Text or soft prompt.

        Returns:
            Unit embeddings, with gradients.
        """
        users = len(batch.coarse)
        prefix = self.encode_prefix(batch)
        asked = self.build_query_batch([query], users)
        encoding = self.encode_queries([query]).expand_to(users)
        hidden = self.forward_uncached(prefix, asked)
        return self.pool_anchors(hidden, asked, prefix, encoding)[:, 0]

    def answer_hidden(self, answers: list[str]) -> Float[Tensor, "answer width"]:
        """Compute the hidden state at the last token of each answer.

        Args:
            answers: Texts.
        """
        return self.encode_text([self.tokenize_answer(answer) for answer in answers])

    def encode_queries(
        self,
        queries: Sequence[QueryLike],
        tokens: tuple[list[list[int]], Float[Tensor, "vector width"] | None] | None = None,
    ) -> QueryEncoding:
        """Encode queries with no user in front.

        Args:
            queries: Texts and soft prompts.
            tokens: What `tokenize` returned for these queries; default: tokenize them here.

        Returns:
            The state at each query's <USER_EMB> and its text vector; a soft prompt's offset is
            added to the latter. Gradients reach the vectors and the offset of soft prompts.
        """
        ids, soft = tokens or self.tokenize(queries)
        text_embedding = self.query_text_embeddings([query_text(query) for query in queries])
        if soft is not None:
            rows = []
            for query, row in zip(queries, text_embedding, strict=True):
                rows.append(row if isinstance(query, str) else row + query.offset.to(row))
            text_embedding = torch.stack(rows)
        hidden = self.encode_text([[*row, USER_EMB] for row in ids], soft)
        return QueryEncoding(hidden, text_embedding)

    @torch.no_grad()
    def encode_query_tokens(self, queries: list[list[int]]) -> Float[Tensor, "query width"]:
        """Compute the state at <USER_EMB> of tokenized queries with no user in front.

        Args:
            queries: Token ids.
        """
        return self.encode_text([[*ids, USER_EMB] for ids in queries])

    def query_text_embeddings(self, queries: list[str]) -> Float[Tensor, "query text"]:
        """Compute the text vectors of queries, with the encoder that also encodes the events.

        Args:
            queries: Texts. Of a very long one the text encoder reads only the beginning.

        Returns:
            Vectors scaled to values of about 1; of width 0 without the skip, which alone uses them.
        """
        if self.skip is None:
            return torch.zeros(len(queries), 0, device=self.device)
        vectors = text_vectors(queries, self.config.text_encoder).astype(np.float32)
        return torch.from_numpy(vectors * vectors.shape[1] ** 0.5).to(self.device)

    def encode_text(
        self, rows: list[list[int]], soft: Float[Tensor, "vector width"] | None = None
    ) -> Float[Tensor, "row width"]:
        """Compute the hidden state at the last token of each row, with no user in front.

        Args:
            rows: Token ids.
            soft: Vectors of soft prompts that the ids refer to. Default: none.
        """
        width = max(len(row) for row in rows)
        device = self.device
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device)
        length = torch.tensor([len(row) for row in rows], device=device)
        # padding stands after the last token, which therefore never attends to it
        allow = torch.ones(width, width, dtype=torch.bool, device=device).tril()
        allow = allow.expand(len(rows), -1, -1)
        positions = torch.arange(width, device=device).expand(len(rows), -1)
        hidden = self.run_backbone(self.embed_tokens(ids, soft), allow, positions)
        return hidden[torch.arange(len(rows), device=device), length - 1]

    def embed_answer(self, answers: list[str]) -> Float[Tensor, "answer dim"]:
        """Embed answers; anchors of users that an answer is true of should be near it.

        Args:
            answers: Texts.
        """
        return self.project_target(self.answer_hidden(answers))

    def logits(self, hidden: Float[Tensor, "token width"]) -> Float[Tensor, "token vocabulary"]:
        """Compute next-token logits.

        Args:
            hidden: Hidden states.
        """
        return self.backbone.lm_head(hidden)

    # -- prefixes --

    def prefill(self, prefix: Prefix):
        """Run the prefixes once.

        Args:
            prefix: Prefixes of the users.

        Returns:
            Their key-value cache.
        """
        cache = new_kv_cache(self.backbone)
        if prefix.pads_last():  # the kernels' own causal mask, at half the cost of an explicit one
            vectors = prefix.tokens.to(self.backbone.dtype)
            self.run_backbone(vectors, None, prefix.positions(), cache)
        else:
            nothing = prefix.mask[:, :0]
            self.extend(prefix, nothing, nothing.sum(1), cache)
        return cache

    def extend(
        self, new: Prefix, seen: Bool[Tensor, "user cached"], start: Int[Tensor, " user"], cache
    ) -> None:
        """Run more prefix tokens behind those in a cache, which is extended in place.

        Args:
            new: Tokens to run.
            seen: Which cached tokens are not padding.
            start: Number of cached tokens of each user, without padding.
            cache: Key-value cache.
        """
        cached = seen[:, None, :].expand(-1, new.mask.shape[1], -1)
        allow = torch.cat([cached, self._causal(new.mask)], -1)
        vectors = new.tokens.to(self.backbone.dtype)
        self.run_backbone(vectors, allow, start[:, None] + new.positions(), cache)
