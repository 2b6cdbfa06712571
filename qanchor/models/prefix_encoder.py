"""Event, modality, user: the encoder turns a batch of readings into the prefix, coarse to fine (paper, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from qanchor.models.collate import DeviceMixin, PaddedBatch

USER, MODALITY, GROUP, HABIT, EVENT = range(5)  # kinds of slot
SLOT_KINDS = ("user", "modality", "group", "habit", "event")


@dataclass(frozen=True)
class Prefix(DeviceMixin):
    """Hold the slots in front of the language model, and what each stands for."""

    slots: Float[Tensor, "user slot width"]
    mask: Bool[Tensor, "user slot"]
    kind: Int[Tensor, "user slot"]  # index into KINDS
    modality: Int[Tensor, "user slot"]  # index of the modality; -1 for the user slot and the groups
    coarse: Float[Tensor, "user number"]  # the coarse numbers, kept for the query-gated skip

    def length(self) -> Int[Tensor, " user"]:
        """Count the slots of each user, without pads: the position at which a query starts."""
        return self.mask.sum(1)

    def positions(self) -> Int[Tensor, "user slot"]:
        """Number the slots of each user from 0 on, pads left out, wherever the pads stand."""
        return (self.mask.cumsum(1) - 1).clamp(min=0)

    def pads_last(self) -> bool:
        """Say whether every user's pads stand behind all of its slots: then a causal mask is all that reading needs."""
        return not (self.mask[:, 1:] & ~self.mask[:, :-1]).any()

    def at(self, columns: Int[Tensor, "user some"], mask: Bool[Tensor, "user some"]) -> Prefix:
        """Choose of each user the slots at `columns`; those outside `mask` become pads."""
        slots = self.slots.gather(1, columns[..., None].expand(-1, -1, self.slots.shape[-1])) * mask[..., None]
        return Prefix(slots, mask, self.kind.gather(1, columns), self.modality.gather(1, columns), self.coarse)


def gather_slots(
    mask: Bool[Tensor, "user slot"], first: Int[Tensor, " user"], end: Int[Tensor, " user"]
) -> tuple[Int[Tensor, "user some"], Bool[Tensor, "user some"]]:
    """Say in which columns each user's slots from number `first` to before `end` stand; fewer than others: pads, the last."""
    number = torch.arange(int((end - first).max()), device=mask.device) + first[:, None]
    columns = (~mask).long().argsort(dim=1, stable=True)  # slots in their order, then pads
    return columns.gather(1, number.clamp(0, mask.shape[1] - 1)), number < end[:, None]


class Adapter(nn.Module):
    """Lift a text vector and the numbers beside it to a slot: LayerNorm, to `hidden`, GELU, to `width`."""

    def __init__(self, text: int, number: int, hidden: int, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(text)
        self.text = nn.Linear(text, hidden)
        self.number = nn.Linear(number, hidden) if number else None
        self.out = nn.Linear(hidden, width)

    def forward(self, text: Float[Tensor, "... text"], number: Float[Tensor, "... number"] | None = None):
        hidden = self.text(self.norm(text))
        if self.number is not None:
            hidden = hidden + self.number(number)
        return self.out(nn.functional.gelu(hidden))


class PrefixEncoder(nn.Module):
    """Make the prefix: one user slot, one slot a modality, one a group of numbers, then habits and the newest events.

    sizes    widths of the inputs (`UserPreprocessor.sizes`); groups: slices of the coarse numbers (`UserPreprocessor.groups`).
    hidden   width inside the adapters; width: of the backbone.
    scale    standard deviation of the backbone's word vectors; slots start at that size, so the model can read them.
    layout   "coarse_to_fine" as in the paper, or "append_only": new events extend it, only the coarse slots are made again.
    summaries  False leaves out the user slot and the modality slots (an ablation of the paper).
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
        layout: str,
        summaries: bool = True,
    ):
        super().__init__()
        self.layout, self.summaries, self.slices = layout, summaries, list(groups.values())
        self.event = nn.ModuleList(Adapter(text, sizes["event_number"], hidden, width) for _ in range(modalities))
        self.modality = Adapter(text, sizes["modal_number"], hidden, width)
        self.user = Adapter(width, 0, hidden, width)
        self.group = nn.ModuleList(nn.Linear(s.stop - s.start, width) for s in self.slices)
        self.absent = nn.Parameter(torch.randn(modalities, width))  # a missing modality is said, not averaged in as zeros
        self.kind_mark = nn.Parameter(torch.randn(len(SLOT_KINDS), width) * 0.5)
        self.modality_mark = nn.Parameter(torch.randn(modalities, width) * 0.5)
        self.group_mark = nn.Parameter(torch.randn(len(self.slices), width) * 0.5)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.scale = nn.Parameter(torch.full((), float(scale)))

    def forward(self, batch: PaddedBatch) -> Prefix:
        events = self._events(batch)
        modal = self.norm(self.modality(batch.modal_text, batch.modal_number))
        present = batch.present[..., None]
        # over present modalities only: an absent one says nothing about the user
        mean = (modal * present).sum(1) / present.sum(1).clamp(min=1)
        modal = torch.where(present, modal, self.norm(self.absent)) + self.modality_mark
        user = self.user(mean)[:, None]
        group = (
            torch.stack([self.norm(lin(batch.coarse[:, s])) for lin, s in zip(self.group, self.slices, strict=True)], 1)
            + self.group_mark
        )
        parts = [(user, USER, -1), (modal, MODALITY, torch.arange(modal.shape[1])), (group, GROUP, -1)]
        parts = parts if self.summaries else parts[2:]
        kinds = torch.where(batch.event_recent, EVENT, HABIT)
        if self.layout == "append_only":  # newest last, so that a new event is only appended; all that sums up comes after
            parts = parts[::-1]
        coarse = [self._part(*p, batch) for p in parts]
        fine = (events, kinds, batch.event_modality, batch.event_mask)
        order = [*coarse, fine] if self.layout == "coarse_to_fine" else [fine, *coarse]
        slots, kind, modality, mask = (torch.cat(column, 1) for column in zip(*order, strict=True))
        slots = self.norm(slots + self.kind_mark[kind]) * self.scale
        prefix = Prefix(slots * mask[..., None], mask, kind, modality, batch.coarse)
        return prefix if prefix.pads_last() else prefix.at(*gather_slots(mask, torch.zeros_like(mask.sum(1)), mask.sum(1)))

    def _part(self, slots, kind: int, modality, batch: PaddedBatch):
        shape, device = slots.shape[:2], slots.device
        modality = torch.as_tensor(modality, device=device).expand(shape)
        return slots, torch.full(shape, kind, device=device), modality, torch.ones(shape, dtype=torch.bool, device=device)

    def _events(self, batch: PaddedBatch) -> Float[Tensor, "user event width"]:
        width = self.absent.shape[1]
        out = batch.event_text.new_zeros(*batch.event_mask.shape, width)
        for m, adapter in enumerate(self.event):
            at = batch.event_mask & (batch.event_modality == m)
            out[at] = self.norm(adapter(batch.event_text[at], batch.event_number[at])) + self.modality_mark[m]
        return out
