"""Fixtures of edges."""

from __future__ import annotations

from typing import Any

import pytest

from sfl.transport.device.service import EdgeService
from tests.house.edge import House


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count the calls that gRPC has served to their end, or given up."""
    serve = EdgeService._session

    async def session(self: EdgeService, *args: Any) -> None:
        house = House.of[self]
        house.calls += 1
        try:
            await serve(self, *args)
        finally:
            house.ended += 1

    monkeypatch.setattr(EdgeService, "_session", session)
