"""A model on disk: its config, and where each tensor is in its safetensors files.

Knows headers only; no torch, no transformers, no weights in memory.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from sfl.errors import ConfigError, ModelError
from sfl.models.families import FAMILIES
from sfl.models.families.family import Family, Layout, Sizes, Task
from sfl.models.hub import cached, fetch_from_hub
from sfl.models.jsonfile import FIELD, check_fetched, read_object
from sfl.node.paths import amiss, expanded, require_utf8
from sfl.plan import Span

DTYPE_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "U8": 1, "BOOL": 1}
MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, slots=True)
class TensorEntry:
    """A tensor in a safetensors file: `nbytes` bytes from `offset` on."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """An opened model. `name` is what the user called it; `tensors` by checkpoint name."""

    name: str
    path: Path
    config: Mapping[str, Any]
    family: Family
    sizes: Sizes
    tensors: Mapping[str, TensorEntry]

    @property
    def model_type(self) -> str:
        """The model type of config.json."""
        model_type: str = self.config["model_type"]
        return model_type

    @property
    def num_layers(self) -> int:
        """Transformer blocks."""
        return self.sizes.num_layers

    @property
    def hidden_size(self) -> int:
        """Width of the hidden states."""
        return self.sizes.hidden_size

    @property
    def context_length(self) -> int:
        """Longest sequence, in tokens."""
        return self.sizes.context_length

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding."""
        return self.sizes.vocab_size

    def check_task(self, task: Task) -> None:
        """Raise ConfigError unless this family can do `task`."""
        if task not in self.family.tasks:
            raise ConfigError(
                "model.task",
                task,
                f"a {self.model_type} model cannot do it",
                f"Use {' or '.join(self.family.tasks)}, or another model.",
            )


def open_model(path_or_hub_name: str | Path, *, weights: bool = True) -> ModelFolder:
    """Open a Hugging Face folder, or a model by its name on the hub.

    Without `weights` a hub model's safetensors are neither fetched nor looked for. Raises
    ModelError: no such model, no safetensors, an unknown family, a broken file.
    """
    name = str(path_or_hub_name)
    require_utf8(name, FIELD)
    path = expanded(name, FIELD)
    if not path.is_dir():
        if _is_path(name):
            raise ModelError(
                FIELD,
                name,
                amiss(path, "folder"),
                "Give a Hugging Face folder, or a model's name on the hub.",
            )
        path = fetch_from_hub(name, weights=weights)
    config = _with_pad_in_range(_read_config(path))
    family = _family(path, config)
    return ModelFolder(
        name=name,
        path=path,
        config=config,
        family=family,
        sizes=_sizes(path, family, config),
        tensors=_read_headers(path, config) if weights else {},
    )


def local_folder(name: str) -> Path | None:
    """The folder of a model where this machine has it, by path or by hub name; asks nobody."""
    require_utf8(name, FIELD)
    path = expanded(name, FIELD)
    if path.is_dir():
        return path
    return None if _is_path(name) else cached(name)


def check_length(max_length: int, context_length: int, field: str = "model.max_length") -> None:
    """Raise ConfigError where sequences may be longer than the model's context."""
    if max_length > context_length:
        raise ConfigError(
            field,
            max_length,
            f"the model's context is {context_length} tokens",
            f"Choose at most {context_length}.",
        )


def checkpoint_tensors(folder: ModelFolder, layout: Layout) -> dict[str, TensorEntry]:
    """The checkpoint's tensors under the model class's own names.

    Heals a base model's missing prefix and LayerNorm's old names; the head's tied tensor stands
    for the embedding where the checkpoint stores it once. Names the class lacks stay in.
    """
    heads = {name.split(".")[0] for name in layout.head}
    known = {layout.base} | heads
    ignored = re.compile(f"({layout.ignored})$")
    found = {}
    for name, entry in folder.tensors.items():
        healed = re.sub(r"\.gamma$", ".weight", re.sub(r"\.beta$", ".bias", name))
        full = healed if healed.split(".")[0] in known else f"{layout.base}.{healed}"
        if not ignored.search(full):
            found[full] = entry
    if layout.tied is not None:
        first, second = layout.tied
        shared = found.get(second) or found.get(first)
        if shared is not None:
            found.setdefault(first, shared)
            found.setdefault(second, shared)
    return found


def belongs_to_span(name: str, layout: Layout, span: Span) -> bool:
    """Whether the module or tensor of the model class called `name` is part of `span`."""
    if name.startswith(f"{layout.blocks}."):
        return int(name.removeprefix(f"{layout.blocks}.").split(".")[0]) in span
    embedding = span.embedding and _is_under(name, layout.embedding)
    return embedding or (span.head and _is_under(name, layout.head))


def span_tensor_names(folder: ModelFolder, span: Span, task: Task) -> list[str]:
    """Checkpoint names of all tensors that `span` is built from, sorted."""
    folder.check_task(task)
    layout = folder.family.layout(folder.config, task)
    found = checkpoint_tensors(folder, layout)
    return sorted(
        {entry.name for name, entry in found.items() if belongs_to_span(name, layout, span)}
    )


def read_into(entry: TensorEntry, buffer: memoryview, start: int = 0) -> None:
    """Fill `buffer` with the tensor's bytes from `start` on. Raises ModelError at a short file."""
    with entry.file.open("rb", buffering=0) as file:
        file.seek(entry.offset + start)
        done = 0
        while done < len(buffer):
            count = file.readinto(buffer[done:])
            if not count:
                raise _broken(entry.file, f"it ends within {entry.name}")
            done += count


# -- opening ---------------------------------------------------------------------------------------


def _is_path(name: str) -> bool:
    """Whether `name` can only mean a place on disk."""
    return name.startswith((".", "/", "~")) or name.count("/") > 1 or Path(name).exists()


def _read_config(path: Path) -> dict[str, Any]:
    try:
        return read_object(path / "config.json")
    except FileNotFoundError:
        if (path / "adapter_config.json").is_file():
            base = read_object(path / "adapter_config.json").get("base_model_name_or_path")
            raise ModelError(
                FIELD,
                str(path),
                f"an adapter, not a model; its base is {base}",
                "Give a model, or first merge the two (`sfl export --merge`).",
            ) from None
        raise ModelError(
            FIELD, str(path), "no config.json in it", "Give a Hugging Face model folder."
        ) from None


def _with_pad_in_range(config: dict[str, Any]) -> dict[str, Any]:
    """Without a pad id that the embedding has no row for, as a token leaves it that was added to
    the tokenizer alone: lengths mask padding here, and transformers builds no such model."""
    pad, rows = config.get("pad_token_id"), config.get("vocab_size")
    if isinstance(pad, int) and isinstance(rows, int) and not 0 <= pad < rows:
        return {key: value for key, value in config.items() if key != "pad_token_id"}
    return config


def _family(path: Path, config: Mapping[str, Any]) -> Family:
    model_type = config.get("model_type")
    family = FAMILIES.get(str(model_type))
    if family is None:
        raise ModelError(
            FIELD,
            str(path),
            f"model type {model_type!r} is not supported",
            f"Choose a model of type {', '.join(sorted(FAMILIES))}.",
        )
    refusal = family.refusal(config)
    if "quantization_config" in config:
        refusal = "its weights are quantised"
    if refusal:
        raise ModelError(FIELD, str(path), f"{refusal}, which is not supported", "Choose another.")
    return family


def _sizes(path: Path, family: Family, config: Mapping[str, Any]) -> Sizes:
    try:
        sizes = family.sizes(config)
    except KeyError as error:
        raise _broken(path / "config.json", f"it has no {error}") from None
    except TypeError:
        sizes = None
    numbers = () if sizes is None else dataclasses.astuple(sizes)
    if sizes is None or not all(type(number) is int and number > 0 for number in numbers):
        raise _broken(path / "config.json", "its sizes are not positive whole numbers")
    return sizes


def _read_headers(path: Path, config: Mapping[str, Any]) -> dict[str, TensorEntry]:
    """All tensors of `model.safetensors`, or of the shards that its index names."""
    index = path / "model.safetensors.index.json"
    if (path / "model.safetensors").is_file() or not index.is_file():
        return _read_header(_single_file(path, config))
    places = read_object(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(n, str) for n in places.values()):
        raise _broken(index, "it has no weight_map of file names")
    shards = {name: _read_header(_shard(path, name)) for name in sorted(set(places.values()))}
    try:
        return {name: shards[file][name] for name, file in places.items()}
    except KeyError as error:
        raise _broken(index, f"its shard does not hold {error}") from None


def _single_file(path: Path, config: Mapping[str, Any]) -> Path:
    files = sorted(path.glob("*.safetensors"))
    if (path / "model.safetensors").is_file():
        return path / "model.safetensors"
    if len(files) == 1:
        return files[0]
    if list(path.glob("*.bin")):
        model_class = (config.get("architectures") or ["AutoModelForCausalLM"])[0]
        raise ModelError(
            FIELD,
            str(path),
            "its weights are pickled (.bin), which can run code when loaded; only safetensors "
            "are read",
            f'Convert them: python -c "from transformers import {model_class} as M; '
            f"m = '{path}'; M.from_pretrained(m).save_pretrained(m)\"",
        )
    raise ModelError(
        FIELD, str(path), "no model.safetensors in it", "Give a folder that holds the weights."
    )


def _shard(path: Path, name: str) -> Path:
    file = path / name
    if Path(name).name != name or not file.is_file():
        raise _broken(path / "model.safetensors.index.json", f"the shard {name!r} is missing")
    return file


def _read_header(file: Path) -> dict[str, TensorEntry]:
    """Tensors of one file: 8 bytes of length, then JSON with offsets behind it."""
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            first = opened.read(8)
            check_fetched(file, first + opened.read(64))
            num_bytes = int.from_bytes(first, "little")
            if not 2 <= num_bytes <= MAX_HEADER_BYTES:
                raise _broken(file, "not a safetensors file")
            if 8 + num_bytes > size:
                raise _broken(file, "it ends within its header; is the file complete?")
            opened.seek(8)
            header = json.loads(opened.read(num_bytes))
        entries = {
            name: _entry(file, name, value, 8 + num_bytes)
            for name, value in header.items()
            if name != "__metadata__"
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _broken(file, f"not a safetensors file ({error!r})") from None
    _check_places(file, entries, 8 + num_bytes, size)
    return entries


def _check_places(file: Path, entries: Mapping[str, TensorEntry], first: int, size: int) -> None:
    """Raise ModelError unless the tensors fill the file, each with as many bytes as it takes."""
    for entry in entries.values():
        itemsize = DTYPE_BYTES.get(entry.dtype)
        if itemsize is None:
            raise _broken(file, f"{entry.name} has type {entry.dtype}, which is not supported")
        if min(entry.shape, default=0) < 0 or entry.nbytes != itemsize * prod(entry.shape):
            raise _broken(file, f"{entry.name} does not fit its place; is the file complete?")
        if entry.offset < first or entry.offset + entry.nbytes > size:
            raise _broken(file, f"{entry.name} does not fit its place; is the file complete?")
    filled = sorted((entry for entry in entries.values()), key=lambda e: (e.offset, e.nbytes))
    for before, after in itertools.pairwise(filled):
        if before.offset + before.nbytes > after.offset:
            raise _broken(file, f"{before.name} and {after.name} overlap")


def _entry(file: Path, name: str, value: Mapping[str, Any], base: int) -> TensorEntry:
    begin, end = (int(offset) for offset in value["data_offsets"])
    shape = tuple(int(size) for size in value["shape"])
    return TensorEntry(name, file, str(value["dtype"]), shape, base + begin, end - begin)


def _is_under(name: str, modules: tuple[str, ...]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _broken(file: Path, problem: str) -> ModelError:
    return ModelError(FIELD, str(file), problem, "Fetch the model again.")
