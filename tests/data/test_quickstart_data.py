"""The quickstart's model has read nothing of the homes, and what is shipped is what is made."""

import json
import re
import sys
from itertools import islice, product
from pathlib import Path

import pytest

from tests.house.paths import MODEL, QUICKSTART

sys.path.append(str(QUICKSTART))  # its scripts import each other as scripts do

import corpus
import homes
import templates
import words

LARGEST = 8 * 2**20
LONGEST = 96  # tokens
SPLITS = ("train", "eval")


def shipped(home: str, split: str) -> list[dict[str, str]]:
    text = (QUICKSTART / "data" / home / f"{split}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def home_names() -> set[str]:
    """Every room and device of every home."""
    return {name for home in homes.HOMES.values() for name in (*home.rooms, *home.devices)}


def home_words() -> set[str]:
    return {word for name in home_names() for word in name.split()}


def corpus_words() -> set[str]:
    """All that the corpus is made of, but for words made up."""
    listed = " ".join(word for kind in words.WORDS.values() for word in kind)
    written = Path(templates.__file__).read_text(encoding="utf-8")
    return set(re.findall(r"[a-z]+", f"{listed} {written}".lower()))


def target(row: dict[str, str]) -> tuple[str, str, str]:
    action = json.loads(row["completion"])
    return action["room"], action["device"], action["action"]


def test_the_words_of_the_corpus_are_no_words_of_the_homes():
    assert not corpus_words() & home_words()


def test_two_joined_words_of_the_corpus_are_no_word_of_the_homes():
    listed = " ".join(word for kind in corpus.LOWER for word in words.WORDS[kind])
    known = set(listed.split())
    for word in home_words():
        parts = ((word[:k], word[k:]) for k in range(1, len(word)))
        assert not [pair for pair in parts if known.issuperset(pair)]


def test_no_made_up_word_can_be_a_word_of_the_homes():
    plain = re.compile(r"([^aeiou][aeiou]){2,4}")
    assert not [word for word in home_words() if plain.fullmatch(word) or set("xqz") & set(word)]
    rng = corpus.random.Random(0)
    made = [corpus.pseudo_word(rng) for _ in range(5000)]
    assert all(plain.fullmatch(word) or set("xqz") & set(word) for word in made)


@pytest.mark.process
def test_a_sample_of_the_corpus_has_nothing_of_the_homes():
    text = "\n".join(islice(corpus.documents(seed=1), 30_000)).lower()
    assert len(text) > 2_000_000
    assert not set(re.findall(r"[a-z]+", text)) & home_words()
    rows = [row for home in homes.HOMES for split in SPLITS for row in shipped(home, split)]
    assert not [row for row in rows if row["prompt"].lower() in text or row["completion"] in text]


def test_the_corpus_follows_from_its_seed():
    first, again, other = (list(islice(corpus.documents(seed), 300)) for seed in (5, 5, 6))
    assert first == again
    assert first != other


@pytest.mark.parametrize("home", homes.HOMES)
def test_shipped_commands_are_what_the_script_writes(home, tmp_path):
    made = homes.commands(home, seed=0, train=homes.TRAIN, held_out=homes.HELD_OUT)
    for split, rows in zip(SPLITS, made, strict=True):
        path = tmp_path / f"{split}.jsonl"
        homes.write(path, rows)
        assert path.read_bytes() == (QUICKSTART / "data" / home / path.name).read_bytes()


@pytest.mark.parametrize("home", homes.HOMES)
def test_what_is_evaluated_never_meets_in_training(home):
    train, held_out = (shipped(home, split) for split in SPLITS)
    assert not {target(row) for row in train} & {target(row) for row in held_out}
    assert not {row["completion"] for row in train} & {row["completion"] for row in held_out}
    assert not {row["prompt"] for row in train} & {row["prompt"] for row in held_out}
    assert len({target(row) for row in held_out}) >= 15


@pytest.mark.parametrize("home", homes.HOMES)
def test_every_completion_is_compact_json_of_what_the_home_has(home):
    known = homes.HOMES[home]
    for row in (row for split in SPLITS for row in shipped(home, split)):
        action = json.loads(row["completion"])
        assert row["completion"] == json.dumps(action, separators=(",", ":"))
        assert action["room"] in known.rooms
        assert action["action"] in homes.ACTIONS[known.devices[action["device"]]]
        assert ("value" in action) == (action["action"] == "set")


def test_homes_differ_in_rooms_devices_and_wording():
    def all_different(parts):
        assert len(parts) == len(set(parts))

    everyone = list(homes.HOMES.values())
    all_different([room for home in everyone for room in home.rooms])
    all_different([device for home in everyone for device in home.devices])
    all_different(
        [
            way.format(room="it", device="it", value=0)
            for home in everyone
            for action in home.wording
            for way in set(home.wording[action])
        ]
    )


def test_the_shipped_model_is_small_and_fits_its_tokenizer():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    assert sum(path.stat().st_size for path in MODEL.iterdir()) < LARGEST
    model = AutoModelForCausalLM.from_pretrained(MODEL)
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    assert model.config.vocab_size == len(tokenizer)
    assert model.config.tie_word_embeddings
    for name in ("bos", "eos", "pad"):
        number = getattr(tokenizer, f"{name}_token_id")
        assert number == getattr(model.config, f"{name}_token_id")
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3


def test_the_shipped_tokenizer_keeps_the_homes_texts_short_and_whole():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    for home, split in product(homes.HOMES, SPLITS):
        texts = [row["prompt"] + row["completion"] for row in shipped(home, split)]
        encoded = tokenizer(texts)["input_ids"]
        assert tokenizer.batch_decode(encoded, skip_special_tokens=True) == texts
        assert all(ids[0] == tokenizer.bos_token_id for ids in encoded)
        assert max(map(len, encoded)) < LONGEST
