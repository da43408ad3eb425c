"""What is asked of the processes, and what came of it: conversations, tokens, seconds, CPU time."""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.served.nodes import Node
from sfl.adapters.artifact import save_adapter
from sfl.adapters.lora import build_manifest
from sfl.config import LoraSettings
from sfl.data.tokenizer import load_tokenizer
from sfl.models.folder import open_model

VANILLA: Mapping[str, Any] = {"cut_layer": 1}
AHEAD = 0.3
"""Seconds from when a job is given until it begins, in all processes at once."""
SAME_TRIP = 1e-3
"""Tokens of one round trip are there within so many seconds."""
THINGS = "lamp", "kettle", "garden", "river", "library", "engine", "violin", "market"
WORDS = "Why is the {}", "How to paint a {}", "Once upon a time a {}", "The old {} was"
MORE_WORDS = "My favourite {} is", "A poem about a {}:", "In winter the {}", "Rules for a {}:"
CHATS = (
    "Tell me about the history of the bicycle.",
    "Repeat this list and add one line: red, green, blue, red, green, blue.",
)


@dataclass(frozen=True, slots=True)
class Said:
    """One answer: its ids, and when it was asked for and when each was there."""

    asked: float
    ids: list[int]
    at: list[float]

    @property
    def between(self) -> float:
        """Milliseconds a token behind those of the first round trip."""
        first = sum(at - self.at[0] < SAME_TRIP for at in self.at)
        return 1e3 * (self.at[-1] - self.at[0]) / max(1, len(self.at) - first)


@dataclass(frozen=True, slots=True)
class Played:
    """All answers of a job, in its order; CPU seconds of both sides; what drafts brought."""

    said: list[Said]
    edge_cpu: float
    device_cpu: float
    trips: int
    drafted: int
    accepted: int

    @property
    def tokens(self) -> int:
        """Of all answers."""
        return sum(len(one.ids) for one in self.said)

    @property
    def rate(self) -> float:
        """Tokens a second, from the first question to the last token."""
        return self.tokens / (max(s.at[-1] for s in self.said) - min(s.asked for s in self.said))

    @property
    def between(self) -> float:
        """Milliseconds from one token to the next, the median of all answers."""
        return median(one.between for one in self.said)


class Fleet:
    """Devices' processes, and an edge that they are told to ask."""

    def __init__(self, devices: Sequence[Node]) -> None:
        self._devices = devices
        self._number = itertools.count()

    def play(
        self,
        edge: Node,
        address: str,
        talks: Sequence[tuple[str, Sequence[int]]],
        tokens: int,
        together: int = 1,
        serve: Mapping[str, Any] = VANILLA,
    ) -> Played:
        """Answer each (adapter, prompt), so many together, divided among the devices."""
        used = self._devices[:together]
        number, cpu = next(self._number), [edge.cpu(), sum(node.cpu() for node in used)]
        each = [
            {"name": f"{number}-{n}", "adapter": adapter, "ids": list(ids)}
            for n, (adapter, ids) in enumerate(talks)
        ]
        job = {
            "edge": address,
            "serve": dict(serve),
            "tokens": tokens,
            "together": together // len(used),
            "begin": time.monotonic() + AHEAD,
        }
        for place, node in enumerate(used):
            node.ask({**job, "talks": each[place :: len(used)]})
        told = [node.told() for node in used]
        said = [Said(**told[n % len(used)]["said"][n // len(used)]) for n in range(len(each))]
        return Played(
            said,
            edge.cpu() - cpu[0],
            sum(node.cpu() for node in used) - cpu[1],
            *(sum(one[name] for one in told) for name in ("trips", "drafted", "accepted")),
        )


def alone(node: Node, way: str, ids: Sequence[int], tokens: int) -> tuple[Said, float]:
    """The whole model's answer, and CPU seconds; with no tokens it only loads."""
    cpu = node.cpu()
    node.ask({"way": way, "ids": list(ids), "tokens": tokens})
    told = node.told() or {"asked": 0.0, "ids": [], "at": []}
    return Said(**told), node.cpu() - cpu


def short_prompts(model: Path, count: int) -> list[tuple[int, ...]]:
    """Beginnings of texts, of a few tokens each, all different for 64."""
    texts = [words.format(thing) for thing in THINGS for words in (*WORDS, *MORE_WORDS)]
    tokenizer = load_tokenizer(model)
    encoded = tokenizer.encode((texts * -(-count // len(texts)))[:count])
    return [(*tokenizer.prefix, *ids) for ids in encoded]


def chat_prompts(model: Path) -> list[tuple[int, ...]]:
    """What a chat begins with, by the model's own template where it has one."""
    tokenizer = load_tokenizer(model)
    texts = list(CHATS)
    if tokenizer.has_chat_template:
        texts = [tokenizer.render([{"role": "user", "content": text}], True) for text in CHATS]
    return [(*tokenizer.prefix, *ids) for ids in tokenizer.encode(texts)]


def make_adapters(model: Path, folder: Path, count: int) -> dict[str, str]:
    """Adapters of random values over all linear layers, by name; each changes what is said."""
    lora = LoraSettings(rank=8, alpha=16)
    manifest = build_manifest(open_model(model), "causal_lm", 0, lora)
    random = np.random.default_rng(0)
    for number in range(count):
        values = {
            spec.name: random.normal(0, 0.02, spec.shape).astype(np.float32)
            for spec in manifest.parameters
        }
        save_adapter(folder / f"a{number}", values, manifest.peft_config)
    return {f"a{number}": str(folder / f"a{number}") for number in range(count)}
