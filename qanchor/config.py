"""`Config`: every number that shapes a model or its training, and four presets."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace

CHOICES = {
    "token_order": ("coarse_to_fine", "append_only"),
    "contrastive_variant": ("paper", "release"),
    "attention": ("sdpa", "eager"),
    "dtype": ("bfloat16", "float32"),
}
POSITIVE_FIELDS = (
    "embedding_dim",
    "projection_dim",
    "gated_skip_dim",
    "query_memory_size",
    "svd_components",
    "num_cutoffs",
    "pairs_per_sample",
    "queries_per_user",
    "head_queries_per_user",
    "train_batch_size",
    "max_answer_tokens",
    "max_query_tokens",
    "lora_rank",
)
NON_NEGATIVE_FIELDS = (
    "max_frequent_events",
    "max_recent_events",
    "head_warmup_steps",
    "head_refit_steps",
    "steps",
    "lora_num_layers",
    "mini_batch_size",
    "mini_batch_num_tokens",
    "contrastive_weight",
    "autoregressive_weight",
    "anchor_noise",
)


@dataclass(frozen=True)
class Config:
    """Hold the configuration of a model and its training. Every field is checked.

    Raises:
        ValueError: If a field has the wrong type or is out of range.

    Example:
        >>> from qanchor import TINY
        >>> TINY.replace(embedding_dim=16).embedding_dim
        16
    """

    # Language model: "tiny" (random weights, offline), "smollm2" (packaged), a Hugging Face id,
    # or a local folder.
    backbone: str = "smollm2"
    # Encoder of event and query texts: "hash" (offline, no meaning), "minilm" (packaged), a
    # Hugging Face id, or a local folder.
    text_encoder: str = "minilm"
    # Dtype of the backbone; the prefix encoder and the heads stay in float32. On CPUs without
    # fast bfloat16 products the backbone runs in float32 as well.
    dtype: str = "bfloat16"
    # Attention implementation: "sdpa" or "eager".
    attention: str = "sdpa"

    # Order of the prefix tokens. "coarse_to_fine": user, modalities, groups of numbers, frequent
    # events, recent events (as in the paper). "append_only": the coarse tokens come last, so that
    # new events extend a cached prefix.
    token_order: str = "coarse_to_fine"
    # Include the user token and the modality tokens. False is an ablation of the paper.
    use_summary_tokens: bool = True
    # Prefix tokens for the texts that a user repeats most, each with counts, recency and amounts.
    max_frequent_events: int = 24
    # Prefix tokens for the newest events, one token an event.
    max_recent_events: int = 24
    # SVD components kept of the log counts of texts, and as many of the mean text vector.
    svd_components: int = 64
    # Hidden width of the adapters that turn events and modalities into prefix tokens.
    adapter_dim: int = 256

    # Add the query-gated skip connection from the coarse numbers to the embedding. False is the
    # plain projection of the paper.
    gated_skip: bool = True
    # Hidden width of the skip.
    gated_skip_dim: int = 1024
    # Dropout of the skip, 0 to 1.
    gated_skip_dropout: float = 0.2
    # Dimensions of the embedding that describe the user in general; they are used for queries
    # unlike any training query. Only with the skip.
    profile_dim: int = 64
    # Text vectors of training queries kept to measure how novel a query is.
    query_memory_size: int = 512
    # Length of the noise added to unit anchors while the heads are fitted. It hides attributes
    # that the query does not ask for.
    anchor_noise: float = 0.5
    # Hidden width of the projection, which both towers share.
    projection_dim: int = 512
    # Dimensions of the embedding.
    embedding_dim: int = 128

    # Rank of LoRA on all linear layers of the last `lora_num_layers` layers.
    lora_rank: int = 8
    # Scale of LoRA: updates are multiplied by lora_alpha / lora_rank.
    lora_alpha: int = 16
    # Dropout of LoRA, 0 to 1.
    lora_dropout: float = 0.0
    # Backbone layers with LoRA, counted from the last; 0 trains none.
    lora_num_layers: int = 12

    # Temperature of the contrastive loss: cosines are divided by it.
    temperature: float = 0.07
    # Drop a negative as false if its cosine exceeds the positive's by this much; 2 keeps all.
    false_negative_margin: float = 0.1
    # "paper" (equations 3 to 5) or "release" (form of the released code).
    contrastive_variant: str = "paper"
    # Weight of the contrastive loss in the joint loss.
    contrastive_weight: float = 1.0
    # Weight of the autoregressive loss in the joint loss.
    autoregressive_weight: float = 1.0

    # Cut-off dates in the history at which each user is one training sample.
    num_cutoffs: int = 6
    # Query-answer pairs made for each sample. The heads gain more from pairs than from steps.
    pairs_per_sample: int = 96
    # Queries of one user in a joint step, each a branch behind the same prefix (K in the paper).
    queries_per_user: int = 8
    # Users in a joint step, over all processes.
    train_batch_size: int = 8
    # Users in memory at once in each process; 0: all of the batch.
    mini_batch_size: int = 0
    # Tokens in memory at once in each process, padding included; users of similar length are
    # grouped. 0: no limit.
    mini_batch_num_tokens: int = 0
    # Recompute the backbone's activations in the backward pass: less memory, more time.
    gradient_checkpointing: bool = False
    # Steps that fit the heads before the joint training, on coarse numbers alone.
    head_warmup_steps: int = 400
    # Steps that fit the heads again after the joint training, to the trained backbone.
    head_refit_steps: int = 1600
    # Distinct answers that the head fits use: the most frequent ones of each group.
    head_max_answers: int = 4096
    # Share of the steps before false negatives are masked.
    false_negative_start: float = 0.2
    # Pairs in a step of a head fit.
    head_batch_size: int = 1024
    # Pairs of one user in a step of a head fit.
    head_queries_per_user: int = 16
    # Joint training steps.
    steps: int = 32
    # Share of the joint steps over which the learning rate rises.
    warmup_ratio: float = 0.15
    # Peak learning rate of LoRA. A few steps need a large one.
    lora_learning_rate: float = 1.5e-3
    # Peak learning rate of the prefix encoder, the heads and <USER_EMB>.
    head_learning_rate: float = 5e-4
    # Weight decay of AdamW.
    weight_decay: float = 0.01
    # Gradient norm at which LoRA and the heads are clipped, each on its own.
    max_grad_norm: float = 1.0
    # Answer length in tokens; longer answers are cut.
    max_answer_tokens: int = 32
    # Query length in training, in tokens; longer queries are cut.
    max_query_tokens: int = 48
    # Query length at inference, in tokens; longer queries are refused.
    max_query_tokens_inference: int = 512

    def __post_init__(self):
        for field in fields(self):
            value = getattr(self, field.name)
            kind = type(field.default)
            is_int_for_float = kind is float and type(value) is int
            if type(value) is not kind and not is_int_for_float:
                raise ValueError(
                    f"config.{field.name} is {value!r}: "
                    f"it must be of type {kind.__name__}, like {field.default!r}"
                )
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"config.{name} is {getattr(self, name)!r}: choose one of {allowed}"
                )
        for name in POSITIVE_FIELDS:
            if getattr(self, name) < 1:
                raise ValueError(f"config.{name} is {getattr(self, name)}: it must be at least 1")
        if not 0 <= self.profile_dim < self.embedding_dim:
            raise ValueError(
                f"config.profile_dim is {self.profile_dim}: it must be below embedding_dim, "
                f"{self.embedding_dim}, and not negative"
            )
        for name in NON_NEGATIVE_FIELDS:
            if getattr(self, name) < 0:
                raise ValueError(f"config.{name} is {getattr(self, name)}: it must not be negative")
        if self.temperature <= 0:
            raise ValueError(
                f"config.temperature is {self.temperature}: "
                "it must be above 0 (the paper's code has 0.07)"
            )

    def replace(self, **changes) -> Config:
        """Return a copy with some fields changed.

        Args:
            **changes: New values by field name.

        Returns:
            The new configuration, checked.

        Raises:
            ValueError: If a field does not exist or a value is not allowed.
        """
        names = [field.name for field in fields(self)]
        unknown = set(changes) - set(names)
        if unknown:
            raise ValueError(
                f"no field {sorted(unknown)[0]!r} in Config: there are {', '.join(names)}"
            )
        for name, value in changes.items():
            current = getattr(self, name)
            kind = type(current)
            if not isinstance(value, (int, float) if kind is float else kind):
                raise ValueError(
                    f"config.{name} is {value!r}: "
                    f"it must be of type {kind.__name__}, as {current!r}"
                )
        return replace(self, **changes)

    def to_dict(self) -> dict:
        """Return the fields as plain data for config.json."""
        return asdict(self)


# Random weights, no download: for tests and examples.
TINY = Config(
    backbone="tiny",
    text_encoder="hash",
    dtype="float32",
    max_frequent_events=6,
    max_recent_events=6,
    svd_components=8,
    adapter_dim=32,
    projection_dim=64,
    gated_skip_dim=64,
    profile_dim=8,
    query_memory_size=64,
    embedding_dim=32,
    lora_rank=4,
    lora_alpha=8,
    pairs_per_sample=8,
    queries_per_user=4,
    train_batch_size=8,
    head_warmup_steps=0,
    head_refit_steps=0,
    head_batch_size=64,
    head_queries_per_user=4,
    gated_skip_dropout=0.0,
    steps=60,
    lora_learning_rate=2e-3,
    head_learning_rate=3e-3,
)
# Minutes on a laptop. A margin of 2 turns the mask of false negatives off: in few steps the model
# can reach zero loss through it (all anchors alike, every negative "false"), and answers of the
# same topic and grade are no negatives anyway. Contrastive weight: at 1 the backbone does not
# learn to write in so few steps, and the optimizer of the heads does not depend on the scale.
SMALL = Config(false_negative_margin=2.0, contrastive_weight=0.1, temperature=0.1)
# The joint steps of SMALL; the heads are fitted on three times the samples and nearly five times
# the steps.
MEDIUM = SMALL.replace(num_cutoffs=20, head_max_answers=8192, head_refit_steps=7500)
# The size of the paper, for GPUs.
FULL = Config(
    backbone="Qwen/Qwen2.5-0.5B-Instruct",
    max_frequent_events=128,
    max_recent_events=512,
    lora_learning_rate=2e-4,
    lora_rank=64,
    lora_alpha=32,
    lora_dropout=0.1,
    train_batch_size=256,
    mini_batch_size=32,
    mini_batch_num_tokens=24_576,
    gradient_checkpointing=True,
    lora_num_layers=1_000,  # all
    steps=50_000,
    max_answer_tokens=64,
)


def parse_override(text: str) -> tuple[str, object]:
    """Parse one `name=value` change of a configuration.

    Args:
        text: Change, such as "lora_learning_rate=0.001".

    Returns:
        The field's name and its value: a JSON value, or the text itself.

    Raises:
        ValueError: If there is no "=".

    Example:
        >>> parse_override("lora_learning_rate=0.001")
        ('lora_learning_rate', 0.001)
    """
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set {text}: write it as name=value, like lora_learning_rate=0.001")
    json_text = value.lower() if value in ("True", "False") else value
    try:
        return name, json.loads(json_text)
    except ValueError:
        return name, value
