"""The event encoder with LoRA: it learns, is saved and served, and tells the same with and without
what it keeps.
"""

import numpy as np
import pytest
import torch

import qanchor as qa
from qanchor.models.collate import collate_users
from qanchor.models.serialization import trained_state
from qanchor.models.text_encoder import TrainableTextEncoder
from qanchor.training.trainer import train
from tests.tiny import make_engine, make_model, make_users

LEARNS = {"text_encoder": "minilm", "text_lora_rank": 4}
QUERY = "Will this user travel soon?"


@pytest.fixture(scope="module")
def users():
    return qa.make_sample_users(30, seed=3)


@pytest.fixture(scope="module")
def trained(users):
    """A model whose event encoder has learned, and the state it began with."""
    pairs = qa.make_pairs(users, per_sample=4)
    config = qa.TINY.replace(**LEARNS, steps=3, train_batch_size=4)
    model = qa.QAnchor(
        config,
        qa.UserPreprocessor.fit(users, pairs[["user", "cutoff"]].drop_duplicates(), config),
        device="cpu",
    )
    before = {name: t.clone() for name, t in model.state_dict().items()}
    train(model, users, pairs, steps=3)
    return model, before


def test_only_lora_of_the_event_encoder_learns(trained):
    model, before = trained
    moved = {
        n
        for n, t in model.state_dict().items()
        if n.startswith("event_texts.") and not torch.equal(t, before[n])
    }
    assert moved and moved == {
        n for n in before if n.startswith("event_texts.") and "lora_" in n and "pooler" not in n
    }


def test_untrained_it_says_what_the_encoder_at_rest_says():
    users, model = make_users(), make_model(text_encoder="minilm", text_lora_rank=4)
    batch = collate_users(model.preprocessor.transform(users), range(len(users)))
    with torch.no_grad():
        filled = model.event_texts.fill(batch)
    at = batch.event_mask
    assert at.any() and len(batch.texts) == len(set(batch.texts)) > 1
    torch.testing.assert_close(
        filled.event_text[at], batch.event_text[at], atol=2e-3, rtol=0
    )  # the table on disk is float16
    for user in at.any(1).nonzero().flatten():
        words = [batch.texts[i] for i in batch.text[user][at[user]]]
        torch.testing.assert_close(
            filled.event_text[user][at[user]], model.event_texts(words), atol=1e-5, rtol=0
        )


def test_what_is_kept_equals_encoding_anew_and_is_forgotten_by_training(users, trained):
    model, _ = trained
    model.train()
    model.eval()
    texts = list(users.events["text"].cat.categories[:9])
    with torch.no_grad():
        kept = model.event_texts(texts)
        assert set(model.event_texts.cached) == set(texts)
        torch.testing.assert_close(model.event_texts(texts[::-1]), kept.flip(0), atol=0, rtol=0)
    anew = model.event_texts(texts)  # gradients are wanted: nothing is taken from what is kept
    assert anew.requires_grad
    torch.testing.assert_close(anew, kept, atol=1e-5, rtol=0)
    model.train()
    assert not model.event_texts.cached
    model.eval()


def test_saved_loaded_and_served_it_embeds_alike(users, trained, tmp_path):
    model, _ = trained
    names = trained_state(model)
    assert any(n.startswith("event_texts.") for n in names) and all(
        "lora_" in n for n in names if n.startswith("event_texts.")
    )
    loaded = qa.QAnchor.from_pretrained(model.save_pretrained(tmp_path / "run"), device="cpu")
    readings = model.preprocessor.transform(users)
    plain = np.concatenate(
        [model.embed(collate_users(readings, [i]), QUERY).detach().numpy() for i in range(6)]
    )
    engine = make_engine(loaded)
    some = users.select(users.ids[:6])
    np.testing.assert_allclose(engine.embed(engine.prefill(some), QUERY), plain, atol=1e-4, rtol=0)
    rest = qa.QAnchor(
        model.config.replace(text_lora_rank=0), model.preprocessor, device="cpu"
    ).eval()
    rest.load_state_dict(
        {n: t for n, t in model.state_dict().items() if not n.startswith("event_texts.")}
    )
    other = rest.embed(collate_users(readings, range(6)), QUERY).detach().numpy()
    assert np.abs(other - plain).max() > 1e-4  # what it has learned matters


def test_an_encoder_without_weights_cannot_learn():
    with pytest.raises(
        ValueError,
        match=r"text_lora_rank is 4, config.text_encoder is 'hash', which has no weights: choose",
    ):
        TrainableTextEncoder(qa.TINY.replace(text_lora_rank=4))
    with pytest.raises(ValueError, match=r"config.text_lora_rank is -1: it must not be negative"):
        qa.TINY.replace(text_lora_rank=-1)
