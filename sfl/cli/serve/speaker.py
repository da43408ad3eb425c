"""What gives tokens to `sfl generate` and `sfl chat`: the whole model, or a device and its edge.

Both give greedy tokens one by one as they come, and can be stopped between two of them.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch

    from sfl.cli.serve.source import Opened
    from sfl.config import RunConfig
    from sfl.data import Tokenizer
    from sfl.models.folder import ModelFolder

Said = queue.SimpleQueue[int | None]
"""Tokens, and None once there is no more."""


class Speaker(Protocol):
    """A context; while it is open it answers, one answer at a time."""

    def __enter__(self) -> Speaker: ...

    def __exit__(self, *_: object) -> None: ...

    def answer(self, ids: Sequence[int], most: int) -> Generator[int, None, None]:
        """At most so many tokens behind these, without the one that ends them.

        To be closed by whoever wants no more. Raises SflError.
        """


def speaker_of(opened: Opened, tokenizer: Tokenizer, split: bool) -> Speaker:
    """A model with an adapter on it, in one piece or over the run's cut."""
    if split:
        from sfl.cli.serve.split import SplitSpeaker

        return SplitSpeaker(opened.config, str(opened.model.path), opened.adapter)
    return WholeSpeaker(opened.config, opened.model, opened.adapter, tokenizer)


class WholeSpeaker:
    """The model in this process: transformers' own generation, on a thread beside this one."""

    def __init__(
        self, config: RunConfig, model: ModelFolder, adapter: Path | None, tokenizer: Tokenizer
    ) -> None:
        from sfl.cli.model import load_model

        self._model: Any = load_model(config, adapter, model)
        self._stop_ids = tokenizer.markers.stop_ids
        self._pad_id = tokenizer.pad_id

    def __enter__(self) -> WholeSpeaker:
        return self

    def __exit__(self, *_: object) -> None:
        """There is nothing to close."""

    def answer(self, ids: Sequence[int], most: int) -> Generator[int, None, None]:
        """As Speaker has it."""
        said, enough = Said(), threading.Event()
        errors: list[BaseException] = []
        work = (ids, most, said, enough, errors)
        thread = threading.Thread(target=self._generate, args=work, name="generate", daemon=True)
        thread.start()
        try:
            while (token := said.get()) is not None:
                if token in self._stop_ids:
                    return
                yield token
            if errors:
                raise errors[0]
        finally:
            enough.set()
            thread.join()

    def _generate(
        self,
        ids: Sequence[int],
        most: int,
        said: Said,
        enough: threading.Event,
        errors: list[BaseException],
    ) -> None:
        import torch

        def stops(*_: Any, **__: Any) -> torch.Tensor:
            return torch.full((1,), enough.is_set(), dtype=torch.bool)

        prompt = torch.tensor([list(ids)])
        try:
            with torch.no_grad():
                self._model.generate(
                    input_ids=prompt,
                    attention_mask=torch.ones_like(prompt),
                    max_new_tokens=most,
                    do_sample=False,
                    pad_token_id=self._pad_id,
                    eos_token_id=list(self._stop_ids) or None,
                    stopping_criteria=[stops],
                    streamer=_Streamer(said),
                )
        except Exception as error:  # noqa: BLE001 - raised where the answer is read
            errors.append(error)
        finally:
            said.put(None)


class _Streamer:
    """Takes what transformers' generation says: the prompt first, then each token."""

    def __init__(self, said: Said) -> None:
        self._said = said
        self._prompt = True

    def put(self, value: torch.Tensor) -> None:
        if not self._prompt:
            for token in value.flatten().tolist():
                self._said.put(int(token))
        self._prompt = False

    def end(self) -> None:
        """The end is said elsewhere, where an error is known, too."""


def whole_answer(speaker: Speaker, ids: Sequence[int], most: int) -> list[int]:
    """All at once. Raises SflError."""
    with speaker:
        return list(speaker.answer(ids, most))
