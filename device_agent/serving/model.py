"""The model of a device that serves: its own folder, or files of its blocks from the edge."""

from __future__ import annotations

import logging
import time

from sfl.config.serve import ServeDeviceConfig
from sfl.errors import ConfigError, LinkLost
from sfl.metrics.stats import NodeStats
from sfl.models.folder import ModelFolder, open_model
from sfl.node.certificates.own import OwnCertificate
from sfl.transport.bulk.fetch import Blocks, fetch_model
from sfl.transport.device.line import connected

log = logging.getLogger("sfl.device")

PAUSE = 1.0
"""Seconds before a transfer that broke goes on."""


def served_model(
    config: ServeDeviceConfig, insecure: bool, own: OwnCertificate | None = None
) -> ModelFolder:
    """Opened; what comes from the edge is kept in `device.cache_dir`. Raises SflError.

    It may take as long as the transfer: for a thread beside an event loop.
    """
    device = config.device
    if device.model is not None:
        return open_model(device.model)
    kind, source = config.serve.draft_source
    if kind == "exit":
        problem = "it begins as the model's last block, which the edge does not send"
        raise ConfigError("serve.draft", f"exit:{source}", problem, "Give device.model.")
    late = None
    while True:
        try:
            return _fetched(config, insecure, own)
        except LinkLost as error:
            late = late or time.monotonic() + device.connect_timeout
            if time.monotonic() > late:
                raise
            log.warning("the transfer of the model's files goes on: %s", error)
            time.sleep(PAUSE)


def _fetched(config: ServeDeviceConfig, insecure: bool, own: OwnCertificate | None) -> ModelFolder:
    device, serve = config.device, config.serve
    blocks = Blocks(serve.cut_layer, serve.tail_layers, serve.topology == "u_shaped")
    stats = NodeStats(device.name, "device")  # of the transfer alone
    channel = connected(device.edge, stats, device.connect_timeout, insecure, own, device.proxy)
    try:
        return open_model(
            str(fetch_model(channel, device.name, device.cache_dir, stats, blocks=blocks))
        )
    finally:
        channel.close()
