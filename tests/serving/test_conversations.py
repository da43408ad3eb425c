"""Conversations at an edge: their steps, batches, pages and adapters, and what is refused."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from sfl.adapters.lora import Adapter, LoraBank
from sfl.config import LoraSettings
from sfl.errors import ProtocolError, Refused, SflError
from sfl.metrics.memory import memory_use
from sfl.models.folder import open_model
from sfl.models.kv.attention import Extension
from sfl.models.kv.cache import KvCache, KvPool
from sfl.models.span import SpanModel, build_span
from sfl.node.process import trim_heap
from sfl.plan import Span
from sfl.serving.room import Rules
from sfl.serving.sampling import Sampling
from sfl.stage.engine import Engine
from sfl.stage.serving.conversation import Conversation, ServingBase, compute_together
from sfl.stage.serving.conversations import MOST_OF_A_DEVICE, Conversations
from sfl.stage.serving.messages import Answer, Later, Missing, Opened, Opening, Rows, Step, Tokens
from sfl.stage.serving.sampler import next_token
from tests.house.conversations import NEW_TOKENS, PROMPT, folder_of, generated
from tests.house.tiny_models import LAYERS, model_folder

CUT = 1
EDGE = Span(CUT, LAYERS, embedding=False, head=True)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def model_of(span: Span, head_dim: int | None = None) -> SpanModel:
    wide = json.dumps({"head_dim": head_dim})
    folder = open_model(folder_of("llama") if head_dim is None else model_folder("llama", wide))
    return build_span(
        folder, span, task="causal_lm", num_labels=0, dtype=torch.float32, packed=True
    )


class Place:
    """An edge's conversations, and a device's front blocks to talk to them with."""

    def __init__(
        self,
        pages: int = 40,
        spill: Path | None = None,
        adapters: int = 0,
        head_dim: int | None = None,
    ) -> None:
        self.front = model_of(Span(0, CUT, embedding=True, head=False), head_dim)
        model = model_of(EDGE, head_dim)
        bank = LoraBank(model, LoraSettings(rank=4, alpha=8))
        served: dict[str, Adapter | None] = {"base": None}
        random = torch.Generator().manual_seed(2)
        for number in range(adapters):
            own = served[f"a{number}"] = bank.add(f"a{number}", EDGE)
            assert own is not None
            own.load(
                {n: 0.2 * torch.randn(p.shape, generator=random) for n, p in own.parameters.items()}
            )
        bank.stack([own for own in served.values() if own is not None])
        self.clock = Clock()
        self.base = ServingBase(model, bank, served, KvPool(pages))
        self.conversations = Conversations(self.base, Rules(pages), spill, self.clock)

    def open(self, device: str, **changes: object) -> Talk:
        """Opens a conversation that is the same in all tests but for these changes."""
        opening = Opening("c", "base", CUT, LAYERS, True, 128)
        opened = self.conversations.open(device, replace(opening, **changes))  # type: ignore[arg-type]
        assert not isinstance(opened, Later)
        return Talk(self, *opened)


class Talk:
    """A device's side of one conversation, its step numbers and its own cache."""

    def __init__(self, place: Place, conversation: Conversation, opened: Opened) -> None:
        self.place = place
        self.conversation = conversation
        self.opened = opened
        self.number = opened.number
        self.cache = KvCache(KvPool(4))

    def rows(self, tokens: list[int], position: int) -> Tensor:
        self.cache.truncate(min(position, self.cache.length))
        return self.place.front.extend(torch.tensor(tokens), [Extension(self.cache, len(tokens))])

    def step(self, tokens: list[int], position: int, wanted: int = 1) -> Step:
        self.number += 1
        name = self.conversation.opening.name
        return Step(name, self.number, position, self.rows(tokens, position), wanted)

    def say(self, tokens: list[int], position: int, wanted: int = 1) -> Answer:
        return self.conversation.handle(self.step(tokens, position, wanted))

    def greedy(self, text: list[int], count: int, known: int = 0) -> list[int]:
        """Go on with a text, of which the edge knows so many tokens."""
        text = list(text)
        for _ in range(count):
            answer = self.say(text[known:], known)
            assert isinstance(answer, Tokens)
            known = len(text)
            text += answer.tokens
        return text


def test_a_conversation_says_what_generate_does() -> None:
    tokens, _ = generated("llama")
    talk = Place().open("d")
    assert talk.opened == Opened(0, 0)
    assert talk.greedy(list(PROMPT), NEW_TOKENS) == [*PROMPT, *tokens]


def test_a_step_that_is_sent_again_is_answered_again_and_not_computed() -> None:
    talk = Place().open("d")
    step = talk.step(list(PROMPT), 0)
    first = talk.conversation.handle(step)
    other = replace(step, rows=step.rows + 1)  # would give another answer
    assert talk.conversation.handle(other) is first
    assert talk.conversation.standing.length == len(PROMPT)
    tokens, _ = generated("llama")
    assert first == Tokens(1, tokens[:1])


def test_a_step_below_what_is_held_takes_the_rest_away() -> None:
    tokens, _ = generated("llama")
    talk = Place().open("d")
    talk.say([*PROMPT, 40, 41, 42], 0)
    assert talk.say(list(PROMPT[5:]), 5) == Tokens(2, tokens[:1])
    assert talk.conversation.standing.length == len(PROMPT)
    # Of a draft, one answer for each of its tokens; those that fit it are kept by going on there.
    draft = talk.say([tokens[0], tokens[1], 50], len(PROMPT), wanted=3)
    assert isinstance(draft, Tokens) and draft.tokens[:2] == tokens[1:3]
    assert talk.say([tokens[2]], len(PROMPT) + 2) == Tokens(4, tokens[3:4])


def test_too_far_ahead_is_told_what_is_missing() -> None:
    talk = Place().open("d")
    assert talk.say([5], 7) == Missing(1, 0)
    talk.say([5, 6], 0)
    assert talk.say([5], 7) == Missing(3, 2)


@pytest.mark.parametrize("wanted", [-1, 3])
def test_a_step_against_the_contract_is_refused_with_the_reason(wanted: int) -> None:
    talk = Place().open("d", reserved=8)
    with pytest.raises(ProtocolError, match=f"wants {wanted}"):
        talk.conversation.handle(talk.step([5, 6], 0, wanted))
    with pytest.raises(ProtocolError, match="position 8 is beyond the 8 tokens"):
        talk.say(list(PROMPT[:9]), 0)
    assert isinstance(talk.say(list(PROMPT[:8]), 0), Tokens)


def test_rows_that_give_nothing_finite_fail_alone() -> None:
    place = Place()
    good, evil = place.open("d"), place.open("e")
    expected = place.open("f").say(list(PROMPT[:3]), 0)
    bad = evil.step(list(PROMPT[:3]), 0)
    bad = replace(bad, rows=bad.rows * float("nan"))
    group = good.conversation.group(bad)
    assert group is not None
    fine, failed = group.run(
        [(good.conversation, good.step(list(PROMPT[:3]), 0)), (evil.conversation, bad)]
    )
    assert fine == expected
    assert isinstance(failed, Refused) and "not finite" in str(failed)
    assert evil.conversation.standing.length == 0


def test_the_u_shape_gets_rows_of_every_token() -> None:
    place = Place()
    talk = place.open("d", last=LAYERS - 1, ends=False)
    tail = model_of(Span(LAYERS - 1, LAYERS, embedding=False, head=True))
    own = KvCache(KvPool(2))
    text, known = list(PROMPT), 0
    for _ in range(8):
        answer = talk.say(text[known:], known)
        assert isinstance(answer, Rows) and len(answer.rows) == len(text) - known
        rows = tail.extend(answer.rows, [Extension(own, len(answer.rows))])
        known = len(text)
        text.append(int(tail.logits(rows[-1:]).argmax()))
    assert tuple(text[len(PROMPT) :]) == generated("llama")[0][:8]


# -- batches --------------------------------------------------------------------------------------


def test_conversations_of_many_devices_and_adapters_are_one_batch() -> None:
    def talks(place: Place) -> list[Talk]:
        return [place.open(f"d{n}", adapter="base" if n == 4 else f"a{n % 4}") for n in range(8)]

    def prompt(n: int) -> list[int]:
        return list(PROMPT[: 3 + n % 5])

    alone = [t.greedy(prompt(n), 12) for n, t in enumerate(talks(Place(adapters=4)))]
    together = talks(Place(adapters=4))
    texts = [prompt(n) for n in range(8)]
    known = [0] * 8
    for _ in range(12):
        tasks = [
            (talk.conversation, talk.step(texts[n][known[n] :], known[n]))
            for n, talk in enumerate(together)
        ]
        assert len({talk.group(step) for talk, step in tasks}) == 1
        for n, answer in enumerate(compute_together(tasks)):
            assert isinstance(answer, Tokens)
            known[n] = len(texts[n])
            texts[n] += answer.tokens
    assert texts == alone
    assert len({tuple(text[-12:]) for text in texts}) > 4


def test_long_steps_go_alone_and_other_blocks_are_another_batch() -> None:
    place = Place()
    one, other = place.open("d"), place.open("e", first=CUT + 1)
    short = one.step([5], 0)
    assert one.conversation.group(short) != other.conversation.group(short)
    assert one.conversation.group(one.step([5] * 17, 0)) is None


def test_the_engine_computes_what_waits_as_one_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Place()
    talks = [place.open(f"d{n}") for n in range(6)]
    steps = [talk.step(list(PROMPT[: n + 2]), 0) for n, talk in enumerate(talks)]
    sizes: list[int] = []

    def counted(tasks: list[tuple[Conversation, Step]]) -> list[Answer | SflError]:
        sizes.append(len(tasks))
        return compute_together(tasks)

    monkeypatch.setattr("sfl.stage.serving.conversation.compute_together", counted)

    async def run() -> list[Answer]:
        engine = Engine(1, answering=4)
        try:
            first = asyncio.create_task(engine.run(lambda: waited.wait(5)))
            tasks = [
                asyncio.create_task(engine.answer(talk.conversation, step))
                for talk, step in zip(talks, steps, strict=True)
            ]
            await asyncio.sleep(0.05)
            waited.set()
            await first
            return list(await asyncio.gather(*tasks))
        finally:
            engine.close()

    waited = threading.Event()
    answers = asyncio.run(run())
    assert sizes == [4, 2]
    fresh = Place()
    for n, answer in enumerate(answers):
        assert answer == fresh.open(f"d{n}").say(list(PROMPT[: n + 2]), 0)


# -- room -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("spills", [True, False])
def test_64_idle_conversations_on_room_for_16_go_on_with_the_same_text(
    spills: bool, tmp_path: Path
) -> None:
    place, alone = Place(pages=16, spill=tmp_path if spills else None), Place(pages=64)
    talks, texts = [], []
    for n in range(64):
        place.clock.now += 10
        talks.append(place.open(f"d{n}", reserved=64))
        texts.append(talks[n].greedy(list(PROMPT[: 2 + n % 9]), 3))
        assert place.base.pool.pages.free >= 0
    page = (LAYERS - CUT) * 2 * 2 * 64 * 8 * 4
    assert place.base.pool.nbytes == 16 * page
    assert (place.conversations.spilled, place.conversations.forgotten) == (
        (48, 0) if spills else (0, 48)
    )
    for n, talk in enumerate(talks):
        place.clock.now += 10
        start, known = list(PROMPT[: 2 + n % 9]), len(texts[n]) - 1
        answer = talk.say(texts[n][known:], known)
        if not spills:
            assert answer == Missing(4, 0)
            known = 0
            talk.cache.truncate(0)
        else:
            assert isinstance(answer, Tokens)
            texts[n] += answer.tokens
            known = len(texts[n]) - 1
        texts[n] = talk.greedy(texts[n], 4, known)
        assert texts[n] == alone.open(f"x{n}", reserved=64).greedy(
            start, len(texts[n]) - len(start)
        )
    place.conversations.close_all()
    assert place.base.pool.nbytes == 0


def test_the_kernel_counts_no_more_than_the_budget_and_5_percent(tmp_path: Path) -> None:
    """64 idle conversations on room for 16, of 2 MB each; what they say is what each says alone.

    What a forward works with and has freed is given back before the kernel is asked.
    """

    def resident() -> int:
        trim_heap()
        return memory_use().resident

    def say(place: Place, name: str, number: int, position: int, rows: Tensor) -> Answer:
        opening = Opening(name, "base", CUT, LAYERS, True, 64)
        opened = place.conversations.open("d", opening)
        place.clock.now += 10
        assert not isinstance(opened, Later)
        return opened[0].handle(Step(name, number, position, rows, 1))

    random = torch.Generator().manual_seed(4)
    rows = [torch.randn(63, 32, generator=random) for _ in range(64)]
    alone = Place(pages=2, spill=tmp_path, head_dim=1024)
    expected = [
        (say(alone, f"{n}", 1, 0, own[:62]), say(alone, f"{n}", 2, 62, own[62:]))
        for n, own in enumerate(rows[::8])
    ]
    alone.conversations.close_all()
    place = Place(pages=16, spill=tmp_path, head_dim=1024)
    before, most = resident(), 0
    budget = 16 * (LAYERS - CUT) * 2 * 2 * 64 * 1024 * 4
    said: list[list[Answer]] = [[], []]
    for number, (first, last) in enumerate(((0, 62), (62, 63))):
        for n, own in enumerate(rows):
            said[number].append(say(place, f"{n}", number + 1, first, own[first:last]))
            most = max(most, resident() - before)
            assert place.base.pool.nbytes <= budget
    assert list(zip(*said, strict=True))[::8] == expected
    assert place.conversations.spilled == 48 + 64
    assert place.base.pool.nbytes == budget
    assert 0.9 * budget < most <= 1.05 * budget
    place.conversations.close_all()


def test_where_all_are_in_use_it_is_told_when_to_ask_again() -> None:
    place = Place(pages=2)
    first = place.open("d", reserved=64)
    place.open("e", reserved=64)
    asked = Opening("c", "base", CUT, LAYERS, True, 64)
    later = place.conversations.open("f", asked)
    assert isinstance(later, Later) and 0 < later.retry_after <= 2
    first.conversation.pending = 1
    place.clock.now += 50
    opened = place.conversations.open("f", asked)
    assert not isinstance(opened, Later)
    # Whoever gave its pages up, and steps while the others are in use, is told the same.
    first.conversation.pending = 0
    second = Talk(place, *opened)
    second.say([5], 0)
    first.say([5], 0)
    gone = place.conversations.open("e", replace(asked, name="c"))
    assert isinstance(gone, Later)


def test_a_conversation_is_opened_again_with_more_room() -> None:
    tokens, _ = generated("llama")
    place = Place()
    talk = place.open("d", reserved=20)
    text = talk.greedy(list(PROMPT), 5)
    again = place.open("d", reserved=120, sampling=Sampling(seed=4))
    assert again.opened == Opened(len(text) - 1, 5)
    again.cache = talk.cache
    text = again.greedy(text, 40, len(text) - 1)
    assert tuple(text[len(PROMPT) :]) == tokens[:45]
    other = place.open("d", adapter="base", first=CUT + 1)
    assert other.opened == Opened(0, 0)  # other blocks: nothing of it is of use


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"adapter": "nobody"}, "'nobody' is not served here; there are: base"),
        ({"first": 0}, "blocks 0 to 2 were asked for; 1 to 2 are here"),
        ({"last": LAYERS + 1}, "blocks 1 to 3 were asked for"),
        ({"first": 2, "last": 2}, "blocks 2 to 1"),
        ({"last": 2}, "blocks 1 to 1"),  # the head is behind the last block
        ({"reserved": 64 * 40 + 1}, "there is room for 2560 in all"),
        ({"reserved": 0}, "room for 0 tokens"),
        ({"sampling": Sampling(temperature=float("nan"))}, "temperature is nan"),
    ],
)
def test_what_can_never_be_is_refused_at_once(changes: dict[str, object], reason: str) -> None:
    place = Place()
    opening = Opening("c", "base", CUT, LAYERS, True, 128)
    with pytest.raises(Refused, match=reason):
        place.conversations.open("d", replace(opening, **changes))  # type: ignore[arg-type]
    assert place.base.pool.pages.free == 40 and len(place.conversations) == 0


def test_ten_thousand_opens_of_one_device_take_nothing_from_another() -> None:
    place = Place(pages=10)
    quiet = place.open("quiet", reserved=64)
    quiet.say(list(PROMPT), 0)
    opening = Opening("", "base", CUT, LAYERS, True, 64)
    for n in range(10_000):
        place.clock.now += 5
        place.conversations.open("evil", replace(opening, name=str(n)))
    assert len(place.conversations) == MOST_OF_A_DEVICE + 1
    assert quiet.conversation.standing.length == len(PROMPT)
    assert quiet.conversation.cache.length == len(PROMPT)
    assert place.base.pool.pages.free >= 0


def test_what_cannot_be_read_back_is_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(pages=1, spill=tmp_path)
    talk = place.open("d", reserved=60)
    text = talk.greedy(list(PROMPT), 3)
    place.clock.now += 10
    place.open("e", reserved=60)
    place.clock.now += 10
    assert place.conversations.spilled == 1 and talk.conversation.spilled is not None
    monkeypatch.setattr(talk.conversation.spilled, "_read", _broken)
    assert talk.say(text[-1:], len(text) - 1) == Missing(4, 0)
    talk.cache.truncate(0)
    assert tuple(talk.greedy(text, 3)[len(PROMPT) :]) == generated("llama")[0][:6]
    place.conversations.close_all()


def test_one_that_is_on_the_disk_may_be_opened_for_less(tmp_path: Path) -> None:
    """It waits until all of it has room, and fails nobody in its batch."""
    place = Place(pages=3, spill=tmp_path)
    long = (PROMPT * 12)[:130]
    place.open("d", reserved=150).say(list(long), 0)
    shorter = place.open("d", reserved=60)  # the same one: it keeps what it has
    place.clock.now += 20
    beside = [place.open(f"e{n}", reserved=60) for n in range(3)]
    for talk in beside:
        talk.say([5], 0)
    assert shorter.conversation.spilled is not None
    place.clock.now += 20
    step, busy = shorter.step(list(long[:20]), 0), beside[0]
    busy.conversation.pending = 1
    first, second = compute_together(
        [(shorter.conversation, step), (busy.conversation, busy.step([6], 1))]
    )
    assert isinstance(first, Later) and isinstance(second, Tokens)
    busy.conversation.pending = 0
    place.clock.now += 20
    expected = Place().open("x").say(list(long[:20]), 0)
    assert isinstance(expected, Tokens)
    assert shorter.conversation.handle(step) == replace(expected, number=step.number)
    place.conversations.close_all()


def _broken(data: memoryview) -> None:
    raise OSError("the disk is gone")


@pytest.mark.parametrize("bound", ["bytes", "files"])
def test_files_of_those_who_never_come_back_are_bounded(
    bound: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Place(pages=1, spill=tmp_path)
    page = (LAYERS - CUT) * 2 * 2 * 64 * 8 * 4
    if bound == "files":
        monkeypatch.setattr("sfl.stage.serving.conversations.MOST_FILES", 2)
    else:
        place.conversations._spilled_bytes = 2 * page * len(PROMPT) // 64
    talks, texts = [], []
    for n in range(6):
        place.clock.now += 20
        talks.append(place.open(f"d{n}", reserved=60))
        texts.append(talks[n].greedy(list(PROMPT), 1))
    spilled = [talk.conversation.spilled is not None for talk in talks]
    assert spilled == [False, False, False, True, True, False]
    place.clock.now += 20
    assert talks[0].say(texts[0][-1:], len(PROMPT)) == Missing(2, 0)  # it is to be sent again
    place.clock.now += 20
    assert isinstance(talks[4].say(texts[4][-1:], len(PROMPT)), Tokens)
    place.conversations.close_all()
    assert all(talk.conversation.spilled is None for talk in talks)


def test_a_disk_that_is_full_costs_the_keys_and_values_alone(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    place = Place(pages=1, spill=tmp_path / "file")
    talk = place.open("d", reserved=60)
    talk.say(list(PROMPT), 0)
    place.clock.now += 10
    place.open("e", reserved=60)
    assert (place.conversations.spilled, place.conversations.forgotten) == (0, 1)


# -- sampling -------------------------------------------------------------------------------------


def test_what_is_drawn_has_the_models_probabilities() -> None:
    logits = torch.tensor([0.0, 2.0, 1.0, -30.0])
    sampling = Sampling(temperature=1.0, seed=1)
    drawn = [next_token(logits, sampling, n) for n in range(5000)]
    for token, probability in enumerate(logits.softmax(-1).tolist()):
        assert abs(drawn.count(token) / len(drawn) - probability) < 0.02
    cold = [next_token(logits, replace(sampling, temperature=0.2), n) for n in range(500)]
    assert cold.count(1) > 490
    nucleus = {next_token(logits, replace(sampling, top_p=0.8), n) for n in range(500)}
    assert nucleus == {1, 2}
    assert {next_token(logits, replace(sampling, top_p=1e-9), n) for n in range(50)} == {1}


def test_a_sampled_text_is_the_same_after_a_resume() -> None:
    sampling = Sampling(temperature=0.9, top_p=0.95, seed=7, key="c")
    straight = Place().open("d", sampling=sampling).greedy(list(PROMPT), 20)
    place = Place()
    text = place.open("d", sampling=sampling).greedy(list(PROMPT), 8)
    moved = Place().open("other", sampling=sampling)  # another edge, another name
    assert moved.greedy(text, 12) == straight
    assert straight != Place().open("d").greedy(list(PROMPT), 20)
