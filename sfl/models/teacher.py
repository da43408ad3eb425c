"""The folder of a run's teacher, and the memory that it takes; no torch."""

from __future__ import annotations

from sfl.config import EdgeConfig, RunSettings
from sfl.errors import ConfigError, ModelError
from sfl.models.folder import ModelFolder, check_length, open_model
from sfl.plan import Span

FIELD = "distil.teacher"


def teacher_folder(settings: RunSettings, own: EdgeConfig) -> ModelFolder:
    """The teacher's folder on an edge. Raises ModelError, ConfigError."""
    where = own.teacher or settings.distil.teacher
    field = FIELD if own.teacher is None else "edge.teacher"
    try:
        folder = open_model(where)
    except ModelError as error:
        raise ModelError(field, error.value, error.problem, error.fix) from None
    folder.check_task(settings.model.task)
    check_length(settings.model.max_length, folder.context_length)
    return folder


def teacher_span(settings: RunSettings, folder: ModelFolder) -> Span:
    """What an edge holds of it. Raises ConfigError where devices would hold all its blocks."""
    first, layers = settings.distil.blocks, folder.num_layers
    if first is not None and first >= layers:
        raise ConfigError(
            "distil.input",
            settings.distil.input,
            f"the teacher has {layers} blocks, and one at least is the edge's",
            f'Use "blocks:{layers - 1}" at most.',
        )
    return Span(first or 0, layers, embedding=first is None, head=True)
