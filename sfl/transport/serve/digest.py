"""Which model both sides mean."""

from __future__ import annotations

import hashlib
import json

from sfl.models.folder import ModelFolder

_NOT_ITS_OWN = frozenset({"_name_or_path", "transformers_version", "torch_dtype", "dtype"})


def model_digest(folder: ModelFolder) -> str:
    """Tells this model from another one, by its configuration."""
    told = {key: value for key, value in folder.config.items() if key not in _NOT_ITS_OWN}
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()
