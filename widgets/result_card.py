"""A claim card: one result with all that it hangs on, readable without a kernel, kept as one file."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from html import escape
from pathlib import Path

from widgets.base import HERE, write_whole

FORMAT, READ = 2, (1, 2)  # 2 has a unit
PICTURE = re.compile(r"data:image/(?:svg\+xml|png|jpeg);base64,[A-Za-z0-9+/]+={0,2}")
KEPT = re.compile(r'(<script type="application/json" id="claim" data-sha256=")([0-9a-f]{64})(">)(.*?)</script>', re.S)
HASH = re.compile("[0-9a-f]{64}")
UNTOLD = "not told"
# what the file itself may do: show its own picture and style, and nothing else
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class ClaimError(ValueError):
    """A file is no claim card, or no longer the one that was saved: which file, what was found, and the cure."""


@dataclass(frozen=True)
class ClaimCard:
    """Keep one result with all that it hangs on: shown as plain HTML, saved as one file that needs nothing else.

    sentence   what is claimed, in words.
    query, metric, value, low, high, n   what was asked and measured, with its 95 % interval, on how many users.
    run, seed, version, date   the checkpoint's hash, the seed, the package, and when (UTC).
    text       a remark of your own; picture, an image as a data URI; more, further facts by name; unit, the word for a user.
    Texts may hold anything: they are shown as text. What is unknown stays empty and is said to be so.

    Example:
        >>> card = ClaimCard("Two of ten moved.", metric="share moved", value=0.2, n=10, date="2026-01-31")
        >>> print(card)
        Claim: Two of ten moved.
        share moved: 0.200, n 10
        query: not told
        checkpoint not told, seed not told, not told, 2026-01-31
    """

    sentence: str
    query: str = ""
    metric: str = ""
    value: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    run: str = ""
    seed: int | None = None
    version: str = ""
    date: str = field(default_factory=lambda: f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC")
    text: str = ""
    picture: str = field(default="", repr=False)
    more: dict[str, str] = field(default_factory=dict)
    unit: str = "user"

    def __post_init__(self):
        numbers = ("value", "low", "high", "n", "seed")
        for name in (f.name for f in fields(self) if f.name not in (*numbers, "more")):
            object.__setattr__(self, name, _clean(getattr(self, name)))
        for name in numbers:
            object.__setattr__(self, name, _number(name, getattr(self, name)))
        object.__setattr__(self, "more", {_clean(name): _clean(value) for name, value in self.more.items()})
        if not self.sentence.strip():
            raise ValueError("the card has no sentence: say in words what is claimed")
        if self.picture and not PICTURE.fullmatch(self.picture):
            raise ValueError(f"the picture begins with {self.picture[:30]!r}: give an image as data:image/png;base64,...")

    @classmethod
    def of(cls, facts: Mapping, picture: str = "", **rest) -> ClaimCard:
        """Make a card of a dict of facts; names that a card has no place for go to `more`. picture: an <img> or its data."""
        told, names = {**facts, **rest}, {f.name for f in fields(cls)}
        more = {name.replace("_", " "): _said(told.pop(name)) for name in list(told) if name not in names}
        found = PICTURE.search(picture)
        return cls(**{**told, "picture": found[0] if found else picture, "more": {**told.get("more", {}), **more}})

    def save(self, path) -> Path:
        """Write the card as one HTML file, whole or not at all; `load` reads it back."""
        path = Path(path)
        if path.suffix != ".html":
            raise ValueError(f"{path.name} ends with {path.suffix or 'nothing'}: name it .html")
        page = self._page("0" * 64)
        return write_whole(path, KEPT.sub(lambda m: f"{m[1]}{_sha(page)}{m[3]}{m[4]}</script>", page))

    @classmethod
    def load(cls, path) -> ClaimCard:
        """Read a card from its file, and refuse one in which anything was changed since (a hash, no signature: it finds edits).

        Raises ClaimError.
        """
        path = Path(path)
        page = path.read_text(encoding="utf-8", errors="replace")
        kept = KEPT.findall(page)
        if len(kept) != 1:
            raise ClaimError(f"{path}: {len(kept)} claims in it, a claim card holds 1: save it again with card.save(...)")
        found, expected = _sha(KEPT.sub(rf"\g<1>{'0' * 64}\3\4</script>", page)), kept[0][1]
        if found != expected:
            told = f"its content has sha256 {found[:16]}..., the card says {expected[:16]}..."
            raise ClaimError(f"{path}: {told}: it was edited after it was saved, so take it from its notebook again")
        told = json.loads(kept[0][3])
        if told.pop("format", None) not in READ:
            raise ClaimError(f"{path}: of another make, this version reads format {FORMAT}: save it again")
        return cls(**told)

    @property
    def interval(self) -> str:
        """Say the 95 % interval."""
        return UNTOLD if self.low is None or self.high is None else f"{_said(self.low)} to {_said(self.high)}"

    def __str__(self) -> str:
        reach = "" if self.interval == UNTOLD else f" (95 %: {self.interval})"
        counted = f", n {self.n:,}" if self.n is not None else ""
        measured = f"{self.metric or 'value'}: {_said(self.value)}{reach}{counted}"
        made = f"checkpoint {self.run or UNTOLD}, seed {_said(self.seed)}, {self.version or UNTOLD}, {self.date}"
        more = [f"{name}: {value}" for name, value in self.more.items()]
        lines = [f"Claim: {self.sentence}", self.text, measured, f"query: {self.query or UNTOLD}", *more, made]
        return "\n".join(line for line in lines if line)

    def _repr_mimebundle_(self, **kwargs) -> dict:
        return {"text/plain": str(self), "text/html": f"<style>{_style()}</style>{self._body()}"}

    def _body(self, heading: str = "h3") -> str:
        measured = {"Metric": self.metric or UNTOLD, "Value": _said(self.value)} if self.value is None else {}
        told = {"Query": self.query or UNTOLD, **measured}
        told |= {name[:1].upper() + name[1:]: value for name, value in self.more.items()}
        told |= {
            "Checkpoint": self.run or UNTOLD,
            "Seed": _said(self.seed),
            "Made with": self.version or UNTOLD,
            "Date": self.date,
        }
        listed = "".join(f"<dt>{escape(name)}</dt><dd{_whole(value)}</dd>" for name, value in told.items())
        reach = f"95 % interval {escape(self.interval)}"
        counted = UNTOLD if self.n is None else f"{self.n:,} {escape(self.unit)}s"
        figure = f"{escape(self.metric or 'value')}: <strong>{escape(_said(self.value))}</strong>, {reach}, {counted}"
        drawn = f'<figure><img alt="What was shown" src="{self.picture}"></figure>' if self.picture else ""
        kind = f"Claim: {self.query}" if self.query else "Claim"
        return (
            f'<article class="claim"><p class="claim-kind">{escape(kind)}</p><{heading}>{escape(self.sentence)}</{heading}>'
            + (f'<p class="claim-figure">{figure}</p>' if self.value is not None else "")
            + (f"<blockquote>{escape(self.text)}</blockquote>" if self.text else "")
            + f"{drawn}<dl>{listed}</dl></article>"
        )

    def _page(self, sha: str) -> str:
        kept = json.dumps({"format": FORMAT, **asdict(self)}, ensure_ascii=False, allow_nan=False)
        for sign in "<>&":  # a text with </script> in it must not end the script
            kept = kept.replace(sign, f"\\u{ord(sign):04x}")
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
            '<meta name="viewport" content="width=device-width">'
            f"<title>{escape(': '.join(filter(None, (self.query, self.sentence))))}</title><style>{_style()}</style></head>\n"
            f'<body class="claim-page">{self._body("h1")}\n'
            f'<script type="application/json" id="claim" data-sha256="{sha}">{kept}</script></body></html>\n'
        )


def _whole(value: str) -> str:
    """Give what is listed, a hash by its first half line; the whole of it shows under the pointer, and is in the file."""
    return f' title="{value}">{value[:16]}...' if HASH.fullmatch(value) else f">{escape(value)}"


def _style() -> str:
    return (HERE / "static" / "result_card.css").read_text(encoding="utf-8")


def _sha(page: str) -> str:
    return hashlib.sha256(page.encode()).hexdigest()


def _clean(text) -> str:
    """Take out what would not come back the same from a file: half characters, and other systems' line ends."""
    return str(text).encode("utf-8", "replace").decode().replace("\r\n", "\n").replace("\r", "\n")


def _number(name: str, value):
    if value is None:
        return None
    try:
        value = int(value) if name in ("n", "seed") else float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is {value!r}, not a number: leave it out where it is not known") from error
    return value if math.isfinite(value) else None


def _said(value) -> str:
    if value is None:
        return UNTOLD
    if not isinstance(value, float):
        return str(value)
    return f"{value:.3f}" if 0.001 <= abs(value) < 10 or not value else f"{value:.4g}"
