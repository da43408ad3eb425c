"""Fixtures of hops."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any

import pytest

from sfl.node.certificates import authority as authority_module
from tests.house.tls import Where


@pytest.fixture
def dated(monkeypatch: pytest.MonkeyPatch) -> Callable[[Where], None]:
    """Certificates issued from here on are valid from and until then, seen from now."""

    def set_dates(where: Where) -> None:
        def dates(builder: Any, valid: dt.timedelta) -> Any:
            now = dt.datetime.now(dt.UTC)
            builder = builder.not_valid_before(now + where[0]).not_valid_after(now + where[1])
            return builder.serial_number(7)

        monkeypatch.setattr(authority_module, "_dated", dates)

    return set_dates
