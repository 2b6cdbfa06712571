"""The attention back end adds up to what attention and effects say one by one; an edited user is
the user built so.
"""

import numpy as np
import pandas as pd
import pytest

import qanchor as qa
from qanchor.analysis.attention import (
    attention_table,
    modality_attention,
    modality_importance,
    rank_agreement,
    ranks_disagree,
)
from qanchor.data.users import Users
from qanchor.workbench.attention import AttentionBackend, edit_user_events
from qanchor.workbench.messages import attention_summary, edit_summary
from tests.fitted import fitted_engine, sample_users

QUERY = "Will this user come back?"
OTHER = "Will this user be less active than before?"
IDS = sample_users().ids[:9]


@pytest.fixture(scope="module")
def users() -> Users:
    return sample_users().select(list(IDS))


@pytest.fixture(scope="module")
def engine():
    return fitted_engine()


@pytest.fixture(scope="module")
def backend(engine, users):
    return AttentionBackend(engine, users)


def measured(weight, effect, modalities):
    """Return the attention and the deletion effects of users, one token for each modality."""
    frames = []
    for user, numbers in enumerate(zip(weight, effect, strict=True)):
        table = dict(zip(("weight", "deletion_effect"), numbers, strict=True))
        frames.append(pd.DataFrame({"user": user, "modality": list(modalities), **table}))
    return pd.concat(frames).assign(tokens=1.0)


def last(updates):
    *_, update = updates
    return update


def test_the_table_is_what_attention_and_effects_say(engine, backend, users):
    table = last(backend(QUERY)).data["table"].set_index("modality")
    assert set(table["query"]) == {QUERY} and table.index.is_unique
    assert table["weight"].sum() == pytest.approx(1, abs=1e-5)
    looks = modality_attention(engine, engine.prefill(users), QUERY)
    expected = looks.pivot(index="user", columns="modality", values="weight").fillna(0).mean()
    np.testing.assert_allclose(table["weight"], expected[table.index], atol=1e-5)
    np.testing.assert_allclose(table["per_token"] * table["tokens"], table["weight"], rtol=1e-6)
    effects = modality_importance(engine, users, QUERY)
    mean = effects.groupby("modality")["deletion_effect"].mean()
    np.testing.assert_allclose(table["deletion_effect"][mean.index], mean, atol=1e-5)
    others = table[~table.index.isin(mean.index)]
    assert set(others.index) == {"number columns", "time of day"} == set(others.index)
    assert others["deletion_effect"].isna().all() and set(others["kind"]) == {"other"}
    for column, after in (("weight", ""), ("per_token", "_per_token")):
        rank = rank_agreement(looks, effects, column)["correlation"].mean()
        assert table[f"agreement{after}"].iloc[0] == pytest.approx(rank, abs=1e-6)


def test_a_mark_stands_where_the_ranks_are_two_apart():
    values = pd.Series([0.4, 0.3, 0.2, 0.1, 0.9])
    effect = pd.Series([0.1, 0.4, 0.3, 0.2, np.nan])
    # places 1 2 3 4 against 4 1 2 3
    assert ranks_disagree(values, effect).tolist() == [True, False, False, False, False]
    assert not ranks_disagree(values[:2], effect[:2]).any()
    values = np.array([[3.0, 2, 1, 9], [1.0, 1, 1, 9], [1.0, 2, 9, 9]])
    effects = np.array([[3.0, 1, 2, np.nan], [1, 2, 3, np.nan], [1, 2, np.nan, np.nan]])
    # the other two cannot be ranked
    for users, agreement in (([0, 1, 2], 0.5), ([1, 2], np.nan)):
        table = attention_table("q", measured(values[users], effects[users], "abcd"), list("abc"))
        assert table["agreement"][0] == pytest.approx(agreement, nan_ok=True)


@pytest.mark.parametrize(
    ("effect", "words"),
    [
        ([0.3, 0.2, 0.1], "1.00 (1 is the same order, 0 none): they agree."),
        ([0.1, 0.2, 0.3], "contradict"),
    ],
)
def test_the_sentence_is_plain_also_when_agreement_is_poor(effect, words):
    rows = ["a", "b", "c", "time of day"]
    users = measured([[0.5, 0.3, 0.1, 0.1]], [[*effect, np.nan]], rows)
    frame = attention_table("q", users, ["a", "b", "c"])
    told = attention_summary(frame)
    assert words in told and "a gets most attention (50.0 %)" in told
    assert ("do not read attention as importance" in told) == (effect[0] < effect[2])
    bare = attention_summary(frame.assign(deletion_effect=np.nan))
    assert bare == "Of all modalities, a gets most attention (50.0 %)."


def test_two_queries_share_readings_and_are_told_apart(engine, backend, users):
    update = last(backend(QUERY, OTHER, IDS[:2]))
    both = update.data["table"]
    assert (
        list(dict.fromkeys(both["query"])) == [QUERY, OTHER]
        and "Compared with the other query" in update.message
    )
    alone = last(AttentionBackend(engine, users)(OTHER, users=IDS[:2])).data["table"]
    columns = ["modality", "weight", "deletion_effect"]
    mine = both.loc[both["query"] == OTHER, columns].reset_index(drop=True)
    pd.testing.assert_frame_equal(mine, alone[columns], atol=1e-5)


def test_a_soft_prompt_stands_for_a_query(engine, users):
    labels = sample_users().label("Active")
    cache = engine.prefill(sample_users())
    prompt, _ = qa.tune_prompt(engine, cache, QUERY, labels, steps=2)
    table = last(AttentionBackend(engine, users)(prompt, QUERY, IDS[:1])).data["table"]
    tuned = f"{QUERY} (tuned)"
    assert list(dict.fromkeys(table["query"])) == [tuned, QUERY]
    found = table[table["query"] == tuned].set_index("modality")["weight"]
    mine = modality_attention(engine, cache, prompt).set_index(["user", "modality"])["weight"]
    mine = mine[IDS[0]]
    np.testing.assert_allclose(found, mine[found.index], atol=1e-5)


def test_updates_count_readings_and_closing_cancels(engine, users, monkeypatch):
    monkeypatch.setattr("qanchor.workbench.attention.USERS_PER_UPDATE", 4)
    backend = AttentionBackend(engine, users)
    updates = list(backend(QUERY))
    done = [update.done for update in updates]
    assert done == sorted(done) and done[-1] == updates[-1].total == 9 * 7
    words = [
        update.message for update in updates if update.message.startswith("Deleted each modality")
    ]
    assert words == [f"Deleted each modality once from {n} of 9 users ..." for n in (4, 8, 9)]
    frames = [update.data["table"] for update in updates if update.data["table"] is not None]
    assert (
        frames[0]["deletion_effect"].isna().all()
        and frames[-1]["deletion_effect"].notna().sum() == 6
    )
    assert [u.data["table"] is None for u in updates[:2]] == [True, True]
    again = AttentionBackend(engine, users)
    running = again(QUERY)
    for _ in range(4):
        next(running)
    running.close()
    effects = [each.table["deletion_effect"] for each in again.results.values()]
    assert all(effect.isna().all() for effect in effects)  # nothing half done is kept
    pd.testing.assert_frame_equal(last(again(QUERY)).data["table"], updates[-1].data["table"])
    assert len(list(backend(QUERY))) < len(updates)  # known by now


def test_samples_are_drawn_by_seed_and_said(engine, users):
    backend = AttentionBackend(engine, users, most=3, seed=1)
    update = last(backend(QUERY))
    assert "Mean over 3 users of 9 (drawn by seed 1)" in update.caption
    assert [len(users) for _, users in backend.results] == [3]
    assert last(AttentionBackend(engine, users, most=3, seed=1)(QUERY)).caption == update.caption
    assert "of 9" not in last(backend(QUERY, users=IDS[:2])).caption
    one = last(backend(QUERY, users=IDS[:1]))
    assert one.caption.startswith(f"{IDS[0]}; attention shows how much each score depends")
    assert f" moves {IDS[0]} farthest" in one.message


def test_what_cannot_be_looked_at_is_refused(engine, backend, users):
    mine, others = (backend.events(user)["event"] for user in IDS[:2])
    for call, kind, words in (
        (lambda: backend("  "), ValueError, "The query is empty"),
        (lambda: backend(QUERY, users=[]), ValueError, "No users selected"),
        (lambda: backend(QUERY, users=["zoe"]), KeyError, "User 'zoe' is not among the 9"),
        (lambda: backend.rerun(QUERY, IDS[0]), ValueError, "No event was dropped or reworded"),
        (
            lambda: backend.rerun(QUERY, IDS[0], reword={mine[0]: " "}),
            ValueError,
            "0 characters",
        ),
        (
            lambda: backend.rerun(QUERY, IDS[0], drop=[others[0]]),
            KeyError,
            f"is not among the {(users.events['user'] == IDS[0]).sum()} of user",
        ),
    ):
        with pytest.raises(kind, match=words):
            next(call())
    with pytest.raises(ValueError, match="most is 0"):
        AttentionBackend(engine, users, most=0)


def rebuilt(users: Users, change) -> Users:
    events = change(users.events.astype({"user": str, "modality": str, "text": str}))
    kept = {"tabular": users.tabular, "labels": users.labels, "modalities": users.modalities}
    return Users.from_events(events, users.cutoff, **kept)


def test_an_edited_user_is_the_user_built_so(engine, backend, users):
    user = IDS[0]
    mine = backend.events(user)
    assert mine["time"].is_monotonic_decreasing and (mine["time"] < users.cutoff).all()
    gone, reworded = mine["event"][:2].tolist(), mine["event"][3]

    def change(events):
        text = events["text"].where(events.index != reworded, "concert in Vienna")
        return events.assign(text=text).drop(index=gone)

    edited = edit_user_events(users, user, gone, {reworded: "concert in Vienna"})
    twin = rebuilt(users, change)
    found, expected = (some.events.astype({"text": str}) for some in (edited, twin.select([user])))
    pd.testing.assert_frame_equal(found, expected, check_categorical=False)
    cache = engine.prefill(twin)
    after = engine.embed(cache, QUERY)[cache.ids.index(user)]
    before = engine.embed(engine.prefill(users.select([user])), QUERY)[0]
    update = last(backend.rerun(QUERY, user, gone, {reworded: "concert in Vienna"}))
    assert update.data["moved"] == pytest.approx(1 - float(after @ before), abs=1e-5)
    assert update.data["moved"] > 1e-4
    [anchor] = backend.results[f"{QUERY} (edited)", (user,)].anchor
    np.testing.assert_allclose(anchor, after, atol=1e-5)
    table = update.data["table"]
    assert list(dict.fromkeys(table["query"])) == [f"{QUERY} (edited)", QUERY]
    found = table[table["query"] == f"{QUERY} (edited)"].set_index("modality")["weight"]
    alone = modality_attention(engine, cache, QUERY).set_index(["user", "modality"])["weight"]
    alone = alone[user]
    np.testing.assert_allclose(found, alone[found.index], atol=1e-5)
    assert update.message.startswith("Without 2 events and with 1 event reworded, ")
    assert update.data["before"] == engine.generate(
        engine.prefill(users.select([user])), user, QUERY
    )
    assert update.data["after"] == engine.generate(cache, user, QUERY)
    assert update.done == update.total


def test_a_user_left_without_events_is_read_too(backend):
    mine = backend.events(IDS[1])
    update = last(backend.rerun(QUERY, IDS[1], mine["event"]))
    assert update.data["moved"] > 0
    assert edit_summary([1], {}) == "Without 1 event"
    assert edit_summary([], {1: "x", 2: "y"}) == "With 2 events reworded"
