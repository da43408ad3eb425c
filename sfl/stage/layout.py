"""Between padded tensors and the rows of real tokens that travel.

Right padding never leaves a node. Rows that were padding come back as zeros: they touch neither
loss nor gradient, so the bits of every real row stay what they were.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

IGNORED = -100


def real_tokens(lengths: torch.Tensor, width: int) -> torch.Tensor:
    """Mask `[B, width]`, True where a token is real."""
    return torch.arange(width)[None, :] < lengths[:, None]


def pack_rows(padded: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """`[B, T, H]` -> `[num_tokens, H]`: real tokens only, contiguous."""
    width = padded.shape[1]
    if all(length == width for length in lengths):
        return padded.reshape(-1, padded.shape[-1]).contiguous()
    return padded[real_tokens(torch.tensor(lengths), width).to(padded.device)]


def unpack_rows(rows: torch.Tensor, lengths: Sequence[int]) -> torch.Tensor:
    """`[num_tokens, H]` -> `[B, T, H]` with T the longest length; padding becomes zeros."""
    width = max(lengths)
    if all(length == width for length in lengths):
        return rows.reshape(len(lengths), width, rows.shape[-1])
    padded = rows.new_zeros((len(lengths), width, rows.shape[-1]))
    padded[real_tokens(torch.tensor(lengths), width)] = rows
    return padded


def pack_labels(labels: torch.Tensor, lengths: Sequence[int]) -> np.ndarray:
    """Labels `[B, T]` or `[B]` -> int32, one per real token or per sequence."""
    if labels.dim() == 2:
        labels = labels[real_tokens(torch.tensor(lengths), labels.shape[1])]
    return labels.to(torch.int32).numpy()


def unpack_labels(packed: np.ndarray, lengths: Sequence[int], per_token: bool) -> torch.Tensor:
    """The inverse of `pack_labels`: int64 `[B, T]` with -100 on padding, or `[B]`."""
    values = torch.from_numpy(packed.astype(np.int64))
    if not per_token:
        return values
    width = max(lengths)
    labels = torch.full((len(lengths), width), IGNORED, dtype=torch.int64)
    labels[real_tokens(torch.tensor(lengths), width)] = values
    return labels
