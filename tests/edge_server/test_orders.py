"""A cloud's orders are looked at before anything is done with them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from sfl.errors import ProtocolError
from sfl.rounds.assignment import assign
from sfl.rounds.values import EdgeBase, EdgeOrders
from sfl.transport.cloud.words import GlobalPart
from sfl.transport.frames.chunks import adapter_bytes
from tests.house.edge import NAME, Cloud, House, played


def test_a_rank_out_of_bounds_is_refused_before_the_adapter_is_read() -> None:
    async def scene(house: House, cloud: Cloud) -> None:
        own = assign(house.settings, EdgeBase(house.base.folder.num_layers), NAME, 1)
        await house.follower.hear(EdgeOrders(1, {NAME: replace(own, rank=0)}))
        with pytest.raises(ProtocolError, match=r"assignment\.rank = 0: 1 to"):
            await house.follower.hear(GlobalPart(1, adapter_bytes({})))

    played(scene)
