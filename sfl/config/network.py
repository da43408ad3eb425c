"""Timeouts and limits of the links."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from sfl.config.base import Seconds, Section


class NetworkSettings(Section):
    """Timeouts and limits of the links. None of them changes a bit of the result."""

    idle_timeout: Seconds = 60.0
    """Seconds without a byte after which a peer counts as lost. Heartbeats reset it."""
    heartbeat_interval: Seconds = 1.0
    """Seconds between a node's heartbeats."""
    join_timeout: Seconds = 120.0
    """Seconds the cloud waits for all devices before the first round."""
    join_grace: Seconds | None = None
    """Seconds the cloud waits for the other devices once `min_devices` are ready. Default: until
    `join_timeout`. A device that comes later joins with the next round."""
    rejoin_timeout: Annotated[float, Field(ge=0.0, le=1e9)] = 60.0
    """Seconds a lost device, edge or cloud is waited for. A device that is back by then goes on as
    if nothing had happened. 0: a round goes on at once without a lost device."""
    failover_seconds: Annotated[float, Field(ge=0.0, le=1e9)] = 10.0
    """Seconds that a device dials the edge that it has lost before it goes to another one, where it
    knows of one. 0: at once. An edge that is started again within that time keeps its devices."""
    round_timeout: Seconds = 3600.0
    """Seconds a round may take. Devices that are not done by then are left out of it."""
    straggler_factor: Annotated[float, Field(ge=1.0)] | Literal["off"] = 10.0
    """When to leave out a silent device. It applies once half of a round's devices, and enough of
    them, are done. A device is left out if nothing of it moves for this many times their median
    time. A slow device that sends or receives something in that time is waited for. `off`: wait
    until `round_timeout`."""
    straggler_seconds: Seconds = 300.0
    """The shortest such wait, in seconds. It is longer than a device needs between two
    micro-batches."""
    credits: Annotated[int, Field(gt=0, le=4096)] = 4
    """Micro-batches of one device that may be in flight at once. In training a device uses only as
    many as keep itself, its link and its edge busy. Changes no bit."""
    insecure: bool = False
    """Allow addresses other than loopback without TLS."""

    @model_validator(mode="after")
    def _heartbeats_come_in_time(self) -> Self:
        if self.heartbeat_interval >= self.idle_timeout:
            raise ValueError(
                f"idle_timeout: heartbeats come every {self.heartbeat_interval:g} s "
                "(heartbeat_interval), so that every peer would count as lost; use more than that"
            )
        return self
