"""Orders as pure decisions, the compute thread that obeys them, and batches over devices."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_split_exactness import LORA
from tiny_models import LABELS, batch, busy_values, manifest_of, opened

from sfl.adapters.lora import LoraBank
from sfl.adapters.names import belongs_to
from sfl.config import RunSettings
from sfl.errors import ProtocolError
from sfl.metrics.stats import NodeStats
from sfl.models.span import SpanModel, build_span
from sfl.orders import ORDERS, Waiting
from sfl.plan import SplitPlan
from sfl.report.step import LANES
from sfl.stage.engine import Engine
from sfl.stage.messages import Key, Kind, Purpose, RoundStart, TensorMessage
from sfl.stage.session import UShapedSession, VanillaSession, handle_together

QUEUE = [
    Waiting(4, "late", tail_seconds=9.0, served_seconds=0.5),
    Waiting(2, "early", tail_seconds=1.0, served_seconds=3.0),
    Waiting(3, "slow", tail_seconds=9.0, served_seconds=0.5),
]


@pytest.mark.parametrize(
    ("order", "expected"),
    [("first_come", "early"), ("longest_tail", "slow"), ("fair_share", "slow")],
)
def test_orders_choose(order: str, expected: str) -> None:
    assert QUEUE[ORDERS[order].choose(QUEUE)].device == expected
    assert ORDERS[order].choose(QUEUE[:1]) == 0


class Recorder:
    """Stands for a session: notes who was served."""

    def __init__(self, device: str, log: list[str], gate: threading.Event) -> None:
        self.device, self.log, self.gate = device, log, gate
        self.served_seconds = 0.0

    def group(self, message: Any) -> None:
        return None

    def handle(self, message: Any) -> list[Any]:
        self.gate.wait(10.0)
        self.log.append(self.device)
        if message == "bad":
            raise ProtocolError("no")
        return [self.device]


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("first_come", ["first", "a", "b", "c"]),
        ("longest_tail", ["first", "b", "c", "a"]),
        ("fair_share", ["first", "a", "b", "c"]),
    ],
)
def test_the_compute_thread_serves_in_order_and_errands_go_first(
    order: str, expected: list[str]
) -> None:
    log: list[str] = []
    gate = threading.Event()

    async def scene() -> None:
        engine = Engine(1, ORDERS[order])
        try:
            assert LANES[engine._thread.name] == "compute"  # what the step's timeline calls it
            tails = {"first": 0.0, "a": 1.0, "b": 3.0, "c": 2.0}
            waits = []
            for device, tail in tails.items():
                session: Any = Recorder(device, log, gate)
                waits.append(asyncio.create_task(engine.serve(session, "m", tail)))  # type: ignore[arg-type]
                await asyncio.sleep(0.05)  # the first is under way, the others wait
            errand = asyncio.create_task(engine.run(log.append, "errand"))
            await asyncio.sleep(0.05)
            gate.set()
            assert await asyncio.gather(*waits) == [[device] for device in tails]
            await errand
        finally:
            engine.close()

    asyncio.run(scene())
    assert log == [expected[0], "errand", *expected[1:]]


def test_errors_come_back_and_cancelled_jobs_are_dropped() -> None:
    log: list[str] = []
    gate = threading.Event()

    async def scene() -> None:
        engine = Engine(1)
        first: Any = Recorder("first", log, gate)
        gone: Any = Recorder("gone", log, gate)
        waiting = asyncio.create_task(engine.serve(first, "bad"))  # type: ignore[arg-type]
        await asyncio.sleep(0.05)
        dropped = asyncio.create_task(engine.serve(gone, "m"))  # type: ignore[arg-type]
        await asyncio.sleep(0.05)
        dropped.cancel()
        await asyncio.sleep(0.05)
        gate.set()
        with pytest.raises(ProtocolError, match="no"):
            await waiting
        await engine.run(int)
        engine.close()
        with pytest.raises(RuntimeError, match="ended"):
            await engine.run(int)

    asyncio.run(scene())
    assert log == ["first"]


def test_what_a_device_was_served_counts_within_its_round() -> None:
    # Over rounds it would add up to a debt: a shallow cut asks for more in each of them.
    (session,) = edge("llama", "causal_lm", ("a",))
    (message,) = messages("causal_lm", session.model.hidden_size, 1)

    async def scene() -> None:
        engine = Engine(1, ORDERS["fair_share"])
        await engine.serve(session, message)
        await engine.run(int)  # what was served is noted before the next job
        assert session.served_seconds > 0.0
        await engine.run(
            session.begin_round, RoundStart(2, False, 5, 5, 10), session.adapter.state()
        )
        assert session.served_seconds == 0.0
        engine.close()

    asyncio.run(scene())


# -- batches over devices ----------------------------------------------------------------------


def edge(kind: str, task: str, names: tuple[str, ...], rank: int = 4) -> list[VanillaSession]:
    """Sessions over one base, each with values of its own, in an open round."""
    folder = opened(kind)
    settings = RunSettings.model_validate(
        {
            "model": {
                "path": "m",
                "task": task,
                "labels": [str(n) for n in range(LABELS)] if task != "causal_lm" else [],
            },
            "lora": {"rank": LORA.rank, "alpha": LORA.alpha},
            "training": {"computation": "lean"},
            "devices": [{"name": name} for name in names],
        }
    )
    plan = SplitPlan(folder.num_layers, 1, 0, "vanilla")
    model: SpanModel = build_span(
        folder,
        plan.middle,
        task=task,
        num_labels=LABELS,
        dtype=torch.float32,
        packed=True,  # type: ignore[arg-type]
    )
    bank = LoraBank(model, settings.lora, settings.lora.target_modules)
    sessions = []
    for number, name in enumerate(names):
        session = VanillaSession(name, plan, model, bank, settings, NodeStats("edge", "edge"))
        values = busy_values(manifest_of(folder, task, LORA), seed=number)  # type: ignore[arg-type]
        session.begin_round(
            RoundStart(1, False, 5, 0, 5),
            {n: v for n, v in values.items() if belongs_to(n, plan.middle)},
        )
        sessions.append(session)
    return sessions


def messages(task: str, hidden: int, count: int) -> list[TensorMessage]:
    """Activations of ragged batches with labels."""
    made = []
    for number in range(count):
        lengths = ((5, 3), (7, 2, 4), (1, 6))[number]
        _, _, labels = batch(lengths, task, seed=number)  # type: ignore[arg-type]
        packed = (
            np.concatenate([row[:n].numpy() for row, n in zip(labels, lengths, strict=True)])
            if task == "causal_lm"
            else labels.numpy()
        )
        rows = torch.randn(sum(lengths), hidden, generator=torch.Generator().manual_seed(number))
        key = Key(Purpose.TRAINING, 1, 0, 0)
        made.append(TensorMessage(Kind.ACTIVATION, key, 1, lengths, rows, packed.astype(np.int32)))
    return made


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        ("llama", "causal_lm"),
        ("gpt2", "causal_lm"),
        ("gemma2", "causal_lm"),
        ("llama", "sequence_classification"),
        ("distilbert", "sequence_classification"),
    ],
)
def test_a_batch_over_devices_equals_each_alone(kind: str, task: str) -> None:
    names = ("attic", "barn", "cellar")
    alone, together = edge(kind, task, names), edge(kind, task, names)
    if alone[0].model.drops:
        for session in (*alone, *together):
            session.model.drops = False
            session.model.eval()
    own = messages(task, alone[0].model.hidden_size, 3)
    groups = {session.group(message) for session, message in zip(together, own, strict=True)}
    assert len(groups) == 1 and None not in groups
    wanted = [session.handle(message) for session, message in zip(alone, own, strict=True)]
    copies = messages(task, alone[0].model.hidden_size, 3)
    found = handle_together(list(zip(together, copies, strict=True)))
    for one, other in zip(wanted, found, strict=True):
        assert not isinstance(other, ProtocolError)
        mine, theirs = one[0], other[0]
        assert isinstance(mine, TensorMessage) and isinstance(theirs, TensorMessage)
        assert theirs.loss == pytest.approx(mine.loss, rel=1e-5)
        assert mine.rows is not None and theirs.rows is not None
        torch.testing.assert_close(theirs.rows, mine.rows, rtol=1e-4, atol=1e-6)
    for one_session, other_session in zip(alone, together, strict=True):
        assert other_session.step == 1
        for name, value in one_session.adapter.state().items():
            np.testing.assert_allclose(
                other_session.adapter.state()[name], value, rtol=1e-3, atol=2e-4, err_msg=name
            )


def test_a_message_that_breaks_the_contract_fails_alone() -> None:
    sessions = edge("llama", "causal_lm", ("attic", "barn"))
    good, bad = messages("causal_lm", sessions[0].model.hidden_size, 2)
    assert bad.labels is not None
    bad.labels[0] = 10**6
    replies = handle_together([(sessions[0], good), (sessions[1], bad)])
    assert isinstance(replies[1], ProtocolError)
    assert not isinstance(replies[0], ProtocolError) and len(replies[0]) == 1
    assert (sessions[0].step, sessions[1].step) == (1, 0)


# -- computing again instead of keeping --------------------------------------------------------


@pytest.mark.parametrize("computation", ["lean", "reference"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_u_shaped_flights_that_run_again_give_the_same_bits(kind: str, computation: str) -> None:
    folder = opened(kind)
    settings = RunSettings.model_validate(
        {
            "run": {"topology": "u_shaped"},
            "model": {"path": "m"},
            "lora": {"rank": LORA.rank, "alpha": LORA.alpha, "dropout": 0.3},
            "training": {"computation": computation},
            "devices": [{"name": "attic"}],
        }
    )
    plan = SplitPlan(folder.num_layers, 1, 0, "u_shaped")
    values = busy_values(manifest_of(folder, "causal_lm", LORA))
    outcomes = []
    for recompute in (False, True):
        model = build_span(
            folder,
            plan.middle,
            task="causal_lm",
            num_labels=0,
            dtype=torch.float32,
            packed=settings.computation == "lean",
        )
        model.recompute = recompute
        bank = LoraBank(model, settings.lora, settings.lora.target_modules)
        session = UShapedSession(
            "attic", plan, model, bank, settings, NodeStats("e", "edge"), recompute=recompute
        )
        start = RoundStart(1, False, 1, 0, 1)
        session.begin_round(start, {n: v for n, v in values.items() if belongs_to(n, plan.middle)})
        seen = []
        own = messages("causal_lm", folder.hidden_size, 2)
        own = [
            replace(message, key=Key(Purpose.TRAINING, 1, 0, n), num_micro_batches=2, labels=None)
            for n, message in enumerate(own)
        ]
        for message in own:
            seen += session.handle(message)
        assert all((flight.graph is None) == recompute for flight in session._flights.values())
        for message in own:
            assert message.rows is not None
            gradient = replace(message, kind=Kind.GRADIENT, rows=message.rows.flip(0).clone())
            seen += session.handle(gradient)
        rows = [reply.rows for reply in seen if isinstance(reply, TensorMessage)]
        outcomes.append((rows, session.adapter.state()))
    (kept, kept_state), (again, again_state) = outcomes
    assert len(kept) == len(again) == 4
    for one, other in zip(kept, again, strict=True):
        assert one is not None and other is not None and torch.equal(one, other)
    assert all(np.array_equal(kept_state[name], again_state[name]) for name in kept_state)


def test_a_device_that_leaves_gives_everything_back() -> None:
    stays, leaves = edge("llama", "causal_lm", ("attic", "barn"))
    (message,) = messages("causal_lm", stays.model.hidden_size, 1)
    leaves.handle(message)
    held = [weakref.ref(p) for p in leaves.adapter.parameters.values()]
    moments = [
        weakref.ref(value)
        for state in leaves.optimizer._adamw.state.values()  # type: ignore[union-attr]
        for value in state.values()
    ]
    assert held and moments
    bank = leaves.bank
    leaves.close()
    del leaves
    gc.collect()
    assert not [reference for reference in (*held, *moments) if reference() is not None]
    assert bank is stays.bank and stays.adapter.parameters
