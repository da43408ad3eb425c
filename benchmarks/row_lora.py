"""Decode steps of many conversations, each with an adapter of its own, through one edge's span.

    python benchmarks/row_lora.py                        # stories260k from ../shared; a minute
    python benchmarks/row_lora.py --model smollm2 --first 24 --steps 8 --sessions 1 4 16

CPU time of one thread, the least of three: only the ratios mean anything. `one by one` computes
each conversation by itself. `runs` is what training batches use, `rows` is
`LoraBank.activate_rows`, `base` has no adapter.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.runs import SHARED
from sfl.adapters.lora import Adapter, LoraBank
from sfl.config import LoraSettings
from sfl.models.folder import open_model
from sfl.models.kv.attention import Extension
from sfl.models.kv.cache import KvCache, KvPool
from sfl.models.kv.pages import pages_for
from sfl.models.span import SpanModel, build_span
from sfl.plan import Span

REPEATS = 3


def main() -> None:
    """Print a line for each number of conversations."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--model", type=Path, default=SHARED / "models" / "stories260k")
    parser.add_argument("--first", type=int, default=1, help="the edge's first block")
    parser.add_argument("--sessions", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--prompt", type=int, default=32, help="tokens before the steps")
    parser.add_argument("--steps", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    folder = open_model(options.model)
    span = Span(options.first, folder.num_layers, embedding=False, head=True)
    model = build_span(
        folder, span, task="causal_lm", num_labels=0, dtype=torch.float32, packed=True
    )
    decode = Decode(model, max(options.sessions), options.prompt, options.steps)
    for count in options.sessions:
        seconds = {name: way(count) for name, way in decode.ways.items()}
        base = seconds["one by one"]
        shown = ", ".join(f"{name} {base / spent:.2f}" for name, spent in seconds.items())
        print(
            f"{count} conversations: {count * options.steps / base:.1f} tokens/s of CPU one by one;"
            f" times that: {shown}",
            flush=True,
        )


class Decode:
    """Conversations that are in the caches, and ways to compute their next tokens."""

    def __init__(self, model: SpanModel, count: int, prompt: int, steps: int) -> None:
        self._model = model
        self._steps = steps
        self._prompt = prompt
        self._bank = LoraBank(model, LoraSettings(rank=8, alpha=16))
        self._adapters = [self._adapter(f"a{number}") for number in range(count)]
        self._bank.stack(self._adapters)
        pool = KvPool(count * pages_for(prompt + steps))
        self._caches = [KvCache(pool) for _ in range(count)]
        rows = torch.randn(prompt, model.hidden_size)
        for adapter, cache in zip(self._adapters, self._caches, strict=True):
            self._bank.activate(adapter)
            model.extend(rows, [Extension(cache, prompt)])
        self._rows = torch.randn(steps, count, model.hidden_size)
        self.ways: dict[str, Callable[[int], float]] = {
            "one by one": self._one_by_one,
            "runs": lambda count: self._together(
                count,
                lambda: self._bank.activate_parts([(a, 1) for a in self._adapters[:count]]),
            ),
            "rows": lambda count: self._together(
                count, lambda: self._bank.activate_rows(self._adapters[:count])
            ),
            "base": lambda count: self._together(count, lambda: self._bank.activate(None)),
        }

    def _adapter(self, name: str) -> Adapter:
        adapter = self._bank.add(name, self._model.span)
        values = adapter.parameters.items()
        adapter.load({inner: 0.02 * torch.randn(value.shape) for inner, value in values})
        return adapter

    def _one_by_one(self, count: int) -> float:
        def step(rows: torch.Tensor) -> None:
            for number in range(count):
                self._bank.activate(self._adapters[number])
                own = [Extension(self._caches[number], 1)]
                self._model.logits(self._model.extend(rows[number : number + 1], own))

        return self._timed(step)

    def _together(self, count: int, activate: Callable[[], None]) -> float:
        def step(rows: torch.Tensor) -> None:
            activate()
            own = [Extension(cache, 1) for cache in self._caches[:count]]
            self._model.logits(self._model.extend(rows[:count], own))

        return self._timed(step)

    def _timed(self, step: Callable[[torch.Tensor], None]) -> float:
        """CPU seconds of all steps."""
        found = []
        for _ in range(REPEATS):
            for cache in self._caches:
                cache.truncate(self._prompt)
            began = time.process_time()
            for rows in self._rows:
                step(rows)
            found.append(time.process_time() - began)
        return min(found)


if __name__ == "__main__":
    main()
