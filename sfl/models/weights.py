"""Single tensors from a checkpoint into memory that torch allocated."""

from __future__ import annotations

import torch

from sfl.models.folder import TensorEntry, read_into

TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
PIECE_BYTES = 1 << 20
"""Converted at once; larger pieces leave larger holes between the tensors that stay."""


def read_tensor(entry: TensorEntry, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The tensor, as `dtype` where that is given and the tensor is of floating point.

    Reads exactly the tensor's bytes. A conversion goes piece by piece, so that beside the result
    at most 2 MiB are held. Raises ModelError at a file that is too short.
    """
    stored = TORCH_DTYPES[entry.dtype]
    if dtype is None or not stored.is_floating_point or dtype == stored:
        tensor = torch.empty(entry.shape, dtype=stored)
        _read(entry, tensor, 0)
        return tensor
    tensor = torch.empty(entry.shape, dtype=dtype)
    flat = tensor.view(-1)
    step = PIECE_BYTES // stored.itemsize
    for first in range(0, flat.numel(), step):
        piece = torch.empty(min(step, flat.numel() - first), dtype=stored)
        _read(entry, piece, first * stored.itemsize)
        flat[first : first + step] = piece
    return tensor


def _read(entry: TensorEntry, target: torch.Tensor, start: int) -> None:
    if target.numel():
        read_into(entry, target.view(-1).view(torch.uint8).numpy().data, start)
