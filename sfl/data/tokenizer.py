"""A model's tokenizer, loaded leanly, and how its tokens of prompt and completion are joined."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sfl.data.markers import Markers, settle_markers
from sfl.errors import DataError, ModelError
from sfl.models.families import FAMILIES
from sfl.models.jsonfile import read_object
from sfl.models.marks import without_marks
from sfl.models.vocabulary import beyond, check_files, unreadable_pieces
from sfl.node.causes import foreseen
from sfl.node.paths import amiss
from sfl.node.text import plain

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_GENERIC = ("TokenizersBackend", "PreTrainedTokenizer")
_PROBES = ("a", " a", "A", "1", ".")
_SENTINEL = "\n"


class Tokenizer:
    """Text to ids and back, ids within the model's embedding.

    `markers` is what begins, ends and fills a sequence, for training, evaluation, generation and
    export alike. `eos_id` is None for encoders that have no such token.
    """

    def __init__(
        self,
        backend: PreTrainedTokenizerBase,
        folder: Path,
        config: Mapping[str, Any],
    ) -> None:
        self._backend = backend
        self._folder = folder
        self._same: dict[int, int] = {}  # one object an id: examples take a third of the memory
        rows = config.get("vocab_size")
        self._rows: int | None = rows if isinstance(rows, int) else None
        self._check_vocabulary()
        prefix, suffix = self._around()
        self.markers: Markers = settle_markers(
            prefix=prefix,
            suffix=suffix,
            named={name: getattr(backend, f"{name}_token_id") for name in ("eos", "pad", "unk")},
            special=frozenset(backend.all_special_ids),
            config=config,
        )
        self.has_chat_template: bool = bool(backend.chat_template)
        for what, number in self.markers.used():
            self._check_row(f"the token that {what}", number)

    @property
    def eos_id(self) -> int | None:
        """The token that ends a completion or a text."""
        return self.markers.eos_id

    @property
    def pad_id(self) -> int:
        """A valid id in any case: padding is masked by lengths."""
        return self.markers.pad_id

    @property
    def prefix(self) -> tuple[int, ...]:
        """What the tokenizer puts before a text."""
        return self.markers.prefix

    @property
    def suffix(self) -> tuple[int, ...]:
        """What the tokenizer puts behind a text."""
        return self.markers.suffix

    @property
    def pad_token(self) -> str:
        """The token of `pad_id`, as the vocabulary has it."""
        return str(self._backend.convert_ids_to_tokens(self.pad_id))

    @property
    def names_pad(self) -> bool:
        """Whether the tokenizer's own files name `pad_id` as their pad token."""
        return bool(self._backend.pad_token_id == self.pad_id)

    def __len__(self) -> int:
        """How many ids there are."""
        return len(self._backend)

    @property
    def vocabulary(self) -> Mapping[str, int]:
        """Each token's id."""
        vocabulary: dict[str, int] = self._backend.get_vocab()
        return vocabulary

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
        messages = [{"role": "user", "content": user}]
        prompt = self.render(messages, True)
        messages.append({"role": "assistant", "content": assistant})
        whole = self.render(messages, False)
        if not whole.startswith(prompt):
            return prompt, assistant
        return prompt, whole[len(prompt) :].rstrip("\n")

    def render(self, messages: list[dict[str, str]], answer: bool) -> str:
        """The messages by the chat template, with what begins an answer where that is asked for.

        Raises DataError where the template refuses them.
        """
        try:
            return self._template(messages, add_generation_prompt=answer)
        except Exception as error:  # noqa: BLE001 - a program of others, which may raise anything
            roles = ", ".join(message["role"] for message in messages)
            said = plain(str(error)) or type(error).__name__
            raise DataError(
                "data.chat_template",
                True,
                f"the tokenizer's chat template refuses these messages ({roles}): {said}",
                "Order them as it wants them, or set it to false.",
            ) from None

    @cached_property
    def chat_template_digest(self) -> str:
        """What tells one chat template from another; empty where there is none."""
        template = self._backend.chat_template
        text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16] if self.has_chat_template else ""

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
        found = [[same(number, number) for number in ids] for ids in encoded["input_ids"]]
        if self._reaches_beyond:
            self._check_row(
                "a token of the text", max((n for ids in found for n in ids), default=0)
            )
        return found

    @cached_property
    def _reaches_beyond(self) -> bool:
        """Whether some token has no row; then every text is looked at."""
        added = max(self._backend.added_tokens_decoder, default=0)
        return self._rows is not None and max(self._backend.vocab_size - 1, added) >= self._rows

    def _check_row(self, what: str, number: int) -> None:
        if self._rows is not None and number >= self._rows:
            token = str(self._backend.convert_ids_to_tokens(number))
            raise beyond(self._folder, f"{what}, {token!r},", number, self._rows)

    def _check_vocabulary(self) -> None:
        """Raise ModelError where the vocabulary is but markers, or ordinary tokens have no row."""
        added = self._backend.added_tokens_decoder
        count = int(self._backend.vocab_size)
        if not set(range(count)) - set(added) - set(self._backend.all_special_ids):
            raise self._broken("it knows no tokens but its markers; its vocabulary is missing")
        highest = max(set(range(self._rows or 0, count)) - set(added), default=-1)
        if self._rows is not None:
            self._check_row("an ordinary token", highest)

    def _around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """What is put before and behind a text, seen at the first one that has tokens."""
        for text in self._probes():
            bare, marked = (self._ids([text], special=special)[0] for special in (False, True))
            for start in range(len(marked) if bare else 0):
                if marked[start : start + len(bare)] == bare:
                    return tuple(marked[:start]), tuple(marked[start + len(bare) :])
        raise self._broken("it makes no tokens of any text; is its vocabulary complete?")

    def _probes(self) -> Iterator[str]:
        """Texts that have tokens in most vocabularies, then those of the vocabulary itself."""
        yield from _PROBES
        for number in range(min(int(self._backend.vocab_size), 1000)):
            yield self.decode([number])

    def _broken(self, problem: str) -> ModelError:
        return _broken(self._folder, problem)

    def _template(self, messages: list[dict[str, str]], *, add_generation_prompt: bool) -> str:
        return str(
            self._backend.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        )


def _broken(folder: Path, problem: str) -> ModelError:
    return ModelError(
        "model.path",
        str(folder),
        f"its tokenizer cannot be used: {problem}",
        "Fetch all of its files again, or save a tokenizer with save_pretrained(folder).",
    )


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a model folder, with the ids that AutoTokenizer gives.

    Where the folder names a class known to be plain, that class is taken directly: half a second
    and 60 MB, where AutoTokenizer brings torch and takes 3 s. Raises ModelError, also where it
    cannot belong to the model beside it.
    """
    if not folder.is_dir():
        raise ModelError("model.path", str(folder), amiss(folder, "folder"), "Check the path.")
    config = _read(folder / "config.json")
    declared = _read(folder / "tokenizer_config.json")
    check_files(folder, config)
    lean = _lean_class(folder, str(config.get("model_type", "")), declared)
    try:
        with without_marks(folder) as clean:
            return Tokenizer(_load(clean, folder, lean), folder, config)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # a panic of the library's Rust is no Exception
        if foreseen(error) is not None:
            raise
        # Whatever its settings hold, transformers takes them, and stumbles over them at work.
        raise _broken(folder, plain(str(error)) or type(error).__name__) from error


def _load(clean: Path, folder: Path, lean: str | None) -> PreTrainedTokenizerBase:
    import transformers

    loader = getattr(transformers, lean or "AutoTokenizer")
    # Without a word on it the automatic class asks at the terminal whether to run a folder's code.
    never = {} if lean else {"trust_remote_code": False}
    try:
        backend: PreTrainedTokenizerBase = loader.from_pretrained(
            str(clean), local_files_only=True, **never
        )
    except Exception as error:  # the tokenizers library raises plain ones
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        if broken := unreadable_pieces(folder):
            # transformers then tries tiktoken, and says what that lacks or makes of the file.
            first = f"{broken} is not a SentencePiece vocabulary; is it complete?"
        raise ModelError(
            "model.path",
            str(folder),
            f"its tokenizer cannot be loaded: {plain(first)}",
            "Save one beside the model with tokenizer.save_pretrained(folder).",
        ) from error
    return backend


def _lean_class(folder: Path, model_type: str, declared: dict[str, Any]) -> str | None:
    """The class to load without AutoTokenizer, None where only that knows; a test holds both to
    the same ids."""
    path = folder / "tokenizer.json"
    if not path.is_file() or "auto_map" in declared:
        return None
    name = str(declared.get("tokenizer_class", "")).removesuffix("Fast")
    family = FAMILIES.get(model_type)
    own = family.tokenizer(model_type) if family else None
    if name in _GENERIC and (own is None or own.trusted):
        return "TokenizersBackend"
    if own is None or not own.direct or name != own.name:
        return None
    if name == "LlamaTokenizer" and '"ByteLevel"' in path.read_text(encoding="utf-8"):
        return None  # a Llama 3 under Llama 2's name
    return name


def _read(path: Path) -> dict[str, Any]:
    return read_object(path) if path.is_file() else {}
