"""Tuning to watch: what a `PromptLab` calls, a step at a time, with a judgement on users that were held out at its end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd

from qanchor.data.users import Users
from qanchor.evaluation.prompt_evaluation import compare_prompt, split_labels
from qanchor.inference.engine import Engine
from qanchor.inference.prefix_cache import PrefixCache
from qanchor.prompt_tuning.soft_prompt import SoftPrompt
from qanchor.prompt_tuning.tuning import iter_tune_prompt
from qanchor.useru.suggestions import suggest_queries
from qanchor.workbench.messages import prompt_summary

PAPER_VECTORS, PAPER_STEPS = 6, 500  # the paper's
CPU_STEPS = 60  # steps on a CPU, where one takes about a second: the paper's 500 would take minutes


class PromptTuningBackend:
    """Tune soft prompts on a share of the users and judge each on the others: the callable that a `PromptLab` asks.

    cache, users   the same users: `users` knows their labels. share: of the labelled users that are learned from, validation
    users among them; the others judge. The seed alone says who is who. seek: as in `iter_tune_prompt`.

    Calling it gives an iterator of updates: `step, steps, history, best, prompt, result, sentence`. `prompt` is the best so
    far, so whoever stops iterating keeps it; `stop()` true ends the tuning and has that one judged; closing the iterator
    cancels. `result` (columns measure, before, after, gain, low, high; None until then) comes with the last update.

    Example:
        >>> users = qa.make_sample_users(60)
        >>> engine = qa.Engine(qa.QAnchor(qa.TINY, qa.UserPreprocessor.fit(users, None, qa.TINY)))
        >>> *_, last = PromptTuningBackend(engine, engine.prefill(users), users)("Why?", "Active", steps=10)
        >>> last["prompt"], last["result"]["measure"].tolist()
        (SoftPrompt('Why?', 6 vectors, 2 classes), ['auc', 'ks', 'silhouette'])
    """

    def __init__(self, engine: Engine, cache: PrefixCache, users: Users, share: float = 0.5, seek: bool = True):
        self.engine, self.cache, self.users, self.share, self.seek = engine, cache, users, share, seek
        self.labels = [str(name) for name in users.labels]
        self.queries = list(suggest_queries(users))
        steps = CPU_STEPS if engine.model.device.type == "cpu" else PAPER_STEPS
        self.defaults = {"vectors": PAPER_VECTORS, "steps": steps, "paper": {"vectors": PAPER_VECTORS, "steps": PAPER_STEPS}}

    def __call__(
        self,
        query: str,
        label: str,
        *,
        vectors: int = PAPER_VECTORS,
        steps: int = PAPER_STEPS,
        seed: int = 0,
        stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[dict]:
        learn, others = split_labels(self.cache, self.users.label(label), self.share, seed)
        unit, now = self.cache.unit, None
        yield _tuning_update(0, steps, sentence=f"Reading the question behind {len(learn):,} {unit}s")
        how = {"vectors": vectors, "steps": steps, "seed": seed, "seek": self.seek}
        for now in iter_tune_prompt(self.engine, self.cache, query, learn, **how):
            yield (told := _tuning_update(now.step, now.steps, now.history, now.best, now.prompt))
            if stop():
                break
        yield told | {"sentence": f"Judging on {len(others):,} {unit}s that were held out"}
        found = compare_prompt(self.engine, self.cache, now.prompt, learn, others, seed)
        yield told | {"result": found, "sentence": prompt_summary(found, unit)}

    @staticmethod
    def save(prompt: SoftPrompt, folder: str | Path) -> Path:
        """Keep a prompt in a new folder, whole or not at all. FileExistsError: it holds one already, which stays."""
        if (Path(folder) / "prompt.json").exists():
            raise FileExistsError(f"{folder} holds a soft prompt already: name another folder, or remove that one")
        return prompt.save(folder)


def _tuning_update(
    step: int, steps: int, history: pd.DataFrame | None = None, best: int = 0, prompt=None, sentence: str = ""
) -> dict:
    told = {"step": step, "steps": steps, "history": history, "best": best, "prompt": prompt}
    return told | {"result": None, "sentence": sentence}
