"""A frozen embedding whose rows stay in the model's file and are read as a batch needs them.

A batch names a few hundred tokens of tens of thousands. Mapping the file would not do: pages once
read count as this process's. Nothing is kept here either: the kernel caches the file, and takes
that memory back when others need it.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sfl.errors import ModelError
from sfl.models.folder import TensorEntry
from sfl.models.weights import TORCH_DTYPES


class RowsOnDisk(nn.Module):
    """Takes the place of `embedding`, ids [...] -> [..., H], the same to the last bit.

    The embedding's own code runs, over those rows alone that `ids` name. The file stays open, so
    that it may be replaced or removed meanwhile.
    """

    def __init__(self, embedding: nn.Embedding, entry: TensorEntry, dtype: torch.dtype) -> None:
        super().__init__()
        # Of its weight it needs none; what is padding matters to a gradient only.
        embedding.weight = nn.Parameter(torch.empty(0, entry.shape[1]), requires_grad=False)
        embedding.padding_idx = None
        self.embedding = embedding
        self._entry = entry
        self._dtype = dtype
        self._file: BinaryIO = entry.file.open("rb", buffering=0)
        weakref.finalize(self, self._file.close)
        self._lock = threading.Lock()

    def forward(self, ids: Tensor) -> Tensor:
        """[...] -> [..., H]. Raises ModelError at a file that is too short."""
        wanted, places = torch.unique(ids, return_inverse=True)
        rows = self._read(wanted).to(ids.device)
        embedded: Tensor = functional_call(self.embedding, {"weight": rows}, (places,))
        return embedded

    def _read(self, wanted: Tensor) -> Tensor:
        """[n] -> [n, H]."""
        stored = TORCH_DTYPES[self._entry.dtype]
        rows = torch.empty(len(wanted), self._entry.shape[1], dtype=stored)
        num_bytes = rows.shape[1] * stored.itemsize
        raw: Any = rows.view(torch.uint8).numpy()
        with self._lock:
            for number, row in enumerate(wanted.tolist()):
                if not 0 <= row < self._entry.shape[0]:
                    raise IndexError(f"token {row} is not in the vocabulary")
                self._file.seek(self._entry.offset + row * num_bytes)
                self._fill(memoryview(raw[number]))
        return rows.to(self._dtype)

    def _fill(self, row: memoryview) -> None:
        done = 0
        while done < len(row):
            count = self._file.readinto(row[done:])  # type: ignore[attr-defined]
            if not count:
                raise ModelError(
                    "model.path",
                    str(self._entry.file),
                    f"it ends within {self._entry.name}",
                    "Fetch the model again.",
                )
            done += count
