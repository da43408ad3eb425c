"""What nodes tell each other: values to the wire's messages and back, one pure function each way.

Generated types go no further than this package's neighbours; whoever stands outside the transport
speaks `sfl.rounds.values`. What came is held against the contract elsewhere (`contract`,
`checked`); here a message is only refused where it is no value at all.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sfl.config import Extent, RunSettings
from sfl.config.distil import EXACT_IDS
from sfl.errors import ProtocolError
from sfl.plan import Held, Holder, Plan, Span
from sfl.planners.told import Cut
from sfl.rounds.values import (
    BEGINNING,
    Assignment,
    Challenge,
    DeviceFacts,
    DeviceWelcome,
    Point,
    Proof,
    RoundReport,
    Score,
    Signature,
    Steps,
    UpdateHeader,
)
from sfl.transport.frames import contract
from sfl.transport.frames.whereabouts import (
    from_edges,
    from_round_trips,
    to_edges,
    to_round_trips,
)
from sfl.v1 import edge_pb2, tensor_pb2

EXTENTS: dict[Extent, edge_pb2.Extent] = {
    "none": edge_pb2.EXTENT_NONE,
    "sample": edge_pb2.EXTENT_SAMPLE,
    "all": edge_pb2.EXTENT_ALL,
}
MOST_POINTS = 8
"""Snapshots that a node tells of; it keeps two of each kind."""
MOST_CUTS = 4096
"""That one device may tell of: all of 90 blocks with all of their tails."""
MOST_BYTES = 1 << 60
"""Of a device's memory."""
_HOLDERS: dict[Holder, edge_pb2.Holder] = {
    "device": edge_pb2.HOLDER_DEVICE,
    "edge": edge_pb2.HOLDER_EDGE,
    "stage": edge_pb2.HOLDER_STAGE,
    "stage2": edge_pb2.HOLDER_STAGE2,
    "stage3": edge_pb2.HOLDER_STAGE3,
}
_HOLDER_OF: dict[int, Holder] = {number: holder for holder, number in _HOLDERS.items()}
_EXTENT_OF: dict[int, Extent] = {number: extent for extent, number in EXTENTS.items()}


def to_score(score: Score) -> tensor_pb2.Score:
    """A score as the wire has it."""
    return tensor_pb2.Score(
        loss_sum=score.loss_sum,
        num_targets=score.num_targets,
        num_correct=score.num_correct,
        num_examples=score.num_examples,
    )


def from_score(said: tensor_pb2.Score) -> Score:
    """A score from the wire."""
    return Score(said.loss_sum, said.num_targets, said.num_correct, said.num_examples)


def to_signature(signature: Signature | None) -> tensor_pb2.Signature | None:
    """A signature, where there is one."""
    if signature is None:
        return None
    return tensor_pb2.Signature(sequence=signature.sequence, value=signature.value)


def from_signature(
    said: edge_pb2.DeviceReady | tensor_pb2.RoundReport | tensor_pb2.AdapterHeader,
) -> Signature | None:
    """The signature of what was said, where there is one."""
    if not said.HasField("signature"):
        return None
    return Signature(said.signature.sequence, said.signature.value)


def to_challenge(challenge: Challenge) -> edge_pb2.Challenge:
    """A challenge as the wire has it."""
    return edge_pb2.Challenge(run_id=challenge.run_id, edge=challenge.edge, nonce=challenge.nonce)


def from_challenge(said: edge_pb2.Challenge) -> Challenge:
    """A challenge from the wire."""
    return Challenge(said.run_id, said.edge, said.nonce)


def to_proof(proof: Proof) -> edge_pb2.Proof:
    """The answer to a challenge as the wire has it."""
    return edge_pb2.Proof(
        certificate=proof.certificate, nonce=proof.nonce, signature=proof.signature
    )


def from_proof(said: edge_pb2.Proof) -> Proof:
    """The answer to a challenge from the wire."""
    return Proof(said.certificate, said.nonce, said.signature)


def to_settings(settings: RunSettings) -> str:
    """The run's settings as the wire has them: of each device what is not the default.

    Every node is told of all devices. In full one takes a thousand bytes, and a message has 8 MiB
    at most.
    """
    rest = settings.model_dump_json(exclude={"devices"})
    devices = ",".join(own.model_dump_json(exclude_defaults=True) for own in settings.devices)
    return f'{rest[:-1]},"devices":[{devices}]}}'


def to_welcome(welcome: DeviceWelcome) -> edge_pb2.Welcome:
    """A device's welcome as the wire has it."""
    return edge_pb2.Welcome(
        settings=to_settings(welcome.settings),
        run_id=welcome.run_id,
        assignment=to_assignment(welcome.assignment),
        compiled_codec=welcome.compiled_codec,
        run_key=welcome.run_key,
        edge=welcome.edge,
        edges=to_edges(welcome.edges),
        taught_tokens=welcome.taught_tokens,
    )


def from_welcome(said: edge_pb2.Welcome, device: str) -> DeviceWelcome:
    """A device's welcome from the wire. Raises ProtocolError where it is not that device's."""
    settings = contract.welcome(said, device)
    own = from_assignment(said.assignment)
    edges = from_edges(said.edges)
    contract.whole("taught_tokens", said.taught_tokens, 0, EXACT_IDS)
    return DeviceWelcome(
        settings,
        said.run_id,
        own,
        said.compiled_codec,
        said.run_key,
        said.edge,
        edges,
        said.taught_tokens,
    )


def to_device_facts(facts: DeviceFacts) -> edge_pb2.DeviceReady:
    """What a device brings as the wire has it."""
    return edge_pb2.DeviceReady(
        num_examples=facts.num_examples,
        num_eval_examples=facts.num_eval_examples,
        num_truncated=facts.num_truncated,
        num_dropped=facts.num_dropped,
        num_repeated=facts.num_repeated,
        num_tokens=facts.num_tokens,
        num_tokens_kept=facts.num_tokens_kept,
        example_kind=facts.example_kind,
        layout=facts.layout,
        chat_template=facts.chat_template,
        snapshot=facts.snapshot,
        points=map(to_point, facts.points),
        cuts=map(_to_cut, facts.cuts),
        memory=facts.memory or 0,
        signature=to_signature(facts.signature),
    )


def from_device_facts(said: edge_pb2.DeviceReady) -> DeviceFacts:
    """What a device brings from the wire. Raises ProtocolError."""
    contract.whole("memory", said.memory, 0, MOST_BYTES)
    return DeviceFacts(
        num_examples=said.num_examples,
        num_eval_examples=said.num_eval_examples,
        num_truncated=said.num_truncated,
        num_dropped=said.num_dropped,
        num_repeated=said.num_repeated,
        num_tokens=said.num_tokens,
        num_tokens_kept=said.num_tokens_kept,
        example_kind=said.example_kind,
        layout=said.layout,
        chat_template=said.chat_template,
        snapshot=said.snapshot,
        points=from_points(said.points),
        cuts=_from_cuts(said.cuts),
        memory=said.memory or None,
        signature=from_signature(said),
    )


def _to_cut(cut: Cut) -> edge_pb2.LegalCut:
    return edge_pb2.LegalCut(
        cut_layer=cut.cut_layer, tail_layers=cut.tail_layers, memory=cut.memory
    )


def _from_cuts(said: Collection[edge_pb2.LegalCut]) -> tuple[Cut, ...]:
    """Raises ProtocolError where they are too many, or one is told twice."""
    contract.whole("cuts", len(said), 0, MOST_CUTS)
    cuts = tuple(map(_from_cut, said))
    different = len({cut.at for cut in cuts})
    contract.whole("cuts, each once", different, len(cuts), len(cuts))
    return cuts


def _from_cut(said: edge_pb2.LegalCut) -> Cut:
    contract.whole("cuts.cut_layer", said.cut_layer, 0, contract.MOST_BLOCKS)
    contract.whole("cuts.tail_layers", said.tail_layers, 0, contract.MOST_BLOCKS)
    contract.whole("cuts.memory", said.memory, 0, MOST_BYTES)
    return Cut(said.cut_layer, said.tail_layers, said.memory)


def to_report(report: RoundReport) -> tensor_pb2.RoundReport:
    """A report as the wire has it."""
    return tensor_pb2.RoundReport(
        round=report.round,
        device=report.device,
        num_steps=report.num_steps,
        train_loss=report.train_loss,
        num_tokens=report.num_tokens,
        train_seconds=report.train_seconds,
        evaluation=to_score(report.evaluation),
        sample=to_score(report.sample),
        evaluation_seconds=report.evaluation_seconds,
        snapshot=report.snapshot,
        spans=report.spans,
        edge_spans=report.edge_spans,
        edge_passes=report.edge_passes,
        rehearsal=report.rehearsal,
        round_trips=to_round_trips(report.round_trips),
        asks_for=report.asks_for,
        signature=to_signature(report.signature),
    )


def from_report(said: tensor_pb2.RoundReport) -> RoundReport:
    """A report from the wire. Raises ProtocolError."""
    return RoundReport(
        round=said.round,
        device=said.device,
        num_steps=said.num_steps,
        train_loss=said.train_loss,
        num_tokens=said.num_tokens,
        train_seconds=said.train_seconds,
        evaluation=from_score(said.evaluation),
        sample=from_score(said.sample),
        evaluation_seconds=said.evaluation_seconds,
        snapshot=said.snapshot,
        spans=said.spans,
        edge_spans=said.edge_spans,
        edge_passes=said.edge_passes,
        rehearsal=tuple(said.rehearsal),
        round_trips=from_round_trips(said.round_trips),
        asks_for=said.asks_for,
        signature=from_signature(said),
    )


def to_update_header(header: UpdateHeader) -> tensor_pb2.AdapterHeader:
    """The header of a part of an update as the wire has it."""
    return tensor_pb2.AdapterHeader(
        round=header.round,
        device=header.device,
        side=header.side,
        final_step=header.final_step,
        scaling=header.scaling,
        num_bytes=header.num_bytes,
        signature=to_signature(header.signature),
    )


def from_update_header(said: tensor_pb2.AdapterHeader) -> UpdateHeader:
    """The header of a part of an update from the wire."""
    return UpdateHeader(
        round=said.round,
        device=said.device,
        side=said.side,
        final_step=said.final_step,
        scaling=said.scaling,
        num_bytes=said.num_bytes,
        signature=from_signature(said),
    )


def to_assignment(own: Assignment) -> edge_pb2.Assignment:
    """A device's part in a round as the wire has it."""
    return edge_pb2.Assignment(
        round=own.round,
        evaluate=EXTENTS[own.evaluate],
        num_steps=own.steps.count,
        first_step=own.steps.first,
        total_steps=own.steps.total,
        codecs=own.codecs.model_dump_json(),
        micro_batches=own.micro_batches,
        rehearse=own.rehearse,
        plan=[_to_held(held) for held in own.plan.spans],
        rank=own.rank,
        scaling=own.scaling,
        credits=own.credits,
        after=None if own.after == BEGINNING else to_point(own.after),
        lineage=own.lineage,
        together=own.together,
        share=own.share,
    )


def to_point(point: Point) -> edge_pb2.Point:
    """How far a device and its edge have come, as the wire has it."""
    return edge_pb2.Point(round=point.round, step=point.step, lineage=point.lineage)


def from_point(said: edge_pb2.Point) -> Point:
    """The same from the wire; the beginning where it was not said."""
    return Point(said.round, said.step, said.lineage)


def from_points(said: Collection[edge_pb2.Point]) -> tuple[Point, ...]:
    """Several of them from the wire. Raises ProtocolError where they are too many."""
    contract.whole("points", len(said), 0, MOST_POINTS)
    return tuple(from_point(one) for one in said)


def to_holder(holder: Holder) -> int:
    """A holder as the wire has it."""
    return int(_HOLDERS[holder])


def from_holder(said: int) -> Holder:
    """A holder from the wire. Raises ProtocolError."""
    if said not in _HOLDER_OF:
        raise ProtocolError(f"holder {said} is not known")
    return _HOLDER_OF[said]


def _to_held(held: Held) -> edge_pb2.HeldSpan:
    span = held.span
    return edge_pb2.HeldSpan(
        first=span.first,
        last=span.last,
        embedding=span.embedding,
        head=span.head,
        holder=_HOLDERS[held.holder],
    )


def from_assignment(said: edge_pb2.Assignment) -> Assignment:
    """A device's part in a round from the wire.

    Raises ProtocolError for an extent or a holder that nobody knows, and for what are no codecs and
    no plan.
    """
    extent = _EXTENT_OF.get(said.evaluate)
    if extent is None:
        raise ProtocolError(f"round {said.round}: evaluation {said.evaluate} is not known")
    return Assignment(
        said.round,
        _plan(said.plan),
        said.rank,
        said.scaling,
        contract.role_codecs(said.codecs),
        said.credits,
        Steps(said.num_steps, said.first_step, said.total_steps),
        said.micro_batches,
        extent,
        tuple(said.rehearse),
        from_point(said.after),
        said.lineage,
        said.share or 1.0,
        tuple(said.together),
    )


def _plan(said: Sequence[edge_pb2.HeldSpan]) -> Plan:
    """Spans that make a whole model, each with its holder."""
    contract.spans_of_a_plan(said)
    held = []
    for own in said:
        if own.holder not in _HOLDER_OF:
            raise ProtocolError(f"plan: holder {own.holder} is not known")
        span = Span(own.first, own.last, own.embedding, own.head)
        held.append(Held(span, _HOLDER_OF[own.holder]))
    return Plan(tuple(held))
