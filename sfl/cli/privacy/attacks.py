"""Attacks: from a row at the cut to the token that it stands for.

All of them know the public base, as an edge does, and text of their own. Nearest neighbours look a
row up among the rows of that text; inverters are trained on it. An inverter ends in the embedding's
own rows, so that it also names tokens that its text does not have.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from sfl.cli.privacy.crossing import Rows

WIDTH = 384
BATCH = 256
LEARNING_RATE = 3e-3
ALL_TOKENS = 4096
"""Up to so many tokens every one is told apart in every step, beyond that so many drawn anew."""
REFERENCES = 20_000
"""Rows that nearest neighbours look among, at most."""
_CHUNK = 512

Step = Callable[[], None]


def guess(text: Rows, target: Rows) -> Tensor:
    """The most frequent token of the text, whatever the row: what knows nothing."""
    return torch.full_like(target.tokens, int(text.tokens[~text.first].mode().values))


def nearest(text: Rows, target: Rows, cosine: bool, seed: int) -> Tensor:
    """The token of the row that is nearest, by distance or by angle."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(text.tokens), generator=generator)[:REFERENCES]
    known, rows = text.values[chosen], target.values
    if cosine:
        known, rows = functional.normalize(known), functional.normalize(rows)
    tokens = text.tokens[chosen]
    half = known.square().sum(1) / 2
    return torch.cat(
        [tokens[(piece @ known.T - half).argmax(1)] for piece in torch.split(rows, _CHUNK)]
    )


class Inverter(nn.Module):
    """Rows `[n, H]` to scores over tokens; `width` 0 is a linear map."""

    mean: Tensor
    spread: Tensor
    basis: Tensor

    def __init__(self, rows: Tensor, embedded: Tensor, width: int) -> None:
        super().__init__()
        hidden, size = rows.shape[1], embedded.shape[1]
        layers: list[nn.Module] = [nn.Linear(hidden, width or size)]
        if width:
            layers += [nn.ReLU(), nn.Linear(width, size)]
        self.body = nn.Sequential(*layers)
        self.scale = nn.Parameter(torch.tensor(2.5))
        self.register_buffer("mean", rows.mean(0))
        self.register_buffer("spread", rows.std(0) + 1e-5)
        self.register_buffer("basis", functional.normalize(embedded - embedded.mean(0)))

    def forward(self, rows: Tensor, among: Tensor | None = None) -> Tensor:
        """Scores `[n, tokens]`, over the tokens `among` only where given."""
        found = self.body((rows - self.mean) / self.spread)
        basis = self.basis if among is None else self.basis[among]
        scores: Tensor = self.scale.exp() * (found @ basis.T)
        return scores

    @torch.no_grad()
    def tokens(self, rows: Tensor) -> Tensor:
        """The most likely token of each row."""
        return torch.cat([self(piece).argmax(1) for piece in torch.split(rows, _CHUNK)])


def train(text: Rows, embedded: Tensor, width: int, steps: int, seed: int, step: Step) -> Inverter:
    """An inverter trained on rows whose tokens are known; `step` is called after each step."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        inverter = Inverter(text.values, embedded, width)
    optimizer = torch.optim.Adam(inverter.parameters(), LEARNING_RATE)
    for number in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * (1 - number / steps) + 1e-4
        chosen = torch.randint(len(text.tokens), (BATCH,), generator=generator)
        among, places = _candidates(text.tokens[chosen], len(embedded), generator)
        optimizer.zero_grad()
        scores = inverter(text.values[chosen], among)
        functional.cross_entropy(scores, places).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        step()
    return inverter.eval()


def _candidates(
    tokens: Tensor, vocabulary: int, generator: torch.Generator
) -> tuple[Tensor | None, Tensor]:
    """Tokens to tell apart, None for all; and where among them each row's own stands."""
    if vocabulary <= ALL_TOKENS:
        return None, tokens
    drawn = torch.randint(vocabulary, (ALL_TOKENS,), generator=generator)
    among, places = torch.unique(torch.cat((tokens, drawn)), return_inverse=True)
    return among, places[: len(tokens)]
