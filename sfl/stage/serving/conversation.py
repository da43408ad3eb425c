"""One conversation at an edge: its keys and values, and the steps that come of it.

Steps of a few tokens over the same blocks are computed as one batch, whoever's they are and
whichever adapters they use. Longer ones, pieces of a prompt, go alone and in between. So do those
that are to be exact: then the guesses of a draft are computed one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sfl.adapters.lora import Adapter, LoraBank
from sfl.config.serve import MOST_DRAFTED
from sfl.errors import ProtocolError, Refused, SflError
from sfl.metrics.histogram import SIZES, Counted
from sfl.models.kv.attention import Extension
from sfl.models.kv.cache import KvCache, KvPool
from sfl.models.span import SpanModel
from sfl.serving.steps import Compute, Lacking, Repeat, Standing, Unsound, judge
from sfl.stage.serving.messages import Answer, Later, Missing, Opening, Rows, Step, Tokens
from sfl.stage.serving.sampler import confirmed

if TYPE_CHECKING:
    from sfl.stage.swapping import OnDisk

FEW_TOKENS = 1 + MOST_DRAFTED
"""A step of so many is computed together with others; a draft and what it follows are within."""


@dataclass(frozen=True, slots=True)
class ServingBase:
    """What all conversations share: blocks, adapters by name, and room for keys and values."""

    model: SpanModel
    bank: LoraBank
    adapters: Mapping[str, Adapter | None]
    """None is the base alone."""
    pool: KvPool
    batches: Counted = field(default_factory=lambda: Counted(SIZES))
    """How many conversations' next tokens were computed as one batch."""


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
        """Compute a step, or say why not. Raises ProtocolError, Refused."""
        if self.opening.exact and message.drafted:
            return self.begin(message) or self._one_by_one(message)
        (answer,) = compute_together([(self, message)])
        if isinstance(answer, SflError):
            raise answer
        return answer

    def group(self, message: Step) -> DecodeGroup | None:
        """What the step could be computed together with; None: with nothing."""
        if self.opening.exact or len(message.rows) > FEW_TOKENS:
            return None
        return DecodeGroup(self.opening.first, self.opening.last, self.opening.ends)

    @property
    def wanted(self) -> int:
        """Tokens that it is to have room for: as it was opened, and what is on the disk."""
        asked = self.opening.reserved
        return asked if self.spilled is None else max(asked, self.standing.length)

    def forget(self) -> None:
        """Give up keys and values, on the disk too, and the answer that was made of them."""
        if self.spilled is not None:
            self.spilled.close()
            self.spilled = None
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

    # -- a step in three parts, the middle one shared ---------------------------------------------

    def begin(self, step: Step) -> Answer | None:
        """The answer to what needs no computing; None where it is to be. Raises ProtocolError."""
        if self.closed:
            raise Refused(f"conversation {step.name} was closed, for newer ones")
        self.last_used = self._clock()
        self._check_draft(step)
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
                if self.cache.length < keep:  # a window looks at what was dropped
                    self.standing = self.standing.forgotten()
                    return Missing(step.number, 0)
                return None

    def end(self, step: Step, output: Tensor) -> Answer:
        """From rows `[count, H]`, or logits of the last wanted `[wanted, V]`."""
        return self._say(step, iter((self._finite(step, output),)))

    def _one_by_one(self, step: Step) -> Answer:
        """Guesses by themselves, as they are without a draft; none behind one that is wrong."""

        def computed() -> Iterator[Tensor]:
            for part in _parts(step):
                (output,) = _outputs([(self, part)])
                yield self._finite(step, output)

        return self._say(step, computed())

    def _say(self, step: Step, outputs: Iterator[Tensor]) -> Answer:
        """Keep what is right of its draft, and answer."""
        refuted = 0
        if self.opening.ends:
            first = step.position + len(step.rows) - step.wanted + 1
            logits = (row for output in outputs for row in output)
            tokens = confirmed(logits, step.draft, self.opening.sampling, first)
            self._last = Tokens(step.number, tokens)
            refuted = step.wanted - len(tokens)
        else:
            self._last = Rows(step.number, torch.cat(list(outputs)))
        self.last_used = self._clock()
        self.standing = self.standing.answered(step.asked, refuted)
        self.cache.truncate(self.standing.length)
        return self._last

    def _finite(self, step: Step, output: Tensor) -> Tensor:
        if not bool(output.isfinite().all()):
            self.cache.truncate(step.position)
            raise Refused(
                f"conversation {step.name}: what adapter {self.opening.adapter} makes of its rows "
                "is not finite"
            )
        return output

    def _check_draft(self, step: Step) -> None:
        """Raises ProtocolError where its ids are none, or are said where nobody looks at them."""
        known = step.drafted if self.opening.ends else 0
        if len(step.draft) != known:
            raise ProtocolError(
                f"conversation {step.name}: {len(step.draft)} drafted ids, of {known}"
            )
        vocabulary = self._base.model.vocab_size
        if not all(0 <= token < vocabulary for token in step.draft):
            raise ProtocolError(
                f"conversation {step.name}: a drafted id that is none of {vocabulary}"
            )

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


def _parts(step: Step) -> Iterator[Step]:
    """What is certain, and then each guess."""
    certain = len(step.rows) - step.drafted
    yield replace(step, rows=step.rows[:certain], wanted=1, drafted=0, draft=())
    for place in range(certain, len(step.rows)):
        row = step.rows[place : place + 1]
        yield replace(step, position=step.position + place, rows=row, wanted=1, drafted=0, draft=())


@torch.no_grad()
def _outputs(tasks: Sequence[tuple[Conversation, Step]]) -> Sequence[Tensor]:
    """Rows behind the blocks, or logits of those that are wanted."""
    lead = tasks[0][0]
    base, opening = lead.base, lead.opening
    if base.model.training:
        base.model.train(False)
    counts = [len(step.rows) for _, step in tasks]
    if max(counts) <= FEW_TOKENS:
        base.batches.observe(len(tasks))
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
