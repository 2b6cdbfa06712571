"""Measure, as ratios in one run on one machine, with the machine's own ceiling beside them; each bench gives plain data."""

from __future__ import annotations

from .bench_ablations import ablations
from .bench_attention import attention
from .bench_card import card
from .bench_curves import curves
from .bench_fairness import fairness
from .bench_fuzz import fuzz
from .bench_prompts import prompts
from .bench_replay import replay
from .bench_scale import scale
from .bench_soak import soak
from .bench_speed import ask, cache, refresh, train, versus
from .bench_tasks import tasks
from .bench_texts import texts
from .bench_tune import tune
from .bench_useru import useru
from .machine import commit, machine


def _told(made):
    return lambda **how: {"bench": made.__name__, "machine": machine(), "commit": commit(), "seed": 0} | made(**how)


PROOF = (tasks, ablations, replay, fairness, prompts, curves, attention)
MADE = (*PROOF, tune, cache, ask, refresh, versus, train, scale, texts, useru, card, fuzz, soak)
PROVED = {made.__name__ for made in PROOF}  # these tell how far they are
BENCHES = {made.__name__: _told(made) for made in MADE}
