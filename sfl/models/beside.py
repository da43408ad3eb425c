"""A second span over the very tensors of a first one: an edge serves over what it trains with."""

from __future__ import annotations

from sfl.models.filling import keep_only, place
from sfl.models.folder import ModelFolder, belongs_to_span
from sfl.models.skeleton import build_skeleton, fill_buffers
from sfl.models.span import SpanModel


def over_same_weights(folder: ModelFolder, first: SpanModel) -> SpanModel:
    """The same blocks once more, packed, for conversations. No weight is held twice.

    What wraps a layer of one, its mode and its adapters are not seen by the other. To be called
    before `first` gets adapters, which take their layers' places.
    """
    model = build_skeleton(folder, first.layout, first.task, 0, first.dtype)
    wanted = {
        name for name in model.state_dict() if belongs_to_span(name, first.layout, first.span)
    }
    keep_only(model, frozenset(wanted))
    fill_buffers(model)
    for name in wanted:
        path, _, attribute = name.rpartition(".")
        found = first.model.get_submodule(path)
        if list(found.children()):
            place(model, name, getattr(found, attribute))
        else:  # a layer, perhaps quantised: without a state of its own but its tensors
            parent, _, layer = path.rpartition(".")
            setattr(model.get_submodule(parent), layer, found)
    span = SpanModel(
        model,
        family=first.family,
        layout=first.layout,
        span=first.span,
        task=first.task,
        saved=(),
        folder=folder,
        packed=True,
        dtype=first.dtype,
        autocast=first.autocast,
    ).eval()
    if first.stretches:
        span.lay_over(first.stretches)
    return span
