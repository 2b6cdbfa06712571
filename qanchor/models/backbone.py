"""The one door to transformers and peft: language models and text encoders, from packages, a hub or a folder."""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from qanchor.errors import WeightsError
from qanchor.models.attention import grouped_attention
from qanchor.models.weights import missing_model_message, resolve_model
from qanchor.utils.io import replace_surrogates


class CharTokenizer:
    """Spell texts as bytes: the tokenizer of the tiny backbone, which needs no download."""

    eos_token_id = 256

    def __call__(self, text: str) -> list[int]:
        return list(replace_surrogates(text).encode())

    def decode(self, ids: list[int]) -> str:
        return bytes(i for i in ids if i < 256).decode(errors="replace")


class HubTokenizer:
    """Give any transformers tokenizer the two verbs we use, without its special tokens."""

    def __init__(self, folder: str):
        from transformers import AutoTokenizer

        self.inner = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self.eos_token_id = self.inner.eos_token_id

    def __call__(self, text: str) -> list[int]:
        # a query is data: "<|im_end|>" typed by a user is spelled out, never a control token
        return self.inner(replace_surrogates(text), add_special_tokens=False, split_special_tokens=True).input_ids

    def decode(self, ids: list[int]) -> str:
        return self.inner.decode(ids, skip_special_tokens=True)


def load_backbone(name: str, dtype: str = "bfloat16", attention: str = "sdpa", seed: int = 0) -> tuple[nn.Module, object]:
    """Give the language model and its tokenizer: "tiny", "smollm2", a hub id, or a local folder."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    if name == "tiny":
        sizes = {"vocab_size": 257, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096}
        shape = LlamaConfig(**sizes, **heads, bos_token_id=256, eos_token_id=256, tie_word_embeddings=True)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(shape, attn_implementation=attention, dtype=getattr(torch, dtype))
        return _use_grouped_attention(model), CharTokenizer()
    folder = resolve_model(name)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=getattr(torch, dtype), attn_implementation=attention, trust_remote_code=False
        )
    except OSError as error:
        raise WeightsError(missing_model_message("backbone", name, error, "smollm2")) from error
    return _use_grouped_attention(model), HubTokenizer(folder)


def _use_grouped_attention(model: nn.Module) -> nn.Module:
    """Let sdpa read few tokens behind long prefixes without copying keys for each head of a group (`kernels.grouped_attention`)."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register("grouped", partial(grouped_attention, sdpa_attention_forward))
        AttentionMaskInterface.register("grouped", sdpa_mask)
        model.set_attn_implementation("grouped")
    return model


def enable_gradient_checkpointing(model: nn.Module) -> None:
    """Keep no activations for the backward pass: they are computed again, which saves memory and costs time."""
    new = hasattr(model, "activation_checkpointing_enable")  # its name since transformers 5.23
    (model.activation_checkpointing_enable if new else model.gradient_checkpointing_enable)({"use_reentrant": False})


def add_lora(model: nn.Module, rank: int, alpha: int, dropout: float, layers: int | None) -> nn.Module:
    """Put LoRA on all projections of the last `layers` layers (None: all of a text encoder's); it takes the model's dtype.

    float32 adapters in a bfloat16 model would force a cast of every activation (a fifth of the speed on CPU).
    """
    import warnings

    from peft import LoraConfig, get_peft_model

    where = {"target_modules": "all-linear", "exclude_modules": ".*pooler.*"}  # what a pooler says is never asked for
    if layers is not None:
        depth = model.config.num_hidden_layers
        names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        where = {"target_modules": names, "layers_to_transform": list(range(max(0, depth - layers), depth))}
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, bias="none", **where)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft asks transformers by a name that is on its way out
        return get_peft_model(model, config, autocast_adapter_dtype=False).base_model.model


def merge_lora(model: nn.Module) -> None:
    """Fold LoRA into the weights in place, for serving: same function (to rounding), no detour."""
    from peft.tuners.lora import LoraLayer

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoraLayer):
                child.merge()
                setattr(parent, name, child.get_base_layer())


def new_kv_cache(model: nn.Module):
    """Give an empty key-value cache for `model`."""
    from transformers import DynamicCache

    return DynamicCache(config=model.config)
