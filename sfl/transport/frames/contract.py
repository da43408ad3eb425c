"""What a peer may say: messages as checked values, or a ProtocolError that names the field.

Checked where they enter (an edge its devices', the cloud its edges', a node what it is told), so
that nobody behind has to. No clock, socket or file here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import assert_never, get_args

from google.protobuf.message import Message
from pydantic import ValidationError

from sfl.config import RunSettings
from sfl.config.codec import RoleCodecs
from sfl.config.model import Task
from sfl.config.plugins import require_same
from sfl.data.example import Kind as ExampleKind
from sfl.data.layout import Layout
from sfl.errors import ProtocolError
from sfl.metrics.costs import passes_from_json
from sfl.metrics.snapshot import NodeKind, NodeSnapshot
from sfl.metrics.timeline import spans_from_json
from sfl.node.certificates.identity import NAME
from sfl.node.text import plain
from sfl.rounds.values import Assignment
from sfl.v1 import edge_pb2, tensor_pb2

MOST_COUNT = (1 << 31) - 1
"""Of examples, steps and rounds: what fits every field of the wire they go into."""
MOST_NUMBER = 1e15
MOST_BLOCKS = 1 << 16
MOST_SPANS = 16
MOST_TOKENS = 1 << 53
DIGEST = re.compile("[0-9a-f]{0,64}")  # nothing: none was applied


MOST_SAID = 4 << 20
"""Bytes of what is passed on: with what is put around it, it stays within what gRPC sends, so that
no device's words end the link of its edge. What this version does not know of counts as well."""
MOST_BESIDE = 1 << 16
"""Bytes of a proof, and of an adapter's header."""


def kinds_of(task: Task) -> tuple[ExampleKind, ...]:
    """What examples of a task may be."""
    match task:
        case "causal_lm":
            return ("completion", "text")
        case "sequence_classification":
            return ("label",)
        case unknown:
            assert_never(unknown)


class DeviceContract:
    """What one device may say at this point of the run: at its edge, and relayed at the cloud.

    It is ready once; in each round it is told of, it sends its part once where it has steps to
    take, and one report. Methods raise ProtocolError.
    """

    def __init__(self, device: str, settings: RunSettings) -> None:
        self._device = device
        self._settings = settings
        self._ready: edge_pb2.DeviceReady | None = None
        self._told: Assignment | None = None
        self._sides: set[str] = set()
        self._report_due = False

    def begin(self, told: Assignment) -> None:
        """The device is told of a round, or of steps to rehearse."""
        self._told = told
        self._sides.clear()
        self._report_due = True

    def statistics(self, text: str) -> NodeSnapshot:
        """The device's own statistics."""
        return statistics(text, "device", self._device)

    def ready(self, message: edge_pb2.DeviceReady) -> NodeSnapshot:
        """It has its span and its data; returns its statistics."""
        if self._ready is not None:
            raise ProtocolError("ready was said twice")
        sized("ready", message, MOST_SAID)
        # Its upper bound is a setting of the run's, and the coordinator's to hold.
        whole("num_examples", message.num_examples, 1, (1 << 64) - 1)
        # Held-out examples weigh in the run's score as the others do in its average.
        most = min(MOST_COUNT, self._settings.aggregation.max_examples)
        whole("num_eval_examples", message.num_eval_examples, 0, most)
        for field in ("num_truncated", "num_dropped", "num_repeated"):
            whole(field, getattr(message, field), 0, MOST_COUNT)
        for field in ("num_tokens", "num_tokens_kept"):
            whole(field, getattr(message, field), 0, MOST_TOKENS)
        one_of("example_kind", message.example_kind, kinds_of(self._settings.model.task))
        one_of("layout", message.layout, get_args(Layout))
        if not DIGEST.fullmatch(message.chat_template):
            raise ProtocolError(
                f"chat_template = {message.chat_template!r:.80}: it is not a digest"
            )
        snapshot = self.statistics(message.snapshot)
        self._ready = message
        return snapshot

    def part(self, header: tensor_pb2.AdapterHeader, side: str, most: int) -> None:
        """The part of one of its plan's holders begins, of at most so many bytes."""
        sized("the header of an adapter", header, MOST_BESIDE)
        told = self._told
        if told is None or not told.steps.count or side not in told.plan.holders:
            raise ProtocolError(f"no adapter of side {side!r:.40} is expected")
        self._of_round("an adapter", header.round)
        if side in self._sides:
            raise ProtocolError(f"the {side}'s part of round {header.round} came twice")
        whole("num_bytes of an adapter", header.num_bytes, 0, most)
        number("scaling of an adapter", header.scaling, 0)
        self._sides.add(side)

    def report(self, report: tensor_pb2.RoundReport) -> NodeSnapshot:
        """How its round, or its rehearsal, went; returns its statistics."""
        ready, told = self._ready, self._told
        if ready is None or told is None or not self._report_due:
            raise ProtocolError("a report came that was not expected")
        sized("a report", report, MOST_SAID)
        self._of_round("a report", report.round)
        _same("num_steps of a report", report.num_steps, told.steps.count)
        _same("timings in a report", len(report.rehearsal), len(told.rehearse))
        for seconds in (report.train_seconds, report.evaluation_seconds, *report.rehearsal):
            number("seconds of a report", seconds, 0)
        number("train_loss", report.train_loss, 0)
        tokens = report.num_steps * batch_tokens(self._settings)
        whole("num_tokens", report.num_tokens, 0, tokens)
        longest = self._settings.model.max_length
        score(report.evaluation, ready.num_eval_examples, longest)
        score(report.sample, report.evaluation.num_examples, longest)
        for spans in (report.spans, report.edge_spans):
            spans_from_json(spans)
        passes_from_json(report.edge_passes)
        if report.asks_for:
            name("the edge that a device asks for", report.asks_for)
        snapshot = self.statistics(report.snapshot)
        self._report_due = False
        return snapshot

    def _of_round(self, what: str, round_: int) -> None:
        opened = 0 if self._told is None else self._told.round
        if round_ != opened:
            raise ProtocolError(f"round = {round_} of {what}, and round {opened} is open")


class Pace:
    """How often a peer may say something: twice an `interval` in the long run, more at once."""

    def __init__(self, interval: float, burst: int = 120) -> None:
        self._rate = 2.0 / interval
        self._burst = burst
        self._left = float(burst)
        self._last: float | None = None

    def take(self, what: str, now: float) -> None:
        """It was said, at `now` seconds. Raises ProtocolError where that is too often."""
        waited = 0.0 if self._last is None else now - self._last
        self._left = min(self._burst, self._left + waited * self._rate) - 1.0
        self._last = now
        if self._left < 0:
            raise ProtocolError(f"more than {self._rate:g} {what}s a second")

    def grant(self) -> None:
        """One more may be said: it goes with something that is bounded otherwise."""
        self._left = min(self._burst, self._left + 1.0)


def one_of(field: str, value: str, known: Sequence[str]) -> None:
    """Raise ProtocolError unless a word is one of those that are known, or not said."""
    if value and value not in known:
        raise ProtocolError(f"{field} = {value!r:.80}: it must be one of {', '.join(known)}")


def reason(text: str) -> str:
    """Why a peer does something, in its words: one line, of a bounded length."""
    return plain(text) or "it gave no reason"


def sized(what: str, message: Message, most: int) -> None:
    """Raise ProtocolError where a message takes more than so many bytes, known fields or not."""
    if (size := message.ByteSize()) > most:
        raise ProtocolError(f"{what} takes {size} bytes; {most} are allowed")


def name(kind: str, text: str) -> str:
    """The name that a peer says is its own."""
    if not NAME.fullmatch(text):
        raise ProtocolError(f"{kind} = {text!r:.80}: a name has letters, digits, '_', '.' and '-'")
    return text


def statistics(text: str, kind: NodeKind, name: str) -> NodeSnapshot:
    """The statistics of that node and no other."""
    found = NodeSnapshot.from_json(text)
    if (found.kind, found.name) != (kind, name):
        raise ProtocolError(
            f"statistics of {found.kind} {found.name!r} in place of {kind} {name!r}"
        )
    return found


def stage_statistics(text: str) -> NodeSnapshot:
    """Those of a stage, which says itself what it is called."""
    found = NodeSnapshot.from_json(text)
    if found.kind != "stage":
        raise ProtocolError(f"statistics of {found.kind} {found.name!r} in place of a stage")
    name("stage", found.name)
    return found


def score(said: tensor_pb2.Score, most_examples: int, longest: int) -> None:
    """What an evaluation found, over at most so many examples of at most so many tokens."""
    number("loss_sum", said.loss_sum, 0)
    whole("num_examples of a score", said.num_examples, 0, most_examples)
    whole("num_correct", said.num_correct, 0, said.num_examples)
    whole("num_targets", said.num_targets, 0, said.num_examples * longest)


def run_settings(text: str) -> RunSettings:
    """The run's settings, as the cloud tells them.

    Raises ConfigError where this machine lacks a plug-in package that the run uses.
    """
    require_same(text)
    try:
        return RunSettings.model_validate_json(text)
    except ValidationError as error:
        raise ProtocolError(f"the run's settings: {_first(error)}") from None


def welcome(said: edge_pb2.Welcome, device: str) -> RunSettings:
    """What an edge tells a device it takes in: the run's settings."""
    settings = run_settings(said.settings)
    if device not in settings.names:
        raise ProtocolError(f"the run's settings have no device {device!r}")
    if said.run_id:
        name("run_id", said.run_id)
    return settings


def spans_of_a_plan(said: Sequence[edge_pb2.HeldSpan]) -> None:
    """Spans from the embedding to the head, each beginning where the one before it ends."""
    whole("spans of a plan", len(said), 1, MOST_SPANS)
    last = 0
    for number, span in enumerate(said):
        whole(f"plan[{number}].first", span.first, last, last)
        whole(f"plan[{number}].last", span.last, span.first, MOST_BLOCKS)
        _same(f"plan[{number}].embedding", span.embedding, number == 0)
        _same(f"plan[{number}].head", span.head, number == len(said) - 1)
        last = span.last


def role_codecs(text: str) -> RoleCodecs:
    """A round's codecs by role."""
    try:
        return RoleCodecs.model_validate_json(text)
    except ValidationError as error:
        raise ProtocolError(f"codecs of a round: {_first(error)}") from None


def adapter_limit(shapes: Iterable[Sequence[int]], times: float = 1.0) -> int:
    """Most bytes that an adapter of these parameters may take, or `times` as many values."""
    counts = [math.prod(shape) for shape in shapes]
    return int(4 * times * sum(counts)) + 512 * len(counts) + (1 << 16)


def batch_tokens(settings: RunSettings) -> int:
    """Most tokens of a batch."""
    return settings.training.batch_size * settings.model.max_length


def whole(field: str, value: int, least: int, most: int) -> None:
    """Raise ProtocolError unless a count is within its bounds."""
    if not least <= value <= most:
        raise ProtocolError(f"{field} = {value}: {least} to {most} is allowed")


def _same(field: str, value: int, wanted: int) -> None:
    if value != wanted:
        raise ProtocolError(f"{field} = {value}, and {wanted} was expected")


def number(field: str, value: float, least: float, most: float = MOST_NUMBER) -> None:
    """Raise ProtocolError unless a number is finite and is within its bounds."""
    if not math.isfinite(value) or not least <= value <= most:
        raise ProtocolError(f"{field} = {value!r}: a number from {least:g} to {most:g} is allowed")


def _first(error: ValidationError) -> str:
    """The first of what is wrong, on one line."""
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    place = ".".join(map(str, problem["loc"]))
    return plain(f"{place}: {problem['msg']}" if place else problem["msg"])
