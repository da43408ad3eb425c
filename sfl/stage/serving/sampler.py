"""The next token of logits, by numbers that are its own; and how much of a draft it confirms.

Tokens race: each waits for a time that depends on seed and position alone, and the shorter the
likelier it is. Who draws from other logits by the same numbers mostly draws the same token: of two
distributions with distance d it is one in at least (1 - d) / (1 + d) of all cases, where (1 - d) is
the most that any draft can reach (2408.07978). So a draft is drawn as its model would go on, and
checked by drawing: the text is what it would have been without. For a guess that is certain this is
the rule min(1, p/q) with its residual (2211.17192), to the letter.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from sfl.serving.sampling import Sampling

_SOONEST = 1e-300


def next_token(logits: Tensor, sampling: Sampling, position: int) -> int:
    """From logits `[V]`: the token at `position`.

    The likeliest, or who wins the race of the likeliest tokens that have `top_p` of the probability
    (nucleus sampling, 1904.09751; exponential races, Gumbel's trick).
    """
    if sampling.greedy:
        return int(logits.argmax())
    probabilities = (logits.to("cpu", torch.float64) / sampling.temperature).softmax(-1)
    if sampling.top_p < 1.0:
        probabilities = _nucleus(probabilities, sampling.top_p)
    waits = _waits(sampling.seed_of(position), len(probabilities))
    return int((probabilities / waits).argmax())


def confirmed(
    logits: Iterable[Tensor], draft: Sequence[int], sampling: Sampling, position: int
) -> tuple[int, ...]:
    """The tokens from `position` on: what of a draft is the model's own, and the one behind it.

    `logits` are `[V]` behind the last token that is certain, and behind each of the draft; they are
    asked for no further than that.
    """
    tokens: list[int] = []
    for row in logits:
        tokens.append(next_token(row, sampling, position + len(tokens)))
        if len(tokens) <= len(draft) and tokens[-1] != draft[len(tokens) - 1]:
            break
    return tuple(tokens)


def _nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """The likeliest tokens that have so much of it; the others have none."""
    likely, tokens = probabilities.sort(descending=True, stable=True)
    kept = int((likely.cumsum(-1) < top_p).sum()) + 1  # the one that passes it is within
    return torch.zeros_like(probabilities).index_copy_(0, tokens[:kept], likely[:kept])


def _waits(seed: int, count: int) -> Tensor:
    """Of each token, exponential; the same on every machine, and whatever follows of them."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(count, generator=generator, dtype=torch.float64)
    return -torch.log1p(-drawn).clamp_max_(-_SOONEST)
