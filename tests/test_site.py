"""Links of the docs: those that leave docs/ in the site, and those of pages that the site lacks."""

from __future__ import annotations

import re

import pytest

from tools import site

_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def test_a_link_out_of_docs_is_its_path() -> None:
    """The site has no such file; links within docs/ and to other hosts stay as they are."""
    text = "See [the image](../docker/Dockerfile), [data](data.md#splits), [x](https://x.org) here."
    expected = (
        "See the image (`docker/Dockerfile`), [data](data.md#splits), [x](https://x.org) here."
    )
    assert site.inside(text, "boards.md") == expected
    nested = "[the image](../../docker/Dockerfile), [data](../data.md), [below](#below)"
    assert site.inside(nested, "figures/edge.md").startswith("the image (`docker/Dockerfile`), [da")


def test_code_keeps_its_brackets() -> None:
    """What looks like a link within a block of code is code."""
    code = "```\nx = [a](../nowhere)\n```"
    assert site.inside(code, "boards.md") == code


def test_a_link_to_nothing_is_an_error() -> None:
    """It names the page and the file."""
    with pytest.raises(FileNotFoundError, match=r"docs/boards\.md links to docker/nothing"):
        site.inside("[x](../docker/nothing)", "boards.md")


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_of_pages_beside_docs(name: str) -> None:
    """Their files exist, and so do the headings they point to."""
    for target in _LINK.findall((site.ROOT / name).read_text()):
        path, _, anchor = target.partition("#")
        if "://" not in target:
            assert (site.ROOT / (path or name)).exists(), target
            assert not anchor or anchor in slugs(path or name), target


def slugs(name: str) -> set[str]:
    """Anchors of a page's headings, as the repository's web page makes them."""
    headings = re.findall(r"^#+ (.*)$", (site.ROOT / name).read_text(), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading).lower() for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}
