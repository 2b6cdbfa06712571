"""Numbers in questions: how many times, how much, and what neither counts nor measures."""

import pytest

from qanchor.models.words import asked_amount, asked_times, asks_limit, asks_two_things, plain_words


@pytest.mark.parametrize(
    ("words", "times", "is_limit"),
    [
        ("buy no fewer than 3 CDs", 3, False),
        ("pay 3 times or less", 4, True),
        ("pay 3 or fewer times", 4, True),
        ("pay twice at most", 3, True),
        ("pay two to four times", 2, False),
        ("pay between 2 and 4 times", 2, False),
        ("pay at least 1,200 times", 1200, False),
        ("write 3 or more reviews", 3, False),
        ("make a minimum of three visits", 3, False),
        ("pay 2.5 times a month", 3, False),
        ("pay more than once every week", 5, False),  # above 30 / 7
        ("pay at least once a week", 5, False),
        ("pay 3 times as much", 0, False),
        ("pay once every two weeks", 0, False),
        ("sign up to 2 apps", 0, False),
        ("book a hotel for at least 3 nights", 0, False),
        ("order food for up to 4 people", 0, False),
        ("buy at least five CDs at a time", 0, False),
        ("spend more than five hundred dollars", 0, False),
        ("buy an iPhone 12", 0, False),
    ],
)
def test_how_many_times(words, times, is_limit):
    query = f"Will this user {words}?"
    assert (asked_times(query), asks_limit(query)) == (times, is_limit)


@pytest.mark.parametrize(
    ("words", "amount", "plain"),
    [
        ("spend more than $1,250 at once", 1250, "spend more than $1,250 at once"),
        ("spend 20 dollars or more", 20, "spend 20 dollars or more"),
        ("spend between 20 and 50 dollars", 20, "spend between 20 and 50 dollars"),
        ("spend at most $20", 20, "spend hardly ever"),
        ("spend less than 30 dollars", 30, "spend hardly ever dollars"),
        ("buy with up to 50% discount", 0, "buy with up to 50% discount"),
        ("spend $2 million", 0, "spend $2 million"),
    ],
)
def test_how_much(words, amount, plain):
    query = f"Will this user {words}?"
    assert asked_amount(query) == amount
    assert plain_words(query) == f"Will this user {plain}?"


@pytest.mark.parametrize(
    ("query", "are_two"),
    [
        ("Who will leave without paying?", True),
        ("Who will go a long time without paying?", False),
        ("Who goes a quarter without paying?", False),
        ("Who leaves before paying?", True),
        ("Who will shop before Thanksgiving?", False),
        ("Who will shop before the evening?", False),
        ("Who abandons the cart?", True),
    ],
)
def test_two_things(query, are_two):
    assert asks_two_things(query) == are_two
