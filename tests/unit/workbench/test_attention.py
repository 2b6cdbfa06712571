"""The attention back end adds up to what attention and effects say one by one; an edited user is
the user built so.
"""

import numpy as np
import pandas as pd
import pytest
import torch

from qanchor.analysis.attention import (
    UserAttention,
    attention_table,
    mean_rank_agreement,
    modality_attention,
    modality_importance,
    rank_agreement,
    ranks_disagree,
)
from qanchor.data.users import Users
from qanchor.prompt_tuning.soft_prompt import SoftPrompt
from qanchor.workbench.attention import AttentionBackend, edit_user_events
from qanchor.workbench.messages import attention_summary, edit_summary
from tests.tiny import CUTOFF, make_engine, make_model, make_users

QUERY, OTHER = "Will this user travel soon?", "Is this user price-conscious?"
WHOLE = "layer == -1 and head_group == -1"


@pytest.fixture(scope="module")
def engine():
    return make_engine(make_model())


@pytest.fixture(scope="module")
def looker(engine):
    return AttentionBackend(engine, make_users())


def last(updates):
    *_, update = updates
    return update


def soft_prompt(engine) -> SoftPrompt:
    width, draw = len(engine.model.user_emb), torch.Generator().manual_seed(0)
    return SoftPrompt(
        QUERY,
        (0, 1),
        torch.randn(3, width, generator=draw),
        torch.zeros(384),
        torch.eye(2, 32),
        0.1,
    )


def test_the_ledger_is_what_attention_and_effects_say(engine, looker):
    users = make_users()
    ledger = last(looker(QUERY)).data["table"]
    assert (
        set(ledger["query"]) == {QUERY}
        and not ledger.duplicated(["layer", "head_group", "modality"]).any()
    )
    np.testing.assert_allclose(
        ledger.groupby(["layer", "head_group"])["weight"].sum(), 1, atol=1e-5
    )
    looks = modality_attention(engine, engine.prefill(users), QUERY, by_head=True)
    heads, kv = (
        getattr(engine.model.backbone.config, f"num_{k}_heads") for k in ("attention", "key_value")
    )
    looks["head_group"] = looks["head"] // (heads // kv)
    one = looks[(looks["layer"] == 1) & (looks["head_group"] == 0)]
    expected = (
        one.groupby(["user", "modality"])["weight"].mean().unstack(fill_value=0).fillna(0).mean()
    )
    found = ledger.query("layer == 1 and head_group == 0").set_index("modality")["weight"]
    np.testing.assert_allclose(found, expected[found.index], atol=1e-5)
    whole = ledger.query(WHOLE).set_index("modality")
    everywhere = looks.groupby(["user", "modality"])["weight"].mean() * 1.0
    assert whole["weight"]["sink"] == pytest.approx(everywhere.unstack()["sink"].mean(), abs=1e-5)
    np.testing.assert_allclose(whole["per_token"] * whole["slots"], whole["weight"], rtol=1e-6)
    told = modality_importance(engine, users, QUERY)
    mean = told.groupby("modality")["deletion_effect"].mean()
    effects = whole["deletion_effect"]
    np.testing.assert_allclose(effects[mean.index], mean, atol=1e-5)
    assert effects[~whole.index.isin(mean.index)].isna().all()
    assert set(whole.index[whole["kind"] == "modality"]) == {"bill", "app", "search", "tabular"}
    for column, after in (("weight", ""), ("per_token", "_per_token")):
        rank = rank_agreement(
            modality_attention(engine, engine.prefill(users), QUERY), told, column
        )["correlation"].mean()
        assert whole[f"agreement{after}"].iloc[0] == pytest.approx(rank, abs=1e-6)


def test_a_mark_stands_where_the_ranks_are_two_apart():
    values, effect = np.array([[0.4, 0.3, 0.2, 0.1, 0.9]]), np.array([0.1, 0.4, 0.3, 0.2, np.nan])
    assert ranks_disagree(values, effect).tolist() == [
        [True, False, False, False, False]
    ]  # places 1 2 3 4 against 4 1 2 3
    assert not ranks_disagree(values[0, :2], effect[:2]).any()
    values = np.array([[[3.0, 2, 1, 9]], [[1.0, 1, 1, 9]], [[1.0, 2, 9, 9]]])
    effects = np.array([[3.0, 1, 2, np.nan], [1, 2, 3, np.nan], [1, 2, np.nan, np.nan]])
    assert mean_rank_agreement(values, effects) == pytest.approx(
        [0.5]
    )  # the other two cannot be ranked
    assert np.isnan(mean_rank_agreement(values[1:], effects[1:])).all()


@pytest.mark.parametrize(
    ("effect", "words"),
    [
        ([0.3, 0.2, 0.1], "1.00 (1 is the same order, 0 none): they agree."),
        ([0.1, 0.2, 0.3], "contradict"),
    ],
)
def test_the_sentence_is_plain_also_when_agreement_is_poor(effect, words):
    look = UserAttention(
        np.array([[[0.5, 0.3, 0.1, 0.1]]]),
        np.ones(4),
        np.ones(2),
        np.array([*effect, np.nan]),
    )
    frame = attention_table("q", [look], ["a", "b", "c", "sink"], ["a", "b", "c"])
    told = attention_summary(frame)
    assert words in told and "a gets most attention (50.0 %)" in told
    assert ("do not read attention as importance" in told) == (effect[0] < effect[2])
    bare = attention_summary(frame.assign(deletion_effect=np.nan))
    assert bare == "Of all modalities, a gets most attention (50.0 %)."


def test_two_queries_share_readings_and_are_told_apart(engine, looker):
    update = last(looker(QUERY, OTHER, ["a", "e"]))
    both = update.data["table"]
    assert (
        list(dict.fromkeys(both["query"])) == [QUERY, OTHER]
        and "Compared with the other query" in update.message
    )
    alone = last(AttentionBackend(engine, make_users())(OTHER, users=["a", "e"])).data["table"]
    columns = ["layer", "head_group", "modality", "weight", "deletion_effect"]
    mine = both.loc[both["query"] == OTHER, columns].reset_index(drop=True)
    pd.testing.assert_frame_equal(mine, alone[columns], atol=1e-5)


def test_a_soft_prompt_stands_for_a_query(engine):
    looker = AttentionBackend(engine, make_users())
    table = last(looker(soft_prompt(engine), QUERY, ["a"])).data["table"].query(WHOLE)
    tuned = f"{QUERY} (tuned)"
    assert list(dict.fromkeys(table["query"])) == [tuned, QUERY]
    row = table[(table["query"] == tuned) & (table["modality"] == "soft prompt")].iloc[0]
    assert row["slots"] == 3 and row["weight"] > 0 and row["kind"] == "other"
    assert "soft prompt" not in set(table.loc[table["query"] == QUERY, "modality"])


def test_updates_count_readings_and_closing_cancels(engine, monkeypatch):
    monkeypatch.setattr("qanchor.workbench.attention.USERS_PER_UPDATE", 4)
    looker = AttentionBackend(engine, make_users())
    updates = list(looker(QUERY))
    done = [update.done for update in updates]
    assert done == sorted(done) and done[-1] == updates[-1].total == 9 * 5
    words = [
        update.message for update in updates if update.message.startswith("Deleted each modality")
    ]
    assert words == [f"Deleted each modality once from {n} of 9 users ..." for n in (4, 8, 9)]
    frames = [update.data["table"] for update in updates if update.data["table"] is not None]
    assert (
        frames[0]["deletion_effect"].isna().all()
        and frames[-1].query(WHOLE)["deletion_effect"].notna().sum() == 4
    )
    assert [u.data["table"] is None for u in updates[:2]] == [True, True]
    again = AttentionBackend(engine, make_users())
    running = again(QUERY)
    for _ in range(4):
        next(running)
    running.close()
    assert all(
        np.isnan(look.effect).all() for look in again.results.values()
    )  # nothing half done is kept
    pd.testing.assert_frame_equal(last(again(QUERY)).data["table"], updates[-1].data["table"])
    assert len(list(looker(QUERY))) < len(updates)  # known by now


def test_samples_are_drawn_by_seed_and_said(engine):
    looker = AttentionBackend(engine, make_users(), most=3, seed=1)
    update = last(looker(QUERY))
    assert "Mean over 3 users of 9 (drawn by seed 1)" in update.caption and len(looker.results) == 3
    assert (
        last(AttentionBackend(engine, make_users(), most=3, seed=1)(QUERY)).caption
        == update.caption
    )
    assert "of 9" not in last(looker(QUERY, users=["a", "b"])).caption
    one = last(looker(QUERY, users=["a"]))
    assert one.caption.startswith("a; 2 layers") and " moves a farthest" in one.message
    assert "the skip" in update.caption


def test_what_cannot_be_looked_at_is_refused(engine, looker):
    for call, kind, words in (
        (lambda: looker("  "), ValueError, "The query is empty"),
        (lambda: looker(QUERY, users=[]), ValueError, "No users selected"),
        (lambda: looker(QUERY, users=["zoe"]), KeyError, "User 'zoe' is not among the 9"),
        (lambda: looker.rerun(QUERY, "a"), ValueError, "No event was dropped or reworded"),
        (
            lambda: looker.rerun(QUERY, "a", reword={looker.events("a")["event"][0]: " "}),
            ValueError,
            "0 characters",
        ),
        (
            lambda: looker.rerun(QUERY, "a", drop=[looker.events("b")["event"][0]]),
            KeyError,
            "is not among the 60",
        ),
    ):
        with pytest.raises(kind, match=words):
            next(call())
    with pytest.raises(ValueError, match="most is 0"):
        AttentionBackend(engine, make_users(), most=0)


def rebuilt(users: Users, change) -> Users:
    events = change(users.events.astype({"user": str, "modality": str, "text": str}))
    kept = {"tabular": users.tabular, "labels": users.labels, "modalities": users.modalities}
    return Users.from_events(events, CUTOFF, **kept)


def test_an_edited_user_is_the_user_built_so(engine, looker):
    users, mine = make_users(), looker.events("a")
    assert mine["time"].is_monotonic_decreasing and (mine["time"] < CUTOFF).all()
    gone, told = mine["event"][:2].tolist(), mine["event"][3]
    edited = edit_user_events(users, "a", gone, {told: "concert in Vienna"})
    twin = rebuilt(
        users,
        lambda e: e.assign(text=e["text"].where(e.index != told, "concert in Vienna")).drop(
            index=gone
        ),
    )
    pd.testing.assert_frame_equal(
        edited.events.astype({"text": str}),
        twin.select(["a"]).events.astype({"text": str}),
        check_categorical=False,
    )
    cache = engine.prefill(twin)
    expected = engine.embed(cache, QUERY)[cache.ids.index("a")]
    update = last(looker.rerun(QUERY, "a", gone, {told: "concert in Vienna"}))
    before = engine.embed(engine.prefill(users.select(["a"])), QUERY)[0]
    assert (
        update.data["moved"] == pytest.approx(1 - float(expected @ before), abs=1e-5)
        and update.data["moved"] > 1e-4
    )
    np.testing.assert_allclose(looker.results[f"{QUERY} (edited)", "a"].anchor, expected, atol=1e-5)
    ledger, alone = (
        update.data["table"].query(WHOLE),
        modality_attention(engine, cache, QUERY, ["a"]),
    )
    assert list(dict.fromkeys(ledger["query"])) == [f"{QUERY} (edited)", QUERY]
    found = ledger[ledger["query"] == f"{QUERY} (edited)"].set_index("modality")["weight"]
    mean = alone.groupby("modality")["weight"].mean()
    np.testing.assert_allclose(found[mean.index], mean, atol=1e-5)
    assert update.message.startswith("Without 2 events and with 1 event reworded, a moves by ")
    assert update.data["before"] and update.data["after"] and update.done == update.total


def test_a_user_left_without_events_is_read_too(looker):
    mine = looker.events("b")
    update = last(looker.rerun(QUERY, "b", mine["event"]))
    assert update.data["moved"] > 0 and looker.events("none").empty
    assert (
        edit_summary([1], {}) == "Without 1 event"
        and edit_summary([], {1: "x", 2: "y"}) == "With 2 events reworded"
    )
