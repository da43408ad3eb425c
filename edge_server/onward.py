"""The stage behind a server, by its settings."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from sfl.config import EdgeConfig
from sfl.metrics.stats import NodeStats
from sfl.node.certificates.own import OwnCertificate
from sfl.plan import Holder
from sfl.stage.snapshots import SharedShelf
from sfl.transport.cloud.link import Channel
from sfl.transport.device.tensor_work import Coders
from sfl.transport.security.credentials import open_aio_channel
from sfl.transport.stage.dialling import NextStage


def following(
    config: EdgeConfig,
    holder: Holder,
    stats: NodeStats,
    coders: Coders,
    own: OwnCertificate | None,
    insecure: bool,
    new_channel: Callable[[], Channel] | None = None,
    shared: SharedShelf | None = None,
) -> NextStage | None:
    """What is behind the server `holder`; None where `next` names nothing.

    `new_channel` makes what it is called by; without, one to the address in `config`. Snapshots
    are kept in a `shared` place, too.
    """
    if not config.next:
        return None
    field = "edge.next" if holder == "edge" else "stage.next"
    channel = new_channel or partial(
        open_aio_channel, field, config.next, insecure, own, "edge", config.proxy
    )
    return NextStage(
        config.next, config.name, holder, stats, channel, coders, config.cache_dir, shared
    )
