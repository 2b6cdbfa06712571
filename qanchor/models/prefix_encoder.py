"""Prefix encoder: features to prefix tokens (paper, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from qanchor.models.collate import DeviceMixin, PaddedBatch

USER, MODALITY, GROUP, HABIT, EVENT = range(5)  # kinds of prefix token
TOKEN_KINDS = ("user", "modality", "group", "habit", "event")


@dataclass(frozen=True)
class Prefix(DeviceMixin):
    """Hold the prefix tokens in front of the language model, and what each stands for."""

    tokens: Float[Tensor, "user prefix_token width"]
    mask: Bool[Tensor, "user prefix_token"]  # False for padding
    kind: Int[Tensor, "user prefix_token"]  # index into TOKEN_KINDS
    modality: Int[Tensor, "user prefix_token"]  # index of the modality; -1: user or group token
    coarse: Float[Tensor, "user number"]  # coarse numbers, for the gated skip

    def length(self) -> Int[Tensor, " user"]:
        """Return the number of tokens of each user, which is the position where a query starts."""
        return self.mask.sum(1)

    def positions(self) -> Int[Tensor, "user prefix_token"]:
        """Return the position of each token, counted from 0 without the padding."""
        return (self.mask.cumsum(1) - 1).clamp(min=0)

    def pads_last(self) -> bool:
        """Return whether all padding is at the end, so that a causal mask is sufficient."""
        return not (self.mask[:, 1:] & ~self.mask[:, :-1]).any()

    def at(self, columns: Int[Tensor, "user some"], mask: Bool[Tensor, "user some"]) -> Prefix:
        """Select tokens of each user.

        Args:
            columns: Columns to select, for each user.
            mask: False turns a selected token into padding.

        Returns:
            The prefix of the selected tokens.
        """
        index = columns[..., None].expand(-1, -1, self.tokens.shape[-1])
        return Prefix(
            tokens=self.tokens.gather(1, index) * mask[..., None],
            mask=mask,
            kind=self.kind.gather(1, columns),
            modality=self.modality.gather(1, columns),
            coarse=self.coarse,
        )


def token_columns(
    mask: Bool[Tensor, "user prefix_token"], first: Int[Tensor, " user"], end: Int[Tensor, " user"]
) -> tuple[Int[Tensor, "user some"], Bool[Tensor, "user some"]]:
    """Find the columns of each user's tokens from number `first` up to, not including, `end`.

    Args:
        mask: False for padding, which may be anywhere.
        first: Number of the first token, counted without padding.
        end: Number after the last token.

    Returns:
        Columns, padded to the longest range, and a mask that is False for that padding.
    """
    number = torch.arange(int((end - first).max()), device=mask.device) + first[:, None]
    columns = (~mask).long().argsort(dim=1, stable=True)  # tokens in their order, then padding
    return columns.gather(1, number.clamp(0, mask.shape[1] - 1)), number < end[:, None]


class Adapter(nn.Module):
    """Map a text vector and numbers to a token: LayerNorm, Linear, GELU, Linear.

    Args:
        text: Width of the text vectors.
        number: Number of columns beside the text; 0 for none.
        hidden: Hidden width.
        width: Width of the token.
    """

    def __init__(self, text: int, number: int, hidden: int, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(text)
        self.text = nn.Linear(text, hidden)
        self.number = nn.Linear(number, hidden) if number else None
        self.out = nn.Linear(hidden, width)

    def forward(
        self, text: Float[Tensor, "... text"], number: Float[Tensor, "... number"] | None = None
    ):
        hidden = self.text(self.norm(text))
        if self.number is not None:
            hidden = hidden + self.number(number)
        return self.out(nn.functional.gelu(hidden))


class PrefixEncoder(nn.Module):
    """Encode features into prefix tokens: user, modalities, groups, frequent and recent events.

    Source: paper, section 3.2.

    Args:
        modalities: Number of modalities.
        text: Width of the text vectors.
        sizes: Widths of the other inputs, from `UserPreprocessor.sizes`.
        groups: Slices of the coarse numbers, from `UserPreprocessor.groups`; one token each.
        hidden: Hidden width of the adapters.
        width: Width of the backbone.
        scale: Standard deviation of the backbone's word vectors. Prefix tokens start at that size,
            so that the language model can read them.
        token_order: "coarse_to_fine" as in the paper, or "append_only": coarse tokens come last, so
            that new events extend a cached prefix.
        use_summary_tokens: Include the user token and the modality tokens. Default: True.
    """

    def __init__(
        self,
        modalities: int,
        text: int,
        sizes: dict,
        groups: dict[str, slice],
        hidden: int,
        width: int,
        scale: float,
        token_order: str,
        use_summary_tokens: bool = True,
    ):
        super().__init__()
        self.token_order = token_order
        self.use_summary_tokens = use_summary_tokens
        self.slices = list(groups.values())
        event_number = sizes["event_number"]
        self.event = nn.ModuleList(
            Adapter(text, event_number, hidden, width) for _ in range(modalities)
        )
        self.modality = Adapter(text, sizes["modal_number"], hidden, width)
        self.user = Adapter(width, 0, hidden, width)
        self.group = nn.ModuleList(nn.Linear(s.stop - s.start, width) for s in self.slices)
        # a missing modality has a learned token, instead of zeros
        self.absent = nn.Parameter(torch.randn(modalities, width))
        self.kind_mark = nn.Parameter(torch.randn(len(TOKEN_KINDS), width) * 0.5)
        self.modality_mark = nn.Parameter(torch.randn(modalities, width) * 0.5)
        self.group_mark = nn.Parameter(torch.randn(len(self.slices), width) * 0.5)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.scale = nn.Parameter(torch.full((), float(scale)))

    def forward(self, batch: PaddedBatch) -> Prefix:
        events = self._event_tokens(batch)
        modal = self.norm(self.modality(batch.modal_text, batch.modal_number))
        present = batch.present[..., None]
        # over present modalities only: an absent one says nothing about the user
        mean = (modal * present).sum(1) / present.sum(1).clamp(min=1)
        modal = torch.where(present, modal, self.norm(self.absent)) + self.modality_mark
        user = self.user(mean)[:, None]

        coarse_parts = []
        if self.use_summary_tokens:
            modality_index = torch.arange(modal.shape[1])
            coarse_parts = [(user, USER, -1), (modal, MODALITY, modality_index)]
        coarse_parts.append((self._group_tokens(batch), GROUP, -1))
        append_only = self.token_order == "append_only"
        if append_only:  # everything that a new event changes comes after the events
            coarse_parts.reverse()
        coarse = [self._coarse_columns(*part) for part in coarse_parts]

        event_kind = torch.where(batch.event_recent, EVENT, HABIT)
        fine = (events, event_kind, batch.event_modality, batch.event_mask)
        parts = [fine, *coarse] if append_only else [*coarse, fine]
        tokens, kind, modality, mask = (torch.cat(column, 1) for column in zip(*parts, strict=True))
        tokens = self.norm(tokens + self.kind_mark[kind]) * self.scale
        prefix = Prefix(tokens * mask[..., None], mask, kind, modality, batch.coarse)
        if prefix.pads_last():
            return prefix
        length = prefix.length()
        return prefix.at(*token_columns(mask, torch.zeros_like(length), length))

    def _group_tokens(self, batch: PaddedBatch) -> Float[Tensor, "user group width"]:
        tokens = [
            self.norm(linear(batch.coarse[:, columns]))
            for linear, columns in zip(self.group, self.slices, strict=True)
        ]
        return torch.stack(tokens, 1) + self.group_mark

    def _coarse_columns(self, tokens: Tensor, kind: int, modality: int | Tensor):
        """Return tokens with their kind, modality and mask."""
        shape = tokens.shape[:2]
        device = tokens.device
        modality = torch.as_tensor(modality, device=device).expand(shape)
        kinds = torch.full(shape, kind, device=device)
        return tokens, kinds, modality, torch.ones(shape, dtype=torch.bool, device=device)

    def _event_tokens(self, batch: PaddedBatch) -> Float[Tensor, "user event width"]:
        width = self.absent.shape[1]
        out = batch.event_text.new_zeros(*batch.event_mask.shape, width)
        for modality, adapter in enumerate(self.event):
            at = batch.event_mask & (batch.event_modality == modality)
            tokens = self.norm(adapter(batch.event_text[at], batch.event_number[at]))
            out[at] = tokens + self.modality_mark[modality]
        return out
