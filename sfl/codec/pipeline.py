"""From a specification to a codec, from a codec to a stream's two ends, and back to tensors.

A specification is `[transform |] .. quantiser [| coder]`, each a stage of `stages.STAGES`. Rows
that are exactly zero never travel. What a stream remembers (delta's rows, the masks that gradients
wait for) is held by its Encoder and Decoder; a codec itself is a value.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sfl.codec import zstd
from sfl.codec.packet import DTYPES, MAX_TENSOR_BYTES, Lossless, Packet, Quantiser
from sfl.codec.sections import Loopback, Reader, Writer
from sfl.codec.sizes import SizeStats
from sfl.codec.spec import PRESETS, Call, expand, read_calls
from sfl.codec.stages import STAGES, Kind, names
from sfl.codec.topk import Mask
from sfl.codec.transform import Receiver, Remembering, RowContext, Sender, Signal, Transform
from sfl.errors import ConfigError, ProtocolError

_NAMES: dict[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}
_GLANCE = 8  # values of a row that are looked at first
_ALL_ROWS, _SOME_ROWS = b"\x00", b"\x01"
_WIDTH = "width"


@dataclass(frozen=True, slots=True)
class Codec:
    """The stages of one role in one direction, in the order in which a sender takes them.

    `transforms` change values, `quantiser` makes sections of them, `coder` makes those shorter.
    """

    quantiser: Quantiser
    coder: Lossless | None = None
    transforms: tuple[Transform, ...] = ()

    @property
    def spec(self) -> str:
        """The specification that `parse` reads back to this codec."""
        coders = () if self.coder is None else (self.coder,)
        return " | ".join(stage.name for stage in (*self.transforms, self.quantiser, *coders))

    @property
    def exact(self) -> bool:
        """Whether every bit comes back."""
        return self.quantiser.exact and all(stage.exact for stage in self.transforms)

    @property
    def on_cpu(self) -> bool:
        """Whether a sender takes values that are in the CPU's memory alone."""
        return any(stage.on_cpu for stage in self.transforms)

    @property
    def echoes(self) -> bool:
        """Whether a sender has to see what arrives."""
        return any(stage.echoes for stage in self.transforms)

    @property
    def on_disk(self) -> bool:
        """Whether either end keeps rows in a file."""
        return any(stage.on_disk for stage in self.transforms)

    def bits(self, shape: tuple[int, int], stats: SizeStats, ahead: int = 1) -> float:
        """Bits that a tensor of `shape` is expected to take, by those before; the next but so many.

        Before the first packet: what the quantiser alone would take, 32 a value where unknown.
        """
        rows, hidden = shape
        if stats.packets:
            return stats.bits(rows, hidden, ahead)
        fixed = self.quantiser.fixed_bits(rows * hidden, hidden, torch.float32)
        return 32.0 * rows * hidden if fixed is None else fixed

    def without_context(self) -> Codec:
        """The same for tensors whose sender knows no rows by name."""
        kept = tuple(stage for stage in self.transforms if not stage.needs_context)
        return Codec(self.quantiser, self.coder, kept)

    def for_peer(self, compiled: bool) -> Codec:
        """The same values in bytes that a peer without the compiled kernel reads in good time."""
        if self.coder is None or not self.coder.needs_kernel or compiled:
            return self
        return Codec(self.quantiser, zstd.Zstd(), self.transforms)

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
        near = difflib.get_close_matches(text, [*PRESETS, *names("quantiser")], 1)
        raise ConfigError(
            field,
            text,
            f"not a codec: {error}",
            (f"Did you mean {near[0]!r}? " if near else "")
            + "Write a preset (none, fp16, int8, fine, compact, sft, extreme) or stages such as "
            "'topk(0.3) | stochastic(4) | zstd'; docs/compression.md lists them.",
        ) from None


def _assemble(calls: list[Call]) -> Codec:
    if calls and _is(calls[0], "coder"):
        calls = [Call("none"), *calls]
    waiting = list(calls)
    transforms = tuple(_transforms(waiting))
    quantiser: Quantiser | None = _next(waiting, "quantiser")
    coder: Lossless | None = _next(waiting, "coder")
    if waiting:
        raise ValueError(_misplaced(waiting[0].name))
    if quantiser is None:
        raise ValueError(f"a quantiser is missing: one of {', '.join(names('quantiser'))}")
    if quantiser.exact and not all(stage.exact for stage in transforms):
        raise ValueError("topk, delta and their like need a quantiser other than none, e.g. fp16")
    return Codec(quantiser, coder, transforms)


def _transforms(waiting: list[Call]) -> Iterator[Transform]:
    """Take all that stand in front: none twice, and none behind one that leaves no rows."""
    taken: set[str] = set()
    rows = True
    while waiting and rows and waiting[0].name not in taken:
        taken.add(waiting[0].name)
        stage: Transform | None = _next(waiting, "transform")
        if stage is None:
            return
        rows = stage.keeps_rows
        yield stage


def _next(waiting: list[Call], kind: Kind) -> Any:
    """Take the next stage where it is of this kind, else None."""
    if not waiting or not _is(waiting[0], kind):
        return None
    call = waiting.pop(0)
    try:
        return STAGES.implementation(call.name, STAGES[call.name].make)(call.arguments)
    except ValueError as error:
        raise ValueError(f"{call}: {error}") from None


def _is(call: Call, kind: Kind) -> bool:
    return call.name in STAGES and STAGES[call.name].kind == kind


def _misplaced(name: str) -> str:
    if name in STAGES:
        return f"{name} is given twice or out of order ([delta |] [topk |] quantiser [| lossless])"
    return f"no stage is called {name!r}, the stages are {', '.join(STAGES)}"


# -- the two ends of a stream ------------------------------------------------------------------


class Encoder:
    """A stream's sending end of one role; packets are made in the order they are sent.

    What delta remembers of samples is in `folder`, which errors call by its `setting`.
    """

    def __init__(self, codec: Codec, folder: Path | None = None, setting: str = "folder") -> None:
        self.codec = codec
        self._spec = codec.spec
        self._folder, self._setting = folder, setting
        self.stages: tuple[Sender, ...] = ()
        """The transforms' ends, made for the first rows that are sent."""
        self.mask: Mask | None = None
        """Which values of the last packet travelled; None without topk."""
        self.sizes = SizeStats()
        self._width = 0  # of the rows that the stages were made for

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
        values = rows.detach().cpu() if self.codec.on_cpu else rows.detach()
        values = values if self.codec.exact else values.float()
        write = Writer(self.codec.coder)
        kept = _nonzero_rows(values, self.codec.exact)
        if kept is not None:
            values, kept = values[kept], kept.cpu()
        write.add(_ALL_ROWS if kept is None else _SOME_ROWS + np.packbits(kept.numpy()).tobytes())
        self.mask = None
        if len(values):
            values = values.contiguous()
            signal = Signal(values, values, groups or (len(rows),), context)
            signal = self._write(signal if kept is None else _sent(signal, kept), key, write)
            if signal.mask is not None:
                self.mask = Mask(signal.mask, len(rows), rows.shape[1], kept)
        payload = write.payload()
        self.sizes.observe(len(rows), len(values), rows.shape[1], len(payload))
        return Packet(self._spec, _NAMES[rows.dtype], tuple(rows.shape), payload)

    def held(self) -> dict[str, np.ndarray]:
        """What its stages remember, by name."""
        return _held(self.stages, self._width)

    def take_back(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Remember what an encoder of the same stages held; nothing was encoded yet."""
        self._make_stages(int(arrays[_WIDTH][0]))
        _take_back(self.stages, arrays)

    def _make_stages(self, width: int) -> None:
        self._width = width
        self.stages = tuple(
            stage.sender(width, self._folder, self._setting) for stage in self.codec.transforms
        )

    def _write(self, signal: Signal, key: int, write: Writer) -> Signal:
        """Write the sections of every stage; the last signal."""
        if len(self.stages) != len(self.codec.transforms):
            self._make_stages(signal.values.shape[1])
        backs = []
        for stage in self.stages:
            signal, back = stage.encode(signal, write)
            backs.append(back)
        count, columns = signal.values.shape
        coded = self.codec.quantiser.encode(
            signal.values.reshape(-1), columns, signal.scale_of, key
        )
        if coded.side:
            write.add(coded.side)
        write.add(coded.body)
        if self.codec.echoes:
            # What the receiver will hold; what both ends remember must not differ by a bit.
            source = Loopback(coded)
            arrived = self.codec.quantiser.decode(source, count * columns, columns, torch.float32)
            for back in reversed(backs):
                arrived = back(arrived)
        return signal


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


def _sent(signal: Signal, kept: Tensor) -> Signal:
    """The same of the rows that travel; empty groups are gone."""
    parts = torch.split(kept, list(signal.groups))
    groups = [left for own in parts if (left := int(own.sum()))]
    context = None if signal.context is None else signal.context.of(kept.numpy())
    return Signal(signal.values, signal.scale_of, groups, context)


class Decoder:
    """A stream's receiving end of one role; packets are taken in the order they were sent.

    What delta remembers of samples is in `folder`, which errors call by its `setting`.
    """

    def __init__(self, folder: Path | None = None, setting: str = "folder") -> None:
        self._folder, self._setting = folder, setting
        self._spec = ""
        self._codec: Codec | None = None
        self._width = 0  # of the rows that the stages were made for
        self.stages: tuple[Receiver, ...] = ()
        """The transforms' ends, made for the first rows that come."""

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

    def held(self) -> dict[str, np.ndarray]:
        """What its stages remember, by name."""
        return _held(self.stages, self._width)

    def take_back(self, spec: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Remember what a decoder of the same stages held; packets of `spec` are next."""
        self._make_stages(self._codec_of(spec), int(arrays[_WIDTH][0]))
        _take_back(self.stages, arrays)

    def _make_stages(self, codec: Codec, width: int) -> None:
        self._width = width
        self.stages = tuple(
            stage.receiver(width, self._folder, self._setting) for stage in codec.transforms
        )

    def _codec_of(self, spec: str) -> Codec:
        """The codec of a packet; what stages remember is forgotten where it changes."""
        if spec != self._spec or self._codec is None:
            try:
                self._codec, self._spec = parse(spec), spec
            except ConfigError:
                raise ProtocolError(f"unknown codec {spec!r}") from None
            self.stages = ()
        return self._codec

    def _read(
        self, read: Reader, codec: Codec, rows: int, hidden: int, dtype: torch.dtype
    ) -> Tensor:
        if len(self.stages) != len(codec.transforms):
            self._make_stages(codec, hidden)
        if codec.transforms and hidden != self._width:
            raise ProtocolError(f"rows of {hidden} values, after rows of {self._width}")
        backs, due = [], (rows, hidden)
        for stage in self.stages:
            due, back = stage.decode(due, read)
            backs.append(back)
        count, columns = due[0] * due[1], due[1]
        values = torch.empty(0, dtype=dtype)
        if count:
            values = codec.quantiser.decode(read, count, columns, dtype)
        for back in reversed(backs):
            values = back(values)
        return values.view(rows, hidden)


def _held(stages: Sequence[Sender | Receiver], width: int) -> dict[str, np.ndarray]:
    """What stages remember, each by its place, and the width of their rows; or nothing."""
    arrays = {
        f"{place}.{name}": array
        for place, stage in enumerate(stages)
        if isinstance(stage, Remembering)
        for name, array in stage.held().items()
    }
    return {**arrays, _WIDTH: np.array([width], np.int64)} if arrays else {}


def _take_back(stages: Sequence[Sender | Receiver], arrays: Mapping[str, np.ndarray]) -> None:
    for place, stage in enumerate(stages):
        start = f"{place}."
        own = {name[len(start) :]: a for name, a in arrays.items() if name.startswith(start)}
        if own and isinstance(stage, Remembering):
            stage.take_back(own)


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
