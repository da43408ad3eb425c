"""The next token of logits, by a number that is its own."""

from __future__ import annotations

import torch
from torch import Tensor

from sfl.serving.sampling import Sampling


def next_token(logits: Tensor, sampling: Sampling, position: int) -> int:
    """From logits `[V]`: the token at `position`.

    The likeliest, or the one in which the cumulated probability passes the position's own number,
    of the likeliest tokens that have `top_p` of it (nucleus sampling, 1904.09751).
    """
    if sampling.greedy:
        return int(logits.argmax())
    scaled = logits.to("cpu", torch.float64) / sampling.temperature
    probabilities, tokens = scaled.softmax(-1).sort(descending=True, stable=True)
    cumulated = probabilities.cumsum(-1)
    kept = int((cumulated < sampling.top_p).sum()) + 1  # the one that passes it is within
    cumulated = cumulated[:kept]
    drawn = sampling.uniform(position) * float(cumulated[-1])
    place = int(torch.searchsorted(cumulated, drawn, right=True))
    return int(tokens[min(place, len(cumulated) - 1)])
