"""Every number that shapes a model or its training, in one frozen, checked place. Three sizes, one code path."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace


@dataclass(frozen=True)
class Config:
    """Say how a model is built and trained; nothing else decides.

    Example:
        >>> from qanchor import TINY
        >>> TINY.replace(embedding_dim=16).embedding_dim
        16
    """

    # backbone: "tiny" (random, offline), "smollm2" (packaged weights), a hub id, or a local folder
    backbone: str = "smollm2"
    text_encoder: str = "minilm"  # "hash" (offline, no meaning), "minilm" (packaged), a hub id, or a local folder
    dtype: str = "bfloat16"  # of the backbone where products in it are fast; encoder and projection stay float32
    attention: str = "sdpa"  # or "eager"
    # prefix
    token_order: str = "coarse_to_fine"  # [user][modality ...][group ...][habit ...][event ...]; or "append_only": coarse last
    use_summary_tokens: bool = True  # the user slot and the modality slots; False is an ablation of the paper
    max_frequent_events: int = 24  # slots for the texts a user repeats most, each with counts, recency and amounts
    max_recent_events: int = 24  # slots for the newest events, one each
    svd_components: int = 64  # numbers kept of the log counts of all texts, and as many of the mean text vector
    adapter_dim: int = 256  # width inside the adapters
    # the query-gated skip from the coarse numbers to the embedding; False is the paper's plain projection
    gated_skip: bool = True
    gated_skip_dim: int = 1024
    gated_skip_dropout: float = 0.2
    profile_dim: int = (
        64  # numbers of `embedding_dim` that say who the user is, when a query is unlike all taught ones (with the skip only)
    )
    query_memory_size: int = 512  # queries remembered to tell so
    anchor_noise: float = 0.5  # length of the noise on anchors while the heads are fitted: what is not asked drowns in it
    projection_dim: int = 512  # inside the projection, which both towers share
    embedding_dim: int = 128  # of the embedding
    # LoRA on every projection of the last `lora_layers` layers
    lora_rank: int = 8
    lora_alpha: int = 16
    lora_dropout: float = 0.0
    lora_num_layers: int = 12
    text_lora_rank: int = 0  # LoRA on the text encoder of the events, as in the paper; 0: each text is encoded once, ever
    # losses
    temperature: float = 0.07
    false_negative_margin: float = 0.1  # false negatives: dropped when more similar than the positive by this much
    contrastive_variant: str = "paper"  # or "release"
    contrastive_weight: float = 1.0
    autoregressive_weight: float = 1.0
    # training
    num_cutoffs: int = 6  # days in the history at which each user is a sample
    pairs_per_sample: int = 96  # of each user at each cut-off; many, for the heads learn more from pairs than from steps
    queries_per_user: int = 8  # K branches behind one prefix
    train_batch_size: int = 8
    mini_batch_size: int = 0  # of them in memory at once, in each process; 0: all
    mini_batch_num_tokens: int = (
        0  # event slots and words, pads included, in memory at once; users of like length together; 0: any
    )
    gradient_checkpointing: bool = False  # activations of the backbone are computed again going back, instead of kept
    head_warmup_steps: int = 400  # steps on coarse numbers alone, backbone at rest, before the joint training
    head_refit_steps: int = 1600  # and after it: the heads are fitted to what it made of the backbone
    head_max_answers: int = 4096  # answers, the commonest of each group, read once for the fits of the heads
    false_negative_start: float = 0.2  # share of the steps after which false negatives are masked
    head_batch_size: int = 1024  # pairs a warm step
    head_queries_per_user: int = 16  # of them for one user
    steps: int = 32
    warmup_ratio: float = 0.15  # share of the steps over which the learning rate rises
    lora_learning_rate: float = 1.5e-3  # LoRA: few steps need large ones
    head_learning_rate: float = 5e-4  # encoder, projection, <USER_EMB>
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    max_answer_tokens: int = 32  # tokens
    max_query_tokens: int = 48  # tokens in training; asking allows `max_query_tokens_inference`
    max_query_tokens_inference: int = 512

    def __post_init__(self):
        for f in fields(self):
            value, kind = getattr(self, f.name), type(f.default)
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise ValueError(f"config.{f.name} is {value!r}: it must be of type {kind.__name__}, like {f.default!r}")
        choices = {
            "token_order": ("coarse_to_fine", "append_only"),
            "contrastive_variant": ("paper", "release"),
            "attention": ("sdpa", "eager"),
            "dtype": ("bfloat16", "float32"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"config.{name} is {getattr(self, name)!r}: choose one of {allowed}")
        for name in (
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
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"config.{name} is {getattr(self, name)}: it must be at least 1")
        if not 0 <= self.profile_dim < self.embedding_dim:
            raise ValueError(
                f"config.profile_dim is {self.profile_dim}: it must be below embedding_dim, {self.embedding_dim}, and not negative"
            )
        lengths = (
            "head_warmup_steps",
            "head_refit_steps",
            "steps",
            "lora_num_layers",
            "text_lora_rank",
            "mini_batch_size",
            "mini_batch_num_tokens",
        )
        for name in (
            "max_frequent_events",
            "max_recent_events",
            *lengths,
            "contrastive_weight",
            "autoregressive_weight",
            "anchor_noise",
        ):
            if getattr(self, name) < 0:
                raise ValueError(f"config.{name} is {getattr(self, name)}: it must not be negative")
        if self.temperature <= 0:
            raise ValueError(f"config.temperature is {self.temperature}: it must be above 0 (the paper's code has 0.07)")

    def replace(self, **changes) -> Config:
        """Give the same configuration but for these fields."""
        unknown = set(changes) - {f.name for f in fields(self)}
        if unknown:
            raise ValueError(f"no field {sorted(unknown)[0]!r} in Config: there are {', '.join(f.name for f in fields(self))}")
        for name, value in changes.items():
            kind = type(getattr(self, name))
            if not isinstance(value, (int, float) if kind is float else kind):
                raise ValueError(f"config.{name} is {value!r}: it must be of type {kind.__name__}, as {getattr(self, name)!r}")
        return replace(self, **changes)

    def to_dict(self) -> dict:
        """Give the fields as plain data, for config.json."""
        return asdict(self)


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
# Without the mask: on few steps it has a way out at zero loss (all anchors alike, every negative "false"); answers of one
# topic and grade are no negatives anyway. Contrastive weight: at 1 the backbone does not learn to write in so few steps, and
# the heads' optimiser does not mind the scale.
SMALL = Config(false_negative_margin=2.0, contrastive_weight=0.1, temperature=0.1)
# The heads learn more of thrice the samples and nearly five times the steps; the backbone's steps are those of SMALL.
MEDIUM = SMALL.replace(num_cutoffs=20, head_max_answers=8192, head_refit_steps=7500)
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
    """Read one change of a configuration from words: its field and value.

    Example:
        >>> parse_override("lora_learning_rate=0.001")
        ('lora_learning_rate', 0.001)
    """
    name, eq, value = text.partition("=")
    if not eq:
        raise ValueError(f"--set {text}: write it as name=value, like lora_learning_rate=0.001")
    try:
        return name, json.loads(value.lower() if value in ("True", "False") else value)
    except ValueError:
        return name, value
