"""Messages that steer the computation as values of the stage, or an error that says why not.

Beside `contract`, which the cloud uses too and which knows no torch.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch

from sfl.adapters.names import block_of
from sfl.config import RunSettings
from sfl.config.codec import RoleCodecs
from sfl.errors import ConfigError, ProtocolError
from sfl.node.text import plain
from sfl.plan import HOLDERS, SERVERS, TIERED, U_SHAPED, Holder, Plan, Toward
from sfl.rounds.values import Assignment, Steps
from sfl.stage.messages import GradientNorm, TensorMessage
from sfl.stage.optimizer import MOMENT_KINDS
from sfl.transport.device.stream_codecs import codecs_of
from sfl.transport.frames.contract import MOST_COUNT, batch_tokens, number, score, whole
from sfl.v1 import edge_pb2, tensor_pb2

LEAST_SHARE = 1e-9
_MOST_REHEARSED = 16
_MOST_CODEC = 1024
"""Characters of a codec's specification."""


def gradient_norm(said: edge_pb2.GradientNorm, toward: Toward) -> GradientNorm:
    """A squared norm of a step, on its way. Raises ProtocolError."""
    whole("stages before a norm's", len(said.before), 0, len(HOLDERS))
    for squared in (said.squared, *said.before):
        number("squared norm of a gradient", squared, 0, math.inf)
    return GradientNorm(said.round, said.step, said.squared, toward, tuple(said.before))


def tensor(message: TensorMessage, settings: RunSettings) -> None:
    """What a tensor's header says, beside what its codec looks at."""
    most = settings.training.batch_size
    whole("sequences of a tensor", len(message.lengths), 1, most)
    _lengths(message.lengths, settings)
    whole("num_micro_batches", message.num_micro_batches, 1, most)
    whole("normalizer", message.normalizer, 0, batch_tokens(settings))
    found, longest = message.score, settings.model.max_length
    # A loss that is none comes of the adapter, not of the peer: who asked for it refuses that.
    loss_sum = found.loss_sum if math.isfinite(found.loss_sum) else 0.0
    score(
        tensor_pb2.Score(
            loss_sum=loss_sum,
            num_targets=found.num_targets,
            num_correct=found.num_correct,
            num_examples=found.num_examples,
        ),
        len(message.lengths),
        longest,
    )


def _lengths(lengths: Sequence[int], settings: RunSettings) -> None:
    tokens, most = sum(lengths), batch_tokens(settings)
    if tokens > most:
        raise ProtocolError(
            f"{tokens} tokens in a micro-batch; training.batch_size times model.max_length is "
            f"{most}"
        )
    longest = settings.model.max_length
    if max(lengths) > longest:
        raise ProtocolError(f"a sequence of {max(lengths)} tokens, model.max_length is {longest}")


def assignment(said: Assignment, settings: RunSettings, num_layers: int | None = None) -> None:
    """A device's part in a round, or what it is to load; of a model of so many blocks.

    Raises ProtocolError, which names the field.
    """
    batch = settings.training.batch_size
    _plan(said.plan, settings, num_layers)
    _codecs(said.codecs)
    whole("assignment.round", said.round, 0, settings.run.rounds + 1)
    whole("assignment.rank", said.rank, 1, settings.lora.rank)
    number("assignment.scaling", said.scaling, 0)
    number("assignment.share", said.share, LEAST_SHARE, 1.0)
    whole("assignment.credits", said.credits, 1, settings.network.credits)
    _steps(said.steps)
    whole("assignment.micro_batches", said.micro_batches, 1, batch)
    whole("assignment.rehearse", len(said.rehearse), 0, _MOST_REHEARSED)
    for count in said.rehearse:
        whole("assignment.rehearse", count, 1, batch)
    if said.rehearse and said.steps.count:
        raise ProtocolError(
            f"assignment.num_steps = {said.steps.count}: a rehearsal trains nothing, so it has none"
        )


def moments(arrays: Mapping[str, np.ndarray], blocks: Collection[int]) -> dict[str, torch.Tensor]:
    """Moments of blocks that come from the other side: all three of each parameter, or none.

    Raises ProtocolError for those of other blocks, and for what no optimizer could go on from.
    """
    of: dict[str, dict[str, np.ndarray]] = {}
    for name, array in arrays.items():
        parameter, _, kind = name.rpartition(":")
        if kind not in MOMENT_KINDS or block_of(parameter) not in blocks:
            raise ProtocolError(f"moment {name!r:.120} came, of blocks {sorted(blocks)}: not due")
        if array.dtype != np.float32 or not np.isfinite(array).all():
            raise ProtocolError(f"moment {name!r:.120}: finite values of float32 are expected")
        of.setdefault(parameter, {})[kind] = array
    for parameter, own in of.items():
        if (problem := _no_moments(own)) is not None:
            raise ProtocolError(f"moments of {parameter!r:.120}: {problem}")
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _no_moments(own: Mapping[str, np.ndarray]) -> str | None:
    """Why these are none that AdamW has of a parameter."""
    if missing := [kind for kind in MOMENT_KINDS if kind not in own]:
        return f"{missing[0]} is missing"
    mean, square, step = (own[kind] for kind in MOMENT_KINDS)
    if mean.shape != square.shape:
        return f"exp_avg is {list(mean.shape)}, exp_avg_sq {list(square.shape)}"
    if (square < 0).any():
        return "a value of exp_avg_sq is below 0"
    if step.size != 1 or not 1 <= float(step.reshape(())) <= MOST_COUNT or float(step) % 1:
        return "step is a whole number from 1 on"
    return None


def _steps(said: Steps) -> None:
    whole("assignment.total_steps", said.total, 0, MOST_COUNT)
    whole("assignment.num_steps", said.count, 0, said.total)
    whole("assignment.first_step", said.first, 0, said.total - said.count)


def _codecs(said: RoleCodecs) -> None:
    """Each is a codec that this node has. Whoever is told has no such setting to change."""
    for role, text in said.model_dump().items():
        whole(f"characters of assignment.codecs.{role}", len(text), 1, _MOST_CODEC)
    try:
        codecs_of(said)
    except ConfigError as error:
        role = error.field.removeprefix("codec.")
        raise ProtocolError(
            f"assignment.codecs.{role} = {error.value!r:.80}: {plain(error.problem)}"
        ) from None


def _plan(plan: Plan, settings: RunSettings, num_layers: int | None) -> None:
    """The topology of the run over a model's blocks: device, servers, and device again or not."""
    holders = tuple(held.holder for held in plan.spans)
    topology = settings.run.topology
    due: tuple[Holder, ...] = ("device", "edge")
    if topology in TIERED:
        due = ("device", *SERVERS[: max(2, len(plan.servers))])
    if topology in U_SHAPED:
        due = (*due, "device")
    if holders != due:
        raise ProtocolError(
            f"assignment.plan = {', '.join(holders)}: with run.topology "
            f"{topology} it is {', '.join(due)}"
        )
    blocks = plan.num_layers
    if num_layers is not None and blocks != num_layers:
        raise ProtocolError(f"assignment.plan = {blocks} blocks: the model has {num_layers}")
    for held in plan.servers:
        if held.span.num_blocks < 1:
            raise ProtocolError(
                f"assignment.plan: no block is the {held.holder}'s; choose other cuts"
            )
