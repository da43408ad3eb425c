"""Tensors that travel beside rows for a teacher, or from one: what both ends know before."""

from __future__ import annotations

from sfl.config import RunSettings
from sfl.config.codec import DOWN, UP
from sfl.plan import U_SHAPED, Toward
from sfl.stage.messages import TEACHER
from sfl.transport.device.lanes import Declared, Lane
from sfl.transport.frames.contract import batch_tokens


def teaching_tensors(
    settings: RunSettings, teacher_width: int, taught_tokens: int
) -> tuple[Declared, ...]:
    """Of a run; none where there is no teacher. `teacher_width` is that of its hidden states.

    The likeliest tokens come as float32 with their log-probabilities, which holds both exactly.
    """
    if not settings.distil.is_on:
        return ()
    found = []
    if settings.distil.blocks is not None:
        way = Lane(UP, Toward.LOSS, evaluation=False)
        most = batch_tokens(settings)
        codecs = {way: settings.distil.codec}
        found.append(Declared(TEACHER, teacher_width, most, "float32", codecs))
    if settings.run.topology in U_SHAPED:
        way = Lane(DOWN, Toward.LOSS, evaluation=False)
        width, most = 2 * min(settings.distil.likeliest, taught_tokens), batch_tokens(settings)
        if settings.model.task == "sequence_classification":
            width, most = len(settings.model.labels), settings.training.batch_size
        found.append(Declared(TEACHER, width, most, "float32", {way: "none"}))
    return tuple(found)
