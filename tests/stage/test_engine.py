"""Orders as pure decisions, the compute thread that obeys them, and batches over devices."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import time
import weakref
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from sfl.adapters.lora import LoraBank
from sfl.adapters.names import belongs_to
from sfl.config import EdgeConfig, RunSettings
from sfl.errors import ConfigError, ProtocolError, RunFailed, SflError
from sfl.metrics.stats import NodeStats
from sfl.models.memory.batching import check_batching
from sfl.models.span import build_span
from sfl.plan import Plan
from sfl.report.step import LANES
from sfl.rounds.values import Steps
from sfl.stage.engine import Engine
from sfl.stage.messages import GradientNorm, Key, Kind, Outgoing, Purpose, TensorMessage
from sfl.stage.orders import ORDERS, Waiting
from sfl.stage.training import MiddleSession, VanillaSession
from sfl.stage.training.vanilla import VanillaGroup
from tests.house.assigned import assigned
from tests.house.sessions import edge, messages
from tests.house.splits import LORA
from tests.house.tiny_models import busy_values, manifest_of, opened
from tests.house.together import handle_together


def sent_by(outgoing: list[Outgoing] | SflError) -> list[Any]:
    """The messages alone, or what was raised in their place."""
    assert not isinstance(outgoing, SflError)
    return [out.message for out in outgoing]


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
        self.begun = threading.Event()
        self.served_seconds = 0.0

    def group(self, message: Any) -> None:
        return None

    def handle(self, message: Any) -> list[Any]:
        self.begun.set()
        self.gate.wait(60.0)
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
                if device == "first":
                    await asyncio.to_thread(session.begun.wait, 60.0)
            errand = asyncio.create_task(engine.run(log.append, "errand"))
            await asyncio.sleep(0)  # all others wait
            assert len(engine._queue) == len(tails)
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
        await asyncio.to_thread(first.begun.wait, 60.0)
        dropped = asyncio.create_task(engine.serve(gone, "m"))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        assert len(engine._queue) == 1
        dropped.cancel()
        await asyncio.sleep(0)
        gate.set()
        with pytest.raises(ProtocolError, match="no"):
            await waiting
        await engine.run(int)
        engine.close()
        with pytest.raises(RunFailed, match="ended"):
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
            session.begin_round,
            replace(session.assignment, round=2, steps=Steps(5, 5, 10)),
            session.adapter.state(),
        )
        assert session.served_seconds == 0.0
        engine.close()

    asyncio.run(scene())


# -- batches over devices ----------------------------------------------------------------------


def steps(task: str, hidden: int, devices: int, micro_batches: int) -> list[list[TensorMessage]]:
    """By micro-batch and device, one step of each; every device has a normalizer of its own."""
    made = []
    for micro in range(micro_batches):
        own = messages(task, hidden, 3)
        made.append(
            [
                replace(
                    own[(number + micro) % 3],
                    key=Key(Purpose.TRAINING, 1, 0, micro),
                    num_micro_batches=micro_batches,
                    normalizer=11 + number if micro_batches > 1 else 0,
                )
                for number in range(devices)
            ]
        )
    return made


@pytest.mark.parametrize(
    ("kind", "task", "micro_batches", "ranks"),
    [
        ("llama", "causal_lm", 1, ()),
        ("llama", "causal_lm", 2, (4, 1, 2)),
        ("gpt2", "causal_lm", 3, ()),
        ("gemma2", "causal_lm", 1, (1, 4, 3)),
        ("llama", "sequence_classification", 2, (2, 4, 4)),
        ("distilbert", "sequence_classification", 1, ()),
    ],
)
def test_a_batch_over_devices_equals_each_alone(
    kind: str, task: str, micro_batches: int, ranks: tuple[int, ...]
) -> None:
    names = ("attic", "barn", "cellar")
    entries = {name: {"rank": rank} for name, rank in zip(names, ranks, strict=False)}
    # With a norm to clip by gradients wait for the device's: Adam's first step forgets the scale.
    sections = {
        "training": {"max_grad_norm": 1.0},
        "aggregation": {"strategy": "flexlora" if ranks else "fedavg"},
    }
    alone, together = (edge(kind, task, names, entries, **sections) for _ in range(2))
    for own in steps(task, alone[0].model.hidden_size, 3, micro_batches):
        groups = {session.group(sent) for session, sent in zip(together, own, strict=True)}
        assert len(groups) == 1 and None not in groups
        wanted = [sent_by(session.handle(sent)) for session, sent in zip(alone, own, strict=True)]
        copies = [replace(sent, rows=own[n].rows.detach().clone()) for n, sent in enumerate(own)]
        batched = handle_together(list(zip(together, copies, strict=True)))
        found = [sent_by(each) for each in batched]
        for one, other in zip(wanted, found, strict=True):
            assert len(other) == len(one)
            mine, theirs = one[0], other[0]
            assert isinstance(mine, TensorMessage) and isinstance(theirs, TensorMessage)
            assert theirs.loss == pytest.approx(mine.loss, rel=1e-5)
            assert mine.rows is not None and theirs.rows is not None
            torch.testing.assert_close(theirs.rows, mine.rows, rtol=1e-4, atol=1e-6)
    norms = set()
    for one_session, other_session, one, other in zip(alone, together, wanted, found, strict=True):
        norm, other_norm = one[1], other[1]
        assert isinstance(norm, GradientNorm) and isinstance(other_norm, GradientNorm)
        assert other_norm.squared == pytest.approx(norm.squared, rel=1e-5)
        norms.add(round(norm.squared, 6))
        scale = float(norm.squared) ** 0.5
        assert other_session.adapter.trained.keys() == one_session.adapter.trained.keys()
        for name, parameter in one_session.adapter.trained.items():
            gradient = other_session.adapter.trained[name].grad
            assert parameter.grad is not None and gradient is not None, name
            assert float((gradient - parameter.grad).norm()) < 1e-5 * scale, name
        other_session.handle(GradientNorm(1, 0, 0.0))
        assert other_session.step == 1 and other_session.idle
    assert len(norms) == 3  # no two devices have the same


@pytest.mark.parametrize("ranks", [(), (4, 1, 2)])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("topology", ["u_shaped", "three_tier"])
def test_a_batch_before_the_loss_equals_each_alone(
    topology: str, kind: str, ranks: tuple[int, ...]
) -> None:
    names = ("attic", "barn", "cellar")
    entries = {name: {"rank": rank} for name, rank in zip(names, ranks, strict=False)}
    sections: dict[str, Any] = {
        "run": {"topology": topology},
        "stages": {"cuts": [2] if topology == "three_tier" else []},
        "training": {"max_grad_norm": 1.0},
        "aggregation": {"strategy": "flexlora" if ranks else "fedavg"},
    }
    alone, batched = (edge(kind, "causal_lm", names, entries, **sections) for _ in range(2))
    for own in steps("causal_lm", alone[0].model.hidden_size, 3, 2):
        wanted = visited(alone, own)
        found = visited_together(batched, own)
        for one, other in zip(wanted, found, strict=True):
            torch.testing.assert_close(other.rows, one.rows, rtol=1e-4, atol=1e-6)
        back = [
            replace(one, kind=Kind.GRADIENT, rows=one.rows.flip(0).clone(), labels=None)
            for one in wanted
        ]
        assert all(session.group(sent) is None for session, sent in zip(alone, back, strict=True))
        wanted, found = visited(alone, back), visited_together(batched[:2], back[:2])
        found += visited(batched[2:], back[2:])  # of the same batch, but its gradient came later
        for one, other in zip(wanted, found, strict=True):
            torch.testing.assert_close(other.rows, one.rows, rtol=1e-4, atol=1e-5)
    for one_session, other_session in zip(alone, batched, strict=True):
        for name, parameter in one_session.adapter.trained.items():
            gradient = other_session.adapter.trained[name].grad
            assert parameter.grad is not None and gradient is not None, name
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-4, atol=1e-5)
        assert other_session.stepper.waits_for_norm and not other_session._flights


def visited(sessions: list[Any], sent: list[TensorMessage]) -> list[Any]:
    copies = [replace(one, rows=one.rows.clone()) for one in sent if one.rows is not None]
    pairs = zip(sessions, copies, strict=True)
    return [session.handle(one)[0].message for session, one in pairs]


def visited_together(sessions: list[Any], sent: list[TensorMessage]) -> list[Any]:
    """The same as one batch; a message that breaks the contract among them fails alone."""
    copies = [replace(one, rows=one.rows.clone()) for one in sent if one.rows is not None]
    groups = {session.group(one) for session, one in zip(sessions, copies, strict=True)}
    (group,) = groups
    assert group is not None
    torn = replace(copies[0], key=replace(copies[0].key, round=9))
    *results, error = group.run([*zip(sessions, copies, strict=True), (sessions[0], torn)])
    assert isinstance(error, ProtocolError)
    return [result[0].message for result in results]


def test_only_messages_of_like_lengths_go_together() -> None:
    sessions = edge("llama", "causal_lm", ("attic", "barn"), {"barn": {"cut_layer": 2}})
    (message,) = messages("causal_lm", sessions[0].model.hidden_size, 1)

    def group(*lengths: int, session: int = 0, purpose: Purpose = Purpose.TRAINING) -> Any:
        key = Key(purpose, 1, 0, 0)
        return sessions[session].group(replace(message, key=key, lengths=lengths))

    assert group(9, 1) == group(12) == group(15, 15, 8) != group(16)
    assert group(7) != group(8)
    assert group(9, session=1) != group(9)
    assert group(9, purpose=Purpose.EVALUATION) is None
    assert sessions[0].group(GradientNorm(1, 0, 1.0)) is None


@pytest.mark.parametrize(
    ("sections", "kind", "extra", "words"),
    [
        ({"run": {"topology": "u_shaped"}}, "llama", {}, None),
        ({"training": {"computation": "reference"}}, "llama", {}, "training.computation to lean"),
        ({"codec": {"activation": "none", "gradient": "none"}}, "llama", {}, "auto is reference"),
        ({"lora": {"dropout": 0.1}}, "llama", {}, "lora.dropout to 0"),
        ({}, "gpt2", {"attn_pdrop": 0.1}, "config.json to 0"),
        ({}, "gpt2", {}, None),
        ({"codec": {"activation": "auto", "gradient": "auto"}}, "llama", {}, None),
    ],
)
def test_batching_that_never_would_is_refused(
    sections: dict[str, Any], kind: str, extra: dict[str, float], words: str | None
) -> None:
    folder = opened(kind, json.dumps(extra))
    settings = RunSettings.model_validate(
        {"model": {"path": "m"}, "devices": [{"name": "attic"}], **sections}
    )
    check_batching(folder, settings, EdgeConfig())
    if words is None:
        check_batching(folder, settings, EdgeConfig(batch_devices=2))
        return
    with pytest.raises(ConfigError, match=words) as error:
        check_batching(folder, settings, EdgeConfig(batch_devices=2))
    assert (error.value.field, error.value.value) == ("edge.batch_devices", 2)


def test_devices_that_share_an_adapter_are_no_batch_and_those_before_it_are() -> None:
    settings = RunSettings.model_validate(
        {
            "model": {"path": "m"},
            "run": {"topology": "three_tier"},
            "stages": {"cuts": [2], "adapters": "shared"},
            "training": {"local_steps": 2, "computation": "lean"},
            "devices": [{"name": "attic"}],
        }
    )
    check_batching(opened("llama"), settings, EdgeConfig(batch_devices=2), "edge")
    with pytest.raises(ConfigError, match=r"stage\.batch_devices.*stages\.adapters to per_device"):
        check_batching(opened("llama"), settings, EdgeConfig(batch_devices=2), "stage")


def test_a_batch_is_booked_to_each_of_its_devices() -> None:
    sessions = edge("llama", "causal_lm", ("attic", "barn", "cellar"))
    phases = sessions[0].stats.phases
    for session in sessions:
        phases.timeline.watch(session.device, 1, 0)
    began = time.perf_counter()
    sent = messages("causal_lm", sessions[0].model.hidden_size, 3)
    handle_together(list(zip(sessions, sent, strict=True)))
    passed = time.perf_counter() - began
    spans = [phases.timeline.take(session.device) for session in sessions]
    computed = [[s for s in own if s.phase in ("forward", "backward")] for own in spans]
    assert [span.phase for span in computed[0]] == ["forward", "backward"]
    assert computed[1] == computed[2] == computed[0]
    assert all([span.phase for span in own][2:] == ["step"] for own in spans)
    totals = phases.snapshot()
    for span in computed[0]:
        assert totals[span.phase].count == 3
        assert totals[span.phase].seconds == pytest.approx(span.end - span.begin, abs=1e-5)
    assert sum(total.seconds for total in totals.values()) <= passed


TAILS = {"attic": 1.0, "barn": 4.0, "cellar": 2.0, "den": 3.0, "entry": 5.0}
"""Devices in the order in which their messages come; the entry is cut elsewhere."""


@pytest.mark.parametrize(
    ("order", "together", "expected"),
    [
        ("first_come", 1, ["attic", "barn", "cellar", "den", "entry"]),
        ("first_come", 3, ["attic barn cellar", "den", "entry"]),
        ("longest_tail", 3, ["entry", "barn den cellar", "attic"]),
        ("longest_tail", 8, ["entry", "barn den cellar attic"]),
        ("fair_share", 2, ["entry", "den cellar", "barn attic"]),
    ],
)
def test_jobs_that_wait_are_batched_with_their_like_in_the_orders_order(
    order: str, together: int, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = tuple(TAILS)
    cuts = {"entry": {"cut_layer": 2}}
    alone, sessions = (edge("llama", "causal_lm", names, cuts) for _ in range(2))
    sent = [messages("causal_lm", sessions[0].model.hidden_size, 3)[n % 3] for n in range(5)]
    wanted = [session.handle(m)[0].message for session, m in zip(alone, sent, strict=True)]
    for served, session in enumerate(reversed(sessions)):
        session.served_seconds = 100.0 * served
    before = {session.device: session.served_seconds for session in sessions}
    computed: list[str] = []
    real_handle = VanillaSession.handle

    def handle(session: VanillaSession, message: Any) -> Any:
        computed.append(session.device)
        return real_handle(session, message)

    def together_(tasks: Any) -> Any:
        computed.append(" ".join(session.device for session, _ in tasks))
        return handle_together(tasks)

    monkeypatch.setattr(VanillaSession, "handle", handle)
    monkeypatch.setattr(VanillaGroup, "run", lambda group, tasks: together_(tasks))
    found = asyncio.run(served_behind_a_gate(order, together, sessions, sent))
    assert computed == expected
    for one, reply in zip(wanted, found, strict=True):  # everybody has an answer of its own
        assert isinstance(one, TensorMessage) and isinstance(reply, list)
        assert reply[0].message.loss == pytest.approx(one.loss, rel=1e-5)
        assert reply[0].message.lengths == one.lengths
    seconds = {s.device: s.served_seconds - before[s.device] for s in sessions}
    for batched in expected:
        shares = [seconds[name] for name in batched.split()]
        assert min(shares) > 0.0 and shares == pytest.approx([shares[0]] * len(shares))


async def served_behind_a_gate(
    order: str, together: int, sessions: Sequence[Any], sent: Sequence[TensorMessage]
) -> list[Any]:
    """Replies to messages that all wait before the first is computed, or what was raised."""
    gate = threading.Event()
    engine = Engine(1, ORDERS[order], together=together)
    try:
        held = asyncio.create_task(engine.run(gate.wait, 60.0))
        while engine._queue or not engine._number:
            await asyncio.sleep(0.005)
        waits = []
        for session, message in zip(sessions, sent, strict=True):
            tail = TAILS.get(session.device, 0.0)
            waits.append(asyncio.create_task(engine.serve(session, message, tail)))
            while len(engine._queue) < len(waits):
                await asyncio.sleep(0)
        gate.set()
        await held
        found = await asyncio.gather(*waits, return_exceptions=True)
        await engine.run(int)  # what was served is noted before the next job
        return found
    finally:
        gate.set()
        engine.close()


def test_what_a_batch_raises_is_raised_where_it_is_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    sessions = edge("llama", "causal_lm", ("attic", "barn", "cellar"))
    sent = messages("causal_lm", sessions[0].model.hidden_size, 3)
    assert sent[1].labels is not None
    sent[1].labels[0] = 10**6
    first, second, third = asyncio.run(served_behind_a_gate("first_come", 3, sessions, sent))
    assert isinstance(first, list) and isinstance(third, list)
    assert isinstance(second, ProtocolError) and "label is outside" in str(second)

    def breaks(tasks: Any) -> Any:
        raise RuntimeError(f"{len(tasks)} at once")

    monkeypatch.setattr(VanillaGroup, "run", lambda group, tasks: breaks(tasks))
    sent = [replace(message, key=Key(Purpose.TRAINING, 1, 1, 0)) for message in sent[::2]]
    found = asyncio.run(served_behind_a_gate("first_come", 2, sessions[::2], sent))
    assert [str(error) for error in found] == ["2 at once"] * 2


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
    plan = Plan.split(folder.num_layers, 1, 0, "u_shaped")
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
        told = assigned(settings, plan, round_=1, steps=1)
        session = MiddleSession(
            "attic", told, model, bank, settings, NodeStats("e", "edge"), recompute=recompute
        )
        session.begin_round(told, {n: v for n, v in values.items() if belongs_to(n, plan.middle)})
        seen = []
        own = messages("causal_lm", folder.hidden_size, 2)
        own = [
            replace(message, key=Key(Purpose.TRAINING, 1, 0, n), num_micro_batches=2, labels=None)
            for n, message in enumerate(own)
        ]
        for message in own:
            seen += sent_by(session.handle(message))
        assert all((flight.graph is None) == recompute for flight in session._flights.values())
        for message in own:
            assert message.rows is not None
            gradient = replace(message, kind=Kind.GRADIENT, rows=message.rows.flip(0).clone())
            seen += sent_by(session.handle(gradient))
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
    bank = leaves.blocks.bank
    leaves.close()
    del leaves
    gc.collect()
    assert not [reference for reference in (*held, *moments) if reference() is not None]
    assert bank is stays.blocks.bank and stays.adapter.parameters
