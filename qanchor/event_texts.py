"""The event encoder as the paper trains it: LoRA on the text encoder that reads the events (option `text_lora_rank`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from .backbone import TextEncoder, add_lora
from .batch import Batch
from .config import Config

AT_ONCE = 256  # texts a forward pass, where no gradient is wanted


class EventTexts(nn.Module):
    """Encode the events of a batch with a text encoder that learns; what sums up a user stays with the one at rest.

    While gradients are wanted each distinct text of the batch is encoded anew; otherwise once, and kept in memory (`kept`)
    until the next training. Source: paper, section 3.2, whose encoder has LoRA.

    Example:
        >>> users = qa.make_world(40)
        >>> config = qa.TINY.but(text_encoder="minilm", text_lora_rank=4)
        >>> model = qa.build(config, qa.Reader.fit(users, None, config))
        >>> model.event_texts(["a flight to Rome", "rice"]).shape
        torch.Size([2, 384])
    """

    def __init__(self, config: Config):
        super().__init__()
        if config.text_encoder == "hash":
            told = f"config.text_lora_rank is {config.text_lora_rank}, config.text_encoder is 'hash', which has no weights"
            raise ValueError(f"{told}: choose 'minilm', or a rank of 0")
        self.encoder = TextEncoder(config.text_encoder)
        self.encoder.requires_grad_(False)
        for module in self.encoder.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0  # of LoRA alone: a text says the same to every user of a batch
        self.encoder.inner = add_lora(self.encoder.inner, config.text_lora_rank, config.lora_alpha, config.lora_dropout, None)
        self.kept: dict[str, Tensor] = {}

    def forward(self, texts: Sequence[str]) -> Float[Tensor, "text dim"]:
        if self.training or torch.is_grad_enabled():
            return self.encoder.encode(list(texts))
        new = sorted((t for t in dict.fromkeys(texts) if t not in self.kept), key=len)
        for start in range(0, len(new), AT_ONCE):
            some = new[start : start + AT_ONCE]
            self.kept |= dict(zip(some, self.encoder.encode(some), strict=True))
        return torch.stack([self.kept[t] for t in texts])

    def fill(self, batch: Batch) -> Batch:
        """Put the vectors of this encoder where the batch has those of the one at rest."""
        return replace(batch, event_text=self(batch.texts)[batch.text]) if batch.texts else batch

    def train(self, mode: bool = True) -> EventTexts:
        """Forget what is kept before the weights change."""
        if mode:
            self.kept.clear()
        return super().train(mode)
