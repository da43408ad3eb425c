"""Whether two models have the same tokens."""

from __future__ import annotations

from sfl.data.tokenizer import load_tokenizer
from sfl.models.folder import ModelFolder


def other_tokens(one: ModelFolder, folder: ModelFolder) -> str | None:
    """Where the vocabulary of `one` is not that of another model; None where it is."""
    theirs = load_tokenizer(one.path).vocabulary
    for token, number in load_tokenizer(folder.path).vocabulary.items():
        if theirs.get(token) != number:
            told = theirs.get(token, "none")
            return f"it has other tokens: {token!r} is {number} in {folder.name}, and {told} there"
    return None


def num_tokens(folder: ModelFolder) -> int:
    """Ids that its tokenizer has; the model's head may have more rows."""
    return 1 + max(load_tokenizer(folder.path).vocabulary.values())
