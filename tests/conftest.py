"""Fixtures of all tests."""

from __future__ import annotations

import warnings
from collections.abc import Iterator

import pytest


@pytest.fixture
def quiet_peft() -> Iterator[None]:
    """PEFT 0.21 asks transformers 5 for an old name."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield
