"""What an edge says on a new stream to its cloud, and what its devices have to sign anew."""

from __future__ import annotations

import asyncio
from typing import Any
from unittest.mock import MagicMock

import pytest

from edge_server.server import EdgeServer
from sfl.config import EdgeConfig
from sfl.errors import LinkLost
from sfl.rounds.values import Challenge


@pytest.mark.parametrize("same", [True, False])
def test_devices_join_again_where_the_cloud_asks_for_another_signature(same: bool) -> None:
    async def story() -> None:
        server = EdgeServer(EdgeConfig(), 1, True, new_channel=MagicMock())
        server.run_id = "r"
        follower: Any = MagicMock()
        server.follower = follower
        host = MagicMock()
        server._opened.set_result(host)
        server._present(MagicMock(welcome=MagicMock(challenge=b"new")), same)
        asked = Challenge("r", server.config.name, b"new")
        assert server.service.entrance.challenge == asked
        if same:
            host.present.assert_called_once_with()
            follower.send_off.assert_not_called()
        else:
            (reason,) = follower.send_off.call_args.args
            assert isinstance(reason, LinkLost) and "another signature" in str(reason)
            host.present.assert_not_called()
        server.service.close()
        server.engine.close()

    asyncio.run(story())
