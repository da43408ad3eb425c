"""What conversations take at an edge that trains as well: from headers, without torch."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from sfl.config import EdgeConfig, RunSettings
from sfl.config.folding import MOVES_THE_BASE
from sfl.config.serving import ServeSettings
from sfl.errors import ConfigError
from sfl.models.folder import ModelFolder
from sfl.models.kv.size import check_kept
from sfl.models.memory.footprint import Load, device_footprint
from sfl.models.memory.serving import answering_of, check_cut, check_room, serving_footprint
from sfl.plan import Span

SECTION = "edge.serve"
FILES = ("adapter_config.json", "adapter_model.safetensors")
"""Of an adapter in PEFT's format."""
COPIES = 2
"""Of an adapter that is served: whole, for its devices, and its part in the edge's layers."""


def check_beside(folder: ModelFolder, settings: RunSettings, own: EdgeConfig) -> None:
    """Raises ConfigError where this run's edge cannot serve as `edge.serve` says."""
    serve = own.serve
    if serve is None:
        return
    task = settings.model.task
    if task != "causal_lm":
        problem = "it says no text, and the edge is to serve conversations"
        raise ConfigError("model.task", task, problem, f"Leave {SECTION} out.")
    if settings.aggregation.traits.folds:
        strategy = settings.aggregation.strategy
        fix = f'Leave {SECTION} out, or use "flexlora".'
        raise ConfigError("aggregation.strategy", strategy, MOVES_THE_BASE, fix)
    check_kept("edge.model" if own.model else "model.path", folder)
    check_cut(folder, serve, SECTION)
    load = Load(1, 1, dtype=own.dtype or settings.model.dtype)
    check_room(folder, serve, answering_of(folder, serve, load, serve.cut_layer), SECTION)
    for name, path in serve.adapters.items():
        lacking = [file for file in FILES if not (path.expanduser() / file).is_file()]
        if lacking:
            problem = f"there is no {lacking[0]} in it"
            fix = "Give a folder in PEFT's format, such as a run's adapter."
            raise ConfigError(f"{SECTION}.adapters.{name}", str(path), problem, fix)


def beside_training(
    folder: ModelFolder, serve: ServeSettings, load: Load, spans: Iterable[Span]
) -> int:
    """Bytes that conversations add to an edge that trains over `spans`.

    Keys and values, adapters, a forward's own, and weights that training does without: they are
    loaded for conversations alone.
    """
    spans, load = tuple(spans), replace(load, lean=True)
    answering = answering_of(folder, serve, load, first_block(serve, spans))
    own = serving_footprint(folder, answering, 0, _adapter_bytes(serve))
    with_both = device_footprint(folder, (*spans, *answering.spans), load).weights
    more = with_both - device_footprint(folder, spans, load).weights
    return own.kv + own.adapters + own.working + more


def first_block(serve: ServeSettings, spans: Iterable[Span]) -> int:
    """The first of an edge that trains over `spans`, and serves."""
    return min([serve.cut_layer, *(span.first for span in spans)])


def _adapter_bytes(serve: ServeSettings) -> int:
    """By the sizes of their files; one that is not there is refused elsewhere."""
    files = [path.expanduser() / FILES[1] for path in serve.adapters.values()]
    return COPIES * sum(file.stat().st_size for file in files if file.is_file())
