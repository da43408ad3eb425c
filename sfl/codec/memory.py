"""Delta coding: a row is sent as what it differs from a row that both ends have seen before.

`delta(bigram)` predicts a token's hidden state from the running mean of earlier states of the
same (previous token, token), or of the same token where the pair is new; near the embedding most of
a state is decided by these. `delta(token)` stops at the token. `delta(sample)` predicts from what
the same position of the same example was in the last epoch (AQ-SGD, 2206.01299). Both ends hold
the same bounded table of rows; the sender alone knows what a slot stands for and names slots, the
receiver learns which rows share one. Tables begin empty with every stream and every change of
codec, unless both ends take back what they held. `sample` is in an unnamed file on disk, since it
holds a row for each token of the data: nobody takes that back.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from sfl.codec.integers import pack_integers, unpack_integers
from sfl.codec.kernel import kernel
from sfl.codec.packet import is_finite
from sfl.codec.sections import Reader, Writer
from sfl.codec.spec import Argument, at_most, whole, word
from sfl.codec.transform import Back, Longs, RowContext, Shape, Signal, Transform
from sfl.errors import ProtocolError
from sfl.node.files import Room, on_disk, writable_folder

KINDS = ("bigram", "token", "sample")
_SLOTS = {"bigram": 1 << 14, "token": 1 << 13, "sample": 1 << 17}
_FLOOR = 0.1  # least weight of a new row in its slot's running mean

Words = npt.NDArray[np.uint16]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Delta(Transform):
    """The stage as written; its tables belong to a stream's two ends."""

    name: str
    kind: str
    slots: int
    needs_context = True
    on_cpu = True
    echoes = True

    @property
    def on_disk(self) -> bool:  # type: ignore[override]
        """Rows of samples are."""
        return self.kind == "sample"

    def table(self, hidden: int, folder: Path | None = None, setting: str = "") -> Table:
        """One end's memory, empty; `setting` is what errors call the folder by."""
        return Table(self, hidden, folder, setting)

    def sender(self, hidden: int, folder: Path | None, setting: str) -> DeltaSender:
        """With an empty table."""
        return DeltaSender(self.table(hidden, folder, setting))

    def receiver(self, hidden: int, folder: Path | None, setting: str) -> DeltaReceiver:
        """With an empty table."""
        return DeltaReceiver(self.table(hidden, folder, setting))


@dataclass(slots=True)
class Table:
    """One end's rows `[slots + 1, H]` in bfloat16, and how often each was written."""

    stage: Delta
    hidden: int
    folder: Path | None = None
    setting: str = ""
    rows: Words = field(init=False)
    written: Floats = field(init=False)
    _room: Room | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        shape = (self.stage.slots + 1, self.hidden)  # the last row stays zero: nothing known
        if self.stage.kind == "sample":
            folder = self.folder
            if folder is not None:
                folder = writable_folder(folder, self.setting)
            where = folder or Path(tempfile.gettempdir())
            with on_disk(where, self.setting), tempfile.TemporaryFile(dir=where) as file:
                file.truncate(2 * shape[0] * shape[1])
                self._room = Room(file.fileno(), where, self.setting)
                self._room.take(2 * self.nothing * self.hidden, 2 * self.hidden)
                self.rows = np.memmap(file, np.uint16, "r+", shape=shape)
        else:
            self.rows = np.zeros(shape, np.uint16)
        self.written = np.zeros(shape[0], np.float32)

    @property
    def nothing(self) -> int:
        """The slot of rows of which nothing is known."""
        return self.stage.slots

    def predict(self, slots: Longs) -> Tensor:
        """`[n, H]` in float32. Raises DiskError."""
        self._reach(slots)
        return kernel().gather_rows(self.rows, slots)

    def known(self, slots: Longs, fresh: Longs) -> Longs:
        """`slots` with `nothing` in place of those that are fresh."""
        new = np.zeros(len(self.rows), np.bool_)
        new[fresh] = True
        return np.where(new[slots], self.nothing, slots)

    def write(self, slots: Longs, values: Tensor, fresh: Longs) -> None:
        """Move each slot towards the mean of its rows; `fresh` ones forget what they were.

        Raises DiskError.
        """
        self._reach(slots)
        self.written[fresh] = 0.0
        floor = 1.0 if self.stage.kind == "sample" else _FLOOR
        kernel().move_rows(self.rows, self.written, slots, values, floor)

    def held(self) -> dict[str, np.ndarray]:
        """The slots that were ever written, with their rows; nothing of a file on disk."""
        if self.stage.on_disk:
            return {}
        slots = np.flatnonzero(self.written)
        return {"slots": slots, "rows": self.rows[slots], "written": self.written[slots]}

    def take_back(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Have, in an empty table, what another one held."""
        self.rows[arrays["slots"]] = arrays["rows"]
        self.written[arrays["slots"]] = arrays["written"]

    def _reach(self, slots: Longs) -> None:
        """Have room on the disk for these rows, before any of them is touched."""
        if self._room is not None:
            rows = int(slots[slots < self.nothing].max(initial=-1)) + 1
            self._room.grow(min(rows, self.nothing) * 2 * self.hidden)


class Directory:
    """The sender's index from keys to slots: the least recently used one makes room."""

    def __init__(self, first: int, slots: int) -> None:
        self._first = first
        self._keys = np.empty(0, np.int64)  # sorted
        self._slot_of = np.empty(0, np.int64)  # of each key
        self._used = np.zeros(slots, np.int64)
        self._given = 0  # slots that have ever been given
        self._clock = 0

    def held(self) -> dict[str, np.ndarray]:
        """Keys with their slots, and when each slot that was given was last used."""
        return {
            "keys": self._keys,
            "slot_of": self._slot_of,
            "used": self._used[: self._given],
            "clock": np.array([self._clock], np.int64),
        }

    def take_back(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Know, when empty, what another one of as many slots held."""
        self._keys, self._slot_of = arrays["keys"].copy(), arrays["slot_of"].copy()
        self._given = len(arrays["used"])
        self._used[: self._given] = arrays["used"]
        self._clock = int(arrays["clock"][0])

    def look_up(self, keys: Longs) -> tuple[Longs, Longs]:
        """(slot of each key, slots newly given). More keys than slots share the last ones."""
        self._clock += 1
        unique, place = np.unique(keys, return_inverse=True)
        found = np.full(len(unique), -1, np.int64)
        if len(self._keys):
            at = np.minimum(np.searchsorted(self._keys, unique), len(self._keys) - 1)
            found = np.where(self._keys[at] == unique, self._slot_of[at], found)
        missing = found < 0
        self._used[found[~missing]] = self._clock
        given = self._give(int(missing.sum()))
        found[missing] = np.resize(given, int(missing.sum()))
        self._take(unique[missing], given)
        return found[place] + self._first, np.sort(given) + self._first

    def _give(self, count: int) -> Longs:
        """At most `count` slots: new ones, then those unused for longest, none of this packet."""
        slots = len(self._used)
        new = np.arange(self._given, min(slots, self._given + count))
        self._given += len(new)
        self._used[new] = self._clock
        wanted = count - len(new)
        if wanted <= 0:
            return new
        oldest = np.argpartition(self._used, min(wanted, slots) - 1)[:wanted]
        free = oldest[self._used[oldest] < self._clock]
        given = np.concatenate([new, free])
        return given if len(given) else oldest[:1]

    def _take(self, keys: Longs, given: Longs) -> None:
        """Of keys that share a slot the last one owns it, and whoever did no longer does."""
        if not len(given):
            return
        taken = np.zeros(len(self._used), np.bool_)
        taken[given] = True
        stay = ~taken[self._slot_of]
        old, old_slots = self._keys[stay], self._slot_of[stay]
        owners = keys[-len(given) :]
        slots = np.resize(given, len(keys))[-len(given) :]
        at = np.searchsorted(old, owners)
        self._keys = np.insert(old, at, owners)
        self._slot_of = np.insert(old_slots, at, slots)
        self._used[given] = self._clock


class DeltaSender:
    """The sending end: knows what each row is."""

    def __init__(self, table: Table) -> None:
        self.table = table
        slots = table.stage.slots
        # A quarter of the slots for single tokens, which new pairs fall back on.
        coarse = slots // 4 if table.stage.kind == "bigram" else 0
        self._coarse = Directory(0, coarse) if coarse else None
        self._fine = Directory(coarse, slots - coarse)

    @property
    def _parts(self) -> dict[str, Table | Directory]:
        parts: dict[str, Table | Directory] = {"table": self.table, "fine": self._fine}
        return parts if self._coarse is None else {**parts, "coarse": self._coarse}

    def held(self) -> dict[str, np.ndarray]:
        """Rows, and which slot is whose; nothing where rows are in a file."""
        if self.table.stage.on_disk:
            return {}
        return {
            f"{part}.{name}": array
            for part, own in self._parts.items()
            for name, array in own.held().items()
        }

    def take_back(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Know again what an earlier sender held."""
        for part, own in self._parts.items():
            own.take_back(_of_part(arrays, part))

    def encode(self, signal: Signal, write: Writer) -> tuple[Signal, Back]:
        """What differs from the predictions. Both ends write the rows as they arrive."""
        if signal.context is None:
            raise ProtocolError("codec delta: only a device's activations can be predicted")
        predicted, update = self._predict(signal.context, write)

        def back(arrived: Tensor) -> Tensor:
            rows = arrived.view(predicted.shape) + predicted
            update.apply(self.table, rows)
            return rows

        # A step is measured on what is sent, not on what was easy to predict.
        return replace(signal, values=signal.values - predicted), back

    def _predict(self, context: RowContext, write: Writer) -> tuple[Tensor, Update]:
        """Predictions of a packet's rows, and what both ends do once they have the rows."""
        fine, fresh = self._fine.look_up(_keys(self.table.stage.kind, context))
        source = self.table.known(fine, fresh)
        update = Update([(fine, fresh)])
        if self._coarse is not None:
            coarse, coarse_fresh = self._coarse.look_up(context.tokens)
            fallback = self.table.known(coarse, coarse_fresh)
            source = np.where(source == self.table.nothing, fallback, source)
            update.writes.append((coarse, coarse_fresh))
        for slots, new in update.writes:
            write.add(pack_integers(slots))
            write.add(pack_integers(np.diff(new, prepend=0)))
        return self.table.predict(source), update


class DeltaReceiver:
    """The receiving end: does as it is told."""

    def __init__(self, table: Table) -> None:
        self.table = table

    def held(self) -> dict[str, np.ndarray]:
        """Rows; nothing where they are in a file."""
        return {f"table.{name}": array for name, array in self.table.held().items()}

    def take_back(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Know again what an earlier receiver held."""
        self.table.take_back(_of_part(arrays, "table"))

    def decode(self, shape: Shape, read: Reader) -> tuple[Shape, Back]:
        """The same predictions, added to what arrives. Raises ProtocolError."""
        predicted, update = self._predict(read, shape[0])

        def back(values: Tensor) -> Tensor:
            values = values.view(shape)
            values += predicted
            if not is_finite(values):  # as two finite numbers may add up to
                raise ProtocolError("codec delta: a value is NaN or infinite")
            update.apply(self.table, values)
            return values

        return shape, back

    def _predict(self, read: Reader, rows: int) -> tuple[Tensor, Update]:
        source = np.full(rows, self.table.nothing, np.int64)
        writes = []
        for _ in range(2 if self.table.stage.kind == "bigram" else 1):
            slots = unpack_integers(read.bytes(8 + 4 * rows, exactly=False), rows)
            steps = unpack_integers(read.bytes(8 + 4 * rows, exactly=False), rows, exactly=False)
            new = np.cumsum(steps)
            for given in (slots, new):
                if (
                    given.size
                    and not 0 <= int(given.min()) <= int(given.max()) < self.table.nothing
                ):
                    raise ProtocolError("codec delta: a slot is out of range")
            known = self.table.known(slots, new)
            source = np.where(source == self.table.nothing, known, source)
            writes.append((slots, new))
        return self.table.predict(source), Update(writes)


@dataclass(slots=True)
class Update:
    """(slots, fresh slots) of each level, written once the packet's rows are known."""

    writes: list[tuple[Longs, Longs]]

    def apply(self, table: Table, rows: Tensor) -> None:
        """Write the rows as they came out at the receiver."""
        for slots, fresh in self.writes:
            table.write(slots, rows, fresh)


def _of_part(arrays: Mapping[str, np.ndarray], part: str) -> dict[str, np.ndarray]:
    start = f"{part}."
    return {name[len(start) :]: a for name, a in arrays.items() if name.startswith(start)}


def _keys(kind: str, context: RowContext) -> Longs:
    if kind == "sample":
        return context.examples << 20 | context.positions
    if kind == "token":
        return context.tokens
    return context.previous << 32 | context.tokens


def make_delta(arguments: tuple[Argument, ...]) -> Delta:
    """`delta(bigram, token or sample[, slots])`."""
    at_most(arguments, 2)
    kind = word(arguments[0], *KINDS) if arguments else "bigram"
    slots = whole(arguments[1], 64, 1 << 24) if len(arguments) > 1 else _SLOTS[kind]
    shown = f", {slots}" if slots != _SLOTS[kind] else ""
    return Delta(f"delta({kind}{shown})", kind, slots)
