"""The sample world: users with latent traits that emit six modalities."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
import numpy as np
import pandas as pd

from qanchor.data.users import Users


# theme | modalities, with weight | traits that call it | price, verb on a bill | section of a page path | things | apps
# A theme named like a task has no weight: it is emitted in the months in which the task comes true, and only then.
THEMES = """
Active | app, mini | - | 5 sent | friends | a long chat, a photo story, a voice message, a group plan | Circle Chat, Daily
  Feed, Town Talk
Concert | bill, search | - | 70 bought | live music | two concert tickets, a festival pass, a front row concert seat, a gig
  ticket for tonight | Encore Tickets, Gig Guide, Stage Door
Login | spm, app | - | 1 paid | check-in | seven day streak kept, daily check-in done, morning check-in bonus | Streak
  Check-in, Morning Check-in, Daily Login
Forest | spm, mini | - | 3 gave | green energy | plant a tree today, a tree for the desert, collect morning green energy,
  water my tree | Tree Planters, Green Energy, Forest Friends
Fraud | bill, app | - | 240 sent | security | money to an unknown payee, a gift card code to a stranger, a payment later
  blocked, a chargeback payment | Hidden VPN, Bulk SMS Sender, Code Resell
Money | bill, search | - | 150 took | cash | a cash advance, a payday cash loan, quick cash until payday, a cash reserve
  drawdown | Payday Bridge, Quick Cash, Cash Reserve
Takeout | bill, app | - | 16 ordered | food | a takeout dinner, takeout for two, a late takeout burger, a takeout noodle bowl
  | Bento Takeout, Rider Takeout, Burger Takeout
Brand | bill, spm | - | 85 paid for | brands | a brand flagship store order, a limited edition brand item, the new brand
  collection, a brand anniversary release | Flagship Store, Brand Street, Official Store
Promo | mini, spm | - | 9 claimed | offers | a promo code, the weekend campaign offer, a cashback promo, a lucky draw promo |
  Promo Hall, Campaign Corner, Cashback Club
Value | bill, search | - | 900 bought | big purchases | a large smart TV, a designer watch, a first class flight, a new laptop
  | Grand Avenue, Crown Stores, Summit Store
chat | app 2, mini 2 | activity 1, social .4 | 5 sent | friends | group stories, friend updates, short videos, a birthday
  message | Pocket Chat, Neighbour Feed, Clip Stream
news | app 2, mini | activity .7 | 3 paid for | news | local headlines, match results, celebrity talk, city notices | Metro
  Headlines, Front Page, Score Board
login | spm 2, app | routine 1 | 1 paid | check-in | daily check-in page, sign in history, streak calendar, check in gifts |
  Check-in Diary, Sign in Keeper, Streak Counter
planner | spm, app 2 | routine .9 | 2 paid for | tools | alarm at six, weekly plan, shopping list, habit tracker | Calendar
  Plus, To Do List, Morning Alarm
concerts | bill 1.5, search 2 | music 1, social .3 | 35 bought | live music | live music nights, an indie band poster, jazz
  concert dates, a festival shirt, an orchestra programme | Concert Hall, Bandstand, Festival Finder
music | search 1.5, bill .7 | music .8 | 12 bought | music | vinyl records, live music albums, band lyrics, guitar strings for
  my band | Vinyl Corner, Band Records, Live Music Box
forest | spm 2, mini 2 | green 1 | 4 gave | green energy | forest ranking, carbon diary, recycling points, green energy from
  walking, trees of my friends | Ant Forest Walk, Carbon Diary, Recycle Now
organic | mini 1.5, spm | green .7, health .3 | 22 bought | farm | organic vegetables, natural soap, vegan lunch, whole grain
  bread | Organic Basket, Farm Shop, Fair Trade Corner
fraud | bill 1.2, app 1.6 | fraud 1.1 | 90 sent | security | money to a new device wallet, resell phone credit, a gift card
  code, a verification code fee | Second Wallet VPN, Mass SMS Verify, Resell Market
gambling | app 1.3 | fraud .6, cash_need .4 | 20 paid for | play | lottery numbers, a scratch card, a sports bet, poker chips
  | Lucky Lottery, Poker Night, Sure Bet
cash_advance | bill 1.3, search 2 | cash_need 1 | 80 took | cash | a cash loan, money before payday, a pawn shop offer, a cash
  loan extension | Cash Loan Express, Pawn Point, Payday Friend
late_fees | bill 1.5 | cash_need .9 | 18 was charged | bills | a late fee, an overdraft fee, an overdue notice fee, an unpaid
  bill surcharge | Harbour Bank, Union Bank, Card Centre
credit | bill 1.3, search .7 | cash_need .6 | 60 paid | credit | a credit card minimum, an instalment, a loan repayment, a
  credit limit fee | Harbour Credit, Union Credit, Easy Instalments
takeout | bill 2.5, app 2.2 | takeout 1 | 14 ordered | food | fried chicken, a burger menu, milk tea, sushi for one, a noodle
  bowl, a pizza delivery | Quick Food Delivery, Milk Tea Dash, Sushi Rider
snacks | bill 1.2 | takeout .6, night .2 | 5 bought | food | potato chips, salted nuts, chocolate cookies, popcorn, ice cream
  | Corner Snacks, Sweet Tooth, Night Kiosk
brand | bill 1.8, spm 2 | brand 1 | 70 bought | brands | sneakers from the official store, a brand jacket, the brand new
  collection, limited edition cosmetics | Northwind Official Store, Aurora Flagship, Lumen Brand
fashion | bill, spm 1.5 | brand .6 | 45 bought | clothes | a summer dress, running shoes, a handbag, a denim jacket, warm
  clothes | Fashion Lane, Shoe Loft, Dress Circle
promo | mini 2, spm 2 | thrift 1 | 6 claimed | offers | a special offer, cashback on lunch, a sale event gift, a promo game |
  Special Offers, Cashback Hunt, Sale Event Guide
bargains | mini 1.5 | thrift .9 | 11 bought | offers | a flash sale, group buy fruit, clearance shirts, second hand books |
  Bargain Bay, Group Buy, Flash Sale
price_compare | spm 1.3 | thrift .8 | 8 paid for | compare | compare phone prices, price drop alarms, the cheapest rice,
  lowest fares | Price Compare, Cheapest First, Price Alert
luxury | bill 1.4, search 2 | wealth 1 | 260 bought | boutique | a designer bag, jewellery, imported wine, a fine dining menu,
  a luxury spa | Luxury Row, Boutique House, Jewel Box
investing | search 1.3, bill .8 | wealth .8 | 400 bought | wealth | index fund units, stocks, gold price certificates,
  government bonds | Broker One, Wealth Desk, Invest Easy
saving | spm .2, app .2 | cash_need -.5, routine .3 | 90 moved | savings | a term deposit, monthly savings, a rainy day fund |
  Piggy Savings, Saving Jar, Term Deposit
salary | bill .3 | cash_need -.2 | 1800 received | bills | monthly salary, a wage payment, payroll bonus | Payroll Bank,
  Harbour Payroll, Union Wages
household_bills | bill .5, mini .3 | family .3 | 45 paid | bills | the electric bill, the water bill, monthly rent, the phone
  bill | Phone Bill Pay, Electric Bill Pay, Rent Desk
transfers | bill 1.2, mini .8 | social .9 | 30 sent | friends | a red packet, money to a friend, a transfer to mum, split the
  bill money | Red Packet, Split the Bill, Easy Transfer
parties | mini, search .8 | social .7 | 28 bought | gifts | a birthday gift, party balloons, a bouquet, greeting cards | Party
  Planner, Gift Finder, Bouquet House
travel | bill 1.3, search 1.2, app | travel 1.1 | 160 booked | trips | a flight, a hotel weekend, a train ticket, airport
  parking, a beach resort | Flight Finder, Hotel Key, Train Ticket Pass
commute | mini .4, bill .3 | routine .3 | 3 paid for | transport | the metro, a bus ride, a bike share trip, a taxi home |
  Metro Pass, Ride Hail, Bike Share
cars | bill .2, app .2 | family .3, wealth .2 | 50 paid for | car | fuel, parking, a car wash, a motorway toll | Fuel Card,
  Parking Spot, Car Wash Club
baby | bill, search | family .8 | 32 bought | family | diapers, baby formula, a stroller, toddler socks | Baby Nest, Toddler
  Time, Diaper Club
children | bill, mini 1.2 | family 1 | 26 paid for | family | school lunch, a toy set, kids swimming, a maths tutor, school
  stationery | School Board, Kids Corner, Toy Chest
pets | bill .3, search .2 | family .3 | 24 bought | pets | dog food, cat litter, a vet visit, cat food, pet care spray | Pet
  Care Club, Dog Walk, Kitten Shop
medicine | bill .2, mini .2 | health -.5 | 20 paid for | health | cold and flu medicine, a clinic visit, the pharmacy, a
  doctor call | Pharmacy Now, Doctor Line, Clinic Desk
vitamins | bill .8, search | health .8 | 25 bought | health | vitamin tablets, protein supplements, low fat yogurt, a diet
  plan | Vitamin Store, Diet Coach, Nutrition Hub
fitness | app 1.4, search .8 | health 1 | 30 paid for | sport | a gym month, yoga class, running shorts, a marathon entry |
  Gym Buddy, Running Log, Yoga Flow
games | app 1.5, search .7 | night .7 | 10 paid for | games | a puzzle game, console games, an esport final, mobile game coins
  | Puzzle Games, Esport Arena, Mobile Game Box
scifi | app .4, search .2 | night .5 | 6 rented | films | a science fiction series, a horror night, an anime season, a fantasy
  saga | Anime Night, Horror Box, Fantasy Realm
cinema | mini .3, search .2 | social .4 | 13 bought | films | a cinema seat, a romance film, a drama series, a movie night |
  Cinema Club, Movie Map, Film Festival
learning | app .3, search .3 | routine .3, health .1 | 20 paid for | study | an English course, exam papers, a history book, a
  magazine | Language Lessons, Book Shelf, Exam Prep
baking | bill .5, search .2 | takeout -.5, family .3 | 24 bought | groceries | flour and eggs, pasta sauce, a home cooking
  recipe, spices | Grocery Basket, Home Cooking, Recipe Box
produce | bill .5, mini .2 | takeout -.3, health .2 | 17 bought | groceries | fresh vegetables, fruit, salad leaves, tomatoes,
  berries | Fresh Vegetables, Fruit Stand, Farmers Market
alcohol | bill .2 | night .4, social .3 | 19 bought | drinks | craft beer, red wine, a cocktail, whisky | Beer Garden, Wine
  Cellar, Cocktail Bar
home_garden | bill .2, spm .3 | family .4 | 75 bought | home | a sofa, a garden chair, a desk lamp, new furniture | Sofa
  House, Garden World, Lamp Shop
beauty | bill .2, spm .3 | brand .3 | 22 bought | beauty | skin care cream, makeup, a hair care set, lipstick | Skin Clinic,
  Makeup Room, Nail Salon
electronics | spm .4, search .3 | night .3, wealth .2 | 120 bought | devices | headphones, a tablet, a smart TV, phone gadgets
  | Gadget Lab, Tablet Town, Laptop Hub
notice | bill .6, mini .8, spm .8, app .8, search .6 | - | 8 paid for | general | the weather, a parcel, language settings, a
  map, a survey, help | Weather Window, Parcel Box, City Map
"""
TEXTS = {  # templates of a modality; every text names its theme by a thing or an app
    "bill": ("{verb} {thing}", "{verb} {thing} via {app}", "{verb} {thing}, {app} receipt"),
    "mini": ("opened the {app} mini program", "browsed {thing} in the {app} mini program"),
    "spm": ("home > {section} > {thing}", "{section} > {thing} > details", "{section} > {app} > {thing}"),
    "app": ("opened {app} app", "long session in {app} app", "notification from {app} app"),
    "search": ("searched for {thing}", "looked up {thing} online"),
}


@dataclass(frozen=True)
class Theme:
    """Hold one subject of events: where it shows (with weight), which traits call it, its price, its texts by modality."""

    name: str
    weight: dict[str, float]
    load: dict[str, float]
    price: float
    texts: dict[str, tuple[str, ...]]


def rows(table: str) -> list[list[str]]:
    """Cut a table of text into rows of fields; an indented line goes on with the row above."""
    return [[field.strip() for field in row.split("|")] for row in table.replace("\n  ", " ").strip().splitlines()]


def weights(field: str) -> dict[str, float]:
    """Read "app 2, mini" as numbers by name; without a number it is 1, and "-" is nothing."""
    pairs = (part.split() for part in field.split(",") if part.strip() != "-")
    return {pair[0]: float(pair[1]) if len(pair) > 1 else 1.0 for pair in pairs}


@cache
def themes() -> tuple[Theme, ...]:
    """Read the table of themes, each with its texts.

    Example:
        >>> themes()[0].texts["app"][0]
        'opened Circle Chat app'
    """
    out = []
    for name, modalities, traits, bill, section, things, apps in rows(THEMES):
        price, verb = bill.split(" ", 1)
        texts = {}
        for modality in weights(modalities):
            filled = (
                template.format(verb=verb, section=section, thing=thing.strip(), app=app.strip())
                for template in TEXTS[modality]
                for thing in things.split(",")
                for app in apps.split(",")
            )
            texts[modality] = tuple(dict.fromkeys(filled))
        out.append(Theme(name, weights(modalities), weights(traits), float(price), texts))
    return tuple(out)


MODALITIES = ("bill", "mini", "spm", "app", "search", "tabular")
RATES = {"bill": 34, "mini": 21, "spm": 20, "app": 22, "search": 17}  # mean events in 120 days
START = pd.Timestamp("2025-03-03")  # a Monday
MONTH = 30  # days; the tasks look one month ahead
MISSING, LYING = 0.08, 0.12  # share of (user, modality) that is absent; share of users with one modality from somebody else
STRENGTH = 1.6  # how strongly traits choose themes
OFTEN = ("Active", "Login")  # these come true in several events a month, the other tasks in one or two
# trait | its share of four common causes (affluence, youth, order, engagement); the rest is the user's own
TRAIT_TABLE = """
activity  |   0 |   0 |  .1 | .5
routine   |   0 | -.1 |  .5 | .3
trend     |   0 |   0 |   0 | .3
music     |  .1 |  .5 |   0 | .1
green     |  .1 |   0 |  .4 | .2
fraud     | -.2 |  .1 | -.4 |  0
cash_need | -.5 |  .2 | -.2 |  0
wealth    |  .6 | -.1 |  .1 |  0
takeout   |   0 |  .5 | -.2 | .1
brand     |  .4 |  .2 |   0 | .1
thrift    | -.3 |   0 |  .2 | .4
night     |   0 |  .5 | -.3 |  0
travel    |  .5 |  .1 |   0 | .1
family    |  .1 | -.4 |  .2 |  0
health    |  .2 |   0 |  .5 |  0
social    |   0 |  .4 |   0 | .4
"""
# task | constant of the logit | its traits, the main one first; a product is an interaction
TASK_TABLE = """
Active  | -0.6 | activity 1.1, social .7, trend .8, activity*social .4
Concert | -2.0 | music 1.5, social .7, music*wealth .4
Login   | -0.5 | routine 1.5, activity .6, routine*night -.4
Forest  | -1.2 | green 1.5, health .6, green*routine .4
Fraud   | -3.9 | fraud 1.6, night .5, fraud*cash_need .4
Money   | -2.0 | cash_need 1.4, wealth -.6, cash_need*family .4
Takeout | -0.9 | takeout 1.5, night .5, family -.4, takeout*wealth .3
Brand   | -1.4 | brand 1.4, wealth .6, brand*thrift -.4
Promo   | -0.6 | thrift 1.4, social .5, thrift*brand .4
Value   | -1.8 | wealth 1.3, family .6, travel .5, wealth*family .4
"""
# fact | mean | spread | traits that it shows, noisily
FACT_TABLE = """
account.age_years     | 4   | 1.5 | activity .3, fraud -.5, routine .2
account.credit_line   | 5   | 2   | wealth .6, cash_need -.4
account.contacts      | 80  | 25  | social .6, activity .2
device.price          | 520 | 150 | wealth .5, brand .4
device.age_months     | 20  | 7   | thrift .4, brand -.3
home.city_tier        | 2.5 | .8  | travel -.4, takeout -.4
home.people           | 2.6 | 1   | family .7, night -.2
"""
TRAITS = {name: tuple(map(float, shares)) for name, *shares in rows(TRAIT_TABLE)}
TASKS = {name: (float(constant), weights(terms)) for name, constant, terms in rows(TASK_TABLE)}


def _carriers(task: str) -> tuple[str, ...]:
    main = next(iter(TASKS[task][1]))
    shown = {m for theme in themes() if theme.name == task or theme.load.get(main, 0) >= 0.6 for m in theme.weight}
    return tuple(m for m in MODALITIES if m in shown)


CARRIERS: dict[str, tuple[str, ...]] = {task: _carriers(task) for task in TASKS}  # where the task's main trait shows


@dataclass(frozen=True)
class Truth:
    """Hold what was planted, one row a user."""

    traits: dict[str, np.ndarray]  # trait -> (user,)
    p: np.ndarray  # (user, task)
    label: np.ndarray  # (user, task) bool
    missing: np.ndarray  # (user, modality) bool
    lies: np.ndarray  # (user,) place of the modality that lies, -1 for none
    donor: np.ndarray  # (user,) whose behaviour the lying modality shows


def make_sample_users(n: int = 2000, seed: int = 0, days: int = 120, history_days: int = 90) -> Users:
    """Make `n` users with `days` days of events, the cut-off after `history_days`, and ten labels for the month that follows.

    Events carry `amount` and `discount` (bill) and `minutes` (mini, app). About 115 events a user. The same arguments give
    the same users. What was planted is told by `world_truth(n, seed)` and stands nowhere in the result.
    Raises ValueError when there is no whole month of history, or none after the cut-off.

    Example:
        >>> users = make_sample_users(50, seed=0)
        >>> len(users), len(users.labels.columns), users.modalities[0]
        (50, 10, 'bill')
    """
    if history_days < MONTH or days < history_days + MONTH:
        raise ValueError(f"days={days}, history_days={history_days}: give at least {MONTH} days before and after the cut-off")
    truth = _truth(n, seed)
    rng = np.random.default_rng([seed, 1])
    months = _months(rng, truth, days, history_days)
    noise = 0.3 * rng.standard_normal((len(RATES), n))
    parts = [_emit(rng, place, truth, months, days, noise[place]) for place in range(len(RATES))]
    return Users.from_events(
        pd.concat(parts, ignore_index=True),
        START + pd.Timedelta(days=history_days),
        name="world",
        tabular=_facts(rng, truth),
        labels=pd.DataFrame(truth.label.astype(float), columns=list(TASKS), index=_ids(n)),
        modalities=MODALITIES,
    )


def sample_ground_truth(n: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Tell what `make_world(n, seed)` hides: `trait.*`, `p.<task>`, `lies` (a modality or ""), `missing` (joined by ";").

    Index user. For judging models only.

    Example:
        >>> sample_ground_truth(3).shape
        (3, 28)
    """
    truth = _truth(n, seed)
    frame = pd.DataFrame({f"trait.{name}": values for name, values in truth.traits.items()}, index=_ids(n))
    frame[[f"p.{name}" for name in TASKS]] = truth.p
    frame = frame.round(4)
    frame["lies"] = [MODALITIES[place] if place >= 0 else "" for place in truth.lies]
    frame["missing"] = [";".join(np.array(MODALITIES)[row]) for row in truth.missing]
    return frame


def write_sample_data(folder, n: int = 2000, seed: int = 0) -> Path:
    """Write the shipped sample again: `make_world(n, seed)` as a folder for `load_users`, and `truth.parquet` beside it."""
    folder = make_sample_users(n, seed).save(folder)
    sample_ground_truth(n, seed).reset_index().to_parquet(folder / "truth.parquet", index=False, compression="zstd")
    return folder


def _ids(n: int) -> pd.Index:
    return pd.Index([f"u{row:06d}" for row in range(n)], name="user")


def _truth(n: int, seed: int) -> Truth:
    if n < 1:
        raise ValueError(f"n is {n}: a world needs at least 1 user")
    rng = np.random.default_rng([seed, 0])
    share = np.array(list(TRAITS.values()))
    own = np.sqrt(1 - (share**2).sum(axis=1))
    values = rng.standard_normal((n, share.shape[1])) @ share.T + own * rng.standard_normal((n, len(TRAITS)))
    traits = dict(zip(TRAITS, values.T, strict=True))
    p = np.stack([1 / (1 + np.exp(-_logit(traits, *task))) for task in TASKS.values()], axis=1)
    missing = rng.random((n, len(MODALITIES))) < MISSING
    missing[missing[:, :-1].sum(axis=1) > 3] = False  # nobody is left with nothing
    lies = np.where(rng.random(n) < LYING, rng.integers(0, len(RATES), n), -1)
    lies[(lies >= 0) & missing[np.arange(n), lies]] = -1
    donor = (np.arange(n) + rng.integers(1, max(n, 2), n)) % n
    return Truth(traits, p, rng.random(p.shape) < p, missing, lies, donor)


def _logit(traits: dict[str, np.ndarray], constant: float, terms: dict[str, float]) -> np.ndarray:
    start = np.full(len(traits["activity"]), float(constant))
    return sum((w * np.prod([traits[t] for t in term.split("*")], axis=0) for term, w in terms.items()), start)


def _facts(rng: np.random.Generator, truth: Truth) -> pd.DataFrame:
    """Make the fixed facts: noisy shows of traits, empty for users whose `tabular` is missing."""
    n, frame = len(truth.p), {}
    for name, mean, spread, terms in rows(FACT_TABLE):
        shown = weights(terms)
        rest = np.sqrt(1 - sum(w**2 for w in shown.values()))
        value = float(mean) + float(spread) * (_logit(truth.traits, 0, shown) + rest * rng.standard_normal(n))
        frame[name] = np.where(truth.missing[:, -1], np.nan, np.maximum(value, 0).round(1))
    return pd.DataFrame(frame, index=_ids(n))


def _months(rng: np.random.Generator, truth: Truth, days: int, history_days: int) -> list[tuple[int, np.ndarray]]:
    """Draw what comes true in each month: the labels in the month after the cut-off, the same odds drawn anew in the others."""
    starts = range(history_days - MONTH * (history_days // MONTH), days - MONTH + 1, MONTH)
    return [(start, truth.label if start == history_days else rng.random(truth.p.shape) < truth.p) for start in starts]


def _emit(rng: np.random.Generator, place: int, truth: Truth, months: list, days: int, noise: np.ndarray) -> pd.DataFrame:
    """Emit the events of one modality for all users."""
    modality, n = MODALITIES[place], len(truth.p)
    shown = np.where(truth.lies == place, truth.donor, np.arange(n))  # a lying modality shows its donor
    there = ~truth.missing[:, place]
    traits = {name: values[shown] for name, values in truth.traits.items()}
    rate = RATES[modality] / 120 * days * np.exp(0.25 * traits["activity"] + noise)
    user = np.repeat(np.arange(n), rng.poisson(rate * there))
    parts = [(user, _choose(rng, modality, traits, user), _days(rng, user, traits, days))]
    for number, theme in enumerate(themes()):
        if theme.name in TASKS and modality in theme.weight:
            for start, outcome in months:
                true = np.flatnonzero(outcome[shown, list(TASKS).index(theme.name)] & there)
                true = np.repeat(true, 1 + rng.poisson(2.0 if theme.name in OFTEN else 0.4, len(true)))
                parts.append((true, np.full(len(true), number), start + rng.integers(0, MONTH, len(true))))
    user, theme, day = (np.concatenate(part) for part in zip(*parts, strict=True))
    return _write(rng, modality, traits, user, theme, day)


def _choose(rng: np.random.Generator, modality: str, traits: dict[str, np.ndarray], user: np.ndarray) -> np.ndarray:
    """Draw a theme's number for each event: softmax of the user's traits over the modality's themes."""
    at = [i for i, theme in enumerate(themes()) if modality in theme.weight and theme.name not in TASKS]
    logit = [np.log(themes()[i].weight[modality]) + STRENGTH * _logit(traits, 0, themes()[i].load) for i in at]
    share = np.exp(np.stack(logit, axis=1)).cumsum(axis=1)
    share = share / share[:, -1:] + np.arange(len(share))[:, None]  # one rising row for a single sorted search
    found = np.searchsorted(share.ravel(), user + rng.random(len(user)))
    return np.array(at)[np.clip(found - user * len(at), 0, len(at) - 1)]


def _days(rng: np.random.Generator, user: np.ndarray, traits: dict[str, np.ndarray], days: int) -> np.ndarray:
    """Draw the day of each event: rising with the trend, sociable users at weekends, some events in bursts."""
    slope, r = 0.9 * np.tanh(0.7 * traits["trend"])[user], rng.random(len(user))
    x = 2 * r / (1 - slope + np.sqrt((1 - slope) ** 2 + 4 * slope * r))  # a straight density from 1 - slope up to 1 + slope
    day = np.minimum(days * x, days - 1).astype(int)
    moved = rng.random(len(user)) < 0.4 / (1 + np.exp(-1.5 * traits["social"][user]))
    day = np.where(moved & (day % 7 < 5), np.minimum(day - day % 7 + rng.integers(5, 7, len(user)), days - 1), day)
    burst = np.flatnonzero((rng.random(len(user)) < 0.15)[1:] & (user[1:] == user[:-1])) + 1
    day[burst] = day[burst - 1]
    return day


def _minutes(rng: np.random.Generator, user: np.ndarray, traits: dict[str, np.ndarray]) -> np.ndarray:
    """Draw the minute of the day: night owls late, users of routine early."""
    night = rng.random(len(user)) < 1 / (1 + np.exp(2.2 - 1.1 * traits["night"][user]))
    early = rng.random(len(user)) < 1 / (1 + np.exp(1.2 - 0.7 * traits["routine"][user]))
    late, dawn, day = (rng.integers(*hours, len(user)) for hours in ((23, 28), (6, 10), (10, 23)))
    return np.where(night, late % 24, np.where(early, dawn, day)) * 60 + rng.integers(0, 60, len(user))


def _write(rng, modality: str, traits: dict, user: np.ndarray, theme: np.ndarray, day: np.ndarray) -> pd.DataFrame:
    """Give each event its text (half the time the user's favourite of the theme), time and numbers."""
    known = [t.texts.get(modality, ()) for t in themes()]
    size, first = np.array([len(t) for t in known]), np.cumsum([0, *map(len, known)])
    favourite = (user * 7919 + theme * 104729) % 997 % size[theme]
    pick = np.where(rng.random(len(user)) < 0.5, favourite, rng.integers(0, size[theme]))
    texts = pd.Categorical.from_codes(first[theme] + pick, [text for t in known for text in t])
    frame = pd.DataFrame({"user": pd.Categorical.from_codes(user, _ids(len(traits["wealth"])))})
    minute = day * 1440 + _minutes(rng, user, traits)
    frame["time"] = START.to_datetime64() + minute.astype("timedelta64[m]")
    frame["modality"], frame["text"] = modality, texts
    if modality == "bill":
        taste = 0.3 * traits["wealth"] - 0.1 * traits["thrift"]
        price = np.array([t.price for t in themes()])[theme]
        frame["amount"] = (price * np.exp(taste[user] + 0.4 * rng.standard_normal(len(user)))).round(2)
        cut = rng.random(len(user)) < 1 / (1 + np.exp(1.8 - traits["thrift"][user]))
        frame["discount"] = (frame["amount"] * cut * rng.choice([0.05, 0.1, 0.2, 0.3], len(user))).round(2)
    if modality in ("mini", "app"):
        frame["minutes"] = np.exp(1.2 + 0.3 * traits["activity"][user] + 0.7 * rng.standard_normal(len(user))).round() + 1
    return frame
