"""One pass over K branches is K separate passes, gradients too; an answer never reaches its own
anchor.
"""

import pytest
import torch

from qanchor.config import TINY
from qanchor.models.collate import branch_mask, collate_queries, collate_users, group_by_length
from qanchor.models.heads import GatedSkip
from qanchor.models.model import QAnchor
from qanchor.models.prefix_encoder import EVENT, GROUP, HABIT, MODALITY, USER
from tests.tiny import QUERIES, forward, make_model, make_users

ANSWERS = (
    "Very likely to travel: twice.",
    "No.",
    "Rather unlikely to stop, as far as the records say.",
    "Yes, often",
)
ROWS = [0, 1, 2, 8]  # users with many events, one, seven and none


@pytest.fixture(scope="module", params=["coarse_to_fine", "append_only"])
def model(request):
    return make_model(token_order=request.param)


@pytest.fixture(scope="module")
def readings(model):
    return model.preprocessor.transform(make_users())


def asked(model, answers=ANSWERS):
    queries = [model.tokenize_query(q) for q in QUERIES]
    return [[queries[(u + k) % 4] for k in range(3)] for u in range(len(ROWS))], [
        [model.tokenize_answer(answers[(u + 2 * k) % len(answers)]) for k in range(3)]
        for u in range(len(ROWS))
    ]


def gradients(model) -> dict[str, torch.Tensor]:
    grads = {
        n: p.grad.clone()
        for n, p in model.named_parameters()
        if p.requires_grad and p.grad is not None
    }
    model.zero_grad()
    return grads


@pytest.mark.parametrize("side", ["left", "right"])
def test_k_branches_equal_separate_passes(model, readings, side):
    queries, answers = asked(model)
    draw = torch.Generator().manual_seed(0)
    weight = (
        torch.randn(len(ROWS), 3, model.config.embedding_dim, generator=draw) / 12
    )  # a mean over pairs, as the losses are
    model.zero_grad()
    whole, writing, _ = forward(model, collate_users(readings, ROWS, side), queries, answers)
    ((whole.view_as(weight) * weight).sum() + 0.001 * writing.square().sum()).backward()
    together, spoken = gradients(model), writing.detach().square().sum()
    apart, said = [], 0.0
    for u, row in enumerate(ROWS):
        for k in range(3):
            one, hidden, _ = forward(
                model, collate_users(readings, [row]), [[queries[u][k]]], [[answers[u][k]]]
            )
            ((one[0] * weight[u, k]).sum() + 0.001 * hidden.square().sum()).backward()
            apart.append(one[0].detach())
            said += hidden.detach().square().sum()
    torch.testing.assert_close(whole.detach(), torch.stack(apart), atol=1e-5, rtol=0)
    torch.testing.assert_close(spoken, said, rtol=1e-5, atol=0)
    separate = gradients(model)
    assert together.keys() == separate.keys() and {n.split(".")[0] for n in together} >= {
        "encoder",
        "backbone",
        "user_emb",
    }
    for name, grad in together.items():
        scale = max(1.0, separate[name].abs().max().item())
        torch.testing.assert_close(
            grad / scale,
            separate[name] / scale,
            atol=1e-5,
            rtol=0,
            msg=lambda m, n=name: f"{n}: {m}",
        )


def test_everything_that_should_learn_gets_a_gradient(model, readings):
    queries, answers = asked(model)
    anchors, writing, targets = forward(
        model, collate_users(readings, ROWS), queries, answers, [answers[0][0]]
    )
    (anchors.sum() + model.logits(writing).sum() + targets.sum()).backward()
    learns = {n for n, p in model.named_parameters() if p.requires_grad}
    silent = {n for n in learns if dict(model.named_parameters())[n].grad is None}
    assert not silent and {n for n in learns if n.startswith("backbone.")} == {
        n for n in learns if "lora" in n
    }


def test_the_answer_cannot_leak_into_the_anchor(model, readings):
    queries, answers = asked(model)
    batch = collate_users(readings, ROWS)
    first = forward(model, batch, queries, answers)[0]
    other = [
        [[(t + 7) % 250 for t in answer[:-1]] + answer[-1:] for answer in user] for user in answers
    ]
    assert torch.equal(first, forward(model, batch, queries, other)[0])
    longer = [[answer[:-1] * 2 + answer[-1:] for answer in user] for user in answers]
    torch.testing.assert_close(first, forward(model, batch, queries, longer)[0], atol=1e-6, rtol=0)
    torch.testing.assert_close(first, forward(model, batch, queries)[0], atol=1e-6, rtol=0)


def test_what_stands_under_the_padding_does_not_matter(model, readings):
    queries, answers = asked(model)
    batch = collate_users(readings, ROWS)
    pads = ~batch.event_mask
    assert pads.any()
    dirty = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in vars(batch).items()}
    dirty["event_text"][pads], dirty["event_number"][pads], dirty["event_modality"][pads] = (
        9.0,
        -7.0,
        2,
    )
    clean = forward(model, batch, queries, answers)[0]
    assert torch.equal(clean, forward(model, type(batch)(**dirty), queries, answers)[0])


@pytest.mark.parametrize(
    "changes",
    [{}, {"gated_skip": False}, {"token_order": "append_only"}, {"lora_num_layers": 0}],
    ids=str,
)
def test_both_towers_give_unit_vectors(changes):
    model = make_model(**changes)
    readings = model.preprocessor.transform(make_users())
    z = model.embed(collate_users(readings, range(9)), QUERIES[0])
    targets = model.embed_answer(list(ANSWERS))
    assert (
        z.shape == (9, 32)
        and targets.shape == (4, 32)
        and z.dtype == targets.dtype == torch.float32
    )
    for side in (z, targets):
        torch.testing.assert_close(side.norm(dim=1), torch.ones(len(side)))
    assert (model.skip is None) == ("gated_skip" in changes)
    assert (z - model.embed(collate_users(readings, range(9)), QUERIES[2])).abs().max(
        1
    ).values.min() > 1e-4


def test_a_taught_question_gets_no_portrait_and_a_strange_one_does():
    model = make_model()
    batch, portrait = (
        collate_users(model.preprocessor.transform(make_users()), range(9)),
        model.config.profile_dim,
    )
    assert (
        model.embed(batch, QUERIES[0])[:, -portrait:].std(0).max() > 1e-3
    )  # untaught, every question is strange
    model.skip.remember(model.query_text_embeddings(list(QUERIES[:3])))
    assert not model.embed(batch, QUERIES[0])[:, -portrait:].any()
    assert model.embed(batch, "Has this user a piano?")[:, -portrait:].std(0).max() > 1e-3
    assert not model.embed_answer(list(ANSWERS))[:, -portrait:].any()
    assert model.embed(batch, QUERIES[0])[:, :-portrait].std(0).max() > 1e-3


def test_of_more_queries_than_there_is_room_for_the_most_unlike_are_kept():
    skip = GatedSkip(coarse=3, text=4, hidden=8, dim=5, dropout=0.0, memory=2)
    east, north = torch.eye(4)[:2]
    skip.remember(torch.stack([east, east + 0.1 * north, north, east]))
    torch.testing.assert_close(skip.query_memory, torch.stack([east, north]))
    asked = torch.stack([5 * east, east + north, torch.eye(4)[2]])
    torch.testing.assert_close(
        skip.novelty(asked)[:, 0], torch.tensor([0.0, (0.8 - 0.5**0.5) / 0.2, 1.0])
    )


def test_answers_are_read_alone_whatever_stands_beside_them(model, readings):
    together = model.embed_answer(list(ANSWERS))
    apart = torch.cat([model.embed_answer([answer]) for answer in ANSWERS])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=0)
    targets = forward(
        model, collate_users(readings, ROWS), *asked(model), [model.tokenize_answer(ANSWERS[1])]
    )[2]
    torch.testing.assert_close(targets, together[1:2], atol=1e-5, rtol=0)


def test_slots_stand_in_the_order_of_the_layout():
    users = make_users()
    for layout in ("coarse_to_fine", "append_only"):
        model = make_model(token_order=layout)
        prefix = model.encode_prefix(collate_users(model.preprocessor.transform(users), [0]))
        kinds = prefix.kind[0][prefix.mask[0]].tolist()
        groups = len(model.preprocessor.groups())
        coarse = [USER] + [MODALITY] * 3 + [GROUP] * groups
        whole = coarse + [HABIT] * kinds.count(HABIT) + [EVENT] * 6
        assert kinds == (whole if layout == "coarse_to_fine" else sorted(whole, reverse=True))
        assert prefix.modality[0][prefix.kind[0] == MODALITY].tolist() == [0, 1, 2]
        assert prefix.length().tolist() == [len(kinds)] and prefix.positions()[0][
            prefix.mask[0]
        ].tolist() == [*range(len(kinds))]
    bare = make_model(use_summary_tokens=False)
    kinds = (
        bare.encode_prefix(collate_users(bare.preprocessor.transform(users), [0])).kind[0].tolist()
    )
    assert kinds == [
        k for k in whole if k >= GROUP
    ]  # the paper's ablation: no user slot, no modality slots


def test_an_absent_modality_is_said_with_a_vector_of_its_own():
    model = make_model()
    readings = model.preprocessor.transform(make_users())
    row = make_users().ids.index("d")
    assert readings.present[row].tolist() == [True, False, False]
    batch = collate_users(readings, [row])
    before = model.encode_prefix(batch).tokens
    with torch.no_grad():
        model.encoder.absent[1] += torch.randn(model.encoder.absent.shape[1])
    after = model.encode_prefix(batch)
    moved = (before - after.tokens).abs().amax(-1)[0] > 1e-6
    assert (after.kind[0][moved].tolist(), after.modality[0][moved].tolist()) == (
        [MODALITY],
        [1],
    )  # not the user's own slot


def test_branches_keep_apart():
    laid = collate_queries([[[5, 6], []]], [[[7, 8, 256], [9, 256]]])
    assert laid.ids.tolist() == [[5, 6, -1, 7, 8, -1, 9]] and laid.branch.tolist() == [
        [0, 0, 0, 0, 0, 1, 1]
    ]
    assert laid.offset.tolist() == [[0, 1, 2, 3, 4, 0, 1]] and laid.anchor.tolist() == [[2, 5]]
    assert laid.next_ids[laid.writes].tolist() == [7, 8, 256, 9, 256]
    allow = branch_mask(torch.tensor([[False, True]]), laid.branch)[0]
    for row in range(7):
        for key in range(7):
            same = (row < 5) == (key < 5)
            assert allow[row, 2 + key] == (same and key <= row)
    assert (allow[:, 0] == False).all() and allow[:, 1].all()  # noqa: E712


def test_groups_hold_everybody_once_and_keep_to_the_budget():
    lengths = [7, 1, 30, 2, 2, 9, 1, 50]
    groups = group_by_length(lengths, budget=30, most=3)
    assert sorted(row for group in groups for row in group) == list(range(8))
    assert all(
        len(g) == 1 or (len(g) * max(lengths[r] for r in g) <= 30 and len(g) <= 3) for g in groups
    )
    assert group_by_length([], 10) == []


def test_a_query_too_long_is_refused_and_an_answer_is_cut():
    model = make_model(max_answer_tokens=5)
    with pytest.raises(
        ValueError, match="the query has 11 tokens, the model allows 10: ask in fewer words"
    ):
        model.tokenize_query("x" * 11, 10)
    assert model.tokenize_answer("abcdefgh") == [*b"abcd", 256] and model.tokenize_answer("") == [
        256
    ]


def test_the_seed_decides_the_weights():
    first, again, other = (dict(make_model(seed=s).named_parameters()) for s in (0, 0, 1))
    assert all(torch.equal(first[n], again[n]) for n in first) and not torch.equal(
        first["user_emb"], other["user_emb"]
    )
    state = torch.random.get_rng_state()
    make_model(seed=3)
    assert torch.equal(state, torch.random.get_rng_state())  # nobody's random numbers are disturbed


def test_a_reader_of_another_portrait_is_refused():
    preprocessor = make_model().preprocessor
    with pytest.raises(
        ValueError,
        match=r"the preprocessor's profile has \d+ numbers, config.profile_dim is 3: fit the preprocessor with",
    ):
        QAnchor(TINY.replace(profile_dim=3), preprocessor)
