"""A device of a run with a teacher: what it loads of the teacher, and what it does for it."""

from __future__ import annotations

from sfl.config import DeviceConfig, RunSettings
from sfl.errors import ConfigError
from sfl.models.folder import open_model
from sfl.models.span import SpanModel, build_span
from sfl.plan import Span
from sfl.stage.base import BaseForm
from sfl.stage.computation import COMPUTATIONS
from sfl.stage.distil.lesson import Weights
from sfl.stage.distil.taught import UNTAUGHT, ByTeacher, Taught


def load_teacher_front(
    config: DeviceConfig, settings: RunSettings, form: BaseForm
) -> SpanModel | None:
    """The teacher's embedding and first blocks, where this device sends what comes of them.

    Raises ConfigError, ModelError.
    """
    blocks = settings.distil.blocks
    if not settings.distil.is_on or blocks is None:
        return None
    if config.teacher is None:
        raise ConfigError(
            "device.teacher",
            None,
            f"the run's distil.input is {settings.distil.input!r}, so this device holds the "
            "teacher's first blocks",
            'Set it to the teacher\'s folder on this device, or use distil.input = "ids".',
        )
    return build_span(
        open_model(config.teacher),
        Span(0, blocks, embedding=True, head=False),
        task=settings.model.task,
        num_labels=len(settings.model.labels),
        dtype=form.weights,
        packed=COMPUTATIONS[settings.computation].packed,
        autocast=form.autocast,
        quantised=settings.distil.quantised,
        embedding_on_disk=True,
    )


def taught_by(settings: RunSettings, tokens: int, front: SpanModel | None) -> Taught:
    """What this device asks a teacher, and hears of it; nothing without one."""
    if not settings.distil.is_on:
        return UNTAUGHT
    about = 0 if settings.model.task == "sequence_classification" else tokens
    computation = COMPUTATIONS[settings.computation]
    return ByTeacher(Weights.of(settings.distil), computation, about, front)
