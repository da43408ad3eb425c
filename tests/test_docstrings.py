"""The script that measures docstrings, and the code held to its limits and words."""

from __future__ import annotations

import pytest

from tools import docstrings

SOURCE = '''\
"""A module of five words."""


class _Hidden:
    """This one does not count at all."""

    mended = 1

    def seen(self, resting, at_hand):
        """A public method is one."""
        MEND = self.lentMemory = "mend"
        raise ValueError(f"{MEND}: nothing is at hand, mend it")  # whatever lies there
'''


def test_public_docstrings_count() -> None:
    assert list(docstrings.docstrings(SOURCE)) == [
        "A module of five words.",
        "A public method is one.",
    ]


def test_words_are_found_in_messages_comments_and_names_and_not_in_keys() -> None:
    found = [(one.where, one.word) for one in docstrings.words(SOURCE, "a.py")]
    assert sorted(found) == [
        ("a.py:11", "lent"),
        ("a.py:11", "mend"),
        ("a.py:12", "at hand"),
        ("a.py:12", "lies"),
        ("a.py:12", "mend"),
        ("a.py:7", "mended"),
        ("a.py:9", "at hand"),
    ]


def test_the_code_keeps_to_the_limits(capsys: pytest.CaptureFixture[str]) -> None:
    """What is broken stands in the output."""
    assert docstrings.main([]) == 0, capsys.readouterr().out
