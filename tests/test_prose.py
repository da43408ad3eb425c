"""The script that measures the docs' sentences, and the docs held to its limits."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools import prose

TEXT = """\
# A heading of words that is never counted as any sentence

One two three. Four `a b c d` six [seven eight](https://example.org/a/b). Is it, e.g. so? Yes.

- An item of five words
  that goes on
- Another item follows here

| a table | of many words that do not count |
|---|---|

```
code that is. Not counted. At all
```

<!-- A comment. Of two sentences -->
"""


def test_sentences_are_those_of_the_running_text() -> None:
    """No heading, table, code or comment; code is one word; an item is a sentence of its own."""
    assert list(prose.sentences(TEXT)) == [
        "One two three.",
        "Four `code` six seven eight.",
        "Is it, e.g so?",
        "An item of five words that goes on",
        "Another item follows here",
    ]


@pytest.mark.parametrize(
    ("line", "counts"),
    [
        ("word " * 30, True),
        ("| a cell " * 20, False),
        ("[a link that fills its line](" + "x" * 100 + ")", False),
        ("https://" + "x" * 100, False),
    ],
)
def test_only_lines_that_can_be_cut_count(line: str, counts: bool) -> None:
    """Tables and links are as long as they are."""
    assert bool(list(prose.counted_lines(line))) is counts


def page(*words: int, line: int = 80) -> prose.Page:
    """A page with sentences of so many words."""
    return prose.Page("p.md", tuple("word " * count for count in words), ("x" * line,))


def test_what_sentences_come_to() -> None:
    """Median, ninth tenth, and shares above 25 and 40."""
    found = prose.measure(page(10, 10, 12, 30, 50))
    assert (found.sentences, found.median, found.above_25, found.above_40) == (5, 12, 0.4, 0.2)
    assert found.p90 == 30
    assert prose.measure(page()).median == 0


def test_limits() -> None:
    """Each names itself; one sentence above 40 is let pass, a second is not."""
    assert prose.faults(page(*[12] * 20, 45)) == []
    assert prose.faults(page(*[12] * 20, 45, 45)) == ["2 sentences above 40 words"]
    assert prose.faults(page(*[18] * 20)) == ["median 18 words, not 15"]
    assert prose.faults(page(*[12] * 8, *[30] * 4)) == ["p90 30 words, not 25"]
    assert prose.faults(page(12, line=101)) == ["a line of 101, not 100"]


def test_words_are_found_in_code_and_tables_too(tmp_path: Path) -> None:
    """A page shows what the code prints. A generated page is its code's."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("The file lies here.\n\n```\nmodel (0 MB at hand)\n```\n")
    (tmp_path / "CONTRIBUTING.md").write_text("| word | to mend |\n")
    (tmp_path / "docs" / "made.md").write_text(f"{prose.GENERATED}a script -->\nmend\n")
    found = [(one.where, one.word) for one in prose.forbidden(tmp_path)]
    assert found == [
        ("README.md:1", "lies"),
        ("README.md:4", "at hand"),
        ("CONTRIBUTING.md:1", "mend"),
    ]


def test_the_docs_keep_to_the_limits(capsys: pytest.CaptureFixture[str]) -> None:
    """Every page that was rewritten; what is broken stands in the output."""
    assert prose.main([]) == 0, capsys.readouterr().out
