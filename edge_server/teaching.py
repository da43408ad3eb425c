"""The teacher of a run that distils, on its edge: loaded once, for all devices."""

from __future__ import annotations

import hashlib
import json
import logging

from edge_server.base import Base
from sfl.config import EdgeConfig, RunSettings
from sfl.config.distil import EXACT_IDS
from sfl.data.same_tokens import num_tokens, other_tokens
from sfl.errors import ConfigError
from sfl.models.filling import fits
from sfl.models.folder import ModelFolder, checkpoint_tensors
from sfl.models.span import SpanModel, build_span
from sfl.models.teacher import FIELD, teacher_folder, teacher_span
from sfl.plan import U_SHAPED
from sfl.stage.base import lay_over_devices, settle
from sfl.stage.computation import COMPUTATIONS
from sfl.stage.distil.cache import RowCache
from sfl.stage.distil.kept_rows import Keeping
from sfl.stage.distil.lesson import Weights
from sfl.stage.distil.lessons import School
from sfl.stage.distil.teacher import Teacher

log = logging.getLogger("sfl.edge")


def load_school(base: Base, config: EdgeConfig, threads: int) -> School | None:
    """The teacher, where the run has one. For the compute thread. Raises SflError.

    It is another model than the one that is trained, with the same tokens.
    """
    settings = base.settings
    if not settings.distil.is_on:
        return None
    folder = teacher_folder(settings, config)
    tokens = _tokens(folder, base)
    model = _built(folder, base, config, threads)
    teacher = Teacher(model, COMPUTATIONS[settings.computation], tokens)
    classes = len(settings.model.labels)
    keeping = Keeping(classes or folder.hidden_size, exact=bool(classes))
    log.info("teacher loaded: %s", folder.path)
    _warn(settings)
    weights = Weights.of(settings.distil)
    return School(
        teacher, weights, keeping, settings.distil.likeliest, _cache(folder, base, config)
    )


def _built(folder: ModelFolder, base: Base, config: EdgeConfig, threads: int) -> SpanModel:
    settings = base.settings
    form = settle(config, settings.model, threads)
    model = build_span(
        folder,
        teacher_span(settings, folder),
        task=settings.model.task,
        num_labels=len(settings.model.labels),
        dtype=form.weights,
        packed=COMPUTATIONS[settings.computation].packed,
        autocast=form.autocast,
        quantised=settings.distil.quantised,
    )
    if not _has_head(model, folder):
        raise ConfigError(
            FIELD,
            str(folder.path),
            f"it has no head for the classes of model.labels ({', '.join(settings.model.labels)})",
            "Use a teacher that was trained for them.",
        )
    lay_over_devices(model, config)
    return model


def _has_head(model: SpanModel, folder: ModelFolder) -> bool:
    """Whether the checkpoint has all of what a student would train whole."""
    entries = checkpoint_tensors(folder, model.layout)
    heads = tuple(f"{module}." for module in model.saved)
    own = {n: tensor for n, tensor in model.model.state_dict().items() if n.startswith(heads)}
    return all(fits(tensor, entries.get(name)) for name, tensor in own.items())


def _tokens(folder: ModelFolder, base: Base) -> int:
    """How many tokens both models know. Raises ConfigError where these are not the same."""
    problem = other_tokens(folder, base.folder)
    count = num_tokens(base.folder)
    fewest = min(folder.vocab_size, base.folder.vocab_size, EXACT_IDS)
    if problem is None and count > fewest:
        problem = f"its tokenizer has {count} tokens, and {fewest} have a logit"
    if problem is not None:
        raise ConfigError(FIELD, folder.name, problem, "Choose a larger model of the same family.")
    return count


def _cache(folder: ModelFolder, base: Base, config: EdgeConfig) -> RowCache | None:
    """What is remembered of this teacher in this form, in a file of its own."""
    settings = base.settings
    if settings.distil.cache is None:
        return None
    files = {entry.file for entry in folder.tensors.values()}
    weights = sorted((file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    form = settings.distil.quantised, settings.distil.input, str(base.model.dtype)
    said = json.dumps([folder.config, weights, form, settings.model.labels], default=str)
    name = hashlib.sha256(said.encode()).hexdigest()[:16]
    path = config.cache_dir.expanduser() / "taught" / f"{name}.sqlite"
    return RowCache(path, settings.distil.cache)


def _warn(settings: RunSettings) -> None:
    """What a run with a teacher reveals is said as it begins."""
    sent = "their token ids"
    if settings.distil.blocks is not None:
        sent = "hidden states of the teacher's first blocks"
    log.warning("devices send %s for the teacher: this edge can read their texts", sent)
    if settings.run.topology in U_SHAPED and settings.model.task == "causal_lm":
        log.warning("the labels of a language model are its texts, so they are not private here")
