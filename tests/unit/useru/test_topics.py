"""The table of topics is complete, readable and matches what it should."""

import re

import pytest

from qanchor.data.sample import TASKS, themes
from qanchor.useru.topics import TOPICS, match, names_one


def named(text: str) -> set[str]:
    return {topic.name for topic, hit in zip(TOPICS, match([text])[0], strict=True) if hit}


def test_there_are_72_topics_with_names_of_their_own():
    assert len(TOPICS) == len({topic.name for topic in TOPICS}) == 72
    assert all(re.fullmatch(r"[a-z_]+", topic.name) and topic.domain for topic in TOPICS)


@pytest.mark.parametrize("unit", ["user", "household", "viewer"])
def test_wordings_are_questions_about_the_unit(unit):
    for topic in TOPICS:
        for wording in topic.framed + topic.questions:
            text = wording.format(user=unit)
            assert unit in text and text[0].isupper() and text.endswith("?") and "  " not in text, (
                text
            )
            assert not set("{}@|") & set(text) and 3 <= len(text.split()) <= 25, text
            assert not re.search(r"\b(\w+) \1\b", text), text  # "in in"


def test_no_wording_stands_twice():
    wordings = [wording for topic in TOPICS for wording in topic.framed + topic.questions]
    assert len(wordings) == len(set(wordings)) == 72 * 11


def test_no_frame_belongs_to_one_topic_only():
    openings = {" ".join(wording.split()[:2]) for topic in TOPICS for wording in topic.framed}
    assert len(openings) >= 8


@pytest.mark.parametrize(
    ("text", "topic"),
    [
        ("BABY FOODS", "baby"),
        ("diapers & disposables", "baby"),
        ("dog foods", "pets"),
        ("frzn ice", "convenience"),
        ("soft drinks", "soft_drinks"),
        ("beers/ales", "alcohol"),
        ("fluid milk products", "dairy"),
        ("cigarettes", "tobacco"),
        ("candy - packaged", "sweets"),
        ("natural vitamins", "vitamins"),
        ("greeting cards/wrap/party sply", "parties"),
        ("coupon redeemed: soup", "coupons"),
        ("on display and in mailer: soup", "promo"),
        ("Toy Story (Animation, Children's, Comedy)", "comedy"),
        ("Star Wars (Sci-Fi)", "scifi"),
        ("a War film", "action"),
    ],
)
def test_a_text_speaks_of_its_topic(text, topic):
    assert topic in named(text)


@pytest.mark.parametrize(
    ("text", "topic"),
    [
        ("warehouse snacks", "action"),
        ("water - carbonated", "forest"),
        ("a better deal", "gambling"),
        ("brandy", "brand"),
        ("frzn novelties", "learning"),
        ("a current account", "household_bills"),
        ("bandages", "concerts"),
        ("salad dressing", "fashion"),
    ],
)
def test_a_stem_is_no_trap(text, topic):
    assert topic not in named(text)


def test_world_themes_match_the_topic_of_the_same_name():
    names = {topic.name for topic in TOPICS}
    column = [topic.name for topic in TOPICS]
    shared = [theme for theme in themes() if theme.name in names]
    assert len(shared) >= 35
    for theme in shared:
        texts = [text for modality in theme.texts.values() for text in modality]
        assert match(texts)[:, column.index(theme.name)].mean() >= 0.6, theme.name


def test_every_task_of_the_world_has_a_topic():
    about = {
        "Active": "active",
        "Concert": "concerts",
        "Login": "login",
        "Forest": "forest",
        "Fraud": "fraud",
    }
    about |= {
        "Money": "cash_advance",
        "Takeout": "takeout",
        "Brand": "brand",
        "Promo": "promo",
        "Value": "spend",
    }
    assert set(about) == set(TASKS)
    assert set(about.values()) <= {topic.name for topic in TOPICS}


def test_match_takes_an_empty_list():
    assert match([]).shape == (0, 72)


def test_another_form_of_the_name_is_the_whole_topic_and_a_member_is_part_of_it():
    games = [topic.name for topic in TOPICS].index("games")
    assert names_one(["into gaming", "puzzle games"])[:, games].tolist() == [False, True]
