"""Language models: loading and LoRA."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from qanchor.errors import WeightsError
from qanchor.models.weights import missing_model_message, resolve_model
from qanchor.utils.io import replace_surrogates

ATTENTION_PROJECTIONS = ["q_proj", "k_proj", "v_proj", "o_proj"]


class CharTokenizer:
    """Tokenize text as UTF-8 bytes, for the tiny backbone, which needs no download."""

    eos_token_id = 256

    def __call__(self, text: str) -> list[int]:
        return list(replace_surrogates(text).encode())


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
        # a query is data: "<|im_end|>" typed by a user is plain text, never a control token
        encoded = self.inner(
            replace_surrogates(text), add_special_tokens=False, split_special_tokens=True
        )
        return encoded.input_ids


def load_backbone(name: str) -> tuple[nn.Module, CharTokenizer | HubTokenizer]:
    """Load a language model in float32, and its tokenizer.

    Args:
        name: "tiny" (the same random weights each time), "smollm2" (packaged), a Hugging Face id,
            or a local folder.

    Raises:
        WeightsError: The model cannot be found or downloaded.
    """
    from transformers import AutoModelForCausalLM, LlamaConfig

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
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(shape, dtype=torch.float32)
        return model, CharTokenizer()
    folder = resolve_model(name)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, trust_remote_code=False
        )
    except OSError as error:
        message = missing_model_message("backbone", name, error, "smollm2")
        raise WeightsError(message) from error
    return model, HubTokenizer(folder)


def add_lora(model: nn.Module, rank: int, alpha: int, layers: int) -> nn.Module:
    """Add LoRA to the attention projections of the last layers.

    Args:
        model: Language model.
        rank: Rank of the updates.
        alpha: Scale: updates are multiplied by alpha / rank.
        layers: Number of layers, counted from the last.

    Returns:
        The model.
    """
    from peft import LoraConfig

    depth = model.config.num_hidden_layers
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        bias="none",
        target_modules=ATTENTION_PROJECTIONS,
        layers_to_transform=list(range(max(0, depth - layers), depth)),
    )
    model.add_adapter(config)
    return model


@contextmanager
def without_lora(model: nn.Module) -> Iterator[None]:
    """Run a block with the pretrained weights only.

    Args:
        model: Language model with LoRA.
    """
    is_trained = [weight.requires_grad for weight in model.parameters()]
    model.disable_adapters()
    try:
        yield
    finally:
        model.enable_adapters()
        # enabling adapters also sets `requires_grad` on them
        for weight, trained in zip(model.parameters(), is_trained, strict=True):
            weight.requires_grad_(trained)
