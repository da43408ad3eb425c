"""One conversation at an edge: its keys and values, and the steps that come of it.

Steps of a few tokens over the same blocks are computed as one batch, whoever's they are and
whichever adapters they use. Longer ones, pieces of a prompt, go alone and in between.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sfl.adapters.lora import Adapter, LoraBank
from sfl.errors import ProtocolError, Refused, SflError
from sfl.models.kv.attention import Extension
from sfl.models.kv.cache import KvCache, KvPool
from sfl.models.span import SpanModel
from sfl.serving.steps import Compute, Lacking, Repeat, Standing, Unsound, judge
from sfl.stage.serving.messages import Answer, Later, Missing, Opening, Rows, Step, Tokens
from sfl.stage.serving.sampler import next_token

if TYPE_CHECKING:
    from sfl.stage.swapping import OnDisk

FEW_TOKENS = 16
"""A step of so many is computed together with others; a draft and what it follows are within."""


@dataclass(frozen=True, slots=True)
class ServingBase:
    """What all conversations share: blocks, adapters by name, and room for keys and values."""

    model: SpanModel
    bank: LoraBank
    adapters: Mapping[str, Adapter | None]
    """None is the base alone."""
    pool: KvPool


class Conversation:
    """A session of another kind: no round, no optimizer. Used on the compute thread only."""

    def __init__(
        self,
        device: str,
        opening: Opening,
        base: ServingBase,
        enter: Callable[[Conversation], Later | None],
        clock: Callable[[], float],
    ) -> None:
        """`enter` gets its pages back where it has none."""
        self.device = device
        self.opening = opening
        self.served_seconds = 0.0
        self.standing = Standing(opening.reserved)
        self.cache = KvCache(base.pool)
        self.spilled: OnDisk | None = None
        """Its keys and values, while they are on the disk."""
        self.closed = False
        self.pending = 0
        """Steps that wait or are under way."""
        self.last_used = clock()
        self._base = base
        self._enter = enter
        self._clock = clock
        self._last: Answer | None = None

    def handle(self, message: Step) -> Answer:
        """Compute a step, or say why not. Raises ProtocolError."""
        (answer,) = compute_together([(self, message)])
        if isinstance(answer, SflError):
            raise answer
        return answer

    def group(self, message: Step) -> DecodeGroup | None:
        """What the step could be computed together with; None: with nothing."""
        if len(message.rows) > FEW_TOKENS:
            return None
        return DecodeGroup(self.opening.first, self.opening.last, self.opening.ends)

    def forget(self) -> None:
        """Give up keys and values, and the answer that was made of them."""
        self.cache.let_go()
        self.standing = self.standing.forgotten()
        self._last = None

    def rest(self, spilled: OnDisk) -> None:
        """Give up what is on the disk now, and the last answer: of a prompt it may be large."""
        self.spilled = spilled
        self.cache.let_go()
        self._last = None

    def close(self) -> None:
        """Give back all that it holds; none of its steps is computed any more."""
        self.closed = True
        self.forget()
        if self.spilled is not None:
            self.spilled.close()

    # -- a step in three parts, the middle one shared ---------------------------------------------

    def begin(self, step: Step) -> Answer | None:
        """The answer to what needs no computing; None where it is to be. Raises ProtocolError."""
        if self.closed:
            raise Refused(f"conversation {step.name} was closed, for newer ones")
        self.last_used = self._clock()
        match judge(self.standing, step.asked):
            case Unsound(reason):
                raise ProtocolError(f"conversation {step.name}: {reason}")
            case Repeat():
                return self._last or Missing(step.number, self.standing.length)
            case Lacking(length):
                return Missing(step.number, length)
            case Compute(keep):
                if (later := self._enter(self)) is not None:
                    return later
                if keep > self.cache.length:  # it could not be read back from the disk
                    return Missing(step.number, self.cache.length)
                self.cache.truncate(keep)
                return None

    def end(self, step: Step, output: Tensor) -> Answer:
        """From rows `[count, H]`, or logits of the last wanted `[wanted, V]`."""
        self.last_used = self._clock()
        if not bool(output.isfinite().all()):
            self.cache.truncate(step.position)
            raise ProtocolError(f"conversation {step.name}: what comes of its rows is not finite")
        if self.opening.ends:
            first = step.position + len(step.rows) - step.wanted + 1
            sampling = self.opening.sampling
            tokens = (next_token(row, sampling, first + n) for n, row in enumerate(output))
            self._last = Tokens(step.number, tuple(tokens))
        else:
            self._last = Rows(step.number, output)
        self.standing = self.standing.answered(step.asked)
        return self._last

    @property
    def adapter(self) -> Adapter | None:
        """Whose rows are these."""
        return self._base.adapters[self.opening.adapter]

    @property
    def base(self) -> ServingBase:
        """What it shares with the others."""
        return self._base

    def begin_again(self, opening: Opening) -> None:
        """Go on with another sampling, and room for more."""
        self.opening = opening
        self.standing = replace(self.standing, reserved=opening.reserved)


@dataclass(frozen=True, slots=True)
class DecodeGroup:
    """Steps of a few tokens through the same blocks."""

    first: int
    last: int
    ends: bool

    def run(self, tasks: Sequence[tuple[Any, Any]]) -> Sequence[Answer | SflError]:
        """Their answers, or the error that is one's alone; equal to those alone, to rounding."""
        return compute_together(tasks)


def compute_together(tasks: Sequence[tuple[Conversation, Step]]) -> list[Answer | SflError]:
    """Steps over the same blocks as one batch, of a conversation each."""
    results: dict[int, Answer | SflError] = {}
    here: list[int] = []
    for number, (conversation, step) in enumerate(tasks):
        try:
            answer = conversation.begin(step)
        except SflError as error:
            answer = None
            results[number] = error
        else:
            if answer is None:
                here.append(number)
            else:
                results[number] = answer
    if here:
        outputs = _outputs([tasks[number] for number in here])
        for number, output in zip(here, outputs, strict=True):
            conversation, step = tasks[number]
            try:
                results[number] = conversation.end(step, output)
            except SflError as error:
                results[number] = error
    return [results[number] for number in range(len(tasks))]


@torch.no_grad()
def _outputs(tasks: Sequence[tuple[Conversation, Step]]) -> Sequence[Tensor]:
    """Rows behind the blocks, or logits of those that are wanted."""
    lead = tasks[0][0]
    base, opening = lead.base, lead.opening
    if base.model.training:
        base.model.train(False)
    counts = [len(step.rows) for _, step in tasks]
    adapters = [conversation.adapter for conversation, _ in tasks]
    if len({id(adapter) for adapter in adapters}) == 1:
        base.bank.activate(adapters[0])
    else:
        each = zip(adapters, counts, strict=True)
        base.bank.activate_rows([own for adapter, count in each for own in [adapter] * count])
    extensions = [
        Extension(conversation.cache, count)
        for (conversation, _), count in zip(tasks, counts, strict=True)
    ]
    rows = torch.cat([step.rows for _, step in tasks])
    hidden = base.model.extend(rows, extensions, opening.first, opening.last)
    if not opening.ends:
        return torch.split(hidden.cpu(), counts)  # whole by then: others encode them
    parts = torch.split(hidden, counts)
    wanted = [step.wanted for _, step in tasks]
    last = [part[len(part) - count :] for part, count in zip(parts, wanted, strict=True)]
    if not any(wanted):
        return last
    return torch.split(base.model.logits(torch.cat(last)).cpu(), wanted)
