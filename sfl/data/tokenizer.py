"""A model's tokenizer, loaded leanly, and how its tokens of prompt and completion are joined."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfl.errors import DataError, ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_GENERIC = ("TokenizersBackend", "PreTrainedTokenizer")
_CLASSES = {
    "bert": "BertTokenizer",
    "roberta": "RobertaTokenizer",
    "gpt2": "GPT2Tokenizer",
    "llama": "LlamaTokenizer",
    "qwen2": "Qwen2Tokenizer",
    "qwen3": "Qwen2Tokenizer",
    "gemma": "GemmaTokenizer",
    "gemma2": "GemmaTokenizer",
    "gemma3": "GemmaTokenizer",
    "gemma3_text": "GemmaTokenizer",
}
"""By model type, the class that AutoTokenizer takes; only a short cut, other types go the long
way through it. A test holds both to the same ids."""
_SENTINEL = "\n"


class Tokenizer:
    """Text to ids and back.

    `pad_id` is a valid id in any case: padding is masked by lengths, so where the tokenizer names
    none it is the end token's, and the vocabulary never grows. `eos_id` is None for encoders
    that have no such token. `prefix` and `suffix` are what the tokenizer puts around a text.
    """

    def __init__(self, backend: PreTrainedTokenizerBase, eos_id: int | None = None) -> None:
        self._backend = backend
        self._same: dict[int, int] = {}  # one object an id: examples take a third of the memory
        first = backend.eos_token_id if backend.eos_token_id is not None else eos_id
        self.eos_id: int | None = first
        named = (backend.pad_token_id, self.eos_id, backend.unk_token_id, 0)
        self.pad_id: int = next(number for number in named if number is not None)
        self.has_chat_template: bool = bool(backend.chat_template)
        bare, marked = (self._ids(["a"], special=special)[0] for special in (False, True))
        start = next(k for k in range(len(marked)) if marked[k : k + len(bare)] == bare)
        self.prefix: tuple[int, ...] = tuple(marked[:start])
        self.suffix: tuple[int, ...] = tuple(marked[start + len(bare) :])

    def __len__(self) -> int:
        """How many ids there are."""
        return len(self._backend)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of each text, without special tokens around it."""
        return self._ids(texts, special=False)

    def continuations(self, pairs: Sequence[tuple[str, str]]) -> list[list[int]]:
        """Ids of the second text of each pair, as it follows on from the first.

        Tokenizers of the SentencePiece kind put a space before whatever they are given, so there
        it is given after a line break, whose ids are then taken off again. After nothing it is a
        text of its own.
        """
        alone = self.encode([text for _, text in pairs])
        if not self._prepends_space:
            return alone
        lead = self.encode([_SENTINEL])[0]
        after = self.encode([_SENTINEL + text for _, text in pairs])
        return [
            # A vocabulary that merges the line break with the text leaves only the plain way.
            joined[len(lead) :] if before and joined[: len(lead)] == lead else ids
            for (before, _), ids, joined in zip(pairs, alone, after, strict=True)
        ]

    def chat(self, user: str, assistant: str) -> tuple[str, str]:
        """Prompt and completion by the chat template; the completion has its end marker.

        Raises DataError where the template refuses the two messages.
        """
        # jinja2 compiles templates; only a tokenizer that has one needs it.
        import jinja2

        messages = [{"role": "user", "content": user}]
        try:
            prompt = self._template(messages, add_generation_prompt=True)
            messages.append({"role": "assistant", "content": assistant})
            whole = self._template(messages, add_generation_prompt=False)
        except jinja2.TemplateError as error:
            raise DataError(
                "data.chat_template",
                True,
                f"the tokenizer's chat template refuses a prompt and its answer: {error}",
                "Set it to false.",
            ) from None
        if not whole.startswith(prompt):
            return prompt, assistant
        return prompt, whole[len(prompt) :].rstrip("\n")

    def decode(self, ids: Sequence[int]) -> str:
        """Text without special tokens."""
        return str(
            self._backend.decode(
                list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )

    @cached_property
    def _prepends_space(self) -> bool:
        ids = self.encode(["a"])[0]
        return self.decode(ids + ids) == "a a"

    def _ids(self, texts: Sequence[str], *, special: bool) -> list[list[int]]:
        if not texts:
            return []
        encoded = self._backend(
            list(texts),
            add_special_tokens=special,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,  # lengths are counted where examples are made
        )
        same = self._same.setdefault
        return [[same(number, number) for number in ids] for ids in encoded["input_ids"]]

    def _template(self, messages: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
        return str(
            self._backend.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        )


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder, with the ids that AutoTokenizer gives.

    Where the folder names a class known to be plain, that class is taken directly: half a second
    and 60 MB, where AutoTokenizer brings torch and takes 3 s. Raises ModelError.
    """
    if not folder.is_dir():
        raise ModelError("model.path", str(folder), "no such folder", "Check the path.")
    config = _read_json(folder / "config.json")
    declared = _read_json(folder / "tokenizer_config.json")
    lean = _lean_class(folder, str(config.get("model_type", "")), declared)
    import transformers

    loader = getattr(transformers, lean or "AutoTokenizer")
    try:
        backend = loader.from_pretrained(str(folder), local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(
            "model.path",
            str(folder),
            f"its tokenizer cannot be loaded: {str(error).strip().splitlines()[0]}",
            "Save one beside the model with tokenizer.save_pretrained(folder).",
        ) from None
    eos = config.get("eos_token_id")
    return Tokenizer(backend, eos[0] if isinstance(eos, list) else eos)


def _lean_class(folder: Path, model_type: str, declared: dict[str, Any]) -> str | None:
    """The class to load without AutoTokenizer, None where only that knows."""
    path = folder / "tokenizer.json"
    if not path.is_file() or "auto_map" in declared:
        return None
    name = str(declared.get("tokenizer_class", "")).removesuffix("Fast")
    if name in _GENERIC and model_type != "qwen2":  # AutoTokenizer mistrusts qwen2's
        return "TokenizersBackend"
    if name != _CLASSES.get(model_type):
        return None
    if name == "LlamaTokenizer" and '"ByteLevel"' in path.read_text(encoding="utf-8"):
        return None  # a Llama 3 under Llama 2's name
    return name


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ModelError("model.path", str(path), f"not JSON: {error}", "Fetch it again.") from None
    return content if isinstance(content, dict) else {}
