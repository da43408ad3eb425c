"""A service's door for operators: they submit runs, look at them, and stop them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

import grpc
import grpc.aio

from sfl.errors import ProtocolError, SflError, UserError
from sfl.jobs.rows import RunRow, Standing
from sfl.transport.frames.wire import (
    LIST,
    LOGS,
    STATUS,
    STOP,
    SUBMIT,
    WATCH,
    generic_handler,
)
from sfl.transport.jobs.words import to_run_row, to_standing
from sfl.transport.security.doorkeeper import caller_name
from sfl.transport.status import status_of
from sfl.transport.stream import Context
from sfl.v1 import jobs_pb2

MOST_SETTINGS = 1 << 20
"""Bytes of a run's settings."""
MOST_KEY = 64

T = TypeVar("T")


class OperatorsHost(Protocol):
    """What operators ask for. Whatever it raises of sfl's errors, they are told."""

    def submit(self, settings: str, key: str, by: str) -> str:
        """Queue a run; its id. Raises UserError, DiskError."""

    def rows(self) -> Sequence[RunRow]:
        """All runs, the open ones first."""

    def standing(self, run: str) -> Standing:
        """Where the service stands, or one run. Raises UserError."""

    def watch(self, run: str) -> AsyncIterator[Standing]:
        """The same each time that it changes, to the end of the run. Raises UserError."""

    def logs(self, run: str, node: str, follow: bool) -> AsyncIterator[tuple[str, bytes]]:
        """A node's name and the next of its log. Raises UserError."""

    def stop(self, run: str, reason: str, by: str) -> Standing:
        """End a run. Raises UserError, DiskError."""


class OperatorsDoor:
    """Serves operators; the host decides, this moves bytes."""

    def __init__(self, host: OperatorsHost) -> None:
        self._host = host

    def handler(self) -> grpc.GenericRpcHandler[Any, Any]:
        """The service, for `server.add_generic_rpc_handlers`."""
        behaviours: dict[Any, Callable[..., Any]] = {
            SUBMIT: told(self._submit),
            LIST: told(self._list),
            STATUS: told(self._status),
            STOP: told(self._stop),
            WATCH: self._watch,
            LOGS: self._logs,
        }
        return generic_handler(SUBMIT.service, behaviours)

    async def _submit(self, request: jobs_pb2.SubmitRequest) -> jobs_pb2.Submitted:
        if len(request.settings) > MOST_SETTINGS or len(request.key) > MOST_KEY:
            raise ProtocolError(f"a run's settings take at most {MOST_SETTINGS} bytes")
        try:
            run = self._host.submit(request.settings, request.key, _caller())
        except UserError as error:
            refusal = jobs_pb2.Refusal(
                field=error.field,
                value="" if error.value is None else str(error.value),
                problem=error.problem,
                fix=error.fix,
            )
            return jobs_pb2.Submitted(refusal=refusal)
        return jobs_pb2.Submitted(run=run)

    async def _list(self, request: jobs_pb2.ListRequest) -> jobs_pb2.RunList:
        rows = [to_run_row(row) for row in self._host.rows()]
        return jobs_pb2.RunList(runs=rows, now=time.time())

    async def _status(self, request: jobs_pb2.RunRequest) -> jobs_pb2.Standing:
        return to_standing(self._host.standing(request.run))

    async def _stop(self, request: jobs_pb2.StopRequest) -> jobs_pb2.Standing:
        return to_standing(self._host.stop(request.run, request.reason, _caller()))

    async def _watch(
        self, request: jobs_pb2.RunRequest, context: Context
    ) -> AsyncIterator[jobs_pb2.Standing]:
        try:
            async for standing in self._host.watch(request.run):
                yield to_standing(standing)
        except SflError as error:
            await context.abort(status_of(error), str(error))

    async def _logs(
        self, request: jobs_pb2.LogsRequest, context: Context
    ) -> AsyncIterator[jobs_pb2.LogChunk]:
        try:
            async for node, data in self._host.logs(request.run, request.node, request.follow):
                yield jobs_pb2.LogChunk(node=node, data=data)
        except SflError as error:
            await context.abort(status_of(error), str(error))


def told(answer: Callable[[Any], Coroutine[Any, Any, T]]) -> Callable[..., Any]:
    """The answer to a request; an error of sfl ends the call with its status."""

    async def behaviour(request: Any, context: Context) -> T:
        try:
            return await answer(request)
        except SflError as error:
            await context.abort(status_of(error), str(error))
            raise AssertionError("abort raises") from None

    return behaviour


def _caller() -> str:
    """Who makes the call, for a record; empty without TLS."""
    return caller_name() or ""
