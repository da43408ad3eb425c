"""Metrics of nodes that answer with a model; a node that trains has no sample of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from sfl.metrics.metric import DEVICE, DIALLING, EDGE, Metric, Sample, Value
from sfl.metrics.serving import ENDINGS, LEAVINGS, REFUSALS, STANDINGS, Serving
from sfl.metrics.snapshot import NodeSnapshot

Read = Callable[[NodeSnapshot], Iterable[Sample]]
K = TypeVar("K", bound=str)


def _one(of: Callable[[Serving], Value | None]) -> Read:
    """Reader of one figure; None shows nothing."""

    def read(snapshot: NodeSnapshot) -> list[Sample]:
        value = None if snapshot.serving is None else of(snapshot.serving)
        return [] if value is None else [((), value)]

    return read


def _table(of: Callable[[Serving], Mapping[K, int]], known: tuple[K, ...]) -> Read:
    """Reader of counts by word; a word that was not counted is 0."""

    def read(snapshot: NodeSnapshot) -> list[Sample]:
        if snapshot.serving is None:
            return []
        counts = of(snapshot.serving)
        return [((word,), float(counts.get(word, 0))) for word in known]

    return read


SERVING_METRICS: tuple[Metric, ...] = (
    Metric(
        "sfl_serve_first_token_seconds", "histogram", "seconds", (), DEVICE,
        "Time from a request to the first token of its answer.",
        _one(lambda own: own.first_token),
    ),
    Metric(
        "sfl_serve_between_tokens_seconds", "histogram", "seconds", (), DEVICE,
        "Time from one token of an answer to the next.",
        _one(lambda own: own.between_tokens),
    ),
    Metric(
        "sfl_serve_prompt_tokens_total", "counter", "", (), DEVICE,
        "Tokens of prompts, with what their conversations had said before.",
        _one(lambda own: float(own.prompt_tokens)),
    ),
    Metric(
        "sfl_serve_answer_tokens_total", "counter", "", (), DEVICE,
        "Tokens of answers.",
        _one(lambda own: float(own.answer_tokens)),
    ),
    Metric(
        "sfl_serve_answers_total", "counter", "", ("end",), DEVICE,
        "Answers that have ended: by a token or a text (stop), by their length, because their "
        "caller left, or because they failed.",
        _table(lambda own: own.endings, ENDINGS),
    ),
    Metric(
        "sfl_serve_round_trips_total", "counter", "", (), DEVICE,
        "Questions to the edge whose answer is one token or more. Pieces of a prompt before its "
        "last are not counted.",
        _one(lambda own: float(own.held.round_trips)),
    ),
    Metric(
        "sfl_serve_drafted_tokens_total", "counter", "", (), DEVICE,
        "Tokens that the device guessed, and had the edge check.",
        _one(lambda own: float(own.held.drafted)),
    ),
    Metric(
        "sfl_serve_accepted_tokens_total", "counter", "", (), DEVICE,
        "Of these, tokens that were right, so that they took no round trip of their own.",
        _one(lambda own: float(own.held.accepted)),
    ),
    Metric(
        "sfl_serve_wire_bytes_total", "counter", "bytes", ("direction",), DEVICE,
        "Serialised message bytes between the device and the edge that it answers with.",
        _table(
            lambda own: {"up": own.held.bytes_up, "down": own.held.bytes_down}, ("up", "down")
        ),
    ),
    Metric(
        "sfl_serve_edge_connected", "gauge", "", (), DEVICE,
        "1 while the device has a stream to the edge that it answers with, otherwise 0.",
        _one(lambda own: own.held.connected),
    ),
    Metric(
        "sfl_serve_batch_size", "histogram", "", (), EDGE,
        "Conversations whose steps were computed as one batch.",
        _one(lambda own: own.batch),
    ),
    Metric(
        "sfl_serve_conversations", "gauge", "", ("state",), EDGE,
        "Open conversations: active while a step is under way, idle, spilled to a file, or "
        "forgotten until their device sends its part again.",
        _table(lambda own: own.held.conversations, STANDINGS),
    ),
    Metric(
        "sfl_serve_evictions_total", "counter", "", ("way",), EDGE,
        "Conversations that gave up their room for others: spilled, or forgotten.",
        _table(lambda own: own.held.leavings, LEAVINGS),
    ),
    Metric(
        "sfl_serve_refusals_total", "counter", "", ("reason",), EDGE,
        "Conversations and steps that were not taken: busy where there is no room now, refused "
        "where it is not to be had.",
        _table(lambda own: own.refusals, REFUSALS),
    ),
    Metric(
        "sfl_serve_kv_bytes", "gauge", "bytes", (), DIALLING,
        "Memory of the pages of keys and values that conversations have.",
        _one(lambda own: float(own.held.kv_bytes)),
    ),
    Metric(
        "sfl_serve_kv_budget_bytes", "gauge", "bytes", (), DIALLING,
        "Memory of all such pages that there are.",
        _one(lambda own: float(own.held.kv_budget)),
    ),
)  # fmt: skip
