"""Values that nobody can compute with: who says so, of what, and whose fault it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest
import torch

from device_agent.goodbye import saying_goodbye
from device_agent.rejoining import Patience
from sfl.config import AggregationSettings, RunSettings, TrainingSettings
from sfl.config.codec import RoleCodecs
from sfl.errors import (
    AdapterRefused,
    Corrupted,
    FellSilent,
    LeftBehind,
    LinkLost,
    PeerUnavailable,
    ProtocolError,
    RunFailed,
    SflError,
)
from sfl.rounds.assignment import assign
from sfl.rounds.messages import Cause
from sfl.rounds.values import EdgeBase, Score
from sfl.stage.messages import Key, Kind, Purpose, RoundOrder, TensorMessage
from sfl.stage.optimizer import Optimizer
from sfl.stage.pipeline import expect_loss
from sfl.stage.trainer import expect_finite
from sfl.transport.cloud.blame import blamed, cause_told, on_the_wire
from sfl.transport.device import checked
from sfl.transport.device.stream_codecs import StreamCodecs
from sfl.transport.frames.tensors import decode_tensor, encode_tensor
from sfl.transport.status import error_of, status_of

CODECS = ["none", "fp16", "int8", "uniform(0.25) | rans", "none | zstd"]


def rows(value: float) -> TensorMessage:
    values = torch.zeros(4, 8)
    values[2, 3] = value
    return TensorMessage(
        Kind.ACTIVATION, Key(Purpose.TRAINING, 7, 3, 0), 1, (4,), values, np.ones(4, np.int32)
    )


def cut(codec: str) -> StreamCodecs:
    ours = StreamCodecs("device", "d0", 0, True)
    roles = dict.fromkeys(RoleCodecs.model_fields, codec) | {"adapter": "none"}
    ours.begin_round(RoleCodecs(**roles), 7)
    return ours


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("codec", CODECS)
def test_what_is_not_finite_is_not_sent_whatever_the_codec(codec: str, value: float) -> None:
    with pytest.raises(AdapterRefused, match=r"d0, activation of round 7, step 3.*codec.*NaN"):
        cut(codec).encode(rows(value))


def test_what_a_codec_cannot_hold_is_not_sent() -> None:
    with pytest.raises(AdapterRefused, match=r"round 7, step 3.*65504"):
        cut("fp16").encode(rows(65520.0))
    assert cut("fp16").encode(rows(65504.0)) is not None


def test_an_adapter_that_is_not_finite_is_refused_by_the_tensors_name() -> None:
    settings = RunSettings(model={"path": "m"}, devices=[{"name": "d0"}])  # type: ignore[arg-type]
    start = assign(settings, EdgeBase(3), "d0", 9)
    good = {"a.lora_A.weight": np.ones((2, 2), np.float32)}
    expect_finite(RoundOrder(start, good))
    bad = good | {"b.lora_B.weight": np.array([1.0, np.inf], np.float32)}
    with pytest.raises(AdapterRefused, match=r"round 9: b.lora_B.weight is not finite"):
        expect_finite(RoundOrder(start, bad))


def test_a_loss_that_is_not_finite_is_refused_with_its_place() -> None:
    key = Key(Purpose.EVALUATION, 4, 2, 0)
    expect_loss(3.0, "d0", key)
    with pytest.raises(AdapterRefused, match="d0, evaluation of round 4, step 2: the loss is nan"):
        expect_loss(float("nan"), "d0", key)


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_the_adapters_fault_and_not_the_edges(loss: float) -> None:
    """A vanilla edge scores for its device: one that ends over it never joins again."""
    key = Key(Purpose.EVALUATION, 4, 2, 0)
    message = TensorMessage(Kind.SCORE, key, 1, (4,), score=Score(loss, 3, 0, 1))
    settings = RunSettings(model={"path": "m"}, devices=[{"name": "d0"}])  # type: ignore[arg-type]
    (frame,) = encode_tensor(message, None)
    assert frame.header is not None
    arrived, *_ = decode_tensor(frame.header, b"")
    checked.tensor(arrived, settings)
    with pytest.raises(AdapterRefused, match=r"d0, evaluation of round 4, step 2: the loss is"):
        expect_loss(arrived.score.loss_sum, "d0", arrived.key)
    wrong = replace(arrived, score=Score(-1.0, 3, 0, 1))
    with pytest.raises(ProtocolError, match="loss_sum = -1"):
        checked.tensor(wrong, settings)


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (AdapterRefused("a"), "adapter"),
        (ProtocolError("a"), "offence"),
        (FellSilent("a"), "silence"),
        (LeftBehind("a"), "stuck"),
        (LinkLost("a"), "link"),
        (Corrupted("a"), "link"),
        (RunFailed("a"), "link"),
    ],
)
def test_an_edge_tells_whose_fault_it_was(error: SflError, cause: Cause) -> None:
    assert cause_told(on_the_wire(blamed(error))) == blamed(error) == cause


def test_a_cause_that_does_not_exist_is_no_strike() -> None:
    assert cause_told(77) == "link"


class Call:
    """A failed call."""

    def __init__(self, error: SflError) -> None:
        self._error = error

    def code(self) -> grpc.StatusCode:
        return status_of(self._error)

    def details(self) -> str:
        return str(self._error)


def test_what_an_edge_found_is_the_devices_to_refuse() -> None:
    found = error_of(Call(AdapterRefused("gradient of round 2")), "edge at e")
    assert isinstance(found, AdapterRefused) and str(found) == "edge at e: gradient of round 2"


class Link:
    """Notes how it was closed."""

    closed: tuple[Any, ...] = ()

    def close(self, *arguments: Any) -> None:
        self.closed = arguments


@pytest.mark.parametrize(("error", "refused"), [(AdapterRefused, True), (ProtocolError, False)])
def test_a_goodbye_says_that_it_was_the_adapter(error: type[SflError], refused: bool) -> None:
    link = Link()
    with pytest.raises(error), saying_goodbye(link):  # type: ignore[arg-type]
        raise error("why")
    assert link.closed == ("why", refused, False)


def test_where_the_run_ended_over_it_that_is_what_the_device_says() -> None:
    gone, refused = PeerUnavailable("nobody answered"), AdapterRefused("beyond 65504")
    patience = Patience(10.0)
    for said in (None, refused, None):
        patience.taken_in()
        if said is not None:
            patience.refuse(said)
        with pytest.raises(type(said or gone)) as raised:
            patience.unreached(gone, 0.0)
        assert raised.value is (said or gone)


def test_a_gradient_norm_that_is_not_finite_is_nothing_to_exchange() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = Optimizer({"w": weight}, TrainingSettings(), AggregationSettings())
    weight.grad = torch.tensor([3.0, 4.0])
    assert optimizer.squared_norm() == 25.0
    weight.grad[1] = torch.nan
    with pytest.raises(AdapterRefused, match="squared norm of the gradients is nan"):
        optimizer.squared_norm()
