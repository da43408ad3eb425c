"""Models by their name on the Hugging Face hub: fetched once, then from the local cache."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

from sfl.errors import ModelError

TIMEOUT = 5.0
"""Seconds to wait for the hub's answer before the cache is all there is."""
CONFIGURATION = ["*.json", "tokenizer*", "*.model", "*.txt", "*.jinja", "*.bpe", "*.codes"]
WEIGHTS = ["*.safetensors"]
NO_HOME = "this user has no home directory to keep it in"
HF_HOME = "Set HF_HOME to a folder that can be written to."


def fetch_from_hub(name: str, *, weights: bool = True) -> Path:
    """The folder of the model called `name`, downloaded unless cached.

    Only configuration, tokenizer and (with `weights`) safetensors are fetched. Raises ModelError
    within seconds where the hub does not answer and the cache has nothing.
    """
    # Only runs that name a hub model pay for the client.
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]

    reason = ""
    patterns = CONFIGURATION + (WEIGHTS if weights else [])
    try:
        try:
            revision = HfApi().model_info(name, timeout=TIMEOUT).sha
        except (HTTPError, OSError) as error:
            reason = _first_line(error)
            folder = snapshot_download(
                name, allow_patterns=patterns, ignore_patterns=["*/*"], local_files_only=True
            )
        else:
            if str(constants.HF_HUB_CACHE).startswith("~"):  # a folder of that name, here
                raise ModelError("model.path", name, f"is on the hub, and {NO_HOME}", HF_HOME)
            folder = snapshot_download(
                name,
                revision=revision,
                allow_patterns=patterns,
                ignore_patterns=["*/*"],
                etag_timeout=TIMEOUT,
            )
    except (HTTPError, OSError, ValueError) as error:
        raise ModelError(
            "model.path",
            name,
            f"no such folder, and the hub has no model for it ({reason or _first_line(error)})",
            "Give a folder with config.json and *.safetensors, or check the hub name and the "
            "network; HF_HUB_OFFLINE=1 uses the cache only.",
        ) from None
    return Path(folder)


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__


def cached(name: str) -> Path | None:
    """The folder of the model called `name` where it was fetched before, asking nobody."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, local_files_only=True))
    except (OSError, ValueError):
        return None


def hub_name(name: str) -> str | None:
    """The model's name on the hub, given that name or its place in the hub's cache.

    None for a folder of one's own. Asks nobody.
    """
    path = Path(name)
    for part, below in pairwise(path.resolve().parts):
        if part.startswith("models--") and below == "snapshots":
            return part.removeprefix("models--").replace("--", "/")
    if path.exists() or not re.fullmatch(r"(\w[\w.-]*/)?\w[\w.-]*", name, re.ASCII):
        return None
    return name
