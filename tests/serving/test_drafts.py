"""Drafts over the cut: the text is what it is without, and nothing is left of what was wrong."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from device_agent.serving.talk import Wish
from sfl.config.serve import MOST_DRAFTED
from sfl.errors import ProtocolError
from sfl.plan import Plan
from sfl.serving.lookup import lookup
from sfl.serving.sampling import GREEDY, Sampling
from sfl.stage.serving.conversation import compute_together
from sfl.stage.serving.drafting import LookupDrafter
from sfl.stage.serving.messages import Opening, Step, Tokens
from sfl.stage.serving.sampler import confirmed, next_token
from tests.house.conversations import DECODERS, NEW_TOKENS, PROMPT, generated
from tests.house.drafts import Told
from tests.house.serving import answered, device, dialled, edge_config, serving
from tests.house.tiny_models import LAYERS, VOCAB

WISH = Wish("c", PROMPT, NEW_TOKENS)
WARM = Sampling(0.8, 0.9, seed=5)
VANILLA = Plan.split(LAYERS, 1, 0, "vanilla")
U_SHAPED = Plan.split(LAYERS, 1, 1, "u_shaped")
PLANS = pytest.mark.parametrize("plan", [VANILLA, U_SHAPED], ids=["vanilla", "u_shaped"])


# -- lookup ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "guesses"),
    [
        ([], ()),
        ([5], ()),
        ([5, 5], ()),  # one token alike is not enough
        ([1, 2, 3, 4, 5], ()),
        ([1, 2, 3, 9, 1, 2], (3, 9, 1, 2)),
        ([1, 2, 3, 1, 2, 4, 1, 2], (4, 1, 2, 4)),  # the latest, and on from its beginning
        ([7, 1, 2, 3, 8, 1, 2, 4, 7, 1, 2], (3, 8, 1, 2)),  # the longest first
        ([6, 6, 6], (6, 6, 6, 6)),
        ([1 << 40, 2, 3, 1 << 40, 2], (3, 1 << 40, 2, 3)),
    ],
)
def test_what_followed_before_is_guessed(ids: list[int], guesses: tuple[int, ...]) -> None:
    assert lookup(ids, 4) == guesses


def test_lookup_is_the_plain_search() -> None:
    def plain(ids: list[int], most: int) -> tuple[int, ...]:
        for length in (4, 3, 2):
            for at in range(len(ids) - length - 1, -1, -1):
                if ids[at : at + length] == ids[-length:]:
                    text = list(ids)
                    for n in range(most):
                        text.append(text[at + length + n])
                    return tuple(text[len(ids) :])
        return ()

    draw = random.Random(3)
    found = 0
    for _ in range(2000):
        ids = [draw.choice((0, 1, 256, 65536)) for _ in range(draw.randrange(12))]
        assert lookup(ids, 3) == plain(ids, 3)
        found += bool(lookup(ids, 3))
    assert 200 < found < 1900


# -- drawing --------------------------------------------------------------------------------------


def row(*logits: float) -> Tensor:
    return torch.tensor(logits)


def test_a_greedy_draft_is_confirmed_as_far_as_it_is_right() -> None:
    rows = [row(0.0, 2.0, 1.0), row(3.0, 2.0, 1.0), row(0.0, 0.0, 9.0)]
    assert confirmed(rows, (1, 0), GREEDY, 4) == (1, 0, 2)
    assert confirmed(rows, (1, 1), GREEDY, 4) == (1, 0)
    assert confirmed(rows, (2, 0), GREEDY, 4) == (1,)
    assert confirmed(rows, (), GREEDY, 4) == (1, 0, 2)


def test_no_logits_are_asked_for_behind_a_guess_that_is_wrong() -> None:
    asked: list[int] = []

    def logits() -> Any:
        for n in range(3):
            asked.append(n)
            yield row(0.0, 1.0, 0.0)

    assert confirmed(logits(), (1, 2), GREEDY, 0) == (1, 1)
    assert asked == [0, 1]


TARGET, DRAFT = row(0.0, 2.0, 1.0, -1.0, 0.5), row(0.7, 1.5, 1.4, -1.5, 0.0)


@pytest.mark.parametrize("sampling", [Sampling(1.0), Sampling(0.7, 0.85)], ids=["whole", "nucleus"])
@pytest.mark.parametrize("source", ["certain", "drawn"])
def test_what_is_said_with_a_draft_has_the_models_probabilities(
    source: str, sampling: Sampling
) -> None:
    """Two tokens at a time, against the exact probabilities of all pairs (chi-square)."""
    probabilities = (TARGET.double() / sampling.temperature).softmax(-1)
    if sampling.top_p < 1:
        likely, order = probabilities.sort(descending=True)
        out = likely.cumsum(-1) - likely >= sampling.top_p
        probabilities[order[out]] = 0.0
        probabilities /= probabilities.sum()
    pairs: Counter[tuple[int, int]] = Counter()
    kept = 0
    for seed in range(2000):
        own = replace(sampling, seed=seed)
        draft = (1, 2) if source == "certain" else _drawn(own)
        said: tuple[int, ...] = ()
        while len(said) < 2:  # as an answer does: what was confirmed, and on from there
            left = draft[len(said) :] if said == draft[: len(said)] else ()
            new = confirmed([TARGET] * (len(left) + 1), left, own, len(said))
            kept += len(new) - 1
            said += new
        pairs[said[0], said[1]] += 1
        assert said[:2] == tuple(next_token(TARGET, own, n) for n in range(2))
    expected = torch.outer(probabilities, probabilities) * 2000
    count = range(len(TARGET))
    cells = [(a, b) for a in count for b in count if expected[a, b] > 0]
    assert set(pairs) <= set(cells)
    assert likelihood({cell: pairs[cell] for cell in cells}, expected) > 0.001
    assert kept > 300


def likelihood(counts: Mapping[tuple[int, ...], int], expected: Tensor) -> float:
    """How likely counts as far from what is expected are (Pearson's chi-square)."""
    assert sum(counts.values()) == pytest.approx(float(expected.sum()))
    far = sum((count - expected[cell]) ** 2 / expected[cell] for cell, count in counts.items())
    freedom = torch.tensor((len(counts) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(freedom, far / 2))


def _drawn(own: Sampling) -> tuple[int, int]:
    return next_token(DRAFT, own, 0), next_token(DRAFT, own, 1)


def test_a_certain_guess_is_taken_as_often_as_it_is_likely() -> None:
    """min(1, p/q) with q = 1; and what else is said has the residual's probabilities."""
    p = TARGET.double().softmax(-1)
    said = Counter(confirmed([TARGET], (2,), Sampling(1.0, seed=n), 9)[0] for n in range(2000))
    assert likelihood({(token,): said[token] for token in range(len(TARGET))}, 2000 * p) > 0.001


def test_two_who_draw_by_the_same_numbers_mostly_draw_the_same() -> None:
    """At least (1 - d) / (1 + d) of the time, d the distance of their distributions."""
    generator = torch.Generator().manual_seed(1)
    for noise in (0.1, 0.5, 1.5):
        target = 3 * torch.randn(64, generator=generator)
        other = target + noise * torch.randn(64, generator=generator)
        distance = float((target.softmax(-1) - other.softmax(-1)).abs().sum()) / 2
        same = sum(
            next_token(target, Sampling(1.0, seed=n), 0)
            == next_token(other, Sampling(1.0, seed=n), 0)
            for n in range(800)
        )
        assert same / 800 > (1 - distance) / (1 + distance) - 0.04


# -- over the wire --------------------------------------------------------------------------------


def trips(wrong: int) -> int:
    """Round trips of an answer whose guesses, 4 at a time, err at each `wrong`th place."""
    said = count = 0
    while said < NEW_TOKENS:
        # The prompt's second piece is of 4 tokens, and a step of 7 at most.
        most = min(4 if said else 3, NEW_TOKENS - said - 1)
        first = len(PROMPT) + said
        right = [place % wrong != 0 for place in range(first, first + most)]
        said += (right.index(False) if False in right else most) + 1
        count += 1
    return count


@PLANS
@pytest.mark.parametrize("kind", DECODERS)
def test_tokens_are_those_without_a_draft(kind: str, plan: Plan) -> None:
    """Of a drafter that often errs, of one that goes row by row, and of the text itself."""

    async def run() -> None:
        async with serving(edge_config(kind)) as (_, address):
            for sampling in (GREEDY, WARM):
                wish = replace(WISH, sampling=sampling)
                plain = await answered(address, wish, kind, plan=plan)
                if sampling.greedy:
                    assert tuple(plain) == generated(kind)[0]
                text = [*PROMPT, *plain]
                told = (Told(text, 3), Told(text, 5, reads_rows=True), LookupDrafter())
                for drafter in told if sampling.greedy else told[:1]:
                    async with device(address, "e", kind, plan, drafter) as own:
                        assert await own.say(wish) == plain
                        spoken = own.talker.spoken
                        assert spoken.tokens == NEW_TOKENS
                        assert spoken.tokens == spoken.round_trips + spoken.accepted
                        if isinstance(drafter, Told):
                            assert spoken.round_trips == trips(drafter.wrong)

    asyncio.run(run())


@PLANS
def test_drafts_of_every_length_end_where_the_answer_does(plan: Plan) -> None:
    async def run() -> None:
        text = (*PROMPT, *generated("llama")[0])
        async with serving(edge_config()) as (_, address):
            for length in (1, 2, 3, 7, MOST_DRAFTED):
                async with device(
                    address, plan=plan, drafter=Told(text, 99), draft_tokens=length
                ) as own:
                    for most in (1, 2, 5, 23):
                        wish = replace(WISH, name=str(most), max_tokens=most)
                        assert await own.say(wish) == list(text[len(PROMPT) :][:most])

    asyncio.run(run())


@PLANS
def test_an_answer_goes_on_in_the_next_one_behind_a_draft(plan: Plan) -> None:
    """The caller stops within what was confirmed, and goes on with something else."""

    async def run() -> None:
        said = generated("llama")[0]
        async with serving(edge_config()) as (_, address):
            text = (*PROMPT, *said)
            async with device(address, plan=plan, drafter=Told(text, 99)) as own:
                answer = own.talker.answer(WISH)
                first = [await anext(answer) for _ in range(7)]
                await answer.aclose()
                longer = (*PROMPT, *first, 7, 8)
                turned = await own.say(replace(WISH, ids=longer, max_tokens=9))
            assert turned == await answered(address, Wish("x", longer, 9), name="f", plan=plan)

    asyncio.run(run())


@PLANS
def test_a_stream_that_breaks_in_mid_draft_costs_no_token(plan: Plan) -> None:
    async def run() -> None:
        wish = replace(WISH, sampling=WARM)
        async with serving(edge_config()) as (_, first), serving(edge_config()) as (_, second):
            expected = await answered(first, wish, name="f", plan=plan)
            drafter = Told((*PROMPT, *expected), 3)
            async with device(first, plan=plan, drafter=drafter) as own:
                answer = own.talker.answer(wish)
                said = []
                for breaks in range(6):
                    said += [await anext(answer) for _ in range(5)]
                    link = await own.talker.link()
                    sent = asyncio.create_task(anext(answer))
                    await asyncio.sleep(0.002 * breaks)  # before the step, under way, answered
                    link._call.cancel()
                    own.address = second if breaks == 3 else own.address
                    said.append(await sent)
                said += [token async for token in answer]
                assert said == expected

    asyncio.run(run())


def test_conversations_with_drafts_of_all_lengths_are_one_batch() -> None:
    async def run() -> None:
        async with serving(edge_config(batch=16)) as (_, address):
            prompts = [PROMPT[: 3 + n] for n in range(8)]
            async with device(address, "plain") as own:
                plain = [await own.say(Wish(str(n), ids, 40)) for n, ids in enumerate(prompts)]
            sizes: list[list[int]] = []
            computed = compute_together

            def counted(tasks: Sequence[tuple[Any, Step]]) -> Any:
                sizes.append([len(step.rows) for _, step in tasks])
                return computed(tasks)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("sfl.stage.serving.conversation.compute_together", counted)
                devices = [
                    device(
                        address,
                        f"d{n}",
                        plan=U_SHAPED if n % 3 == 2 else VANILLA,
                        drafter=Told([*ids, *plain[n]], 2 + n) if n % 4 else None,
                        draft_tokens=1 + n,
                    )
                    for n, ids in enumerate(prompts)
                ]
                opened = [await one.__aenter__() for one in devices]
                said = await asyncio.gather(
                    *(own.say(Wish("c", ids, 40)) for own, ids in zip(opened, prompts, strict=True))
                )
                for one in devices:
                    await one.__aexit__(None, None, None)
            assert list(said) == plain
            assert any(len(set(counts)) > 2 for counts in sizes)  # one batch, several lengths

    asyncio.run(run())


# -- exact ----------------------------------------------------------------------------------------


@PLANS
@pytest.mark.parametrize("kind", ["llama", "gemma2", "gpt2"])
def test_exact_drafts_leave_the_bits_that_there_are_without(kind: str, plan: Plan) -> None:
    """Keys and values on both sides, to the last bit, beside another device's conversations."""

    async def run() -> None:
        async with serving(edge_config(kind)) as (edge, address):
            held = {}
            plain = await answered(address, WISH, kind, plan=plan)
            for name, drafter in (("none", None), ("told", Told([*PROMPT, *plain], 3))):
                async with (
                    device(address, "other", kind) as other,
                    device(address, name, kind, plan, drafter, exact=True) as own,
                ):
                    if drafter is not None:
                        beside = asyncio.create_task(other.say(WISH))
                    assert await own.say(WISH) == plain
                    if drafter is not None:
                        await beside
                    talk = own.talker.kept._talks["c"]
                    caches = [*talk.own.caches, conversation(edge, name).cache]
                    for cache in caches:
                        cache.truncate(len(PROMPT) + NEW_TOKENS - 1)
                    held[name] = [dict(cache.held()) for cache in caches]
            for one, two in zip(held["none"], held["told"], strict=True):
                assert one and one.keys() <= two.keys()  # the edge's pool has the other's, too
                assert all(torch.equal(one[block], two[block]) for block in one)

    asyncio.run(run())


def conversation(edge: Any, device_name: str) -> Any:
    return edge.service._host.result().conversations._open[device_name, "c"]


# -- peers that mean harm -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"draft": (VOCAB,)}, f"a drafted id that is none of {VOCAB}"),
        ({"draft": (5, 5), "drafted": 2, "wanted": 2, "count": 2}, "2 guesses in a step of 2"),
        ({"draft": (5,) * 16, "drafted": 16, "wanted": 17, "count": 7}, "drafted tokens of a"),
        ({"draft": (5,) * 100_000, "drafted": 1}, "drafted tokens of a step = 100000"),
        ({"draft": (), "drafted": 1}, "0 drafted ids, of 1"),
        ({"draft": (5,), "wanted": 1}, "1 guesses in a step that wants 1"),
    ],
)
def test_a_draft_against_the_contract_is_refused(changes: dict[str, Any], reason: str) -> None:
    async def run() -> None:
        async with serving(edge_config()) as (_, address), device(address) as honest:
            answer = honest.talker.answer(WISH)
            said = [await anext(answer)]
            evil = await dialled(address, "evil")
            await evil.open(opening())
            with pytest.raises(ProtocolError, match=reason):
                await evil.step(a_step(**changes))
            await evil.close()
            said += [token async for token in answer]
            assert tuple(said) == generated("llama")[0]

    asyncio.run(run())


def opening(**changes: Any) -> Any:
    return replace(Opening("c", "base", 1, LAYERS, True, 64), **changes)


def a_step(count: int = 3, **changes: Any) -> Step:
    step = Step("c", 1, 0, torch.full((count, 32), 0.1), 2, 1, (5,))
    return replace(step, **changes)


def test_an_edge_without_the_head_is_not_told_what_is_guessed() -> None:
    async def run() -> None:
        async with serving(edge_config()) as (_, address):
            evil = await dialled(address, "evil")
            await evil.open(opening(last=LAYERS - 1, ends=False))
            with pytest.raises(ProtocolError, match="1 drafted ids, of 0"):
                await evil.step(a_step())
            await evil.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    "tokens", [(), (9, 9), (9, 9, 9, 9), (5, 9, 9)], ids=["none", "unsaid", "many", "turned"]
)
def test_an_edge_that_says_more_than_was_guessed_is_not_believed(
    tokens: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        async with (
            serving(edge_config()) as (_, address),
            device(address, drafter=Told((*PROMPT, 5, 6, 7, 8), 99), draft_tokens=2) as own,
        ):
            link = await own.talker.link()

            async def lies(step: Step) -> Tokens:
                return Tokens(step.number, tokens if step.wanted > 1 else (0,) * step.wanted)

            monkeypatch.setattr(link, "step", lies)
            with pytest.raises(ProtocolError, match="Tokens was not expected"):
                await own.say(WISH)

    asyncio.run(run())
