"""A run's base and adapter in one process: found, checked and loaded by transformers and PEFT."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfl.config import ModelSettings, RunConfig
from sfl.errors import ConfigError, ModelError
from sfl.models.folder import ModelFolder, check_length, open_model
from sfl.models.jsonfile import FIELD
from sfl.models.marks import without_marks

if TYPE_CHECKING:
    from sfl.data import Tokenizer


@contextlib.contextmanager
def model_by_option(given: str | None) -> Iterator[None]:
    """Let errors about the model name `--model`, where that is what `given` came from."""
    try:
        yield
    except ModelError as error:
        if given is None or error.field != FIELD:
            raise
        raise ModelError("--model", error.value, error.problem, error.fix) from None


def open_base(config: RunConfig, given: str | None) -> ModelFolder:
    """The run's base model, or the folder or hub name `given` for it.

    Raises ModelError, and ConfigError where that is too small a model for the run.
    """
    if given is not None:
        folder = open_model(given)
        folder.check_task(config.model.task)
        check_length(config.model.max_length, folder.context_length)
        return folder
    try:
        return open_model(config.model.path)
    except ModelError as error:
        raise ModelError(
            error.field,
            error.value,
            error.problem,
            f"{error.fix} If the run's model is elsewhere on this machine: --model PATH.",
        ) from None


def adapter_folder(folder: Path, best: bool) -> Path:
    """A run's adapter. Raises ConfigError where it left none."""
    adapter = folder / ("adapter_best" if best else "adapter")
    if not (adapter / "adapter_config.json").is_file():
        raise ConfigError("--run", folder.name, f"left no {adapter.name}/", "Choose another run.")
    return adapter


def load_base(config: RunConfig, base: ModelFolder, tokenizer: Tokenizer) -> tuple[Any, set[str]]:
    """The base by transformers, and the names of the weights that its checkpoint lacks.

    A classifier knows its classes by name, and what fills its batches.
    """
    import torch
    import transformers

    transformers.logging.disable_progress_bar()
    # PEFT asks transformers by an old name; nothing a user could fix.
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    loader: Any = transformers.AutoModelForCausalLM
    own = transformers.CONFIG_MAPPING[base.model_type].from_dict(dict(base.config))
    if config.model.task == "sequence_classification":
        loader = transformers.AutoModelForSequenceClassification
        _name_classes(own, config.model)
    if base.family.causal and config.model.task == "sequence_classification":
        own.pad_token_id = tokenizer.pad_id
    dtype = torch.bfloat16 if config.model.dtype == "bfloat16" else torch.float32
    before = transformers.logging.get_verbosity()
    # It reports the head as missing, which the adapter brings; what else is, is looked at here.
    transformers.logging.set_verbosity_error()
    try:
        with without_marks(base.path) as clean:
            model, found = loader.from_pretrained(
                clean,
                config=own,
                dtype=dtype,
                output_loading_info=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # a head for other classes than the run's
            )
    finally:
        transformers.logging.set_verbosity(before)
    model.name_or_path = model.config.name_or_path = str(base.path)
    mismatched = (key if isinstance(key, str) else key[0] for key in found["mismatched_keys"])
    return model, {*found["missing_keys"], *mismatched}


def load_adapter(model: Any, adapter: Path, missing: set[str]) -> Any:
    """The model with the adapter on it. Raises ModelError where they do not fit."""
    from peft import PeftModel

    try:
        model = PeftModel.from_pretrained(model, adapter)
    except (RuntimeError, ValueError, OSError) as error:
        lines = str(error).strip().splitlines()
        raise ModelError(
            "adapter",
            str(adapter),
            f"it does not fit the model ({lines[-1].strip() if lines else type(error).__name__})",
            "Give the model that the run was made with: --model PATH.",
        ) from error
    brought = tuple(model.peft_config["default"].modules_to_save or ())
    lacking = sorted(n for n in missing if not any(f".{part}." in f".{n}" for part in brought))
    if lacking:
        raise ModelError(
            "model.path",
            str(model.config.name_or_path),
            f"its weights lack {lacking[0]}",
            "Fetch the model again.",
        )
    return model


def _name_classes(own: Any, model: ModelSettings) -> None:
    own.id2label = dict(enumerate(model.labels))
    own.label2id = {name: number for number, name in enumerate(model.labels)}
