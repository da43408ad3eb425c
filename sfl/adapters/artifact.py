"""An adapter on disk in PEFT's format: adapter_model.safetensors and adapter_config.json."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy
from safetensors import SafetensorError

from sfl.errors import ModelError
from sfl.node.files import write_atomic

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"


def save_adapter(
    folder: Path, values: Mapping[str, npt.NDArray[Any]], peft_config: Mapping[str, Any]
) -> None:
    """Write both files, each in one step; PEFT loads the folder. Raises DiskError."""
    arrays = {name: np.ascontiguousarray(values[name], np.float32) for name in sorted(values)}
    config = json.dumps(dict(peft_config), indent=2, sort_keys=True) + "\n"
    write_atomic(folder / CONFIG, config)
    write_atomic(folder / WEIGHTS, safetensors.numpy.save(arrays, metadata={"format": "pt"}))


def load_adapter(folder: Path) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """(values by PEFT's names, adapter_config.json). Raises ModelError."""
    try:
        config: dict[str, Any] = json.loads((folder / CONFIG).read_text(encoding="utf-8-sig"))
        return safetensors.numpy.load_file(folder / WEIGHTS), config
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(
            "adapter",
            str(folder),
            f"not an adapter in PEFT's format ({error})",
            f"Give a folder with {CONFIG} and {WEIGHTS}.",
        ) from None
