"""Language models: loading, LoRA, key-value caches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from qanchor.errors import WeightsError
from qanchor.models.attention import grouped_attention
from qanchor.models.weights import missing_model_message, resolve_model
from qanchor.utils.io import replace_surrogates

LORA_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CROSSING_PROJECTIONS = LORA_LAYERS[:4]  # of the attention


class CharTokenizer:
    """Tokenize text as UTF-8 bytes, for the tiny backbone, which needs no download."""

    eos_token_id = 256

    def __call__(self, text: str) -> list[int]:
        return list(replace_surrogates(text).encode())

    def decode(self, ids: list[int]) -> str:
        """Return the text of token ids.

        Args:
            ids: Bytes; other ids are skipped.
        """
        return bytes(i for i in ids if i < 256).decode(errors="replace")


class HubTokenizer:
    """Tokenize text with a transformers tokenizer, without special tokens.

    Args:
        folder: Folder or Hugging Face id of the tokenizer.
    """

    def __init__(self, folder: str):
        from transformers import AutoTokenizer

        self.inner = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        self.eos_token_id = self.inner.eos_token_id

    def __call__(self, text: str) -> list[int]:
        # a query is data: "<|im_end|>" typed by a user is spelled out, never a control token
        encoded = self.inner(
            replace_surrogates(text), add_special_tokens=False, split_special_tokens=True
        )
        return encoded.input_ids

    def decode(self, ids: list[int]) -> str:
        """Return the text of token ids, without special tokens.

        Args:
            ids: Token ids.
        """
        return self.inner.decode(ids, skip_special_tokens=True)


def load_backbone(
    name: str, dtype: str = "bfloat16", attention: str = "sdpa", seed: int = 0
) -> tuple[nn.Module, object]:
    """Load a language model and its tokenizer.

    Args:
        name: "tiny" (random weights), "smollm2" (packaged), a Hugging Face id, or a local folder.
        dtype: Dtype of the weights. Default: "bfloat16".
        attention: "sdpa" (default) or "eager".
        seed: Seed of the tiny model's weights. Default: 0.

    Returns:
        The model, and a tokenizer that maps text to ids and has `decode` and `eos_token_id`.

    Raises:
        WeightsError: If the model cannot be found or downloaded.
    """
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch_dtype = getattr(torch, dtype)
    if name == "tiny":
        shape = LlamaConfig(
            vocab_size=257,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=4096,
            bos_token_id=256,
            eos_token_id=256,
            tie_word_embeddings=True,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(
                shape, attn_implementation=attention, dtype=torch_dtype
            )
        return _use_grouped_attention(model), CharTokenizer()
    folder = resolve_model(name)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch_dtype, attn_implementation=attention, trust_remote_code=False
        )
    except OSError as error:
        message = missing_model_message("backbone", name, error, "smollm2")
        raise WeightsError(message) from error
    return _use_grouped_attention(model), HubTokenizer(folder)


def _use_grouped_attention(model: nn.Module) -> nn.Module:
    """Replace sdpa by `grouped_attention`, which falls back to it."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    if model.config._attn_implementation == "sdpa":
        AttentionInterface.register("grouped", partial(grouped_attention, sdpa_attention_forward))
        AttentionMaskInterface.register("grouped", sdpa_mask)
        model.set_attn_implementation("grouped")
    return model


def enable_gradient_checkpointing(model: nn.Module) -> None:
    """Recompute activations in the backward pass: less memory, more time.

    Args:
        model: Language model.
    """
    options = {"use_reentrant": False}
    if hasattr(model, "activation_checkpointing_enable"):  # its name since transformers 5.23
        model.activation_checkpointing_enable(options)
    else:
        model.gradient_checkpointing_enable(options)


def add_lora(
    model: nn.Module,
    rank: int,
    alpha: int,
    dropout: float,
    layers: int,
    modules: list[str] = LORA_LAYERS,
) -> nn.Module:
    """Add LoRA to linear layers, in the dtype of the model.

    float32 adapters in a bfloat16 model would cast every activation, a fifth of the speed on a CPU.

    Args:
        model: Language model.
        rank: Rank of the updates.
        alpha: Scale: updates are multiplied by alpha / rank.
        dropout: Dropout probability.
        layers: Number of layers, counted from the last.
        modules: Names of the linear layers (default: all).

    Returns:
        The model with LoRA, without the wrapper of peft.
    """
    import warnings

    from peft import LoraConfig, get_peft_model

    depth = model.config.num_hidden_layers
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        bias="none",
        target_modules=modules,
        layers_to_transform=list(range(max(0, depth - layers), depth)),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft uses a deprecated transformers name
        return get_peft_model(model, config, autocast_adapter_dtype=False).base_model.model


@contextmanager
def without_lora(model: nn.Module) -> Iterator[None]:
    """Run a block with the pretrained weights alone.

    Args:
        model: Language model with LoRA.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    adapted = [module for module in model.modules() if isinstance(module, BaseTunerLayer)]
    is_trained = [weight.requires_grad for weight in model.parameters()]
    for module in adapted:
        module.enable_adapters(False)
    try:
        yield
    finally:
        for module in adapted:
            module.enable_adapters(True)
        # switching adapters also switches their gradients on
        for weight, trained in zip(model.parameters(), is_trained, strict=True):
            weight.requires_grad_(trained)


def merge_lora(model: nn.Module) -> None:
    """Merge LoRA into the weights in place: the same function up to rounding, but faster.

    Args:
        model: Language model with LoRA; without it, nothing happens.
    """
    from peft.tuners.lora import LoraLayer

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, LoraLayer):
                child.merge()
                setattr(parent, name, child.get_base_layer())


def new_kv_cache(model: nn.Module):
    """Return an empty key-value cache.

    Args:
        model: Language model that fills it.
    """
    from transformers import DynamicCache

    return DynamicCache(config=model.config)
