"""The script that measures docstrings, and the code held to its limits and words."""

from __future__ import annotations

import pytest

from tools import docstrings

SOURCE = '''\
"""A module of five words."""


class _Hidden:
    """This one does not count at all."""

    def seen(self):
        """A public method is one."""
        key = "mend"
        raise ValueError(f"{key}: nothing is at hand, mend it")  # whatever lies there
'''


def test_public_docstrings_count() -> None:
    assert list(docstrings.docstrings(SOURCE)) == [
        "A module of five words.",
        "A public method is one.",
    ]


def test_words_are_found_in_messages_and_comments_and_not_in_keys() -> None:
    found = [(one.where, one.word) for one in docstrings.words(SOURCE, "a.py")]
    assert sorted(found) == [("a.py:10", "at hand"), ("a.py:10", "lies"), ("a.py:10", "mend")]


def test_the_code_keeps_to_the_limits(capsys: pytest.CaptureFixture[str]) -> None:
    """What is broken stands in the output."""
    assert docstrings.main([]) == 0, capsys.readouterr().out
