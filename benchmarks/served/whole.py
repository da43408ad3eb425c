"""The process of a model that is not split: `generate` of transformers, and sfl's own blocks.

    python -m benchmarks.served.whole MODEL      # started by benchmarks/served/nodes.py

`generate` is what any user of transformers has; `loop` is one span of all blocks in sfl's own code,
so that what the split itself costs can be told apart.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from sfl.node.process import keep_heap, quiet_environment

if __name__ == "__main__":
    quiet_environment()
    keep_heap()

import torch
from transformers import AutoModelForCausalLM
from transformers.generation.streamers import BaseStreamer

from sfl.models.folder import open_model
from sfl.models.kv.attention import Extension
from sfl.models.kv.cache import KvCache, KvPool
from sfl.models.kv.pages import pages_for
from sfl.models.span import SpanModel
from sfl.plan import Span
from sfl.stage.base import BaseForm
from sfl.stage.serving.spans import serving_span


class Times(BaseStreamer):  # type: ignore[misc]
    """When each token was there; the first call is the prompt's."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.at: list[float] = []
        self._prompt = True

    def put(self, value: torch.Tensor) -> None:
        """The prompt, then token by token."""
        if self._prompt:
            self._prompt = False
            return
        self.ids += value.flatten().tolist()
        self.at.append(time.monotonic())

    def end(self) -> None:
        """Nothing more."""


class Whole:
    """Both ways; each loads its model as it is first asked for."""

    def __init__(self, model: str) -> None:
        self._folder = open_model(model)
        self._span: SpanModel | None = None
        self._model: Any = None

    def answer(self, way: str, ids: list[int], tokens: int) -> dict[str, Any]:
        """Greedy tokens behind a prompt's, with the time at which each was there."""
        asked = time.monotonic()
        found, at = (self._generate if way == "generate" else self._loop)(ids, tokens)
        return {"asked": asked, "ids": found, "at": at}

    def load(self, way: str) -> None:
        """Read what it takes."""
        if way == "generate":
            path = self._folder.path
            self._model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        else:
            span = Span(0, self._folder.num_layers, embedding=True, head=True)
            self._span = serving_span(self._folder, span, BaseForm())

    def _generate(self, ids: list[int], tokens: int) -> tuple[list[int], list[float]]:
        prompt, times = torch.tensor([ids]), Times()
        self._model.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            streamer=times,
        )
        return times.ids, times.at

    @torch.no_grad()
    def _loop(self, ids: list[int], tokens: int) -> tuple[list[int], list[float]]:
        assert self._span is not None
        cache = KvCache(KvPool(pages_for(len(ids) + tokens)))
        found: list[int] = []
        at = []
        rows = torch.tensor(ids)
        while True:
            hidden = self._span.extend(rows, [Extension(cache, len(rows))])
            rows = self._span.logits(hidden[-1:]).argmax(-1)
            found.append(int(rows))
            at.append(time.monotonic())
            if len(found) == tokens:
                return found, at


def main() -> None:
    """Until nobody asks any more."""
    torch.set_num_threads(1)
    own = Whole(sys.argv[1])
    while line := sys.stdin.readline():
        job = json.loads(line)
        if job["tokens"]:
            print(json.dumps(own.answer(**job)), flush=True)
        else:
            own.load(job["way"])
            print("{}", flush=True)


if __name__ == "__main__":
    main()
