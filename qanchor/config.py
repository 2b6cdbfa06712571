"""Every number that shapes a model or its training, in one frozen, checked place. Three sizes, one code path."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, replace


@dataclass(frozen=True)
class Config:
    """Say how a model is built and trained; nothing else decides.

    Example:
        >>> from qanchor import TINY
        >>> TINY.but(dim=16).dim
        16
    """

    # backbone: "tiny" (random, offline), "smollm2" (packaged weights), a hub id, or a local folder
    backbone: str = "smollm2"
    text_encoder: str = "minilm"  # "hash" (offline, no meaning), "minilm" (packaged), a hub id, or a local folder
    dtype: str = "bfloat16"  # of the backbone where products in it are fast; encoder and projection stay float32
    attention: str = "sdpa"  # or "eager"
    # prefix
    layout: str = "coarse_first"  # [user][modality ...][group ...][habit ...][event ...]; or "appendable": coarse last
    summaries: bool = True  # the user slot and the modality slots; False is an ablation of the paper
    habits: int = 24  # slots for the texts a user repeats most, each with counts, recency and amounts
    recent: int = 24  # slots for the newest events, one each
    components: int = 64  # numbers kept of the log counts of all texts, and as many of the mean text vector
    adapter: int = 256  # width inside the adapters
    # the query-gated skip from the coarse numbers to the embedding; False is the paper's plain projection
    skip: bool = True
    skip_hidden: int = 1024
    skip_dropout: float = 0.2
    portrait: int = 64  # numbers of `dim` that say who the user is, when a query is unlike all taught ones (with the skip only)
    taught: int = 512  # queries remembered to tell so
    jitter: float = 0.5  # length of the noise on anchors while the heads are fitted: what is not asked drowns in it
    hidden: int = 512  # inside the projection, which both towers share
    dim: int = 128  # of the embedding
    # LoRA on every projection of the last `lora_layers` layers
    lora_rank: int = 8
    lora_alpha: int = 16
    lora_dropout: float = 0.0
    lora_layers: int = 12
    text_lora_rank: int = 0  # LoRA on the text encoder of the events, as in the paper; 0: each text is encoded once, ever
    # losses
    temperature: float = 0.07
    margin: float = 0.1  # false negatives: dropped when more similar than the positive by this much
    variant: str = "paper"  # or "release"
    contrastive_weight: float = 1.0
    autoregressive_weight: float = 1.0
    # training
    cutoffs: int = 6  # days in the history at which each user is a sample
    pairs_per_sample: int = 96  # of each user at each cut-off; many, for the heads learn more from pairs than from steps
    queries_per_user: int = 8  # K branches behind one prefix
    users_per_step: int = 8
    users_at_once: int = 0  # of them in memory at once, in each process; 0: all
    tokens_at_once: int = 0  # event slots and words, pads included, in memory at once; users of like length together; 0: any
    checkpointing: bool = False  # activations of the backbone are computed again going back, instead of kept
    warm_steps: int = 400  # steps on coarse numbers alone, backbone at rest, before the joint training
    final_steps: int = 1600  # and after it: the heads are fitted to what it made of the backbone
    warm_texts: int = 4096  # answers, the commonest of each group, read once for the fits of the heads
    mask_after: float = 0.2  # share of the steps after which false negatives are masked
    warm_rows: int = 1024  # pairs a warm step
    warm_queries: int = 16  # of them for one user
    steps: int = 32
    warmup: float = 0.15  # share of the steps over which the learning rate rises
    lr: float = 1.5e-3  # LoRA: few steps need large ones
    head_lr: float = 5e-4  # encoder, projection, <USER_EMB>
    weight_decay: float = 0.01
    clip: float = 1.0
    max_answer: int = 32  # tokens
    max_query: int = 48  # tokens in training; asking allows `max_query_asked`
    max_query_asked: int = 512

    def __post_init__(self):
        for f in fields(self):
            value, kind = getattr(self, f.name), type(f.default)
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise ValueError(f"config.{f.name} is {value!r}: it must be of type {kind.__name__}, like {f.default!r}")
        choices = {
            "layout": ("coarse_first", "appendable"),
            "variant": ("paper", "release"),
            "attention": ("sdpa", "eager"),
            "dtype": ("bfloat16", "float32"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"config.{name} is {getattr(self, name)!r}: choose one of {allowed}")
        for name in (
            "dim",
            "hidden",
            "skip_hidden",
            "taught",
            "components",
            "cutoffs",
            "pairs_per_sample",
            "queries_per_user",
            "warm_queries",
            "users_per_step",
            "max_answer",
            "max_query",
            "lora_rank",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"config.{name} is {getattr(self, name)}: it must be at least 1")
        if not 0 <= self.portrait < self.dim:
            raise ValueError(f"config.portrait is {self.portrait}: it must be below dim, {self.dim}, and not negative")
        lengths = ("warm_steps", "final_steps", "steps", "lora_layers", "text_lora_rank", "users_at_once", "tokens_at_once")
        for name in ("habits", "recent", *lengths, "contrastive_weight", "autoregressive_weight", "jitter"):
            if getattr(self, name) < 0:
                raise ValueError(f"config.{name} is {getattr(self, name)}: it must not be negative")
        if self.temperature <= 0:
            raise ValueError(f"config.temperature is {self.temperature}: it must be above 0 (the paper's code has 0.07)")

    def but(self, **changes) -> Config:
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
    habits=6,
    recent=6,
    components=8,
    adapter=32,
    hidden=64,
    skip_hidden=64,
    portrait=8,
    taught=64,
    dim=32,
    lora_rank=4,
    lora_alpha=8,
    pairs_per_sample=8,
    queries_per_user=4,
    users_per_step=8,
    warm_steps=0,
    final_steps=0,
    warm_rows=64,
    warm_queries=4,
    skip_dropout=0.0,
    steps=60,
    lr=2e-3,
    head_lr=3e-3,
)
# Without the mask: on few steps it has a way out at zero loss (all anchors alike, every negative "false"); answers of one
# topic and grade are no negatives anyway. Contrastive weight: at 1 the backbone does not learn to write in so few steps, and
# the heads' optimiser does not mind the scale.
SMALL = Config(margin=2.0, contrastive_weight=0.1, temperature=0.1)
# The heads learn more of thrice the samples and nearly five times the steps; the backbone's steps are those of SMALL.
MEDIUM = SMALL.but(cutoffs=20, warm_texts=8192, final_steps=7500)
FULL = Config(
    backbone="Qwen/Qwen2.5-0.5B-Instruct",
    habits=128,
    recent=512,
    lr=2e-4,
    lora_rank=64,
    lora_alpha=32,
    lora_dropout=0.1,
    users_per_step=256,
    users_at_once=32,
    tokens_at_once=24_576,
    checkpointing=True,
    lora_layers=1_000,  # all
    steps=50_000,
    max_answer=64,
)


def field_of(text: str) -> tuple[str, object]:
    """Read one change of a configuration from words: its field and value.

    Example:
        >>> field_of("lr=0.001")
        ('lr', 0.001)
    """
    name, eq, value = text.partition("=")
    if not eq:
        raise ValueError(f"--set {text}: write it as name=value, like lr=0.001")
    try:
        return name, json.loads(value.lower() if value in ("True", "False") else value)
    except ValueError:
        return name, value
