"""Back end of prompt tuning: tune a soft prompt step by step, then evaluate it on other users."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from qanchor.data.users import Users
from qanchor.evaluation.prompt_evaluation import TUNING_SHARE, compare_prompt, split_labels
from qanchor.inference.engine import Engine
from qanchor.inference.prefix_cache import PrefixCache
from qanchor.prompt_tuning.soft_prompt import SoftPrompt
from qanchor.prompt_tuning.tuning import iter_tune_prompt
from qanchor.utils.text import plural
from qanchor.workbench.messages import evaluation_begins, prompt_summary, tuning_begins
from qanchor.workbench.updates import Update

PAPER_VECTORS = 6
PAPER_STEPS = 500
STEPS = 60  # more steps did not improve the result on the data sets here


class PromptTuningBackend:
    """Tune soft prompts on a share of the users and evaluate each on the others.

    Calling it returns an iterator of `Update`. Attributes: `labels` and `queries` to choose from,
    `defaults` (values that the form starts with), `unit`, `units`.

    Args:
        engine: The model.
        cache: The users, read by `engine.prefill`.
        users: The same users, with their labels.

    Example:
        >>> users = qa.make_sample_users(60)
        >>> engine = qa.Engine(qa.fit(users, text_encoder="hash", steps=10, progress=False))
        >>> backend = PromptTuningBackend(engine, engine.prefill(users), users)
        >>> *_, last = backend("Why?", "Active", steps=10)
        >>> last.data["prompt"], last.data["result"]["measure"].tolist()
        (SoftPrompt('Why?', 6 vectors, 2 classes), ['auc', 'ks', 'silhouette'])
    """

    def __init__(self, engine: Engine, cache: PrefixCache, users: Users):
        self.engine = engine
        self.cache = cache
        self.users = users
        self.unit = users.unit
        self.units = plural(users.unit)
        self.labels = [str(name) for name in users.labels]
        self.queries = list(engine.suggest_queries(users))
        paper = {"vectors": PAPER_VECTORS, "steps": PAPER_STEPS}
        self.defaults = {"vectors": PAPER_VECTORS, "steps": STEPS, "paper": paper}

    def __call__(
        self,
        query: str,
        label: str,
        *,
        vectors: int = PAPER_VECTORS,
        steps: int = PAPER_STEPS,
        seed: int = 0,
        stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[Update]:
        """Tune and evaluate a prompt.

        Args:
            query: The question that the label answers.
            label: Name of the label.
            vectors: Number of prompt vectors (default 6).
            steps: Number of tuning steps (default 500).
            seed: Seed of the split, the tuning and the evaluation (default 0).
            stop: Called after each step; if it returns true, tuning ends and the best prompt so far
                is evaluated.

        Yields:
            Updates whose `done` and `total` are steps. Their data: `history` (None before the first
            step), `prompt` (the best one so far), `best` (the step at which it was found) and
            `result` (None before the last update, then `measure, before, after, gain, low, high`).
            Closing the iterator cancels.
        """
        learn, others = split_labels(self.cache, self.users.label(label), TUNING_SHARE, seed)
        data = {"history": None, "best": 0, "prompt": None, "result": None}
        update = Update(0, steps, tuning_begins(len(learn), self.unit), data=data)
        yield update
        states = iter_tune_prompt(
            self.engine,
            self.cache,
            query,
            learn,
            num_virtual_tokens=vectors,
            steps=steps,
            seed=seed,
            seek=True,
        )
        for state in states:
            data = data | {"history": state.history, "best": state.best, "prompt": state.prompt}
            update = Update(state.step, state.steps, data=data)
            yield update
            if stop():
                break
        yield replace(update, message=evaluation_begins(len(others), self.unit))
        result = compare_prompt(self.engine, self.cache, data["prompt"], learn, others, seed)
        yield replace(
            update, message=prompt_summary(result, self.unit), data={**data, "result": result}
        )

    @staticmethod
    def save(prompt: SoftPrompt, folder: str | Path) -> Path:
        """Save a prompt in a new folder.

        Args:
            prompt: The prompt.
            folder: The folder to create.

        Returns:
            The folder.

        Raises:
            FileExistsError: If the folder already holds a prompt, which is not changed.
        """
        if (Path(folder) / "prompt.json").exists():
            raise FileExistsError(
                f"{folder} already holds a soft prompt. Name another folder, or remove that one."
            )
        return prompt.save(folder)
