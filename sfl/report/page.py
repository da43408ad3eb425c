"""What all pages share: a document that fetches nothing, tiles and tables."""

from __future__ import annotations

from collections.abc import Sequence

from sfl.report.markup import Markup, element
from sfl.report.style import CHARTS, COLOURS, PAGE

# Nothing may be fetched, even if a string slipped through unescaped.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


TOPOLOGY_NAMES = {
    "u_shaped": "U-shaped",
    "three_tier": "three tiers",
    "three_tier_u_shaped": "three tiers, U-shaped",
}
"""Topologies as a reader's words, where these are others."""


def document(title: str, *parts: Markup) -> str:
    """A whole HTML file."""
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Markup(COLOURS + CHARTS + PAGE)),
    )
    main = element("main", *parts)
    return "<!DOCTYPE html>\n" + element("html", head, element("body", main), lang="en") + "\n"


def tile(name: str, value: str | Markup, note: str) -> Markup:
    """One figure."""
    return element(
        "div",
        element("div", name, class_="name"),
        element("div", value, class_="big"),
        element("div", note, class_="note"),
        class_="tile",
    )


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Markup:
    """Rows, each headed by its first cell."""
    head = element("thead", element("tr", *(element("th", name, scope="col") for name in headings)))
    body = [
        element(
            "tr", element("th", row[0], scope="row"), *(element("td", cell) for cell in row[1:])
        )
        for row in rows
    ]
    return element("table", head, element("tbody", *body))


def count(number: int, noun: str) -> str:
    """A number with its noun."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
