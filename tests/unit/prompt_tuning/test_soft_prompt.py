"""Soft prompts: equal to the question that they stand for, also in their gradients; tuned on the
labels given, judged on others.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

import qanchor as qa
from qanchor.data.users import Users
from qanchor.errors import RunError
from qanchor.evaluation.prompt_evaluation import evaluate_prompt
from qanchor.inference.evidence import encode_questions
from qanchor.models.pointing import read_questions, thing_input
from qanchor.prompt_tuning.labels import encode_labels, stratified_split
from qanchor.prompt_tuning.objective import TEMPERATURE_FACTORS, PromptObjective, class_centroids
from qanchor.prompt_tuning.soft_prompt import SoftPrompt
from qanchor.prompt_tuning.tuning import iter_tune_prompt, tune_prompt
from tests.tiny import CUTOFF, brief_fits, habits

QUERY = "Is this user interesting for us?"
LEARNED = ("vectors", "offset", "prototypes")
N_USERS = 120
TEXT = 384  # width of a text vector


@pytest.fixture(scope="module")
def users():
    return Users.from_events(habits(), CUTOFF, unit="member")


@pytest.fixture(scope="module")
def home(users, tmp_path_factory):
    """Two runs."""
    folder = tmp_path_factory.mktemp("prompt")
    with brief_fits():
        model = qa.fit(users, text_encoder="hash", steps=10, progress=False)
    model.save_pretrained(folder / "run0")
    with torch.no_grad():
        model.reader.out.bias += 1
    model.save_pretrained(folder / "run1")
    return folder


@pytest.fixture(scope="module")
def engine(home):
    return qa.Engine(qa.QAnchor.from_pretrained(home / "run0"))


@pytest.fixture(scope="module")
def cache(engine, users):
    return engine.prefill(users)


@pytest.fixture(scope="module")
def planted(cache):
    """A label that the question does not name: who played chess before."""
    chess = [thing.label for thing in cache.tokens.things].index("play chess")
    return pd.Series((cache.tokens.which == chess).any(1).astype(float), list(cache.ids))


@pytest.fixture(scope="module")
def noise(planted):
    return pd.Series(np.random.default_rng(0).permutation(planted.to_numpy()), planted.index)


def drawn(engine, vectors: int = 3, seed: int = 0) -> SoftPrompt:
    """A prompt that nobody tuned, its every part large enough to matter."""
    draw = torch.Generator().manual_seed(seed)
    parts = [
        scale * torch.randn(*shape, generator=draw)
        for scale, *shape in ((0.03, vectors, TEXT), (0.05, TEXT), (1.0, 2, 128))
    ]
    return SoftPrompt(QUERY, (0, 1), *parts, 0.07, engine.model.run)


# a prompt is a question


def test_a_prompt_is_the_question_that_its_parts_were_added_to(engine, cache):
    prompt = drawn(engine)
    tokens = cache.tokens
    question = encode_questions(engine.model, [QUERY], tokens.unit, tokens.horizon_days)
    moved = question._replace(
        vector=question.vector + prompt.vectors[0] + prompt.vectors[1] + prompt.vectors[2],
        content=question.content + prompt.offset,
    )
    plain = read_questions(engine.model.reader, tokens, moved).embedding[:, 0].numpy()
    asked = [QUERY, prompt, drawn(engine, 1, seed=1)]
    packed = engine.embed(cache, asked)
    np.testing.assert_allclose(packed[:, 1], plain, atol=1e-5)
    for place, query in enumerate(asked):
        np.testing.assert_allclose(engine.embed(cache, query), packed[:, place], atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(packed, axis=-1), 1, atol=1e-5)
    for other in ("vectors", "offset"):
        without = replace(prompt, **{other: torch.zeros_like(getattr(prompt, other))})
        assert np.abs(engine.embed(cache, without) - plain).max() > 1e-3


def test_a_prompt_for_any_event_can_be_moved_to_a_thing(engine, cache):
    """ "Active" is about any event; with the offset to a thing it means that thing."""
    tokens = cache.tokens
    words = "Will this user be active?"
    things = thing_input(tokens)
    thing = torch.from_numpy(cache.tokens.vectors)[3]

    def meaning(query):
        question = encode_questions(engine.model, [query], tokens.unit, tokens.horizon_days)
        return question, engine.model.reader.meaning(question, things).parts[0]

    question, parts = meaning(words)
    assert question.behavior[0] > 0.99 and parts[-1] > 0.4
    prompt = replace(drawn(engine), query=words, vectors=torch.zeros(0, len(thing)))
    moved, parts = meaning(replace(prompt, offset=thing - question.content[0]))
    assert moved.behavior[0] < 0.9 and parts[-1] < 0.1
    assert (things.vector @ thing)[parts[:-1].argmax()] > 0.99


def test_tuning_changes_neither_the_cache_nor_the_model(engine, cache, planted):
    before = [part.copy() for part in (cache.tokens.which, cache.tokens.numbers)]
    prompt, _ = tune_prompt(engine, cache, QUERY, planted, steps=2)
    assert isinstance(engine.generate(cache, cache.ids[0], prompt), str)
    after = (cache.tokens.which, cache.tokens.numbers)
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert not any(p.requires_grad for p in engine.model.parameters())
    assert not prompt.vectors.requires_grad


@pytest.mark.parametrize("name", LEARNED)
def test_gradients_are_those_of_small_changes(engine, cache, planted, name):
    objective = PromptObjective(engine, cache, QUERY, planted.to_numpy(int))
    prompt = drawn(engine)
    rows = np.array([8, 0, 3, 0, 5, 70])
    part = getattr(prompt, name).clone().requires_grad_()
    direction = torch.randn(part.shape, generator=torch.Generator().manual_seed(1))
    direction /= direction.norm()
    optimizer = torch.optim.SGD([part], lr=0.0)
    objective.step(replace(prompt, **{name: part}), rows, optimizer)
    frozen = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.0)
    losses = []
    for step in (-1e-2, 1e-2):
        moved = (part.detach() + step * direction).requires_grad_()
        losses.append(objective.step(replace(prompt, **{name: moved}), rows, frozen))
    slope = (losses[1] - losses[0]) / 2e-2
    assert slope == pytest.approx((part.grad * direction).sum().item(), rel=0.05, abs=2e-3)
    assert part.grad.abs().max() > 1e-4


# tuning


def test_without_steps_it_is_the_question(engine, cache, planted):
    prompt, history = tune_prompt(engine, cache, QUERY, planted, steps=0)
    np.testing.assert_allclose(engine.embed(cache, prompt), engine.embed(cache, QUERY), atol=1e-6)
    assert history["step"].tolist() == [0]


def test_a_planted_label_is_learned(engine, cache, planted):
    prompt, _, result = evaluate_prompt(engine, cache, QUERY, planted, steps=20, seek=True)
    assert result["n_tuning"] == result["n_test"] == N_USERS // 2
    assert result["prototype"]["auc"] > 0.8 and prompt.offset.any()
    assert result["gain"]["low"] <= result["gain"]["auc"] <= result["gain"]["high"]
    gain = result["after"]["auc"] - result["before"]["auc"]
    assert result["gain"]["auc"] == pytest.approx(gain)


def test_what_it_points_at_can_be_tuned_alone(engine, cache, planted):
    prompt, _ = tune_prompt(engine, cache, QUERY, planted, steps=20, num_virtual_tokens=0)
    assert len(prompt.vectors) == 0 and prompt.offset.any()


def test_three_classes_of_any_kind(engine, cache, users):
    z = engine.embed(cache, QUERY)
    places = np.searchsorted(np.quantile(z[:, 1], [0.4, 0.8]), z[:, 1])
    kind = pd.Series(np.array(["low", "middle", "high"])[places], users.ids)
    prompt, history = tune_prompt(engine, cache, QUERY, kind, steps=40)
    shares = prompt.predict_proba(engine.embed(cache, prompt))
    assert prompt.classes == ("high", "low", "middle") and shares.shape == (N_USERS, 3)
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-5)
    assert (np.array(prompt.classes)[shares.argmax(1)] == kind.to_numpy()).mean() > 0.6
    assert history.columns.tolist() == ["step", "loss", "valid"]
    assert history.step.tolist() == [0, 10, 20, 30, 40]


def test_the_best_on_validation_is_kept_and_the_tuning_ends(engine, cache, noise):
    options = {"steps": 300, "patience": 20, "lr": 0.2}
    prompt, history = tune_prompt(engine, cache, QUERY, noise, **options)
    best = int(history.step[history.valid.idxmin()])
    assert history.step.iloc[-1] == best + 20 < 300
    again, short = tune_prompt(engine, cache, QUERY, noise, **options)
    assert torch.equal(again.prototypes, prompt.prototypes) and short.equals(history)  # by seed
    other, _ = tune_prompt(engine, cache, QUERY, noise, **options, seed=1)
    assert not torch.equal(other.prototypes, prompt.prototypes)


def test_watched_tuning_is_tuning(engine, cache, planted):
    seen = list(iter_tune_prompt(engine, cache, QUERY, planted, steps=15, seed=3))
    prompt, history = tune_prompt(engine, cache, QUERY, planted, steps=15, seed=3)
    for name in LEARNED:
        assert torch.equal(getattr(seen[-1].prompt, name), getattr(prompt, name))
    assert seen[-1].history.equals(history) and history.step.tolist() == [0, 10, 15]
    assert [state.step for state in seen] == list(range(16))
    assert {state.steps for state in seen} == {15}


def test_stopping_keeps_the_best_until_then(engine, cache, noise):
    """The loss of the kept prompt is measured again: it is the least of the history, and not that
    of the last state.
    """
    updates = iter_tune_prompt(engine, cache, QUERY, noise, steps=200, lr=0.2)
    state = next(state for state in updates if state.step == 45)
    updates.close()
    truth, _ = encode_labels(cache, noise)
    _, checked = stratified_split(truth, 0.2, np.random.default_rng(0))
    objective = PromptObjective(engine, cache, QUERY, truth)
    least = state.history.valid.min()
    assert objective.loss(state.prompt, checked) == pytest.approx(least, abs=1e-4)
    assert state.history.step.tolist() == [0, 10, 20, 30, 40]
    assert state.best == state.history.step[state.history.valid.idxmin()] < 40


def test_the_search_finds_what_a_search_one_by_one_finds(engine, cache, planted):
    objective = PromptObjective(engine, cache, QUERY, planted.to_numpy(int))
    rows = np.arange(40)
    start = objective.initialize((0.0, 1.0), rows, 2)
    found = objective.search_start(start, rows)
    asked = {concept.label for concept in engine.model.concepts if concept.things}
    losses = []
    for vector in qa.text_vectors(sorted(asked), "hash").astype(np.float32):
        tokens = cache.tokens
        question = encode_questions(engine.model, [QUERY], tokens.unit, tokens.horizon_days)
        one = replace(start, offset=torch.from_numpy(vector) - question.content[0])
        anchors = torch.from_numpy(engine.embed(cache, one)[rows])
        one = replace(one, prototypes=class_centroids(anchors, objective.labels[rows]))
        losses.append(objective.loss(one, rows, TEMPERATURE_FACTORS))
    assert len({round(loss, 4) for loss in losses}) > 1
    least = objective.loss(found, rows, TEMPERATURE_FACTORS)
    assert least == pytest.approx(min(losses), abs=1e-4)
    assert least < objective.loss(start, rows, TEMPERATURE_FACTORS)
    assert torch.equal(found.vectors, start.vectors)


def test_the_search_is_of_use_only_if_the_validation_users_agree(engine, cache, planted, noise):
    sought, history = tune_prompt(engine, cache, QUERY, planted, steps=0, seek=True)
    _, plain = tune_prompt(engine, cache, QUERY, planted, steps=0)
    assert sought.offset.any() and history["valid"][0] != plain["valid"][0]
    refused = [
        not tune_prompt(engine, cache, QUERY, noise, steps=0, seek=True, seed=seed)[0].offset.any()
        for seed in range(2)
    ]
    assert any(refused)


def test_negative_numbers_are_told(engine, cache, planted):
    with pytest.raises(ValueError, match=r"num_virtual_tokens is -1 and steps is 5\. Both must"):
        tune_prompt(engine, cache, QUERY, planted, num_virtual_tokens=-1, steps=5)


def test_labels_of_judged_users_are_never_looked_at(engine, cache, planted, monkeypatch):
    """Turn every label of the judged users: the prompt is the same, bit for bit; turn one that is
    tuned on: it is not.
    """
    monkeypatch.setattr("qanchor.evaluation.prompt_evaluation.BOOTSTRAP_DRAWS", 5)
    prompt, _, _ = evaluate_prompt(engine, cache, QUERY, planted, steps=2)
    order = np.random.default_rng(0).permutation(120)
    learn, judged = planted.index[order[:60]], planted.index[order[60:]]
    for users, same in ((judged, True), (learn[:5], False)):
        turned = planted.copy()
        turned[users] = 1 - turned[users]
        other, _, _ = evaluate_prompt(engine, cache, QUERY, turned, steps=2)
        assert torch.equal(other.prototypes, prompt.prototypes) == same
    shuffled = planted.sample(frac=1, random_state=0)
    assert torch.equal(
        evaluate_prompt(engine, cache, QUERY, shuffled, steps=2)[0].prototypes, prompt.prototypes
    )
    alone, _ = tune_prompt(engine, cache, QUERY, planted[learn], steps=2)
    blank, _ = tune_prompt(engine, cache, QUERY, planted.where(planted.index.isin(learn)), steps=2)
    assert torch.equal(alone.prototypes, blank.prototypes)  # NaN is no label


LABELS = pd.Series([1.0, 0, 1, 0, 1, 0, 1, np.nan, 0], [f"u{i:03}" for i in range(9)])


@pytest.mark.parametrize(
    ("labels", "error", "words"),
    [
        (LABELS * 0, ValueError, "Found 1 class in 8 labels; at least 2 are required"),
        (LABELS * np.nan, ValueError, "Found 0 classes in 0 labels"),
        (LABELS.head(5), ValueError, "Class 0.0 has 2 labelled user.s.; at least 3 are required"),
        (
            pd.concat([LABELS, pd.Series([1.0], ["zoe"])]),
            KeyError,
            "'zoe' is not among the 120 that were read. Prefill it first",
        ),
        (
            pd.concat([LABELS, LABELS.head(1)]),
            ValueError,
            "User '.*' has more than one label. Keep one",
        ),
    ],
    ids=["one class", "none", "too few", "stranger", "twice"],
)
def test_wrong_labels_are_told(engine, cache, labels, error, words):
    with pytest.raises(error, match=words):
        tune_prompt(engine, cache, QUERY, labels)


def test_strangers_are_refused_before_any_tuning(engine, cache):
    with pytest.raises(KeyError, match="'zoe' is not among the 120 that were read"):
        evaluate_prompt(engine, cache, QUERY, pd.concat([LABELS, pd.Series([1.0], ["zoe"])]))


# kept on disk


def test_a_prompt_comes_back_as_it_was(home, engine, cache, planted, tmp_path):
    prompt, _ = tune_prompt(engine, cache, QUERY, planted, steps=10)
    folder = prompt.save(tmp_path / "prompt")
    assert sorted(p.name for p in folder.iterdir()) == ["prompt.json", "prompt.safetensors"]
    assert sum(p.stat().st_size for p in folder.iterdir()) < 16_000
    fresh = qa.Engine(qa.QAnchor.from_pretrained(home / "run0"))
    again = SoftPrompt.load(folder, fresh)
    assert again.classes == prompt.classes
    assert np.array_equal(fresh.embed(cache, again), engine.embed(cache, prompt))
    replace(prompt, temperature=0.5).save(folder)  # a newer one takes its place
    assert SoftPrompt.load(folder, engine).temperature == 0.5
    assert [p.name for p in tmp_path.iterdir()] == ["prompt"]


def test_another_run_refuses_a_prompt(home, engine, cache, tmp_path):
    first, second = engine, qa.Engine(qa.QAnchor.from_pretrained(home / "run1"))
    prompt = drawn(first)
    folder = prompt.save(tmp_path / "prompt")
    runs = [loaded.model.run[:16] for loaded in (first, second)]
    with pytest.raises(
        RunError, match="tuned on run {}, but this engine serves run {}".format(*runs)
    ):
        SoftPrompt.load(folder, second)
    message = "run {}, but this model is run {}[.] Load that".format(*runs)
    with pytest.raises(ValueError, match=message):
        second.embed(cache, prompt)


def test_torn_and_foreign_folders_are_refused(home, engine, tmp_path):
    with pytest.raises(RunError, match="nowhere is not a soft prompt"):
        SoftPrompt.load(tmp_path / "nowhere", engine)
    with pytest.raises(
        ValueError, match=r"run0 holds 'concepts.json' but no prompt.json. Choose a new folder"
    ):
        drawn(engine).save(home / "run0")
    with pytest.raises(ValueError, match=r"was not loaded from a run\. Save the model"):
        replace(drawn(engine), run="").save(tmp_path / "prompt")
    folder = drawn(engine).save(tmp_path / "prompt")
    file = folder / "prompt.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    with pytest.raises(RunError, match=r"prompt.safetensors has sha256 .*prompt.json says"):
        SoftPrompt.load(folder, engine)
    (folder / "prompt.json").write_text("{")
    with pytest.raises(RunError, match="is damaged or was saved by another version"):
        SoftPrompt.load(folder, engine)


@pytest.mark.parametrize(
    "halt", [OSError("no space left"), KeyboardInterrupt()], ids=["error", "kill"]
)
def test_a_save_cut_short_leaves_the_old_prompt(engine, tmp_path, monkeypatch, halt):
    prompt = drawn(engine)
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
