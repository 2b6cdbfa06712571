"""Groups of users that bear a name, and what two of them make."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Group:
    """Name some users. `a & b`, `a | b` and `a - b` make the group of both, of either, of the first alone.

    Example:
        >>> Group("a", ("u1", "u2")) - Group("b", ("u2",))
        Group(name='a - b', ids=('u1',))
    """

    name: str
    ids: tuple[str, ...]

    def __and__(self, other: Group) -> Group:
        return Group(f"{self.name} & {other.name}", tuple(user for user in self.ids if user in set(other.ids)))

    def __or__(self, other: Group) -> Group:
        return Group(f"{self.name} | {other.name}", tuple(dict.fromkeys((*self.ids, *other.ids))))

    def __sub__(self, other: Group) -> Group:
        return Group(f"{self.name} - {other.name}", tuple(user for user in self.ids if user not in set(other.ids)))


HOW = {"intersect": Group.__and__, "unite": Group.__or__, "subtract": Group.__sub__}
