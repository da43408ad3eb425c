"""Tokens to text as they come, and what callers may ask."""

from __future__ import annotations

import random
from typing import Any

import pytest

from sfl.data import load_tokenizer
from sfl.serving.requests import BadRequest, read_chat, read_completion
from sfl.serving.text import RunningText
from tests.house.paths import MODEL, STORIES

LETTERS = "abcdefghij "


def decode(ids: Any) -> str:
    return "".join(LETTERS[number] for number in ids)


def said(text: str, stops: tuple[str, ...]) -> tuple[str, list[str], bool]:
    running = RunningText(decode, [], stops)
    pieces = [running.add(LETTERS.index(letter)) for letter in text]
    return "".join([*pieces, running.end()]), pieces, running.stopped


def test_a_stop_string_ends_the_text_before_it() -> None:
    assert said("abcdefgh", ("def",)) == ("abc", ["a", "b", "c", "", "", "", "", ""], True)
    assert said("abcde", ("dx",)) == ("abcde", ["a", "b", "c", "", "de"], False)
    assert said("abcd", ("de",)) == ("abcd", ["a", "b", "c", ""], False)
    assert said("aab", ("ab",)) == ("a", ["", "a", ""], True)
    assert said("abab", ()) == ("abab", ["a", "b", "a", "b"], False)


def test_whatever_the_stops_nothing_is_said_that_is_taken_back() -> None:
    draw = random.Random(4)
    stopped = 0
    for _ in range(3000):
        text = "".join(draw.choice("abc") for _ in range(draw.randrange(12)))
        stops = tuple(
            "".join(draw.choice("abc") for _ in range(draw.randrange(1, 5))) for _ in range(2)
        )
        found = [at for stop in stops if (at := text.find(stop)) >= 0]
        whole, _, is_stopped = said(text, stops)
        # The first stop to be complete counts; of two at once the one that begins first.
        ends = [(text.find(stop) + len(stop), text.find(stop)) for stop in stops if stop in text]
        assert whole == (text[: min(ends)[1]] if ends else text), (text, stops)
        assert is_stopped == bool(found)
        stopped += is_stopped
    assert stopped > 500


@pytest.mark.parametrize("model", [MODEL, STORIES], ids=lambda path: path.name)
def test_pieces_of_a_real_tokenizer_are_the_whole_text(model: Any) -> None:
    if not model.is_dir():
        pytest.skip("the stories model is not here")
    tokenizer = load_tokenizer(model)
    for text in ("Once upon a time, there was a cat.", "déjà vu 🙂 naïve ✓", "a\n\n b  c"):
        prompt = tokenizer.encode(["Tell me."])[0]
        ids = tokenizer.continuations([("Tell me.", text)])[0]
        running = RunningText(tokenizer.decode, prompt)
        pieces = [running.add(number) for number in ids]
        whole = "".join([*pieces, running.end()])
        assert whole == tokenizer.decode([*prompt, *ids]).removeprefix(tokenizer.decode(prompt))
        assert not any("\ufffd" in piece for piece in pieces[:-1])


SCRIPTS = ("日本語の文章です。", "🙂🙂🙂", "สวัสดี", "aé日b🙂本 c")


@pytest.mark.parametrize("prompt", ["Tell me.", "日本語", "🙂"])
@pytest.mark.parametrize("model", [MODEL, STORIES], ids=lambda path: path.name)
def test_characters_of_many_tokens_come_out_whole(model: Any, prompt: str) -> None:
    """A vocabulary that lacks a script spells it in bytes, several tokens a character."""
    if not model.is_dir():
        pytest.skip("the stories model is not here")
    tokenizer = load_tokenizer(model)
    for text in SCRIPTS:
        before = tokenizer.encode([prompt])[0]
        ids = tokenizer.continuations([(prompt, text)])[0]
        running = RunningText(tokenizer.decode, before)
        pieces = [running.add(number) for number in ids]
        whole = tokenizer.decode([*before, *ids]).removeprefix(tokenizer.decode(before))
        assert "".join([*pieces, running.end()]) == whole
        # The small vocabulary of the quickstart lacks some bytes altogether.
        assert whole.strip() == text or model == MODEL
        assert sum(map(bool, pieces)) > 2


def test_a_stop_string_counts_in_what_was_held_to_the_end() -> None:
    held = RunningText(lambda ids: "".join(("a", "bc\ufffd")[n] for n in ids), [], ("bc",))
    assert [held.add(0), held.add(1)] == ["a", ""]
    assert (held.end(), held.stopped) == ("", True)


CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def test_what_is_asked_is_read() -> None:
    asked = read_chat(
        {
            **CHAT,
            "max_completion_tokens": 7,
            "max_tokens": 9,
            "temperature": 0,
            "seed": 3,
            "stop": "x",
            "stream": True,
            "stream_options": {"include_usage": True},
            "n": 1,
            "user": "somebody",
            "response_format": {"type": "text"},
        }
    )
    assert (asked.max_tokens, asked.temperature, asked.top_p, asked.seed) == (7, 0.0, 1.0, 3)
    assert (asked.stops, asked.stream, asked.include_usage) == (("x",), True, True)
    assert asked.prompt == (("user", "hi"),)
    assert asked.sampling(99).seed == 3
    assert read_chat(CHAT).sampling(99).seed == 99
    assert read_completion({"model": "m", "prompt": ["a"]}).prompt == "a"
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "developer", "content": parts}]
    assert read_chat({**CHAT, "messages": messages}).prompt == (("system", "ab"),)


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0]"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0]"),
        ({"model": ""}, "model"),
        ({"n": 2}, "n"),
        ({"logprobs": True}, "logprobs"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": True}, "max_tokens"),
        ({"seed": 1.5}, "seed"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": {"a": 1}}, "stop"),
    ],
)
def test_what_is_not_answered_is_refused_by_its_name(changes: dict[str, Any], param: str) -> None:
    with pytest.raises(BadRequest) as error:
        read_chat({**CHAT, **changes})
    assert error.value.param == param


@pytest.mark.parametrize("body", [None, [], "text", 3])
def test_a_body_that_is_no_object_is_refused(body: Any) -> None:
    with pytest.raises(BadRequest, match="not a JSON object"):
        read_completion(body)
