"""A result card: one result with all that it depends on, as a file that needs no kernel."""

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

from qanchor.widgets.base import atomic_write, count_noun, read_static

FORMAT = 3
READABLE_FORMATS = (1, 2, 3)  # 2 has a unit, 3 its plural
IMAGE_PATTERN = re.compile(r"data:image/(?:svg\+xml|png|jpeg);base64,[A-Za-z0-9+/]+={0,2}")
DATA_PATTERN = re.compile(
    r'(<script type="application/json" id="(?:result-card|claim)" data-sha256=")'
    r'([0-9a-f]{64})(">)(.*?)</script>',
    re.S,
)
HASH_PATTERN = re.compile("[0-9a-f]{64}")
BLANK_HASH = "0" * 64  # stands for the hash while it is computed
HASH_SHOWN = 16  # characters
UNKNOWN = "not told"
NUMBERS = ("value", "low", "high", "n", "seed")
# what the file itself may do: show its own picture and style, and nothing else
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


class ResultCardError(ValueError):
    """A file is no result card, or was changed after it was saved."""


@dataclass(frozen=True)
class ResultCard:
    """One result with all that it depends on: shown as plain HTML, saved as one file.

    Texts may hold anything: they are shown as text. The card says what is unknown.

    Args:
        sentence: The result in words.
        query: The query that was asked.
        metric: What was measured.
        value: The measured value.
        low: The lower end of its 95 % interval.
        high: The upper end.
        n: The number of users.
        run: The hash of the checkpoint.
        seed: The seed.
        version: Name and version of the package.
        date: When it was made (default: now, in UTC).
        text: A remark of your own.
        picture: An image as a data URI.
        more: Further facts by name.
        unit: The word for a user.
        units: Its plural.

    Raises:
        ValueError: If there is no sentence, a number is none, or the picture is no data URI.

    Example:
        >>> card = ResultCard(
        ...     "Two of ten moved.", metric="share moved", value=0.2, n=10, date="2026-01-31"
        ... )
        >>> print(card)
        Result: Two of ten moved.
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
    units: str = "users"

    def __post_init__(self):
        for one in fields(self):
            value = getattr(self, one.name)
            if one.name in NUMBERS:
                value = checked_number(one.name, value)
            elif one.name == "more":
                value = {storable(name): storable(text) for name, text in value.items()}
            else:
                value = storable(value)
            object.__setattr__(self, one.name, value)
        if not self.sentence.strip():
            raise ValueError("the card has no sentence: say in words what it shows")
        if self.picture and not IMAGE_PATTERN.fullmatch(self.picture):
            start = f"the picture begins with {self.picture[:30]!r}"
            raise ValueError(f"{start}: give an image as data:image/png;base64,...")

    @classmethod
    def from_facts(cls, facts: Mapping, picture: str = "", **more_facts) -> ResultCard:
        """Make a card from a dict of facts.

        Args:
            facts: Fields of a card, and further facts, which go to `more`.
            picture: An <img>, or its data URI.
            more_facts: More of the same; these win.

        Returns:
            The card.
        """
        facts = {**facts, **more_facts}
        names = {one.name for one in fields(cls)}
        known = {name: value for name, value in facts.items() if name in names}
        more = dict(known.get("more", {}))
        for name, value in facts.items():
            if name not in names:
                more[name.replace("_", " ")] = format_value(value)
        uri = IMAGE_PATTERN.search(picture)
        known["picture"] = uri[0] if uri else picture
        known["more"] = more
        return cls(**known)

    def save(self, path) -> Path:
        """Write the card as one HTML file; `load` reads it back.

        Args:
            path: Ends with .html.

        Returns:
            The path.
        """
        path = Path(path)
        if path.suffix != ".html":
            ending = path.suffix or "nothing"
            raise ValueError(f"{path.name} ends with {ending}: name it .html")
        page = self._page()
        return atomic_write(path, with_hash(page, sha256(page)))

    @classmethod
    def load(cls, path) -> ResultCard:
        """Read a card from its file.

        The stored hash finds edits; it is no signature.

        Args:
            path: The file.

        Returns:
            The card.

        Raises:
            ResultCardError: If the file is no card, or was changed after it was saved.
        """
        path = Path(path)
        page = path.read_text(encoding="utf-8", errors="replace")
        parts = DATA_PATTERN.findall(page)
        if len(parts) != 1:
            count = f"{len(parts)} results in it, a result card holds 1"
            raise ResultCardError(f"{path}: {count}: save it again with card.save(...)")
        [(_, expected, _, content)] = parts
        digest = sha256(with_hash(page, BLANK_HASH))
        if digest != expected:
            hashes = f"sha256 {digest[:HASH_SHOWN]}..., the card says {expected[:HASH_SHOWN]}..."
            edited = "it was edited after it was saved, so take it from its notebook again"
            raise ResultCardError(f"{path}: its content has {hashes}: {edited}")
        stored = json.loads(content)
        if stored.pop("format", None) not in READABLE_FORMATS:
            known = f"this version reads format {FORMAT}"
            raise ResultCardError(f"{path}: of another make, {known}: save it again")
        return cls(**stored)

    @property
    def interval(self) -> str:
        """The 95 % interval in words."""
        if self.low is None or self.high is None:
            return UNKNOWN
        return f"{format_value(self.low)} to {format_value(self.high)}"

    def __str__(self) -> str:
        interval = "" if self.interval == UNKNOWN else f" (95 %: {self.interval})"
        counted = "" if self.n is None else f", n {self.n:,}"
        measured = f"{self.metric or 'value'}: {format_value(self.value)}{interval}{counted}"
        run = f"checkpoint {self.run or UNKNOWN}, seed {format_value(self.seed)}"
        lines = [
            f"Result: {self.sentence}",
            self.text,
            measured,
            f"query: {self.query or UNKNOWN}",
            *(f"{name}: {value}" for name, value in self.more.items()),
            f"{run}, {self.version or UNKNOWN}, {self.date}",
        ]
        return "\n".join(line for line in lines if line)

    def _repr_mimebundle_(self, **kwargs) -> dict:
        style = read_static("result_card.css")
        html = f"<style>{style}</style>{self._body()}"
        return {"text/plain": str(self), "text/html": html}

    def _body(self, heading: str = "h3") -> str:
        """Return the card as HTML, without a page around it."""
        kind = f"Result: {self.query}" if self.query else "Result"
        parts = [
            f'<p class="result-card-kind">{escape(kind)}</p>',
            f"<{heading}>{escape(self.sentence)}</{heading}>",
        ]
        if self.value is not None:
            parts.append(f'<p class="result-card-figure">{self._figure()}</p>')
        if self.text:
            parts.append(f"<blockquote>{escape(self.text)}</blockquote>")
        if self.picture:
            parts.append(f'<figure><img alt="What was shown" src="{self.picture}"></figure>')
        parts.append(f"<dl>{self._list()}</dl>")
        return f'<article class="result-card">{"".join(parts)}</article>'

    def _figure(self) -> str:
        users = UNKNOWN
        if self.n is not None:
            users = count_noun(self.n, self.unit, self.units)
        metric = escape(self.metric or "value")
        value = escape(format_value(self.value))
        interval = f"95 % interval {escape(self.interval)}"
        return f"{metric}: <strong>{value}</strong>, {interval}, {escape(users)}"

    def _list(self) -> str:
        facts = {"Query": self.query or UNKNOWN}
        if self.value is None:
            facts["Metric"] = self.metric or UNKNOWN
            facts["Value"] = UNKNOWN
        for name, value in self.more.items():
            title = name[:1].upper() + name[1:]
            facts[title] = value
        facts["Checkpoint"] = self.run or UNKNOWN
        facts["Seed"] = format_value(self.seed)
        facts["Made with"] = self.version or UNKNOWN
        facts["Date"] = self.date
        html = ""
        for name, value in facts.items():
            html += f"<dt>{escape(name)}</dt>{definition(value)}"
        return html

    def _page(self) -> str:
        """Return the card as a page of its own that holds its data, too, with a blank hash."""
        data = {"format": FORMAT, **asdict(self)}
        stored = json.dumps(data, ensure_ascii=False, allow_nan=False)
        for sign in "<>&":  # a text with </script> in it must not end the script
            stored = stored.replace(sign, f"\\u{ord(sign):04x}")
        title = f"{self.query}: {self.sentence}" if self.query else self.sentence
        style = read_static("result_card.css")
        script = f'<script type="application/json" id="result-card" data-sha256="{BLANK_HASH}">'
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
            '<meta name="viewport" content="width=device-width">'
            f"<title>{escape(title)}</title><style>{style}</style></head>\n"
            f'<body class="result-card-page">{self._body("h1")}\n'
            f"{script}{stored}</script></body></html>\n"
        )


def definition(value: str) -> str:
    """Return one fact as HTML; of a hash the beginning is shown, and all of it as a tooltip."""
    if HASH_PATTERN.fullmatch(value):
        return f'<dd title="{value}">{value[:HASH_SHOWN]}...</dd>'
    return f"<dd>{escape(value)}</dd>"


def with_hash(page: str, digest: str) -> str:
    """Return a page with another hash of its content."""
    return DATA_PATTERN.sub(rf"\g<1>{digest}\3\4</script>", page)


def sha256(page: str) -> str:
    """Return the SHA-256 of a text in hexadecimal digits."""
    return hashlib.sha256(page.encode()).hexdigest()


def storable(text) -> str:
    """Return a text that comes back from a file as it was: no half characters, plain line ends."""
    text = str(text).encode("utf-8", "replace").decode()
    return text.replace("\r\n", "\n").replace("\r", "\n")


def checked_number(name: str, value) -> float | int | None:
    """Return a number of a card, None if it is unknown or not finite."""
    if value is None:
        return None
    try:
        value = int(value) if name in ("n", "seed") else float(value)
    except (TypeError, ValueError) as error:
        hint = "leave it out where it is not known"
        raise ValueError(f"{name} is {value!r}, not a number: {hint}") from error
    return value if math.isfinite(value) else None


def format_value(value) -> str:
    """Write a value of a card in words."""
    if value is None:
        return UNKNOWN
    if not isinstance(value, float):
        return str(value)
    readable = value == 0 or 0.001 <= abs(value) < 10
    return f"{value:.3f}" if readable else f"{value:.4g}"
