"""A stand-in for the back end of prompt tuning: losses that fall by a rule, with delays; no model
is needed.
"""

import time
from pathlib import Path

import numpy as np
import pandas as pd
from fake import HOSTILE, QUERIES
from updates import Update

LABELS = ("Takeout", "Concert", "Luck", HOSTILE, "fail", "slow")


class FakeTuning:
    """Tune by a rule: "Luck" gains nothing, "Concert" loses, "fail" raises half-way, "slow" takes
    its time, others gain.
    """

    labels = LABELS
    queries = QUERIES

    def __init__(self, seconds: float = 0.6, steps: int = 60):
        self.seconds = seconds
        self.closed = 0
        self.calls = []
        self.defaults = {"vectors": 6, "steps": steps, "paper": {"vectors": 6, "steps": 500}}

    def __call__(self, query, label, *, vectors, steps, seed, stop):
        self.calls.append((query, label, vectors, steps, seed))
        random = np.random.default_rng(seed)
        rows = []
        best = 0
        pause = self.seconds * (20 if label == "slow" else 1) / steps
        data = {"prompt": None, "result": None, "history": None, "best": 0}
        try:
            yield Update(0, steps, "Reading the question behind 300 users", data=data)
            for step in range(steps + 1):
                time.sleep(pause)
                if label == "fail" and step > steps / 2:
                    raise RuntimeError("out of memory: 300 users need 2.1 GB, 1.9 are free")
                if step % 10 == 0 or step == steps:
                    fall = 0.25 * np.exp(-step / (0.3 * steps))
                    over = 0.12 * max(0.0, step / steps - 0.6) ** 1.2
                    noise = random.normal(0, 0.006, 2)
                    rows.append(
                        (
                            step,
                            0.36 + fall + noise[0] if step else np.nan,
                            0.41 + fall + over + noise[1],
                        )
                    )
                    best = min(rows, key=lambda row: row[2])[0]
                history = pd.DataFrame(rows, columns=["step", "loss", "valid"])
                data = {
                    "prompt": f"prompt of step {best}",
                    "result": None,
                    "history": history,
                    "best": best,
                }
                yield Update(step, steps, data=data)
                if stop():
                    break
            yield Update(step, steps, "Judging on 300 users that were held out", data=data)
            time.sleep(pause)
            yield Update(step, steps, self.words(label), data=data | {"result": self.result(label)})
        finally:
            self.closed += 1

    @staticmethod
    def result(label: str) -> pd.DataFrame:
        gain = {"Luck": 0.004, "Concert": -0.06}.get(label, 0.057)
        rows = [
            (
                name,
                before,
                before + share * gain,
                share * gain,
                share * (gain - 0.031),
                share * (gain + 0.029),
            )
            for name, before, share in (
                ("auc", 0.712, 1.0),
                ("ks", 0.341, 1.4),
                ("silhouette", 0.021, 0.5),
            )
        ]
        result = pd.DataFrame(rows, columns=["measure", "before", "after", "gain", "low", "high"])
        result.attrs = {"n": 300, "positives": 108}
        return result

    @staticmethod
    def words(label: str) -> str:
        what = {"Luck": "no gain beyond", "Concert": "worse, beyond"}.get(
            label, "a gain of .057, beyond"
        )
        row = FakeTuning.result(label).iloc[0]
        after, low, high = (f"{row[k]:.3f}".replace("0.", ".") for k in ("after", "low", "high"))
        return (
            f"On 300 users never tuned on, AUC is .712 before and {after} after: {what} "
            f"chance (95 %: {low} to {high})."
        )

    @staticmethod
    def save(prompt: str, folder: str) -> Path:
        path = Path(folder)
        if (path / "prompt.json").exists():
            raise FileExistsError(
                f"{folder} holds a soft prompt already: name another folder, or remove that one"
            )
        path.mkdir(parents=True)
        (path / "prompt.json").write_text(prompt)
        return path
