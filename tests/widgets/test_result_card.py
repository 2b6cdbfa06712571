"""A result card: says all it depends on, comes back from its file as it was, and tells when the
file was changed.
"""

import re
import time
from html.parser import HTMLParser

import pandas as pd
import pytest
from fake import HOSTILE, FakeLens, fake_provenance, make_frame
from hypothesis import given, settings
from hypothesis import strategies as st

from qanchor.widgets import QueryLens, ResultCard
from qanchor.widgets.result_card import ResultCardError

HASH = "3f2a" * 16
PICTURE = "data:image/png;base64,iVBORw0KGgo="


def make_card(**more):
    facts = {
        "query": "Will this user travel soon?",
        "metric": "AUC",
        "value": 0.8123,
        "low": 0.79,
        "high": 0.83,
        "n": 2_000,
        "run": HASH,
        "seed": 0,
        "version": "qanchor 0.1.0",
        "date": "2026-01-31 10:00 UTC",
        "text": "Look again.",
        "picture": PICTURE,
        "more": {"unit": "user"},
    }
    return ResultCard("Travellers are told.", **{**facts, **more})


def test_a_hash_is_shown_by_its_beginning_and_kept_whole(tmp_path):
    page = make_card().save(tmp_path / "card.html").read_text()
    assert f'<dd title="{HASH}">{HASH[:16]}...</dd>' in page
    assert ResultCard.load(tmp_path / "card.html").run == HASH
    assert HASH in str(make_card())


class Tags(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def test_the_words_say_it_all_and_the_html_needs_no_script():
    bundle = make_card()._repr_mimebundle_()
    words = bundle["text/plain"]
    page = bundle["text/html"]
    for part in (
        "Travellers are told.",
        "Look again.",
        "AUC: 0.812 (95 %: 0.790 to 0.830), n 2,000",
        "travel soon?",
        "unit: user",
    ):
        assert part in words
        assert "AUC:" in part or part.split(": ")[-1] in page
    assert words.endswith(f"checkpoint {HASH}, seed 0, qanchor 0.1.0, 2026-01-31 10:00 UTC")
    assert HASH in page
    assert "<script" not in page
    assert not re.search(r"(?:src|href)=\"(?!data:)", page)


def test_a_card_comes_back_as_it_was(tmp_path):
    card = make_card()
    path = card.save(tmp_path / "card.html")
    assert ResultCard.load(path) == card
    assert list(tmp_path.iterdir()) == [path]
    page = path.read_text()
    assert "default-src 'none'" in page
    assert not re.search(r"https?://", page)
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))  # as some tools that copy text do
    assert ResultCard.load(path) == card


@settings(max_examples=40, deadline=None)
@given(text=st.text(min_size=1), value=st.floats(), name=st.text())
def test_any_text_and_number_comes_back(tmp_path_factory, text, value, name):
    card = ResultCard(
        f"x{text}", query=text, text=f"{text}</script><!--", value=value, more={name: text}
    )
    assert ResultCard.load(card.save(tmp_path_factory.mktemp("cards") / "card.html")) == card


def test_hostile_text_stays_text(tmp_path):
    bad = f'{HOSTILE}</script></style></title>"\'><iframe src="//evil">'
    card = ResultCard(
        bad,
        query=bad,
        metric=bad,
        value=0.5,
        n=9,
        unit=bad,
        text=bad,
        version=bad,
        run=bad,
        more={bad: bad},
    )
    for page in (
        card._repr_mimebundle_()["text/html"],
        card.save(tmp_path / "card.html").read_text(),
    ):
        tags = Tags(page).tags
        assert not {tag for tag, _ in tags} & {"img", "iframe"}
        assert not [a for _, a in tags if any(k.startswith("on") for k in a)]
        assert [a["type"] for tag, a in tags if tag == "script"] in ([], ["application/json"])
    with pytest.raises(ValueError, match="the picture begins with"):
        ResultCard("x", picture='x" onerror="alert(1)')


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("0.812", "0.912"),
        ("Travellers", "Nobody"),
        ('"seed": 0', '"seed": 1'),
        ("3f2a", "3f2b"),
        ("#0072b2", "#000000"),
    ],
)
def test_an_edited_file_is_refused(tmp_path, old, new):
    path = make_card().save(tmp_path / "card.html")
    page = path.read_text()
    assert old in page
    path.write_text(page.replace(old, new, 1))
    message = r"card.html: its content has sha256 \w{16}..., the card says \w{16}...: it was edited"
    with pytest.raises(ResultCardError, match=message):
        ResultCard.load(path)


def test_other_files_are_refused_with_the_reason(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("<p>hello</p>")
    with pytest.raises(ResultCardError, match="0 results in it"):
        ResultCard.load(path)
    whole = make_card().save(tmp_path / "card.html").read_text()
    path.write_text(whole[: len(whole) - 400])
    with pytest.raises(ResultCardError, match=r"page.html: .*(?:0 results|edited)"):
        ResultCard.load(path)
    path.write_text(whole + whole)
    with pytest.raises(ResultCardError, match="2 results in it"):
        ResultCard.load(path)
    with pytest.raises(ValueError, match=r"ends with .txt: name it .html"):
        make_card().save(tmp_path / "card.txt")
    with pytest.raises(ValueError, match="no sentence"):
        ResultCard("  ")
    with pytest.raises(ValueError, match="value is 'much', not a number"):
        ResultCard("x", value="much")


def test_the_lens_keeps_what_it_shows():
    backend = FakeLens(60, seconds=0.02)
    backend.provenance = fake_provenance
    lens = QueryLens(make_frame(60), backend)
    with pytest.raises(ValueError, match="no map yet"):
        lens.result_card()
    lens.ask("Will this user travel soon?")
    card = lens.result_card("mine")
    assert card.sentence == lens.sentence
    assert card.query == "Will this user travel soon?"
    assert card.text == "mine"
    assert card.value == lens.shift.stands_out.mean()
    assert card.n == 60
    assert card.more["compared with"] == "no query"
    assert card.picture.startswith("data:image/svg+xml;base64,")
    caption = lens._entry.picture["caption"]
    assert card.more["map"] == f"{caption} Diamonds stand out."
    assert abs(pd.Timestamp(card.date.removesuffix(" UTC")).timestamp() - time.time()) < 120
    plain = QueryLens(make_frame(60), FakeLens(60, seconds=0.02))
    plain.ask("Will this user travel soon?")
    assert plain.result_card().run == ""
    assert "checkpoint not told" in str(plain.result_card())
