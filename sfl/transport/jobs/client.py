"""An operator's calls to a service."""

from __future__ import annotations

import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, TypeVar

import grpc

from sfl.errors import ConfigError, LinkLost, SflError
from sfl.jobs.rows import RunRow, Standing
from sfl.node.certificates.own import OwnCertificate
from sfl.transport.dialling import Pauses, wait_for_peer
from sfl.transport.frames.seal import sound
from sfl.transport.frames.wire import LIST, LOGS, STATUS, STOP, SUBMIT, WATCH, Method
from sfl.transport.jobs.words import from_run_row, from_standing
from sfl.transport.security.credentials import open_channel
from sfl.transport.status import error_of
from sfl.v1 import jobs_pb2

CALL = 30.0
"""Seconds that an answer may take."""

T = TypeVar("T")


class ServiceClient:
    """A service, as an operator calls it; a call whose answer is lost is made again."""

    def __init__(
        self,
        address: str,
        insecure: bool,
        own: OwnCertificate | None,
        connect_timeout: float,
    ) -> None:
        """Raises ConfigError."""
        self._peer = f"service at {address}"
        self._timeout = connect_timeout
        self._open = partial(open_channel, "--service", address, insecure, own, "cloud")
        self._channel, self._is_connected = self._open(), False
        self._ahead = 0.0
        """Seconds by which the service's clock is ahead of this machine's."""

    def close(self) -> None:
        """Hang up."""
        self._channel.close()

    def submit(self, settings: str) -> str:
        """Queue a run; its id. Tried again, it is the same run. Raises ConfigError, SflError."""
        request = jobs_pb2.SubmitRequest(settings=settings, key=secrets.token_hex(16))
        answer = self._call(SUBMIT, request)
        if answer.HasField("refusal"):
            said = answer.refusal
            raise ConfigError(said.field, said.value, said.problem, said.fix)
        run: str = answer.run
        return run

    def rows(self) -> list[RunRow]:
        """All runs, the open ones first."""
        said = self._call(LIST, jobs_pb2.ListRequest())
        self._note_clock(said)
        return [from_run_row(row) for row in said.runs]

    def standing(self, run: str) -> Standing:
        """Where the service stands, or one run."""
        return self._standing(self._call(STATUS, jobs_pb2.RunRequest(run=run)))

    def stop(self, run: str, reason: str) -> Standing:
        """End a run."""
        return self._standing(self._call(STOP, jobs_pb2.StopRequest(run=run, reason=reason)))

    def watch(self, run: str) -> Iterator[Standing]:
        """Where a run stands each time that it changes, to its end."""
        request = jobs_pb2.RunRequest(run=run)
        for stream in self._streams(WATCH, request):
            yield from map(self._standing, stream)

    def logs(self, run: str, node: str, follow: bool) -> Iterator[tuple[str, bytes]]:
        """A node's name, and the next of its log; nothing comes twice."""
        request = jobs_pb2.LogsRequest(run=run, node=node, follow=follow)
        shown: Counter[str] = Counter()
        for stream in self._streams(LOGS, request):
            seen: Counter[str] = Counter()
            for chunk in stream:
                new = chunk.data[max(0, shown[chunk.node] - seen[chunk.node]) :]
                seen[chunk.node] += len(chunk.data)
                shown[chunk.node] += len(new)
                if new:
                    yield chunk.node, new

    def now(self) -> float:
        """Unix seconds, by the service's clock: all times that it tells are of that one."""
        return time.time() + self._ahead

    def _standing(self, said: jobs_pb2.Standing) -> Standing:
        self._note_clock(said)
        return from_standing(said)

    def _note_clock(self, said: jobs_pb2.RunList | jobs_pb2.Standing) -> None:
        """An older service does not say what its clock shows."""
        self._ahead = said.now - time.time() if said.now else 0.0

    def _call(self, method: Method, request: Any) -> Any:
        return self._again(lambda: sound(method.stub(self._channel)(request, timeout=CALL)))

    def _streams(self, method: Method, request: Any) -> Iterator[Iterator[Any]]:
        """A call's answers; once more from the beginning, each time that the link has broken.

        Raises SflError where the service is not back within `connect_timeout`.
        """
        pauses, broken = Pauses(), True

        def answers() -> Iterator[Any]:
            nonlocal broken
            try:
                yield from self._stream(method, request)
                broken = False
            except LinkLost:
                time.sleep(pauses.next())

        while broken:
            yield answers()

    def _stream(self, method: Method, request: Any) -> Iterator[Any]:
        """The answers of a call; one that breaks before its first answer is made again."""

        def begun() -> tuple[Any, Iterator[Any]]:
            call = iter(method.stub(self._channel)(request))
            return next(call, None), call

        first, call = self._again(begun)
        try:
            while first is not None:
                yield sound(first, self._peer)
                first = next(call, None)
        except grpc.RpcError as error:
            self._dial_anew()
            raise error_of(error, self._peer) from None

    def _connect(self, seconds: float) -> None:
        if not self._is_connected:
            wait_for_peer(self._channel, self._peer, seconds)
            self._is_connected = True

    def _dial_anew(self) -> None:
        """gRPC's thread that looks at a channel's state may outlive it, if it is asked twice."""
        self._channel.close()
        self._channel, self._is_connected = self._open(), False
        self._ahead = 0.0
        """Seconds by which the service's clock is ahead of this machine's."""

    def _again(self, call: Callable[[], T]) -> T:
        """What a call gives, dialled for `connect_timeout` seconds. Raises SflError."""
        end, pauses = time.monotonic() + self._timeout, Pauses()
        while True:
            self._connect(max(0.1, end - time.monotonic()))
            try:
                return call()
            except grpc.RpcError as failed:
                error: SflError = error_of(failed, self._peer)
            if not isinstance(error, LinkLost) or time.monotonic() >= end:
                raise error
            self._dial_anew()
            time.sleep(pauses.next())
