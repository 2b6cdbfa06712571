"""Training learns by heart what it is shown, goes on after a kill as if nothing had happened, and
keeps to its time.
"""

import importlib
import itertools
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from qanchor.config import TINY
from qanchor.data.sample import make_sample_users
from qanchor.models.collate import collate_users
from qanchor.models.model import QAnchor
from qanchor.models.preprocessor import UserPreprocessor
from qanchor.training.dataset import PairDataset
from qanchor.training.joint_step import _parts
from qanchor.training.trainer import HISTORY, FP32MasterWeights, train, training_stages
from qanchor.useru.pairs import make_pairs
from tests.tiny import forward

THINGS = ("tea", "cars", "rain", "books", "shoes", "music", "trips", "pets")
SHORT = {"queries_per_user": 2, "train_batch_size": 4, "max_answer_tokens": 8}


@pytest.fixture(scope="module")
def users():
    return make_sample_users(25)


@pytest.fixture(scope="module")
def pairs(users) -> pd.DataFrame:
    """200 pairs that only a good memory can hold: 25 users, 8 queries, and for each an answer that
    means nothing.
    """
    draw = np.random.default_rng(0)
    words = ["".join(draw.choice(list("abcdefghijklmnopqrstuvwxyz"), 5)) for _ in range(200)]
    asked = [(user, users.cutoff, f"{thing}?") for user in users.ids for thing in THINGS]
    frame = pd.DataFrame(asked, columns=["user", "cutoff", "query"])
    return frame.assign(answer=words)


def untrained(users, pairs, **changes) -> QAnchor:
    config = TINY.replace(**changes)
    return QAnchor(
        config,
        UserPreprocessor.fit(users, pairs[["user", "cutoff"]].drop_duplicates(), config),
        device="cpu",
    )


@pytest.mark.slow
def test_200_pairs_are_learned_by_heart(users, pairs):
    # every other answer is truly false here: a margin of 2 says that none of them is to be dropped
    model = untrained(
        users,
        pairs,
        queries_per_user=8,
        train_batch_size=25,
        head_warmup_steps=200,
        false_negative_margin=2.0,
    )
    history = train(model, users, pairs, steps=60)
    batch = collate_users(model.preprocessor.transform(users), range(25))
    with torch.no_grad():
        anchors = forward(
            model, batch, [[model.tokenize_query(f"{thing}?") for thing in THINGS]] * 25
        )[0]
        nearest = (anchors @ model.embed_answer(list(pairs["answer"])).T).argmax(1)
    assert (nearest == torch.arange(200)).float().mean() > 0.95
    assert history["contrastive"].iloc[-1] < 0.25 * history["contrastive"].iloc[0]
    assert (
        list(history.columns)
        == list(HISTORY)
        == ["step", "loss", "contrastive", "autoregressive", "pairs_per_s"]
    )
    assert history["step"].tolist() == list(range(1, 61)) and (history["pairs_per_s"] > 0).all()
    np.testing.assert_allclose(
        history["loss"], history["contrastive"] + history["autoregressive"], rtol=1e-5
    )
    assert not model.training


def test_the_model_learns_to_write_its_answers(users, pairs):
    same = pairs.assign(answer="certainly so.")
    model = untrained(users, same, contrastive_weight=0.0, **SHORT | {"max_answer_tokens": 16})
    history = train(model, users, same, steps=40)
    # random word vectors are short: even a perfect hidden state cannot be much surer than this
    assert history["autoregressive"].iloc[0] == pytest.approx(np.log(257), abs=0.2)
    assert history["autoregressive"].iloc[-3:].mean() < history["autoregressive"].iloc[0] - 0.4


def test_only_what_should_learn_moves(users, pairs):
    model = untrained(users, pairs, **SHORT)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    train(model, users, pairs, steps=2)
    moved = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert {"user_emb", "encoder.scale", "projection.out.weight", "skip.inner.weight"} <= moved
    assert {n for n in moved if n.startswith("backbone.")} == {n for n in before if "lora" in n}


def test_the_same_seed_gives_the_same_and_another_does_not(users, pairs):
    changes, state = (
        SHORT | {"gated_skip_dropout": 0.2, "head_warmup_steps": 3},
        torch.random.get_rng_state(),
    )
    runs = [
        train(untrained(users, pairs, **changes), users, pairs, steps=3, seed=seed)["loss"]
        for seed in (0, 0, 1)
    ]
    assert runs[0].equals(runs[1]) and not runs[0].equals(runs[2])
    assert torch.equal(state, torch.random.get_rng_state())


class Killed(Exception):
    """Stand for a machine that goes away."""


@pytest.mark.slow
@pytest.mark.parametrize("warm", [0, 4])
def test_a_killed_training_goes_on_bit_for_bit(users, pairs, tmp_path, warm):
    changes = SHORT | {"head_warmup_steps": warm, "lora_dropout": 0.1, "gated_skip_dropout": 0.2}
    file = tmp_path / "made" / "state"

    def at_55(stage, done, total, loss):
        if stage == "training" and done == 55:
            raise Killed

    whole = untrained(users, pairs, **changes)
    expected = train(whole, users, pairs, steps=60, checkpoint=tmp_path / "other")
    torch.rand(3)  # what others draw does not matter
    with pytest.raises(Killed):
        train(
            untrained(users, pairs, **changes),
            users,
            pairs,
            steps=60,
            checkpoint=file,
            progress=at_55,
        )
    assert sorted(p.name for p in file.parent.iterdir()) == [
        "state",
        "state.before",
    ]  # nothing half-written beside them
    stages = []
    after = untrained(users, pairs, **changes)
    history = train(
        after,
        users,
        pairs,
        steps=60,
        checkpoint=file,
        resume=True,
        progress=lambda *told: stages.append(told[:2]),
    )
    assert (
        ("training", 51) in stages
        and ("training", 50) not in stages
        and "warm start" not in dict(stages)
    )
    assert list(dict(stages)) == list(training_stages(after.config, resumed=True))
    told = [c for c in HISTORY if c != "pairs_per_s"]
    pd.testing.assert_frame_equal(history[told], expected[told], check_exact=True)
    assert all(torch.equal(a, whole.state_dict()[n]) for n, a in after.state_dict().items())


def test_resuming_without_a_checkpoint_starts_anew(users, pairs, tmp_path):
    model = untrained(users, pairs, **SHORT)
    assert len(train(model, users, pairs, steps=2, checkpoint=tmp_path / "none", resume=True)) == 2
    assert (tmp_path / "none").exists()


def test_minutes_are_kept(users, pairs, monkeypatch):
    clock = itertools.count(
        0, 0.1
    )  # a tenth of a second passes each time somebody looks: a step takes about two looks
    home = importlib.import_module("qanchor.training.trainer")
    monkeypatch.setattr(home, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    stages = []
    history = train(
        untrained(users, pairs, **SHORT),
        users,
        pairs,
        minutes=4 / 60,
        progress=lambda *t: stages.append(t),
    )
    assert 2 < next(clock) <= 8 and 15 <= len(history) <= 40
    assert stages[-1][:3] == (
        "training",
        len(history),
        len(history),
    )  # the schedule ended where the time did
    assert (
        len(train(untrained(users, pairs, **SHORT), users, pairs, steps=6, minutes=10)) == 6
    )  # and steps stay the most
    assert (
        len(train(untrained(users, pairs, **SHORT), users, pairs, minutes=0)) == 5
    )  # it ends as soon as it knows


@pytest.mark.slow
@pytest.mark.parametrize(
    ("minutes", "at_least", "at_most"),
    [(None, 400, 400), (10, 400, 400), (0.5, 100, 200), (0, 40, 40)],
)
def test_what_is_left_of_the_minutes_is_the_last_fits(
    users, pairs, monkeypatch, minutes, at_least, at_most
):
    clock = (
        itertools.count()
    )  # each look takes a second: so does a fit, of any length, and a joint step takes two
    monkeypatch.setattr(
        importlib.import_module("qanchor.training.trainer"),
        "time",
        SimpleNamespace(monotonic=lambda: next(clock)),
    )
    changes, stages = SHORT | {"head_warmup_steps": 10, "head_refit_steps": 400}, []
    options = {
        "steps": 8,
        "minutes": minutes,
        "progress": lambda stage, done, total, _: stages.append((stage, done, total)),
    }
    train(untrained(users, pairs, **changes), users, pairs, **options)
    stage, done, total = stages[-1]
    assert stage == "last fit" and done == total and at_least <= total <= at_most
    assert max(n for stage, n, _ in stages if stage == "training") == (
        8 if minutes in (None, 10) else 5
    )


def test_no_pairs_no_training(users, pairs):
    with pytest.raises(ValueError, match="0 pairs to train on, at least 1 is needed: make them"):
        train(untrained(users, pairs), users, pairs.iloc[:0])


def test_real_pairs_go_through(users):
    made = make_pairs(users, per_sample=4)
    model = untrained(users, made, head_warmup_steps=5, head_refit_steps=4)
    seen = []
    history = train(
        model, users, made, steps=3, progress=lambda stage, done, total, loss: seen.append(stage)
    )
    assert np.isfinite(history.to_numpy()).all() and len(history) == 3
    assert list(dict.fromkeys(seen)) == list(training_stages(model.config))
    warm, last = ([f"{fit}, reading", fit] for fit in ("warm start", "last fit"))
    assert list(training_stages(model.config)) == ["reading", *warm, "training", *last]


def test_queries_and_answers_are_counted_together(users, pairs):
    told = []
    train(
        untrained(users, pairs, head_warmup_steps=2),
        users,
        pairs,
        steps=1,
        progress=lambda *t: told.append(t),
    )
    reading = [t[1:3] for t in told if t[0] == "warm start, reading"]
    assert (
        {total for _, total in reading} == {8 + 200}
        and reading[-1][0] == 208
        and (8, 208) in reading
    )
    assert [done for done, _ in reading] == sorted({done for done, _ in reading})


def test_few_pairs_fill_a_step(users, pairs):
    assert (
        len(
            train(
                untrained(users, pairs.iloc[:1], head_warmup_steps=2),
                users,
                pairs.iloc[:1],
                steps=2,
            )
        )
        == 2
    )


def test_samples_hold_every_pair_once(users, pairs):
    shuffled = pairs.sample(frac=1, random_state=0).reset_index(drop=True)
    samples = PairDataset(untrained(users, pairs), shuffled)
    assert len(samples) == 25 and sorted(np.concatenate(samples.rows)) == list(range(200))
    for sample, rows in enumerate(samples.rows):
        assert set(shuffled["user"].iloc[rows]) == {samples.keys["user"][sample]}
    drawn = samples.draw(np.random.default_rng(0), np.array([3, 4]), 5)
    assert drawn.shape == (2, 5) and all(len(set(row)) == 5 for row in drawn)
    assert set(drawn[0]) <= set(samples.rows[3]) and set(drawn[1]) <= set(samples.rows[4])


def test_the_heads_are_fitted_to_some_of_every_grade(users, pairs):
    """Of a few answers the commonest are kept, yet none of the rare grades is left out."""
    made = pd.DataFrame(
        [(user, f"no, {i % 8}", 0, 30) for i, user in enumerate(users.ids)]
        + [(user, f"often, {i}", 4, 7) for i, user in enumerate(users.ids[:4])],
        columns=["user", "answer", "grade", "horizon_days"],
    ).assign(cutoff=users.cutoff, query="Tea?", topic="tea", kind="future")
    samples = PairDataset(untrained(users, pairs), made).common(4)
    kept = np.concatenate(samples.rows)
    assert made.loc[kept, "answer"].nunique() == 4 and set(made.loc[kept, "grade"]) == {0, 4}
    assert "no, 0" in set(made.loc[kept, "answer"])


def test_the_heads_are_fitted_to_some_summaries(users, pairs):
    made = pd.DataFrame(
        [(user, f"Very active: {i}.", "summary", -1) for i, user in enumerate(users.ids)]
        + [(user, f"Likely: {i % 20}.", "tea", 1) for i, user in enumerate(users.ids * 2)],
        columns=["user", "answer", "topic", "grade"],
    ).assign(cutoff=users.cutoff, query="Tea?", kind="future", horizon_days=30)
    model = untrained(users, pairs)
    kept = made.loc[np.concatenate(PairDataset(model, made).common(16).rows)]
    assert kept.groupby("topic")["answer"].nunique().to_dict() == {"summary": 4, "tea": 12}
    without = made.drop(columns="grade")
    assert (
        without.loc[np.concatenate(PairDataset(model, without).common(16).rows), "answer"].nunique()
        == 16
    )


def test_small_steps_are_not_lost_in_bfloat16():
    line = torch.nn.Linear(4, 1, bias=False).to(torch.bfloat16)
    with torch.no_grad():
        line.weight.fill_(1.0)
    masters = FP32MasterWeights(line, lr=1e-4, head_lr=1e-4, decay=0.0)
    for _ in range(100):
        line.weight.grad = torch.ones_like(line.weight)
        masters.step(1.0, clip=1.0)
    assert (
        line.weight.float().max() < 0.995
    )  # one step of 1e-4 alone would be rounded away each time
    assert masters.copy[0].dtype == torch.float32 and line.weight.dtype == torch.bfloat16


LESS = {
    "parts": {"mini_batch_size": 3},
    "tokens": {"mini_batch_num_tokens": 500},
    "gradient_checkpointing": {"gradient_checkpointing": True},
}


@pytest.mark.parametrize("changes", LESS.values(), ids=LESS)
def test_less_memory_gives_the_same_gradient(users, pairs, tmp_path, changes):
    """In parts of 3, 3 and 2 users or of so many tokens, or with activations computed again: what
    one whole step gives.
    """
    found = {}
    for name, some in (("whole", {}), ("less", changes)):
        model = untrained(users, pairs, **SHORT | {"train_batch_size": 8} | some)
        history = train(model, users, pairs, steps=1, checkpoint=tmp_path / name)
        found[name] = history, load_file(tmp_path / name)
    (whole, state), (less, other) = found.values()
    losses = ["loss", "contrastive", "autoregressive"]
    np.testing.assert_allclose(less[losses], whole[losses], atol=1e-5, rtol=1e-5)
    moments = [key for key in state if key.endswith("exp_avg")]  # a tenth of the gradient
    assert len(moments) > 20 and max(state[key].abs().max() for key in moments) > 1e-4
    for key in moments:
        torch.testing.assert_close(10 * other[key], 10 * state[key], rtol=0, atol=1e-5)


def test_parts_of_a_budget_hold_users_of_like_length_and_are_the_same_in_every_process():
    tokens, budget = np.array([9, 1, 5, 2, 2, 8, 3, 30]), TINY.replace(mini_batch_num_tokens=20)
    order, groups = _parts(budget, tokens, 2)
    assert tokens[order].tolist() == [1, 2, 5, 9, 2, 3, 8, 30]  # each share in its own order
    assert [g.tolist() for g in groups] == [
        [0, 1],
        [2],
        [3],
    ]  # 2 x 3 tokens; with the next 3 x 8; 30, over the budget, alone
    assert [g.tolist() for g in _parts(budget.replace(mini_batch_size=1), tokens, 2)[1]] == [
        [0],
        [1],
        [2],
        [3],
    ]
    order, groups = _parts(TINY.replace(mini_batch_size=3), tokens, 2)
    assert order.tolist() == list(range(8)) and [g.tolist() for g in groups] == [[0, 1, 2], [3]]


def test_given_features_train_the_same_and_users_are_not_read_again(users, pairs, monkeypatch):
    samples, config = pairs[["user", "cutoff"]].drop_duplicates(), TINY.replace(**SHORT)
    expected = train(untrained(users, pairs, **SHORT), users, pairs, steps=2)
    preprocessor, features = UserPreprocessor.fit_transform(users, samples, config)
    monkeypatch.delattr(UserPreprocessor, "transform")
    model, stages = QAnchor(config, preprocessor, device="cpu"), []
    history = train(
        model,
        users,
        pairs,
        features=features,
        steps=2,
        progress=lambda stage, *_: stages.append(stage),
    )
    pd.testing.assert_frame_equal(
        history.drop(columns="pairs_per_s"), expected.drop(columns="pairs_per_s"), check_exact=True
    )
    assert list(dict.fromkeys(stages)) == list(training_stages(config, with_features=True))


def test_features_of_other_samples_are_refused(users, pairs):
    model = untrained(users, pairs, **SHORT)
    features = model.preprocessor.transform(users.select(users.ids[1:]))
    with pytest.raises(
        ValueError, match="The features have 24 samples, the pairs 25, or their users differ"
    ):
        train(model, users, pairs, features=features, steps=1)
