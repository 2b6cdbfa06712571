"""Tuning to watch and its evaluation: the same as `evaluate_prompt`, on held-out users, with honest
words.
"""

import numpy as np
import pandas as pd
import pytest
import torch

import qanchor as qa
from qanchor.data.users import Users
from qanchor.evaluation.prompt_evaluation import (
    compare_embeddings,
    compare_prompt,
    evaluate_prompt,
    split_labels,
)
from qanchor.prompt_tuning.soft_prompt import SoftPrompt
from qanchor.workbench.messages import prompt_summary
from tests.tiny import CUTOFF, brief_fits, habits

QUERY = "Is this user interesting for us?"


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    monkeypatch.setattr("qanchor.evaluation.prompt_evaluation.BOOTSTRAP_DRAWS", 100)


@pytest.fixture(scope="module")
def made():
    events = habits(60)
    past = events[events["time"] < CUTOFF]
    played = past["text"].eq("play_chess").groupby(past["user"]).any().astype(float)
    users = Users.from_events(events, CUTOFF, labels=played.to_frame("Active"))
    with brief_fits():
        engine = qa.Engine(qa.fit(users, text_encoder="hash", steps=10, progress=False))
    cache = engine.prefill(users)
    return qa.PromptTuningBackend(engine, cache, users), engine, cache, users


def test_it_tells_every_step_and_ends_with_what_a_trial_finds(made):
    tune, engine, cache, users = made
    updates = list(tune(QUERY, "Active", steps=12, seed=1))
    assert [u.done for u in updates] == [0, *range(13), 12, 12] and {u.total for u in updates} == {
        12
    }
    assert (
        updates[0].message == "Reading the question for 30 users"
        and updates[0].data["prompt"] is None
    )
    assert updates[-2].message == "Evaluating on 30 users that were held out"
    assert [u.data["result"] is None for u in updates] == [True] * 15 + [False]
    prompt, history, told = evaluate_prompt(
        engine, cache, QUERY, users.label("Active"), steps=12, seed=1, seek=True
    )
    last, message = updates[-1].data, updates[-1].message
    table = last["result"].set_index("measure")
    assert torch.equal(last["prompt"].prototypes, prompt.prototypes) and last["history"].equals(
        history
    )
    assert table["after"].to_dict() == told["after"] and last["best"] == told["best_step"]
    assert message == prompt_summary(told["comparison"]) and "sentence" not in told
    assert (
        table.loc["ks", "low"] == told["gain_ks"]["low"]
        and told["n_test"] == last["result"].attrs["n"] == 30
    )


def test_its_defaults_are_the_papers_but_for_the_steps_of_a_laptop(made):
    tune, *_ = made
    paper = {"vectors": 6, "steps": 500}
    assert tune.defaults == {"vectors": 6, "steps": 60, "paper": paper}
    assert tune.labels == ["Active"] and tune.queries


def test_stop_ends_the_tuning_and_judges_the_best(made):
    tune, *_ = made
    calls = iter([False] * 5 + [True])
    updates = list(tune(QUERY, "Active", steps=40, stop=lambda: next(calls)))
    assert (
        updates[-1].done == 5 and updates[-1].total == 40 and updates[-1].data["result"] is not None
    )
    assert next(calls, None) is None  # asked once a step


def test_closing_cancels_and_what_was_yielded_is_kept(made, monkeypatch):
    tune, *_ = made
    monkeypatch.setattr(
        "qanchor.workbench.prompt_tuning.compare_prompt",
        lambda *a: pytest.fail("evaluated though it was cancelled"),
    )
    updates = tune(QUERY, "Active", steps=40)
    update = next(u for u in updates if u.done == 3)
    updates.close()
    assert isinstance(update.data["prompt"], SoftPrompt) and next(updates, None) is None


def test_a_prompt_that_adds_nothing_gains_nothing(made):
    """No vectors, no offset: the typed query itself. A prompt with both moves the users, so the
    test can fail.
    """
    _, engine, cache, users = made
    learn, others = split_labels(cache, users.label("Active"), 0.5, 0)
    assert not set(learn.index) & set(others.index) and len(learn) + len(others) == 60
    play_chess = torch.from_numpy(qa.text_vectors(["play chess"], "hash")[0]).float()
    for offset, same in ((torch.zeros(384), True), (play_chess, False)):
        vectors = torch.zeros(0 if same else 3, 384)
        prompt = SoftPrompt(QUERY, (0, 1), vectors, offset, torch.eye(2, 128), 0.07)
        found = compare_prompt(engine, cache, prompt, learn, others)
        np.testing.assert_allclose(found["gain"], found["after"] - found["before"])
        assert bool((found[["gain", "low", "high"]].abs() < 1e-6).all(axis=None)) == same
        assert (found["low"] <= found["gain"] + 0.02).all() and (
            found["gain"] - 0.02 <= found["high"]
        ).all()
    assert set(found.attrs["prototype"]) == {"auc", "ks"}


def test_judged_measures_are_the_plain_ones(made):
    from sklearn.metrics import silhouette_score

    _, engine, cache, users = made
    prompt, _, told = evaluate_prompt(engine, cache, QUERY, users.label("Active"), steps=2)
    _, others = split_labels(cache, users.label("Active"), 0.5, 0)
    rows = pd.Index(cache.ids).get_indexer(others.index)
    for asked, side in ((QUERY, "before"), (prompt, "after")):
        z = engine.embed(cache, asked)[rows].astype(float)
        assert told[side]["silhouette"] == pytest.approx(silhouette_score(z, others), abs=1e-5)


@pytest.mark.parametrize(
    ("gap", "words"),
    [
        ((0.04, 0.01, 0.07), "a gain of .040, beyond chance (95 %: +.010 to +.070)."),
        ((0.04, -0.01, 0.07), "no gain beyond chance (95 %: -.010 to +.070)."),
        ((-0.04, -0.07, -0.01), "worse, beyond chance (95 %: -.070 to -.010)."),
        ((0.0, 0.0, 0.0), "no gain beyond chance (95 %: +.000 to +.000)."),
    ],
)
def test_the_sentence_is_honest(gap, words):
    found = pd.DataFrame(
        [("auc", 0.7, 0.7 + gap[0], *gap)],
        columns=["measure", "before", "after", "gain", "low", "high"],
    )
    found.attrs["n"] = 1200
    assert prompt_summary(found, "household").startswith(
        "On 1,200 held-out households, AUC is .700 before and ."
    )
    assert prompt_summary(found, "household").endswith(f" after: {words}")


@pytest.mark.parametrize(
    ("before", "after", "words"),
    [
        ((0.51, 0.6), (0.52, 0.7), "AUC is .555 before and .610 after: no gain"),
        (
            (0.49, 0.6),
            (0.52, 0.7),
            "AUC is .555 before (no better than chance) and .610 after: no gain",
        ),
        (
            (0.51, 0.6),
            (0.5, 0.7),
            "AUC is .555 before and .610 after (no better than chance): no gain",
        ),
        (
            (0.49, 0.6),
            (0.4, 0.7),
            "AUC is .555 before and .610 after, neither better than chance: no gain",
        ),
    ],
)
def test_the_sentence_says_what_is_chance(before, after, words):
    found = pd.DataFrame(
        [("auc", 0.555, 0.61, 0.055, -0.01, 0.1)],
        columns=["measure", "before", "after", "gain", "low", "high"],
    )
    found.attrs = {"n": 30, "intervals": {"before": before, "after": after}}
    assert words in prompt_summary(found)


def test_an_embedding_that_knows_nothing_is_luck():
    """A class of noise beside one that stands apart: the interval of the first holds .5, that of
    the second does not.
    """
    rng, ids = np.random.default_rng(0), [f"u{i}" for i in range(200)]
    y = pd.Series(rng.permutation([0, 1] * 100), ids)
    noise = rng.normal(size=(200, 8))
    found = compare_embeddings(noise, noise + 3 * y.to_numpy()[:, None], ids, y[:100], y[100:])
    table = found.set_index("measure").loc["auc"]
    for side in ("before", "after"):
        low, high = found.attrs["intervals"][side]
        assert low <= table[side] <= high
    assert found.attrs["intervals"]["before"][0] <= 0.5 < found.attrs["intervals"]["after"][0]
    before = f"{table['before']:.3f}".replace("0.", ".")
    assert (
        f"AUC is {before} before (no better than chance) and 1.000 after: a gain"
        in prompt_summary(found)
    )


def test_what_cannot_be_judged_is_told_before_it_is_tuned(made):
    tune, engine, cache, users = made
    with pytest.raises(KeyError, match="no label 'Nope' in users"):
        next(tune(QUERY, "Nope"))
    _, others = split_labels(cache, users.label("Active"), 0.5, 0)
    rare = users.label("Active").where(~users.labels.index.isin(others.index), 0.0)
    with pytest.raises(ValueError, match="Found 1 class in the 30 test labels; 2 are required"):
        evaluate_prompt(engine, cache, QUERY, rare, steps=1)


def test_saving_never_takes_the_place_of_another_prompt(made, tmp_path):
    tune, *_ = made
    *_, last = tune(QUERY, "Active", steps=0)
    with pytest.raises(ValueError, match="was not loaded from a run"):
        tune.save(last.data["prompt"], tmp_path / "soft")
    (tmp_path / "soft").mkdir()
    (tmp_path / "soft/prompt.json").write_text("{}")
    with pytest.raises(FileExistsError, match=r"already holds a soft prompt\. Name another folder"):
        tune.save(last.data["prompt"], tmp_path / "soft")
