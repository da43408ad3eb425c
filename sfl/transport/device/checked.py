"""Messages that steer the computation as values of the stage, or an error that says why not.

Beside `contract`, which the cloud uses too and which knows no torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from sfl.config import RunSettings
from sfl.errors import ProtocolError
from sfl.rounds.values import RoundStart
from sfl.stage.messages import GradientNorm, TensorMessage
from sfl.transport.frames.contract import MOST_COUNT, batch_tokens, number, score, whole
from sfl.v1 import edge_pb2, tensor_pb2

_MOST_REHEARSED = 16


def gradient_norm(said: edge_pb2.GradientNorm) -> GradientNorm:
    """One side's squared norm of a step."""
    number("squared norm of a gradient", said.squared, 0, math.inf)
    return GradientNorm(said.round, said.step, said.squared)


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


def round_start(said: RoundStart, settings: RunSettings) -> RoundStart:
    """What a device is to do in a round."""
    batch = settings.training.batch_size
    whole("round", said.round, 0, settings.run.rounds + 1)
    whole("total_steps", said.total_steps, 0, MOST_COUNT)
    whole("num_steps", said.num_steps, 0, said.total_steps)
    whole("first_step", said.first_step, 0, MOST_COUNT)
    whole("micro_batches", said.micro_batches, 0 if said.rehearse else 1, batch)
    whole("counts to rehearse", len(said.rehearse), 0, _MOST_REHEARSED)
    for count in said.rehearse:
        whole("micro_batches to rehearse", count, 1, batch)
    return said
