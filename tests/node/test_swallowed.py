"""Ctrl-C amid a compiled library's callback ends a command as Ctrl-C does anywhere."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator

import pytest
from pydantic import BaseModel, field_serializer

from sfl.node.process import run_node
from sfl.node.swallowed import heard


class Struck(BaseModel):
    value: int = 1

    @field_serializer("value")
    def _shown(self, value: int) -> int:
        raise KeyboardInterrupt


def write() -> None:
    Struck().model_dump(mode="json")


def test_an_interrupt_that_became_an_error_is_one_again() -> None:
    with pytest.raises(KeyboardInterrupt), heard():
        write()


@pytest.fixture
def own_signals() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("own_signals")
def test_a_node_that_is_struck_there_has_no_bug(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "sfl"):
        assert run_node(write) == 130
    assert [record.getMessage() for record in caplog.records] == ["interrupted"]


def test_an_error_of_the_clean_up_stays_an_error() -> None:
    with pytest.raises(ValueError, match="disk"), heard():
        try:
            raise KeyboardInterrupt
        finally:
            raise ValueError("disk")
