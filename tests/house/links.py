"""A device's link to an edge, without a device behind it."""

from __future__ import annotations

from sfl.metrics.stats import NodeStats
from sfl.transport.device.line import dial
from sfl.transport.device.link import DeviceLink
from sfl.transport.security.signed import DeviceSignatures


def joined(address: str, name: str, patience: float) -> DeviceLink:
    """Dial and be taken in; where that fails the line is closed."""
    line = dial(address, NodeStats(name, "device"), patience, insecure=False)
    try:
        return DeviceLink.join(line, DeviceSignatures(name), patience)
    except BaseException:
        line.close()
        raise
