"""Errors of this project <-> gRPC statuses, in one place."""

from __future__ import annotations

from typing import Protocol

import grpc

from sfl.errors import (
    AdapterRefused,
    Corrupted,
    DiskError,
    LeftBehind,
    LinkLost,
    NameInUse,
    PeerUnavailable,
    ProtocolError,
    Refused,
    RunFailed,
    SflError,
    TransportError,
    UserError,
)
from sfl.node.text import plain

LONGEST_DETAILS = 2000
"""Characters of a status's text that are kept: it may name every key that a file lacks."""

STATUS_OF: dict[type[SflError], grpc.StatusCode] = {
    ProtocolError: grpc.StatusCode.INVALID_ARGUMENT,
    AdapterRefused: grpc.StatusCode.OUT_OF_RANGE,
    Refused: grpc.StatusCode.FAILED_PRECONDITION,
    NameInUse: grpc.StatusCode.ALREADY_EXISTS,
    UserError: grpc.StatusCode.FAILED_PRECONDITION,  # dialling again would not fix it
    RunFailed: grpc.StatusCode.ABORTED,
    Corrupted: grpc.StatusCode.DATA_LOSS,
    DiskError: grpc.StatusCode.ABORTED,
    LeftBehind: grpc.StatusCode.DEADLINE_EXCEEDED,
    LinkLost: grpc.StatusCode.UNAVAILABLE,
    PeerUnavailable: grpc.StatusCode.UNAVAILABLE,
}

ERROR_OF: dict[grpc.StatusCode, type[SflError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: ProtocolError,
    grpc.StatusCode.OUT_OF_RANGE: AdapterRefused,
    grpc.StatusCode.FAILED_PRECONDITION: Refused,
    grpc.StatusCode.ALREADY_EXISTS: NameInUse,
    grpc.StatusCode.NOT_FOUND: Refused,
    grpc.StatusCode.UNIMPLEMENTED: ProtocolError,
    grpc.StatusCode.DEADLINE_EXCEEDED: LeftBehind,
    grpc.StatusCode.ABORTED: RunFailed,
    grpc.StatusCode.DATA_LOSS: Corrupted,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Refused,
}


class Failure(Protocol):
    """What a failed call of either gRPC API tells."""

    def code(self) -> grpc.StatusCode:
        """Status code."""

    def details(self) -> str | None:
        """Its text."""


def status_of(error: SflError) -> grpc.StatusCode:
    """The status that a server closes a stream with; INTERNAL for what has none."""
    for kind in type(error).__mro__:
        if kind in STATUS_OF:
            return STATUS_OF[kind]
    return grpc.StatusCode.INTERNAL


def error_of(failure: Failure, peer: str) -> SflError:
    """What a client raises when a call to `peer` failed; anything unforeseen is a lost link."""
    text = plain(failure.details() or failure.code().name, LONGEST_DETAILS)
    kind = ERROR_OF.get(failure.code(), LinkLost)
    return kind(f"{peer}: {text}" if issubclass(kind, TransportError) else text)
