"""Blocks that answer, at either end of the cut."""

from __future__ import annotations

from sfl.models.folder import ModelFolder
from sfl.models.span import SpanModel, build_span
from sfl.plan import Span
from sfl.stage.base import BaseForm


def serving_span(
    folder: ModelFolder, span: Span, form: BaseForm, embedding_on_disk: bool = False
) -> SpanModel:
    """Load them, ready to be extended. Raises ModelError."""
    return build_span(
        folder,
        span,
        task="causal_lm",
        num_labels=0,
        dtype=form.weights,
        packed=True,
        autocast=form.autocast,
        quantised=form.quantised,
        embedding_on_disk=embedding_on_disk,
    )
