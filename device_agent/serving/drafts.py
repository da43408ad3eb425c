"""Where a device's guesses come from, by its settings; what does not fit the model is refused."""

from __future__ import annotations

import logging
from pathlib import Path

from sfl.config.serve import AnswerSettings
from sfl.data.same_tokens import other_tokens
from sfl.errors import ConfigError, ModelError
from sfl.models.folder import ModelFolder, open_model
from sfl.models.kv.size import cannot_keep
from sfl.stage.base import BaseForm
from sfl.stage.serving.drafting import Drafter, LookupDrafter, ModelDrafter
from sfl.stage.serving.exits import open_exit
from sfl.transport.serve.digest import model_digest

log = logging.getLogger("sfl.device")

FIELD = "serve.draft"


def open_drafter(
    serve: AnswerSettings, folder: ModelFolder, tokens: int, form: BaseForm
) -> Drafter | None:
    """What guesses for `folder`, with room for so many tokens. Raises ConfigError, ModelError."""
    drafter = _opened(serve, folder, tokens, form)
    if drafter is not None:
        log.info("drafts of %d tokens: %s", serve.draft_tokens, serve.draft)
    return drafter


def _opened(
    serve: AnswerSettings, folder: ModelFolder, tokens: int, form: BaseForm
) -> Drafter | None:
    kind, source = serve.draft_source
    if kind == "lookup":
        return LookupDrafter()
    if kind == "model":
        return ModelDrafter(small_model(source, folder), folder.vocab_size, tokens, form)
    if kind == "exit":
        path, digest = Path(source).expanduser(), model_digest(folder)
        return open_exit(path, folder, digest, serve.cut_layer, tokens, form)
    return None


def small_model(source: str, folder: ModelFolder) -> ModelFolder:
    """A model with the same tokens as that of `folder`. Raises ConfigError, ModelError."""
    try:
        small = open_model(source)
    except ModelError as error:
        raise ModelError(FIELD, error.value, error.problem, error.fix) from None
    problem = cannot_keep(small.family, small.config) or other_tokens(small, folder)
    if problem is not None:
        raise ConfigError(FIELD, f"model:{source}", problem, "Choose a model of the same family.")
    return small
