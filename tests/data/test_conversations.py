"""Conversations and instructions: what is read, as which text, and scored on answers only."""

import json
from pathlib import Path
from typing import Any

import pytest

from cloud_aggregator.text_form import text_form, unlike, with_text_form
from sfl.config import DataSettings, DeviceEntry, ModelSettings, RunConfig, RunSettings
from sfl.data import Example, Tokenizer, encode_rows, load_tokenizer, prepare, prompt_ids
from sfl.data.conversation import instruction_prompt
from sfl.errors import DataError
from sfl.rounds.values import DeviceFacts
from tests.house.paths import MODEL
from tests.house.rows import CHATML, causal, rows_of, save_tokenizer, scored

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "lamp on"},
    {"role": "assistant", "content": "it is on"},
    {"role": "user", "content": "and now"},
    {"role": "assistant", "content": "still"},
]
SHAREGPT = {"system": "system", "user": "human", "assistant": "gpt"}
FORGETFUL = (
    "{% for m in messages %}{% if m.role == 'assistant' and not loop.last %}"
    "<|im_start|>...<|im_end|>\n{% else %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def plain() -> Tokenizer:
    return load_tokenizer(MODEL)


def templated(folder: Path, template: str = CHATML) -> Tokenizer:
    import transformers

    save_tokenizer(folder, "Qwen2Tokenizer", "qwen2", chat_template=template)
    backend = transformers.AutoTokenizer.from_pretrained(str(folder))
    backend.add_special_tokens(
        {"eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]}
    )
    backend.save_pretrained(folder)
    return load_tokenizer(folder)


@pytest.fixture(scope="module")
def chatml(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return templated(tmp_path_factory.mktemp("chatml"))


def encoded(tokenizer: Tokenizer, *values: dict[str, Any], **data: Any) -> list[Example]:
    return encode_rows(rows_of(*values), tokenizer, causal(), DataSettings(**data))[0]


def sharegpt(turns: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{"from": SHAREGPT[turn["role"]], "value": turn["content"]} for turn in turns]


ROWS: list[dict[str, Any]] = [
    {"messages": TALK},
    {"conversations": sharegpt(TALK)},
    {"messages": sharegpt(TALK), "source": "x"},
    {"conversations": TALK, "id": 1},
    {
        "messages": [
            {**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in TALK
        ]
    },
]


@pytest.mark.parametrize("row", ROWS)
def test_with_a_template_every_answer_is_scored_with_its_end_marker(
    chatml: Tokenizer, row: dict[str, Any]
) -> None:
    [example] = encoded(chatml, row)
    whole = "".join(
        f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in TALK
    ).rstrip("\n")
    assert list(example.input_ids) == chatml.encode([whole])[0]
    answers = [chatml.encode([text])[0] for text in ("it is on", "still")]
    assert scored(example) == [n for ids in answers for n in (*ids, chatml.eos_id)]


@pytest.mark.parametrize("row", ROWS)
def test_without_a_template_turns_are_named(plain: Tokenizer, row: dict[str, Any]) -> None:
    [example] = encoded(plain, row)
    text = plain.decode(example.input_ids)
    assert text.startswith("System: Be brief.\nUser: lamp on\nAssistant: it is on")
    assert text.endswith("\nUser: and now\nAssistant: still")
    assert plain.decode(scored(example)).split() == ["it", "is", "on", "still"]
    assert scored(example).count(plain.eos_id) == 2 and example.input_ids[-1] == plain.eos_id
    assert example.input_ids[0] == plain.prefix[0] and example.labels[0] == -100


def test_one_exchange_is_a_prompt_and_its_completion(chatml: Tokenizer, plain: Tokenizer) -> None:
    talk = [{"role": "user", "content": "lamp on"}, {"role": "assistant", "content": "yes"}]
    assert encoded(chatml, {"messages": talk}) == encoded(
        chatml, {"prompt": "lamp on", "completion": "yes"}
    )
    for tokenizer in (chatml, plain):
        [example] = encoded(tokenizer, {"messages": talk})
        start = prompt_ids(tokenizer, "lamp on", DataSettings(layout="messages"))
        assert list(example.input_ids[: len(start)]) == start
        assert all(label == -100 for label in example.labels[: len(start)])
        assert example.labels[len(start)] != -100


def test_a_conversational_prompt_is_not_scored(chatml: Tokenizer, plain: Tokenizer) -> None:
    row = {"prompt": TALK[:4], "completion": TALK[4:]}
    [example] = encoded(chatml, row)
    assert scored(example) == [*chatml.encode(["still"])[0], chatml.eos_id]
    for tokenizer in (chatml, plain):
        [one] = encoded(tokenizer, row)
        [other] = encoded(tokenizer, {"messages": TALK})
        if tokenizer is chatml:  # without a template only what is scored gets an end token
            assert one.input_ids == other.input_ids
        assert tokenizer.decode(one.input_ids) == tokenizer.decode(other.input_ids)
    mixed = {"prompt": "lamp on", "completion": [{"role": "assistant", "content": "yes"}]}
    assert encoded(chatml, mixed) == encoded(chatml, {"prompt": "lamp on", "completion": "yes"})


@pytest.mark.parametrize("names", [("input", "output"), ("context", "response")])
def test_instructions(plain: Tokenizer, chatml: Tokenizer, names: tuple[str, str]) -> None:
    further, answer = names
    with_input = {"instruction": "say", further: "hi", answer: "hello"}
    without = {"instruction": "say", further: "", answer: "hello"}
    first, second = encoded(plain, with_input, without)
    assert plain.decode(first.input_ids) == instruction_prompt("say", "hi") + "hello"
    assert plain.decode(second.input_ids) == instruction_prompt("say") + "hello"
    assert plain.decode(scored(second)) == "hello" and second.input_ids[-1] == plain.eos_id
    start = prompt_ids(plain, "say", DataSettings(layout="instruction"))
    assert list(second.input_ids[: len(start)]) == start
    pairs = [{"prompt": p, "completion": "hello"} for p in ("say\n\nhi", "say")]
    assert encoded(chatml, with_input, without) == encoded(chatml, *pairs)


def test_a_template_that_rewrites_earlier_turns_gives_an_example_for_each_answer(
    tmp_path: Path,
) -> None:
    tokenizer = templated(tmp_path, FORGETFUL)
    first, second = encoded(tokenizer, {"messages": TALK})
    answers = [[*tokenizer.encode([text])[0], tokenizer.eos_id] for text in ("it is on", "still")]
    assert [scored(first), scored(second)] == answers
    assert "..." in tokenizer.decode(second.input_ids)


def test_a_long_conversation_loses_its_first_prompt_first(chatml: Tokenizer) -> None:
    rows = rows_of({"messages": TALK})
    [whole], _ = encode_rows(rows, chatml, causal(), DataSettings())
    for length in range(2, len(whole.input_ids)):
        examples, notes = encode_rows(rows, chatml, causal(length), DataSettings())
        assert notes.truncated == 1 and notes.tokens == len(whole.input_ids)
        for example in examples:
            assert len(example.input_ids) == len(example.labels) == length
            count, targets = len(scored(example)), scored(whole)
            # The first token of all is predicted by nothing.
            assert scored(example) in (targets[:count], targets[1 : count + 1])


def test_nothing_to_answer_is_dropped(plain: Tokenizer) -> None:
    only = {"messages": [{"role": "assistant", "content": "hello"}]}
    asked = {"messages": [{"role": "user", "content": "hello"}]}
    rows = rows_of({"messages": TALK}, only, asked)
    examples, notes = encode_rows(rows, plain, causal(), DataSettings())
    assert (len(examples), notes.dropped) == (1, 2)


@pytest.mark.parametrize(
    ("row", "match"),
    [
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, r'completion_field = "chosen"'),
        ({"chosen": "a", "rejected": "b"}, r'completion_field = "chosen"'),
        ({"chosen": TALK, "rejected": TALK}, r'messages_field = "chosen"'),
        ({"prompt": "p", "completion": 3}, r"an int, not text. Write it as a string"),
        ({"prompt": "p", "completion": {"a": "x"}}, r"within it, e.g. completion.a"),
        ({"messages": "hi"}, "is a str, not a list of messages"),
        ({"messages": None}, r"is empty \(null\), not a list"),
        ({"messages": ["hi"]}, "has a str as message 1"),
        ({"messages": [{"role": "boss", "content": "x"}]}, "has the role 'boss' in message 1"),
        ({"messages": [{"content": "x"}]}, "has the role None"),
        ({"messages": [{"role": "user", "content": None}]}, "empty .null. as the content"),
        (
            {"messages": [{"role": "assistant", "content": None, "tool_calls": [{}]}]},
            "calls a tool in message 1",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]},
            "as the content of message 1, not text",
        ),
        ({"instruction": "say", "input": "hi"}, "no such field .it has: instruction, input"),
        ({"instruction": ["say"], "output": "x"}, "a list, not text"),
        ({"question": "q", "answer": "a"}, "it has: question, answer"),
        ({"prompt": "p", "completion": "half \ud83d"}, "half a character"),
    ],
)
def test_other_rows_say_what_to_do(plain: Tokenizer, row: dict[str, Any], match: str) -> None:
    with pytest.raises(DataError, match=match) as caught:
        encoded(plain, row)
    assert "f.jsonl, line 1" in str(caught.value) and caught.value.fix


def test_the_chosen_answers_may_be_trained_on(plain: Tokenizer) -> None:
    row = {"prompt": "p ", "chosen": "a", "rejected": "b"}
    [example] = encoded(plain, row, completion_field="chosen")
    assert plain.decode(example.input_ids) == "p a"
    row = {"chosen": TALK, "rejected": TALK}
    assert encoded(plain, row, messages_field="chosen") == encoded(plain, {"messages": TALK})


def test_a_template_that_refuses_a_row_names_it(tmp_path: Path) -> None:
    template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
    )
    tokenizer = templated(tmp_path, template + CHATML)
    with pytest.raises(DataError, match=r"f.jsonl, line 1 .*system, user.*no system role"):
        encoded(tokenizer, {"messages": TALK})


def test_a_layout_may_be_named(plain: Tokenizer) -> None:
    row = {"messages": TALK, "text": "lamp"}
    assert plain.decode(encoded(plain, row, layout="text")[0].input_ids) == "lamp"
    with pytest.raises(DataError, match="no such field"):
        encoded(plain, {"text": "lamp"}, layout="messages")


# --- fixed in the effective configuration --------------------------------------------------------


def run(**data: Any) -> RunConfig:
    return RunConfig.model_validate(
        {"model": {"path": "m"}, "data": data, "devices": [{"name": "a"}, {"name": "b"}]}
    )


def test_the_first_device_fixes_how_rows_become_text() -> None:
    ready = text_form(DeviceFacts(8, layout="messages", chat_template="ab12"))
    config = with_text_form(run(), ready)
    data = config.data
    assert (data.layout, data.chat_template, data.chat_template_digest) == (
        "messages",
        True,
        "ab12",
    )
    assert with_text_form(config, ready) == config and unlike(config, ready) == ""
    other = text_form(DeviceFacts(8, layout="completion", chat_template="ab12"))
    assert "'completion'" in unlike(with_text_form(config, other), other)
    other = text_form(DeviceFacts(8, layout="messages", chat_template=""))
    assert "another chat template" in unlike(with_text_form(config, other), other)


def test_no_template_is_fixed_as_well() -> None:
    ready = text_form(DeviceFacts(8, layout="completion"))
    config = with_text_form(run(), ready)
    assert config.data.chat_template is False and unlike(config, ready) == ""
    other = text_form(DeviceFacts(8, layout="completion", chat_template="ab12"))
    assert "another chat template" in unlike(with_text_form(config, other), other)
    text = text_form(DeviceFacts(8, layout="text"))
    config = with_text_form(run(), text)
    assert config.data.layout == "text" and unlike(config, text) == ""
    for layout in ("label", "", "nonsense"):
        assert with_text_form(run(), text_form(DeviceFacts(8, layout=layout))) == run()


def test_a_node_with_another_template_is_refused(tmp_path: Path, chatml: Tokenizer) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"messages": TALK}) + "\n" for _ in range(3)))
    device = DeviceEntry(name="a", train=path)
    settings = RunSettings(
        model=ModelSettings(path="m"),
        data=DataSettings(chat_template_digest="another"),
        devices=(device,),
    )
    with pytest.raises(DataError, match="another chat template"):
        prepare(device, "a", settings, chatml)
    own = settings.model_copy(update={"data": DataSettings()})
    dataset = prepare(device, "a", own, chatml)
    assert (dataset.layout, dataset.kind) == ("messages", "completion")
    assert dataset.chat_template == chatml.chat_template_digest != ""
