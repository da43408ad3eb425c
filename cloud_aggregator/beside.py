"""What is beside an adapter when a run is over: its tokenizer and its model card."""

from __future__ import annotations

import logging
from pathlib import Path

from sfl.config import RunConfig
from sfl.models.folder import local_folder
from sfl.models.hub import hub_name
from sfl.models.tokenizer_copy import copy_tokenizer
from sfl.node.causes import cause_of
from sfl.node.files import write_atomic
from sfl.report.card import Base, model_card
from sfl.report.summary import RunSummary

log = logging.getLogger("sfl.cloud")


def resolvable_base(config: RunConfig, of_edge: str) -> Base:
    """The base as others can find it: by its name on the hub, where the run or its edge has one."""
    for name in (config.model.path, config.edge.model, of_edge):
        found = hub_name(name) if name else None
        if found is not None:
            return Base(found, True)
    folder = local_folder(config.model.path)
    return Base(of_edge if folder is None else str(folder.resolve()), False)


def complete_adapters(folder: Path, config: RunConfig, base: Base, summary: RunSummary) -> None:
    """Put tokenizer and card into the run's adapters; what cannot be written is a warning."""
    model = local_folder(config.model.path)
    for name in ("adapter", "adapter_best"):
        adapter = folder / name
        if not adapter.is_dir():
            continue
        try:
            if model is not None:
                copy_tokenizer(model, adapter)
            best, here = name == "adapter_best", model is not None
            card = model_card(summary, config.settings, base, best=best, tokenizer=here)
            write_atomic(adapter / "README.md", card)
        except Exception as error:  # noqa: BLE001 - the run has ended, and how is still to be told
            log.warning("%s has no tokenizer or no card: %s", adapter, cause_of(error))
