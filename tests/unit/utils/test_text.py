"""Units in the plural, as English has it."""

import pytest

from qanchor.utils.text import count, plural


@pytest.mark.parametrize(
    ("one", "many"),
    [
        ("user", "users"),
        ("household", "households"),
        ("family", "families"),
        ("toy", "toys"),
        ("y", "ys"),
        ("child", "children"),
        ("grandchild", "grandchildren"),
        ("person", "people"),
        ("Person", "People"),
        ("salesperson", "salespeople"),
        ("business", "businesses"),
        ("box", "boxes"),
        ("quiz", "quizes"),
        ("coach", "coaches"),
        ("dish", "dishes"),
        ("family member", "family members"),
    ],
)
def test_plurals(one, many):
    assert plural(one) == many
    assert (
        count(1, one) == f"1 {one}"
        and count(0, one) == f"0 {many}"
        and count(12000, one) == f"12,000 {many}"
    )
