"""Soft prompts: equal to reading everything anew, also in their gradients; tuned on the labels
given, judged on others.
"""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import qanchor as qa
from qanchor.config import TINY
from qanchor.errors import RunError
from qanchor.evaluation.prompt_evaluation import evaluate_prompt
from qanchor.models.model import QAnchor
from qanchor.prompt_tuning.labels import balanced_weights, encode_labels, stratified_split
from qanchor.prompt_tuning.soft_prompt import (
    TEMPERATURE_FACTORS,
    PromptObjective,
    SoftPrompt,
    class_centroids,
)
from qanchor.prompt_tuning.tuning import iter_tune_prompt, tune_prompt
from tests.benchmarks.tune import LEARNED, _gradients, gradients_anew, tune
from tests.tiny import QUERIES, make_engine, make_model, make_users, one_by_one
from tests.unit.inference.test_engine import MODELS, tensors

QUERY = QUERIES[0]
LABELS = pd.Series([1.0, 0, 1, 0, 1, 0, 1, np.nan, 0], list(make_users().ids))


def drawn(model, query: str = QUERY, vectors: int = 6, seed: int = 0) -> SoftPrompt:
    """A prompt that nobody tuned, its every part large enough to matter."""
    draw = torch.Generator().manual_seed(seed)
    width, text = len(model.user_emb), model.query_text_embeddings(["a"]).shape[1]
    parts = [
        scale * torch.randn(*shape, generator=draw)
        for scale, *shape in ((0.05, vectors, width), (0.5, text), (1.0, 2, 32))
    ]
    return SoftPrompt(query, (0, 1), *parts, 0.07, model.run)


@pytest.fixture(scope="module", params=["sdpa", "eager", "append_only", "no skip"])
def made(request):
    """A model, its engine, prompts and a typed query, and what the model itself says to these,
    uncached, user by user.
    """
    model = make_model(**MODELS.get(request.param, {"gated_skip": False}))
    asked = [
        drawn(model),
        QUERIES[2],
        drawn(model, "", 3, seed=1),
        drawn(model, QUERIES[3], 1, seed=2),
    ]
    return model, make_engine(model), asked, one_by_one(model, make_users(), asked)


@pytest.fixture(scope="module")
def engine():
    return make_engine(make_model())


@pytest.fixture(scope="module")
def cache(engine):
    return engine.prefill(make_users(), tokens=40)


@pytest.fixture(scope="module")
def world():
    """Users whose label is planted where the model can see it, an engine that was loaded from a
    run, and its cache.
    """
    users = qa.make_sample_users(120)
    engine = qa.Engine(qa.QAnchor(TINY, qa.UserPreprocessor.fit(users, None, TINY), device="cpu"))
    cache = engine.prefill(users, tokens=600)
    z = engine.embed(
        cache, "Is this user a driver?"
    )  # of another question: its skip lets other numbers through
    planted = pd.Series((z[:, 0] > np.median(z[:, 0])).astype(float), list(cache.ids))
    return users, engine, cache, planted


# equal to the plain way


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_prompt_is_asked_as_a_query_is(made, side):
    """Ragged users, both padding sides: alone, in a list with others, and read anew."""
    _, engine, asked, plain = made
    users = make_users()
    for tokens in (10**6, 40):
        cache = engine.prefill(users, side=side, tokens=tokens)
        packed = engine.embed(cache, asked)
        np.testing.assert_allclose(packed, plain, atol=1e-4, rtol=0)
        np.testing.assert_allclose(np.linalg.norm(packed, axis=-1), 1, atol=1e-5)
        for k, query in enumerate(asked):
            np.testing.assert_allclose(engine.embed(cache, query), plain[:, k], atol=1e-4, rtol=0)
    bare = engine.embed(cache, [q if isinstance(q, str) else q.query for q in asked])
    assert (
        np.abs(plain - bare).max((0, 2))[[0, 2, 3]].min() > 1e-2
    )  # else the above would prove nothing


def test_its_vectors_its_place_and_its_offset_matter(engine, cache):
    prompt = drawn(engine.model)
    z = engine.embed(cache, prompt)
    turned = replace(prompt, vectors=prompt.vectors.flip(0))
    plain = replace(prompt, offset=torch.zeros_like(prompt.offset))
    assert all(np.abs(engine.embed(cache, other) - z).max() > 1e-3 for other in (turned, plain))


def test_asking_leaves_the_cache_as_it_was(engine, cache):
    before = tensors(cache)
    prompt, _ = tune_prompt(engine, cache, QUERY, LABELS, steps=2)
    assert isinstance(engine.generate(cache, "c", prompt, limit=5), str) and engine.embed(
        cache, prompt
    ).shape == (9, 32)
    assert all(torch.equal(a, b) for a, b in zip(before, tensors(cache), strict=True))
    assert (
        not any(p.requires_grad for p in engine.model.parameters())
        and not prompt.vectors.requires_grad
    )


@pytest.mark.parametrize("query", [QUERY, ""])
@pytest.mark.parametrize(("side", "budget"), [("left", 6.0), ("right", 6.0), ("left", 0.0)])
def test_gradients_with_a_cache_are_those_without(made, query, side, budget):
    """Users of several groups, one of them twice, within and beyond the memory budget."""
    model, engine, _, _ = made
    users = make_users()
    cache = engine.prefill(users, side=side, tokens=40, budget_gb=budget)
    assert (cache.groups[0].kv is None) == (budget == 0)
    tuning = PromptObjective(engine, cache, query, np.arange(9) % 2)
    live = {name: getattr(drawn(model, query), name).requires_grad_() for name in LEARNED}
    prompt, rows = replace(drawn(model, query), **live), np.array([8, 0, 3, 0, 5])
    cached = _gradients(prompt, tuning, rows)
    anew = gradients_anew(prompt, tuning, model.preprocessor.transform(users), rows)
    for name, a, b in zip(LEARNED, cached, anew, strict=True):
        scale = b.abs().max() if b.numel() else 1.0  # without a skip there is no offset
        assert not b.numel() or ((a - b).abs().max() <= 1e-5 * scale and scale > 1e-6), name


def test_half_precision_tunes_float32_parts(world):
    users = make_users()
    engine = make_engine(make_model(dtype="bfloat16"))
    cache = engine.prefill(users)
    prompt, history = tune_prompt(engine, cache, QUERY, LABELS, steps=10)
    assert cache.groups[0].kv.layers[0].keys.dtype == torch.bfloat16 and history.valid.notna().all()
    assert {getattr(prompt, name).dtype for name in LEARNED} == {torch.float32}
    assert engine.embed(cache, prompt).dtype == np.float32


# tuning


@pytest.mark.parametrize("gate", [True, False])
def test_a_planted_label_is_learned(world, gate):
    _, engine, cache, planted = world
    prompt, _, told = evaluate_prompt(engine, cache, QUERY, planted, steps=60, gate=gate)
    assert told["n_tuning"] == told["n_test"] == 60 and told["best_step"] > 0
    assert (
        told["prototype"]["auc"] > (0.75 if gate else 0.6)
        and (prompt.offset.abs().max() > 0) == gate
    )
    assert told["gain"]["low"] <= told["gain"]["auc"] <= told["gain"]["high"]
    assert told["gain"]["auc"] == pytest.approx(told["after"]["auc"] - told["before"]["auc"])


def test_three_classes_of_any_kind(world):
    users, engine, cache, _ = world
    z = engine.embed(cache, QUERY)
    kind = pd.Series(
        np.array(["low", "middle", "high"])[
            np.searchsorted(np.quantile(z[:, 1], [0.4, 0.8]), z[:, 1])
        ],
        users.ids,
    )
    prompt, history = tune_prompt(engine, cache, QUERY, kind, steps=40)
    chances = prompt.predict_proba(engine.embed(cache, prompt))
    assert prompt.classes == ("high", "low", "middle") and chances.shape == (120, 3)
    np.testing.assert_allclose(chances.sum(1), 1, atol=1e-5)
    assert (np.array(prompt.classes)[chances.argmax(1)] == kind.to_numpy()).mean() > 0.6
    assert history.columns.tolist() == ["step", "loss", "valid"] and history.step.tolist() == [
        0,
        10,
        20,
        30,
        40,
    ]


def test_the_best_on_validation_is_kept_and_the_tuning_ends(world):
    _, engine, cache, planted = world
    noise = pd.Series(np.random.default_rng(0).permutation(planted.to_numpy()), planted.index)
    how = {"steps": 300, "patience": 20, "lr": 0.2}
    prompt, history = tune_prompt(engine, cache, QUERY, noise, **how)
    best = int(history.step[history.valid.idxmin()])
    assert history.step.iloc[-1] == best + 20 < 300
    again, short = tune_prompt(engine, cache, QUERY, noise, **how)
    assert torch.equal(again.vectors, prompt.vectors) and short.equals(history)  # by seed
    assert not torch.equal(
        tune_prompt(engine, cache, QUERY, noise, **how | {"seed": 1})[0].vectors, prompt.vectors
    )


def test_watched_tuning_is_tuning(world):
    _, engine, cache, planted = world
    seen = list(iter_tune_prompt(engine, cache, QUERY, planted, steps=25, seed=3))
    prompt, history = tune_prompt(engine, cache, QUERY, planted, steps=25, seed=3)
    assert all(
        torch.equal(getattr(seen[-1].prompt, name), getattr(prompt, name)) for name in LEARNED
    )
    assert seen[-1].history.equals(history) and history.step.tolist() == [0, 10, 20, 25]
    assert [now.step for now in seen] == list(range(26)) and {now.steps for now in seen} == {25}


def test_stopping_keeps_the_best_until_then(world):
    """The validation loss is measured anew: it is the least of the history, and not that of the
    last state.
    """
    _, engine, cache, planted = world
    noise = pd.Series(np.random.default_rng(0).permutation(planted.to_numpy()), planted.index)
    for labels in (planted, noise):
        updates = iter_tune_prompt(engine, cache, QUERY, labels, steps=200, lr=0.2)
        now = next(now for now in updates if now.step == 45)
        updates.close()
        truth, _ = encode_labels(cache, labels)
        _, checked = stratified_split(truth, 0.2, np.random.default_rng(0))
        least = now.history.valid.min()
        assert PromptObjective(engine, cache, QUERY, truth).loss(
            now.prompt, checked
        ) == pytest.approx(least, abs=1e-4)
        assert (
            now.history.step.tolist() == [0, 10, 20, 30, 40]
            and now.best == now.history.step[now.history.valid.idxmin()]
        )
    assert now.best < 40  # noise: the last state is not the best


def test_seeking_finds_the_question_that_the_labels_answer():
    """One by one through all taught questions, each as a prompt of its own: the plain twin chooses
    the same.
    """
    users = qa.make_sample_users(60)
    engine = qa.Engine(qa.QAnchor(TINY, qa.UserPreprocessor.fit(users, None, TINY), device="cpu"))
    cache, driver = engine.prefill(users, tokens=600), "Is this user a driver?"
    bank = engine.model.query_text_embeddings(
        [driver, "Why?", "Does this user have a baby?", *QUERIES[2:]]
    )
    engine.model.skip.remember(bank)
    z = engine.embed(cache, driver)
    planted = pd.Series((z[:, 0] > np.median(z[:, 0])).astype(float), list(cache.ids))
    tuning = PromptObjective(engine, cache, QUERY, planted.to_numpy(int))
    rows, rng = np.arange(60), np.random.default_rng(0)
    begun = tuning.initialize((0.0, 1.0), rows, 2, rng)
    found = tuning.search_initial_prompt(begun, rows)
    losses = []
    for meaning in bank:
        one = replace(begun, offset=meaning - tuning.text_embedding[0])
        z, label = tuning._embed_all(one, rows)
        one = replace(one, prototypes=class_centroids(z, label))
        losses.append(
            (
                min(
                    tuning.loss(replace(one, temperature=0.07 * times), rows)
                    for times in TEMPERATURE_FACTORS
                ),
                meaning,
            )
        )
    least, meaning = min(losses, key=lambda pair: pair[0])
    torch.testing.assert_close(found.offset, meaning - tuning.text_embedding[0], atol=1e-4, rtol=0)
    assert tuning.loss(found, rows, TEMPERATURE_FACTORS) == pytest.approx(
        least, abs=1e-4
    ) and least < tuning.loss(begun, rows, TEMPERATURE_FACTORS)
    assert torch.equal(found.vectors, begun.vectors) and len({loss for loss, _ in losses}) > 1
    plain, sought = (
        tune_prompt(engine, cache, QUERY, planted, steps=0, seek=seek)[0] for seek in (False, True)
    )
    assert not plain.offset.any() and sought.offset.any()


def test_where_nothing_was_taught_seeking_changes_nothing(engine, cache):
    for made in (engine, make_engine(make_model(gated_skip=False))):
        held = made.prefill(make_users())
        plain, sought = (
            tune_prompt(made, held, QUERY, LABELS, steps=2, seek=seek)[0] for seek in (False, True)
        )
        assert all(torch.equal(getattr(plain, name), getattr(sought, name)) for name in LEARNED)


def test_negative_numbers_are_told(engine, cache):
    with pytest.raises(ValueError, match="-1 vectors, 5 steps: both must be 0 or more"):
        tune_prompt(engine, cache, QUERY, LABELS, vectors=-1, steps=5)


def test_a_rare_class_is_drawn_as_often(world):
    *_, planted = world
    rare = planted.where(np.arange(120) < 100, np.nan)
    rare[np.arange(120) % 8 > 0] = 0.0
    truth = np.where(rare.isna(), -1, rare.fillna(0)).astype(int)
    rows = np.flatnonzero(truth >= 0)
    weights = balanced_weights(truth[rows])
    sums = [weights[truth[rows] == k].sum() for k in (0, 1)]
    assert sums == pytest.approx([0.5, 0.5])


@pytest.mark.slow
def test_labels_of_judged_users_are_never_looked_at(world):
    """Turn every label of the judged users: the prompt is the same, bit for bit; turn one that is
    tuned on: it is not.
    """
    _, engine, cache, planted = world
    prompt, _, _ = evaluate_prompt(engine, cache, QUERY, planted, steps=10)
    order = np.random.default_rng(0).permutation(120)
    learn, judged = planted.index[order[:60]], planted.index[order[60:]]
    for users, same in ((judged, True), (learn[:5], False)):
        turned = planted.copy()
        turned[users] = 1 - turned[users]
        other, _, _ = evaluate_prompt(engine, cache, QUERY, turned, steps=10)
        assert torch.equal(other.prototypes, prompt.prototypes) == same
    shuffled = planted.sample(frac=1, random_state=0)
    assert torch.equal(
        evaluate_prompt(engine, cache, QUERY, shuffled, steps=10)[0].prototypes, prompt.prototypes
    )
    alone, _ = tune_prompt(engine, cache, QUERY, planted[learn], steps=10)
    blank, _ = tune_prompt(engine, cache, QUERY, planted.where(planted.index.isin(learn)), steps=10)
    assert torch.equal(alone.vectors, blank.vectors)  # NaN is no label


@pytest.mark.parametrize(
    ("labels", "error", "words"),
    [
        (LABELS * 0, ValueError, "Found 1 class in 8 labels; at least 2 are required"),
        (LABELS * np.nan, ValueError, "Found 0 classes in 0 labels"),
        (LABELS.head(5), ValueError, "Class 0.0 has 2 labelled user.s.; at least 3 are required"),
        (
            pd.concat([LABELS, pd.Series([1.0], ["zoe"])]),
            KeyError,
            "'zoe' is not among the 9 that were read: prefill it first",
        ),
        (
            pd.concat([LABELS, LABELS.head(1)]),
            ValueError,
            "user 'a' has 2 labels or more: keep one",
        ),
    ],
    ids=["one class", "none", "too few", "stranger", "twice"],
)
def test_wrong_labels_are_told(engine, cache, labels, error, words):
    with pytest.raises(error, match=words):
        tune_prompt(engine, cache, QUERY, labels)


def test_strangers_are_refused_before_any_tuning(engine, cache):
    with pytest.raises(KeyError, match="'zoe' is not among the 9 that were read"):
        evaluate_prompt(engine, cache, QUERY, pd.concat([LABELS, pd.Series([1.0], ["zoe"])]))


def test_the_gate_alone_can_be_tuned(world):
    _, engine, cache, planted = world
    prompt, _ = tune_prompt(engine, cache, QUERY, planted, vectors=0, steps=10)
    assert (
        prompt.vectors.shape == (0, 64)
        and prompt.offset.any()
        and engine.embed(cache, [prompt, QUERY]).shape == (120, 2, 32)
    )


def test_a_model_that_is_trained_on_is_no_longer_its_run(home):
    users = make_users()
    model = QAnchor.from_pretrained(home / "run0")
    assert (
        model.run
        and qa.train(model, users, qa.make_pairs(users, per_sample=2), steps=1) is not None
        and not model.run
    )


# kept on disk


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A run of a model, another run, and users."""
    folder, users = tmp_path_factory.mktemp("prompt"), make_users()
    for seed in (0, 1):
        make_model(users, seed, awake=False).save_pretrained(folder / f"run{seed}")
    return folder


def test_a_prompt_comes_back_as_it_was(home, tmp_path):
    engine = qa.Engine(QAnchor.from_pretrained(home / "run0"))
    cache = engine.prefill(make_users())
    prompt, _ = tune_prompt(engine, cache, QUERY, LABELS, steps=10)
    folder = prompt.save(tmp_path / "prompt")
    assert sorted(p.name for p in folder.iterdir()) == ["prompt.json", "prompt.safetensors"]
    assert sum(p.stat().st_size for p in folder.iterdir()) < 8_000
    told = json.loads((folder / "prompt.json").read_text())
    assert (
        told["run"]
        == json.loads((home / "run0/config.json").read_text())["sha256"]["adapter.safetensors"]
    )
    again = SoftPrompt.load(folder, engine)
    assert (
        np.array_equal(engine.embed(cache, again), engine.embed(cache, prompt))
        and again.classes == prompt.classes
    )
    fresh = qa.Engine(
        QAnchor.from_pretrained(home / "run0", attention="eager")
    )  # the run's hash, not the model's, is what counts
    z = fresh.embed(fresh.prefill(make_users()), SoftPrompt.load(folder, fresh))
    np.testing.assert_allclose(z, engine.embed(cache, prompt), atol=1e-4)
    replace(prompt, temperature=0.5).save(folder)  # a newer one takes its place
    assert SoftPrompt.load(folder, engine).temperature == 0.5 and [
        p.name for p in tmp_path.iterdir()
    ] == ["prompt"]


def test_another_run_refuses_a_prompt(home, tmp_path):
    first, second = (qa.Engine(QAnchor.from_pretrained(home / f"run{seed}")) for seed in (0, 1))
    prompt = drawn(first.model)
    folder = prompt.save(tmp_path / "prompt")
    with pytest.raises(
        RunError,
        match=rf"was tuned on run {first.model.run[:16]}, this engine serves run {second.model.run[:16]}",
    ):
        SoftPrompt.load(folder, second)
    with pytest.raises(
        ValueError,
        match=rf"run {first.model.run[:16]}, this model is of run {second.model.run[:16]}: load that",
    ):
        second.embed(second.prefill(make_users()), prompt)


def test_torn_and_foreign_folders_are_refused(home, tmp_path):
    engine = qa.Engine(QAnchor.from_pretrained(home / "run0"))
    with pytest.raises(RunError, match="nowhere is no soft prompt"):
        SoftPrompt.load(tmp_path / "nowhere", engine)
    with pytest.raises(
        ValueError, match=r"run0 holds 'adapter.safetensors' and no prompt.json: name a new folder"
    ):
        drawn(engine.model).save(home / "run0")
    with pytest.raises(ValueError, match="the model has no run, 1 is needed: save it"):
        drawn(make_model()).save(tmp_path / "prompt")
    folder = drawn(engine.model).save(tmp_path / "prompt")
    file = folder / "prompt.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(RunError, match=r"prompt.safetensors has sha256 .* prompt.json says"):
        SoftPrompt.load(folder, engine)
    (folder / "prompt.json").write_text("{")
    with pytest.raises(RunError, match="torn, swapped or of another version"):
        SoftPrompt.load(folder, engine)


@pytest.mark.parametrize(
    "halt", [OSError("no space left"), KeyboardInterrupt()], ids=["error", "kill"]
)
def test_a_save_cut_short_leaves_the_old_prompt(home, tmp_path, monkeypatch, halt):
    engine = qa.Engine(QAnchor.from_pretrained(home / "run0"))
    prompt = drawn(engine.model)
    folder = prompt.save(tmp_path / "prompt")

    def torn(tensors, path):
        path.write_bytes(b"half a file")
        raise halt

    for place in ("prompt", "new"):
        with monkeypatch.context() as patch, pytest.raises(type(halt)):
            patch.setattr("qanchor.prompt_tuning.soft_prompt.save_file", torn)
            replace(prompt, temperature=0.5).save(tmp_path / place)
    assert (
        SoftPrompt.load(folder, engine).temperature == prompt.temperature
        and not (tmp_path / "new").exists()
    )
    folder.rename(folder.with_name(".prompt.old"))  # a kill between the two renames of a save
    assert SoftPrompt.load(folder, engine).temperature == prompt.temperature
    replace(prompt, temperature=0.5).save(folder)
    assert SoftPrompt.load(folder, engine).temperature == 0.5 and [
        p.name for p in tmp_path.iterdir()
    ] == ["prompt"]


# its bench


@pytest.mark.slow
def test_the_bench_says_what_it_promises():
    found = tune(lambda: qa.make_sample_users(30), config=TINY, rows=8, rounds=1)
    assert (
        json.loads(json.dumps(found)) == found
        and found["max_rel_diff"] < 1e-5
        and found["users"] == 8
    )
    assert found["speedup"] == found["anew_s"] / found["step_s"] and found["speedup_reread"] > 0
    assert found["bound"] == pytest.approx((found["slots"] + found["words"] + 7) / 7)
