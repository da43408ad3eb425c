"""The experiment: whose text is attacked, what the attacker has, and what came of it."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sfl.cli.privacy import attacks
from sfl.cli.privacy.crossing import Front, Rows
from sfl.codec.stages import is_exact
from sfl.config import RunConfig
from sfl.config.codec import AUTO_CODECS
from sfl.data import Dataset, Tokenizer, load_tokenizer, prepare
from sfl.data.example import Example
from sfl.errors import ConfigError
from sfl.keys import derive_seed
from sfl.models.folder import ModelFolder, open_model

VICTIMS = 100
"""Sequences of a device that are attacked, at most."""
TEXTS = 600
"""Sequences of others that the attacker has, at most."""
RANDOM = 150
"""Sequences of random tokens that it makes itself."""
STEPS = 600
"""Steps that an inverter is trained for."""

Tell = Callable[[str, int, int], None]
"""What is under way, steps done, steps in all."""


@dataclass(frozen=True, slots=True)
class Case:
    """A device's cut, with one codec."""

    device: str
    cut_layer: int
    codec: str


@dataclass(frozen=True, slots=True)
class Finding:
    """Shares of tokens that each attack names right, 0 to 1, but for the first of a sequence.

    `guess` is the most frequent token, said always; `words` are those of `mlp` that hold a letter
    or a digit; `whole` is the share of sequences that `mlp` reads without a mistake; `random_only`
    is `mlp` trained on random tokens alone. The others have text of other devices, too.
    """

    device: str
    cut_layer: int
    codec: str
    sequences: int
    tokens: int
    guess: float
    nearest: float
    cosine: float
    linear: float
    mlp: float
    words: float
    whole: float
    random_only: float


@dataclass(frozen=True, slots=True)
class Experiment:
    """What is to be measured. `from_others` says whether the attacker has text like the victim's:
    of the run's other devices, else of the same device."""

    config: RunConfig
    folder: ModelFolder
    cases: tuple[Case, ...]
    from_others: bool


@dataclass(frozen=True, slots=True)
class Findings:
    """All of a run's, and what else its topology sends as it is."""

    model: str
    topology: str
    task: str
    seed: int
    from_others: bool
    findings: tuple[Finding, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)


def plan(config: RunConfig, cuts: Sequence[int] = ()) -> Experiment:
    """Every cut and codec of the run, once; or `cuts` with the first device's codecs.

    Each cut is also tried without a codec. Raises ConfigError, ModelError.
    """
    folder = open_model(config.model.path)
    devices = [config.devices[0]] * len(cuts) if cuts else list(config.devices)
    layers = list(cuts) or [device.cut_layer for device in devices]
    cases: dict[tuple[int, str], Case] = {}
    for device, layer in zip(devices, layers, strict=True):
        try:
            config.plan(device.name, folder.num_layers, layer)
        except ConfigError as error:
            field = "--cuts" if cuts else error.field
            raise ConfigError(field, error.value, error.problem, error.fix) from None
        chosen = config.codecs(device.name, 1, AUTO_CODECS[-1]).activation
        for codec in dict.fromkeys(("none", "none" if is_exact(chosen) else chosen)):
            cases.setdefault((layer, codec), Case(device.name, layer, codec))
    order = tuple(cases[key] for key in sorted(cases, key=lambda key: key[0]))
    return Experiment(config, folder, order, len(config.devices) > 1)


def measure(plan: Experiment, tell: Tell = lambda what, done, total: None) -> Findings:
    """Attack every case. Raises ConfigError, DataError, ModelError."""
    config = plan.config
    text = Text(config, load_tokenizer(plan.folder.path))
    findings = []
    for number, case in enumerate(plan.cases):

        def progress(
            done: int, what: str = f"cut {case.cut_layer}, {case.codec}", before: int = number
        ) -> None:
            tell(what, before * 3 * STEPS + done, len(plan.cases) * 3 * STEPS)

        findings.append(_attack(plan, case, text, progress))
    return Findings(
        config.model.path,
        config.run.topology,
        config.model.task,
        config.run.seed,
        plan.from_others,
        tuple(findings),
    )


class Text:
    """Whose sequences are attacked, and what the attacker has to learn from."""

    def __init__(self, config: RunConfig, tokenizer: Tokenizer) -> None:
        self._config = config
        self.tokenizer = tokenizer
        self._datasets: dict[str, Dataset] = {}

    def victims(self, device: str) -> list[Example]:
        """The first of its training sequences, but no more than half of what one device has."""
        own = self._of(device).train
        alone = len(self._config.devices) == 1
        return own[: max(1, min(VICTIMS, len(own) // 2 if alone else len(own)))]

    def known(self, device: str) -> list[Example]:
        """Sequences like the victims', evenly of the other devices."""
        others = [entry.name for entry in self._config.devices if entry.name != device]
        if not others:
            return self._of(device).train[len(self.victims(device)) :][:TEXTS]
        share = -(-TEXTS // len(others))
        return [example for name in others for example in self._of(name).train[:share]][:TEXTS]

    def random(self, device: str, vocabulary: int) -> list[Example]:
        """Strings of random tokens, as long as the victims' are, beginning as they do."""
        victims = self.victims(device)
        length = sorted(len(example.input_ids) for example in victims)[len(victims) // 2]
        source = random.Random(derive_seed(self._config.run.seed, device, "privacy"))
        begin = victims[0].input_ids[0]
        return [
            Example((begin, *(source.randrange(vocabulary) for _ in range(length - 1))), (0,))
            for _ in range(RANDOM)
        ]

    def _of(self, device: str) -> Dataset:
        if device not in self._datasets:
            entry = self._config.device(device)
            self._datasets[device] = prepare(entry, device, self._config, self.tokenizer)
        return self._datasets[device]


def _attack(plan: Experiment, case: Case, text: Text, progress: Callable[[int], None]) -> Finding:
    front = Front(plan.folder, plan.config.settings, case.device, case.cut_layer)
    seed = plan.config.run.seed
    pad = text.tokenizer.pad_id
    target = front.crossing(text.victims(case.device), pad, case.codec)
    like = text.known(case.device)
    strings = front.crossing(text.random(case.device, front.vocabulary), pad, case.codec)
    known = front.crossing(like, pad, case.codec).and_of(strings) if like else strings
    embedded = front.embedded()
    done = iter(range(1, 3 * STEPS + 1))

    def inverted(rows: Rows, width: int) -> Tensor:
        def step() -> None:
            progress(next(done))

        return attacks.train(rows, embedded, width, STEPS, seed, step).tokens(target.values)

    mlp = inverted(known, attacks.WIDTH)
    return Finding(
        device=case.device,
        cut_layer=case.cut_layer,
        codec=case.codec,
        sequences=len(target.lengths),
        tokens=int((~target.first).sum()),
        guess=_share(attacks.guess(known, target), target),
        nearest=_share(attacks.nearest(known, target, False, seed), target),
        cosine=_share(attacks.nearest(known, target, True, seed), target),
        linear=_share(inverted(known, 0), target),
        mlp=_share(mlp, target),
        words=_share(mlp, target, _words(target, text.tokenizer)),
        whole=_whole(mlp, target),
        random_only=_share(inverted(strings, attacks.WIDTH), target),
    )


def _share(found: Tensor, target: Rows, among: Tensor | None = None) -> float:
    """Tokens named right, of those `among`, but for the first of a sequence."""
    counted = ~target.first if among is None else among & ~target.first
    right = (found == target.tokens)[counted]
    return float(right.float().mean()) if len(right) else 0.0


def _whole(found: Tensor, target: Rows) -> float:
    right = (found == target.tokens) | target.first
    whole = [bool(piece.all()) for piece in torch.split(right, list(target.lengths))]
    return sum(whole) / len(whole)


def _words(target: Rows, tokenizer: Tokenizer) -> Tensor:
    """Which tokens hold a letter or a digit."""
    known = {
        token: any(letter.isalnum() for letter in tokenizer.decode([token]))
        for token in set(target.tokens.tolist())
    }
    return torch.tensor([known[token] for token in target.tokens.tolist()])
