"""An exit: one block and the model's own head over the rows at the cut, which guess what follows.

`sfl draft` trains it (Kangaroo's early exit, 2404.18911, over the device's own blocks). Its folder
says for which model and cut, and how often it was right. The block begins as the model's last one;
the norm before the head is its own, the head's matrix the model's.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from sfl.errors import ConfigError, ModelError
from sfl.models.folder import ModelFolder
from sfl.models.jsonfile import read_object
from sfl.models.kv.attention import Extension
from sfl.models.kv.cache import KvPool
from sfl.models.kv.pages import pages_for
from sfl.models.kv.size import KEEP_ALL, Keeping, keeping_of
from sfl.models.span import SpanModel
from sfl.node.files import write_atomic
from sfl.plan import Span
from sfl.serving.sampling import Sampling
from sfl.stage.base import BaseForm
from sfl.stage.device import share_tied_weights
from sfl.stage.serving.drafting import DraftCache
from sfl.stage.serving.sampler import next_token
from sfl.stage.serving.spans import serving_span

HEADER = "exit.json"
WEIGHTS = "exit.safetensors"
LEAST_ACCEPTANCE = 0.1
"""Of an exit that is of use."""
FIELD = "serve.draft"


@dataclass(frozen=True, slots=True)
class ExitHeader:
    """What an exit is for, and the share of held-out places at which its guess was the model's.

    `untrained` is that share before it was trained. `model` is the digest of the model's
    configuration, `adapter` that of the adapter it was trained with, `weights` that of its file.
    """

    model: str
    cut_layer: int
    acceptance: float
    untrained: float
    adapter: str = ""
    weights: str = ""


class ExitDrafter:
    """Guesses by a block over the device's own rows; hears of every row."""

    reads_rows = True

    def __init__(self, model: SpanModel, tokens: int, keeping: Keeping = KEEP_ALL) -> None:
        """With room for so many tokens."""
        self.model = model
        self.pool: KvPool | None = KvPool(pages_for(tokens), keeping)

    def join(self, front: SpanModel, tail: SpanModel | None) -> None:
        """Hold the head's matrix once, where the device has it as embedding or head."""
        share_tied_weights(front, self.model)
        if tail is not None:
            head = self.model.layout.head[-1]
            own: Any = self.model.model.get_submodule(head)
            own.weight = tail.model.get_parameter(f"{head}.weight")

    def note(self, own: DraftCache, rows: Tensor) -> None:
        """Rows `[n, H]` at the cut, of tokens that follow those it has heard of."""
        own.last = self.model.extend(rows, [Extension(own.cache, len(rows))])[-1:]

    def guess(
        self, own: DraftCache | None, ids: Sequence[int], most: int, sampling: Sampling
    ) -> tuple[int, ...]:
        """The one behind the last row it has heard of."""
        assert own is not None and own.last is not None
        return (next_token(self.model.logits(own.last)[0], sampling, len(ids)),)


def exit_span(folder: ModelFolder, form: BaseForm) -> SpanModel:
    """What an exit begins as: the model's last block, and its head. Raises ModelError."""
    last = folder.num_layers
    return serving_span(
        folder, Span(last - 1, last, embedding=False, head=True), BaseForm(form.dtype)
    )


def own_parameters(model: SpanModel) -> dict[str, torch.nn.Parameter]:
    """What is an exit's own: its block, and the norm before the head."""
    head = model.layout.head[-1]
    return {
        name: parameter
        for name, parameter in model.model.named_parameters()
        if not name.startswith(f"{head}.")
    }


def write_exit(folder: Path, model: SpanModel, header: ExitHeader) -> None:
    """Write both files, the header last. Raises DiskError."""
    own = {name: value.detach().contiguous() for name, value in own_parameters(model).items()}
    payload = safetensors.torch.save(own, metadata={"format": "pt"})
    said = {**asdict(header), "weights": hashlib.sha256(payload).hexdigest()}
    write_atomic(folder / WEIGHTS, payload)
    write_atomic(folder / HEADER, json.dumps(said, indent=2) + "\n")


def open_exit(
    path: Path, folder: ModelFolder, digest: str, cut_layer: int, tokens: int, form: BaseForm
) -> ExitDrafter:
    """An exit that was trained for this model (its `digest`) and cut. Raises ConfigError."""
    payload = read_exit(path, digest, cut_layer)
    model = exit_span(folder, form)
    try:
        _load(model, safetensors.torch.load(payload))
    except (SafetensorError, ValueError) as error:
        raise _broken(path, str(error)) from None
    return ExitDrafter(model, tokens, keeping_of(folder, model.span))


def read_exit(path: Path, digest: str, cut_layer: int) -> bytes:
    """Its weights' file. Raises ConfigError for one of another model or cut, or one untrained."""
    header, payload = _read(path)
    if (problem := _unfit(header, digest, cut_layer)) is not None:
        raise ConfigError(FIELD, f"exit:{path}", problem, "Train one with `sfl draft`.")
    if hashlib.sha256(payload).hexdigest() != header.weights:
        raise _broken(path, f"{WEIGHTS} is not the one that {HEADER} tells of")
    return payload


def _unfit(header: ExitHeader, digest: str, cut_layer: int) -> str | None:
    if header.model != digest:
        return "it was trained for another model: config.json differs"
    if header.cut_layer != cut_layer:
        return f"it was trained for cut_layer {header.cut_layer}, and this device's is {cut_layer}"
    return untaught(header.acceptance, header.untrained)


def untaught(acceptance: float, untrained: float) -> str | None:
    """What an exit has not learnt, or None."""
    right = f"{acceptance:.1%} of its guesses were right"
    if not acceptance > untrained:
        return f"it is not trained: {right}, and {untrained:.1%} were before it was"
    if acceptance < LEAST_ACCEPTANCE:
        return f"it has learnt too little: {right}, and less than {LEAST_ACCEPTANCE:.0%} is no use"
    return None


def _read(path: Path) -> tuple[ExitHeader, bytes]:
    """Header and weights. Raises ConfigError where there are none."""
    try:
        said = read_object(path / HEADER)
        header = ExitHeader(
            str(said["model"]),
            int(said["cut_layer"]),
            float(said["acceptance"]),
            float(said["untrained"]),
            str(said.get("adapter", "")),
            str(said["weights"]),
        )
        return header, (path / WEIGHTS).read_bytes()
    except (KeyError, TypeError, ValueError) as error:
        raise _broken(path, f"{HEADER} lacks a sound {error}") from None
    except ModelError as error:
        raise _broken(path, error.problem) from None
    except OSError as error:
        raise _broken(path, f"it cannot be read ({error.strerror})") from None


def _load(model: SpanModel, values: Mapping[str, Tensor]) -> None:
    """Raises ValueError where a tensor is missing, or another one than the block has."""
    own = own_parameters(model)
    if strange := sorted(own.keys() ^ values.keys()):
        raise ValueError(f"{strange[0]} is not in both its block and the model's")
    for name, parameter in own.items():
        if values[name].shape != parameter.shape or not bool(values[name].isfinite().all()):
            raise ValueError(f"{name} is not finite, or not {list(parameter.shape)}")
        parameter.data.copy_(values[name])


def _broken(path: Path, problem: str) -> ConfigError:
    return ConfigError(FIELD, f"exit:{path}", problem, "Train one with `sfl draft`.")
