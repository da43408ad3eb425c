"""From a specification to a codec, from a codec to a stream's two ends, and back to tensors.

A specification is `[delta |] [topk |] quantiser [| lossless]`. Rows that are exactly zero never
travel. What a stream remembers (delta's rows, the masks that gradients wait for) lies in its
Encoder and Decoder; a codec itself is a value.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from sfl.codec import rans, zstd
from sfl.codec.blocks import make_int, make_int8, make_stochastic
from sfl.codec.cast import make_bf16, make_fp16, make_none
from sfl.codec.memory import (
    Delta,
    DeltaReceiver,
    DeltaSender,
    RowContext,
    make_delta,
)
from sfl.codec.packet import (
    DTYPES,
    MAX_TENSOR_BYTES,
    Lossless,
    Packet,
    Quantised,
    Quantiser,
    is_finite,
)
from sfl.codec.sections import Loopback, Reader, Writer
from sfl.codec.sizes import SizeStats
from sfl.codec.spec import PRESETS, Argument, Call, expand, read_calls
from sfl.codec.topk import Mask, TopK, make_topk
from sfl.codec.uniform import make_uniform
from sfl.errors import ConfigError, ProtocolError

QUANTISERS: dict[str, Callable[[tuple[Argument, ...]], Quantiser]] = {
    "none": make_none,
    "fp16": make_fp16,
    "bf16": make_bf16,
    "int8": make_int8,
    "int": make_int,
    "stochastic": make_stochastic,
    "uniform": make_uniform,
}
SPARSIFIERS: dict[str, Callable[[tuple[Argument, ...]], TopK]] = {"topk": make_topk}
PREDICTORS: dict[str, Callable[[tuple[Argument, ...]], Delta]] = {"delta": make_delta}
LOSSLESS: dict[str, Callable[[tuple[Argument, ...]], Lossless]] = {
    "zstd": zstd.make_zstd,
    "rans": rans.make_rans,
}

_NAMES: dict[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}
_GLANCE = 8  # values of a row that are looked at first
_ALL_ROWS, _SOME_ROWS = b"\x00", b"\x01"


@dataclass(frozen=True, slots=True)
class Codec:
    """The stages of one role in one direction."""

    quantiser: Quantiser
    lossless: Lossless | None = None
    topk: TopK | None = None
    delta: Delta | None = None

    @property
    def spec(self) -> str:
        """The specification that `parse` reads back to this codec."""
        stages = (self.delta, self.topk, self.quantiser, self.lossless)
        return " | ".join(stage.name for stage in stages if stage is not None)

    @property
    def exact(self) -> bool:
        """Whether every bit comes back."""
        return self.quantiser.exact and self.topk is None and self.delta is None

    def bits(self, shape: tuple[int, int], stats: SizeStats, ahead: int = 1) -> float:
        """Bits that a tensor of `shape` is expected to take, by those before; the next but so many.

        Before the first packet: what the quantiser alone would take, 32 a value where unknown.
        """
        rows, hidden = shape
        if stats.packets:
            return stats.bits(rows, hidden, ahead)
        fixed = self.quantiser.fixed_bits(rows * hidden, hidden, torch.float32)
        return 32.0 * rows * hidden if fixed is None else fixed

    def without_delta(self) -> Codec:
        """The same for tensors whose sender knows no rows by name."""
        return Codec(self.quantiser, self.lossless, self.topk)

    def for_peer(self, compiled: bool) -> Codec:
        """The same values in bytes that a peer without the compiled kernel reads in good time."""
        if self.lossless is None or self.lossless.name != "rans" or compiled:
            return self
        return Codec(self.quantiser, zstd.Zstd(), self.topk, self.delta)

    def encode(self, rows: Tensor, key: int = 0, groups: Sequence[int] = ()) -> Packet:
        """`[rows, H]` as a packet, remembering nothing: only for codecs without `delta`."""
        return Encoder(self).encode(rows, key, groups)


def parse(text: str, field: str = "codec", gradient: bool = False) -> Codec:
    """The codec that `text` specifies; `field` is the setting that errors name.

    Raises ConfigError.
    """
    try:
        return _assemble(read_calls(expand(text, gradient)))
    except ValueError as error:
        near = difflib.get_close_matches(text, [*PRESETS, *QUANTISERS], 1)
        raise ConfigError(
            field,
            text,
            f"not a codec: {error}",
            (f"Did you mean {near[0]!r}? " if near else "")
            + "Write a preset (none, fp16, int8, fine, compact, sft, extreme) or stages such as "
            "'topk(0.3) | stochastic(4) | zstd'; docs/compression.md lists them.",
        ) from None


def _assemble(calls: list[Call]) -> Codec:
    if calls and calls[0].name in LOSSLESS:
        calls = [Call("none"), *calls]
    waiting = list(calls)
    delta = _next(waiting, PREDICTORS)
    topk = _next(waiting, SPARSIFIERS)
    quantiser = _next(waiting, QUANTISERS)
    lossless = _next(waiting, LOSSLESS)
    if waiting:
        raise ValueError(_misplaced(waiting[0].name))
    if quantiser is None:
        raise ValueError(f"a quantiser is missing: one of {', '.join(QUANTISERS)}")
    if quantiser.exact and (topk is not None or delta is not None):
        raise ValueError("topk and delta need a quantiser other than none, e.g. fp16")
    return Codec(quantiser, lossless, topk, delta)


T = TypeVar("T")


def _next(waiting: list[Call], known: dict[str, Callable[[tuple[Argument, ...]], T]]) -> T | None:
    """Take the next stage where it is one of the known."""
    if not waiting or waiting[0].name not in known:
        return None
    call = waiting.pop(0)
    try:
        return known[call.name](call.arguments)
    except ValueError as error:
        raise ValueError(f"{call}: {error}") from None


def _misplaced(name: str) -> str:
    stages = [*PREDICTORS, *SPARSIFIERS, *QUANTISERS, *LOSSLESS]
    if name in stages:
        return f"{name} stands twice or out of order ([delta |] [topk |] quantiser [| lossless])"
    return f"no stage is called {name!r}, the stages are {', '.join(stages)}"


# -- the two ends of a stream ------------------------------------------------------------------


class Encoder:
    """A stream's sending end of one role; packets are made in the order they are sent.

    What delta remembers of samples lies in `folder`, which errors call by its `setting`.
    """

    def __init__(self, codec: Codec, folder: Path | None = None, setting: str = "folder") -> None:
        self.codec = codec
        self._spec = codec.spec
        self._folder, self._setting = folder, setting
        self._delta: DeltaSender | None = None
        self.mask: Mask | None = None
        """Which values of the last packet travelled; None without topk."""
        self.sizes = SizeStats()

    def encode(
        self,
        rows: Tensor,
        key: int = 0,
        groups: Sequence[int] = (),
        context: RowContext | None = None,
    ) -> Packet:
        """`[rows, H]`, fp32, bf16 or fp16, as a packet.

        `key` draws the random bits, `groups` are the rows of each sequence (topk), `context` what
        delta knows its rows by. Rows on an accelerator are coded there, so that codes are copied,
        not values; but for delta, whose tables are the CPU's. Raises ProtocolError for values the
        quantiser cannot hold, and where there are none.
        """
        with _beside(rows):
            return self._encode(rows, key, groups, context)

    def _encode(
        self, rows: Tensor, key: int, groups: Sequence[int], context: RowContext | None
    ) -> Packet:
        assert rows.dim() == 2 and rows.dtype in _NAMES, (
            f"a codec takes [rows, hidden] in {list(DTYPES)}, not {rows.dtype} {list(rows.shape)}"
        )
        if not rows.numel():
            raise ProtocolError(f"a tensor of {list(rows.shape)} has nothing to send")
        values = rows.detach() if self.codec.delta is None else rows.detach().cpu()
        values = values if self.codec.exact else values.float()
        write = Writer(self.codec.lossless)
        kept = _nonzero_rows(values, self.codec.exact)
        if kept is not None:
            values, kept = values[kept], kept.cpu()
        write.add(_ALL_ROWS if kept is None else _SOME_ROWS + np.packbits(kept.numpy()).tobytes())
        self.mask = None
        if len(values):
            self._write(values.contiguous(), key, groups or (len(rows),), context, kept, write)
        payload = write.payload()
        self.sizes.observe(len(rows), len(values), rows.shape[1], len(payload))
        return Packet(self._spec, _NAMES[rows.dtype], tuple(rows.shape), payload)

    def _write(
        self,
        values: Tensor,
        key: int,
        groups: Sequence[int],
        context: RowContext | None,
        kept: Tensor | None,
        write: Writer,
    ) -> None:
        predicted, update, residual = None, None, values
        if self.codec.delta is not None:
            if context is None:
                raise ProtocolError("codec delta: only a device's activations can be predicted")
            predicted, update = self._sender(values).predict(_select(context, kept), write)
            residual = values - predicted
        flat, columns, mask = residual.reshape(-1), values.shape[1], None
        if self.codec.topk is not None:
            flat, mask = self.codec.topk.encode(residual, _kept_groups(groups, kept), write)
            columns = 1
            rows = len(values) if kept is None else len(kept)
            self.mask = Mask(mask, rows, values.shape[1], kept)
        # A step is measured on what is sent, not on what was easy to predict.
        scale_of = values if mask is None else flat[:, None]
        coded = self.codec.quantiser.encode(flat, columns, scale_of, key)
        if coded.side:
            write.add(coded.side)
        write.add(coded.body)
        if update is not None and predicted is not None:
            # What the receiver will hold; delta's tables must not differ by a bit.
            arrived = self._arrived(coded, flat, mask, columns, values.numel())
            update.apply(self._sender(values).table, arrived.view(values.shape) + predicted)

    def _arrived(
        self, coded: Quantised, flat: Tensor, mask: np.ndarray | None, columns: int, count: int
    ) -> Tensor:
        """The residual as it comes out at the receiver, `[count]`."""
        source = Loopback(coded)
        arrived = self.codec.quantiser.decode(source, flat.numel(), columns, torch.float32)
        if mask is None or self.codec.topk is None:
            return arrived
        return self.codec.topk.expand(mask, arrived, count)

    def _sender(self, values: Tensor) -> DeltaSender:
        assert self.codec.delta is not None
        if self._delta is None:
            table = self.codec.delta.table(values.shape[1], self._folder, self._setting)
            self._delta = DeltaSender(table)
        return self._delta


def _beside(rows: Tensor) -> AbstractContextManager[object]:
    """On CUDA a stream of the codec's own: it would queue behind the next job's kernels.

    Rows are whole when they come here: the session has waited for them (sfl.stage.session).
    """
    return torch.cuda.stream(_stream(rows.device)) if rows.is_cuda else nullcontext()


@cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


def _nonzero_rows(values: Tensor, exact: bool) -> Tensor | None:
    """Which rows travel, None for all; where bits count, minus zero is not zero."""
    if exact:
        values = values.view(torch.int32 if values.dtype is torch.float32 else torch.int16)
    if bool((values[:, 0] != 0).all()):
        return None
    nonzero = (values[:, :_GLANCE] != 0).any(1)
    # Few rows begin with zeros by chance: only these are read to their end.
    suspects = torch.nonzero(~nonzero)[:, 0]
    nonzero[suspects] = (values[suspects] != 0).any(1)
    return None if bool(nonzero.all()) else nonzero


def _select(context: RowContext, kept: Tensor | None) -> RowContext:
    if kept is None:
        return context
    rows = kept.numpy()
    return RowContext(
        context.tokens[rows],
        context.previous[rows],
        context.examples[rows],
        context.positions[rows],
    )


def _kept_groups(groups: Sequence[int], kept: Tensor | None) -> list[int]:
    """Rows left of each group; empty groups are gone."""
    if kept is None:
        return list(groups)
    return [left for own in torch.split(kept, list(groups)) if (left := int(own.sum()))]


class Decoder:
    """A stream's receiving end of one role; packets are taken in the order they were sent.

    What delta remembers of samples lies in `folder`, which errors call by its `setting`.
    """

    def __init__(self, folder: Path | None = None, setting: str = "folder") -> None:
        self._folder, self._setting = folder, setting
        self._spec = ""
        self._codec: Codec | None = None
        self._delta: DeltaReceiver | None = None

    def decode(self, packet: Packet, shape: tuple[int, int] | None = None) -> Tensor:
        """The packet's tensor `[rows, hidden]`, in fresh memory that torch allocated.

        With `shape` any other is refused. Size, type and codec are checked before anything is
        allocated, values after. Raises ProtocolError.
        """
        codec = self._codec_of(packet.codec)
        dtype = DTYPES.get(packet.dtype)
        if dtype is None:
            raise ProtocolError(f"dtype {packet.dtype!r} is none of {', '.join(DTYPES)}")
        rows, hidden = _checked_shape(packet, shape, dtype)
        read = Reader(packet.payload)
        kept = _read_rows(read, rows)
        count = rows if kept is None else int(kept.sum())
        wire = dtype if codec.exact else torch.float32
        values = torch.empty(0, hidden, dtype=wire)
        if count:
            values = self._read(read, codec, count, hidden, wire)
        read.finish()
        if kept is not None:
            whole = torch.zeros(rows, hidden, dtype=wire)
            whole[kept] = values
            values = whole
        if codec.exact or dtype is torch.float32:
            return values
        narrow = values.to(dtype)
        if not bool(narrow.isfinite().all()):
            raise ProtocolError(f"a value does not fit into {packet.dtype}")
        return narrow

    def _codec_of(self, spec: str) -> Codec:
        """The codec of a packet; delta's rows are forgotten where it changes."""
        if spec != self._spec or self._codec is None:
            try:
                self._codec, self._spec = parse(spec), spec
            except ConfigError:
                raise ProtocolError(f"unknown codec {spec!r}") from None
            self._delta = None
        return self._codec

    def _read(
        self, read: Reader, codec: Codec, rows: int, hidden: int, dtype: torch.dtype
    ) -> Tensor:
        predicted, update = None, None
        if codec.delta is not None:
            if self._delta is None:
                table = codec.delta.table(hidden, self._folder, self._setting)
                self._delta = DeltaReceiver(table)
            predicted, update = self._delta.predict(read, rows)
        mask, count, columns = None, rows * hidden, hidden
        if codec.topk is not None:
            mask, count = codec.topk.decode_mask(read, count)
            columns = 1
        values = (
            codec.quantiser.decode(read, count, columns, dtype)
            if count
            else torch.empty(0, dtype=dtype)
        )
        if codec.topk is not None and mask is not None:
            values = codec.topk.expand(mask, values, rows * hidden)
        values = values.view(rows, hidden)
        if predicted is not None and update is not None and self._delta is not None:
            values += predicted
            if not is_finite(values):  # as two finite numbers may add up to
                raise ProtocolError("codec delta: a value is NaN or infinite")
            update.apply(self._delta.table, values)
        return values


def _read_rows(read: Reader, rows: int) -> Tensor | None:
    """Which rows came, None for all. Raises ProtocolError."""
    section = read.bytes(1 + (rows + 7) // 8, exactly=False)
    if section == _ALL_ROWS:
        return None
    if section[:1] != _SOME_ROWS or len(section) != 1 + (rows + 7) // 8:
        raise ProtocolError("the mask of rows is not one")
    bits = np.unpackbits(np.frombuffer(section, np.uint8, offset=1), count=rows)
    return torch.from_numpy(bits).bool()


def _checked_shape(
    packet: Packet, wanted: tuple[int, int] | None, dtype: torch.dtype
) -> tuple[int, int]:
    if wanted is not None and packet.shape != wanted:
        raise ProtocolError(f"shape {list(packet.shape)} where {list(wanted)} is expected")
    if len(packet.shape) != 2 or min(packet.shape) < 1:
        raise ProtocolError(
            f"shape {list(packet.shape)} is not [rows, hidden] with at least one of each"
        )
    rows, hidden = packet.shape
    if rows * hidden * dtype.itemsize > MAX_TENSOR_BYTES:
        raise ProtocolError(
            f"shape {list(packet.shape)} takes more than {MAX_TENSOR_BYTES} bytes, the limit"
        )
    return rows, hidden


def decode(packet: Packet, shape: tuple[int, int] | None = None) -> Tensor:
    """The tensor of a packet that stands alone. Raises ProtocolError."""
    return Decoder().decode(packet, shape)
