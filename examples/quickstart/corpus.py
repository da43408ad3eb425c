"""Text to pre-train the quickstart's model on: made up from a seed, for ever.

Prose of many kinds teaches English, copying tasks and questions teach to carry words over from
the context, and sentences with their JSON objects teach what the homes' commands will ask for, in
other domains. Of the homes it knows nothing.
"""

import argparse
import json
import random
import re
from collections.abc import Callable, Iterator

from templates import DOMAINS, OPENINGS, PAIRINGS, POLITE, PROSE, QUESTIONS, STORY, Domain
from words import CLUSTERS, CODAS, MARKS, ONSETS, VOWELS, WORDS

_SLOT = re.compile(r"\{([a-z]+)(\d*)\}")
_SEPARATORS = ("", "", " ", "\n")


def documents(seed: int) -> Iterator[str]:
    """Documents without end, the same for the same seed."""
    rng = random.Random(seed)
    makers, weights = zip(*_KINDS, strict=True)
    while True:
        (make,) = rng.choices(makers, weights)
        yield make(rng)


def pseudo_word(rng: random.Random) -> str:
    """A word that is none, to be copied.

    Either plain syllables, consonant and vowel, or freer ones with an x, a q or a z: no word of
    the homes is of either shape, so chance cannot hit on one.
    """
    if rng.random() < 0.3:
        return "".join(rng.choice(ONSETS) + rng.choice("aeiou") for _ in range(rng.randint(2, 4)))
    parts = [_syllable(rng) for _ in range(rng.randint(1, 2))]
    parts.insert(rng.randint(0, len(parts)), rng.choice(MARKS) + rng.choice(("", "a", "e", "o")))
    return "".join(parts)


def word(kind: str, rng: random.Random) -> str:
    """A word of the kind; now and then one that was never seen, which can only be copied."""
    if kind == "number":
        return str(rng.randint(1, rng.choice((9, 99, 99, 999))))
    if kind == "phrase":
        return f"{rng.choice(WORDS['adj'])} {word('item', rng)}"
    if kind in ("did", "time", "key", "common"):
        return rng.choice(WORDS[kind])
    chance = rng.random()
    if chance < 0.15:
        return pseudo_word(rng)
    if chance < 0.25:
        return f"{rng.choice(WORDS['common'])} {pseudo_word(rng)}"
    if chance < 0.4:
        return f"{_any(rng)}{rng.choice((' ', ''))}{_any(rng)}"
    return rng.choice(WORDS[kind])


def _syllable(rng: random.Random) -> str:
    onset = rng.choice(rng.choice((ONSETS, CLUSTERS)))
    return onset + rng.choice(VOWELS) + rng.choice(("", rng.choice(CODAS)))


def _any(rng: random.Random) -> str:
    """One word in lower case, of any kind."""
    return rng.choice(rng.choice(WORDS[rng.choice(LOWER)]).split())


def _fill(text: str, rng: random.Random, bound: dict[str, str]) -> str:
    """`text` with its slots filled; `bound` has the words so far and gets the new ones."""

    def value(slot: re.Match[str]) -> str:
        key = slot.group(1) + slot.group(2)
        if key not in bound:
            bound[key] = word(slot.group(1), rng)
        return bound[key]

    return _SLOT.sub(value, text)


def _story(rng: random.Random) -> str:
    body = sorted(rng.sample(range(len(STORY)), rng.randint(2, 4)))
    sentences = [rng.choice(OPENINGS), *(STORY[k] for k in body)]
    return _fill(" ".join(sentences), rng, {})


def _prose(rng: random.Random) -> str:
    return _fill(rng.choice(rng.choice(PROSE)), rng, {})


def _question(rng: random.Random) -> str:
    context, question, answer = rng.choice(QUESTIONS)
    bound: dict[str, str] = {}
    parts = (_fill(part, rng, bound) for part in (context, question, answer))
    return "{} {} {}.".format(*parts)


def _copy(rng: random.Random) -> str:
    """Words, and the same words again."""
    pools = (_any, pseudo_word, lambda rng: word("number", rng), lambda rng: word("phrase", rng))
    words = [rng.choice(pools)(rng) for _ in range(rng.randint(2, 8))]
    joint = rng.choice((" ", " ", ", ", ","))
    text = joint.join(words)
    form = rng.choice(("{0}\n{0}", 'Copy: {0}. "{0}"', "{0} {0} {0}", 'Say {0} again: "{0}"'))
    return form.format(text)


def _listing(rng: random.Random) -> str:
    """Words, and the same words as a JSON list."""
    words = [rng.choice((_any, pseudo_word))(rng) for _ in range(rng.randint(2, 6))]
    return " and ".join(words) + rng.choice(_SEPARATORS) + _json(words)


def _lookup(rng: random.Random) -> str:
    """Pairs, some of them asked for again: what stood behind this word?"""
    pairs = [(_any(rng), rng.choice((_any, pseudo_word))(rng)) for _ in range(rng.randint(2, 5))]
    asked = rng.sample(pairs, min(len(pairs), rng.randint(1, 3)))
    return ", ".join(" ".join(pair) for pair in pairs) + "; " + ", ".join(map(" ".join, asked))


def _request(rng: random.Random) -> str:
    """What somebody wants, in words and as a JSON object."""
    domain = rng.choice(DOMAINS)
    intent = rng.choice(list(domain.intents))
    template = rng.choice(domain.intents[intent])
    used = [key for key in domain.keys if f"{{{key}}}" in template]
    values = {key: word(domain.keys[key], rng) for key in used}
    before, after = rng.choice(POLITE)
    sentence = before + template.format(**values) + after
    if rng.random() < 0.4:
        sentence = sentence[0].upper() + sentence[1:]
    return sentence + rng.choice(_SEPARATORS) + _json(_answer(domain, intent, values))


def _answer(domain: Domain, intent: str, values: dict[str, str]) -> dict[str, str | int]:
    numbers = {key for key, kind in domain.keys.items() if kind == "number"}
    filled = {key: int(text) if key in numbers else text for key, text in values.items()}
    return {domain.intent_key: intent, **filled}


def _record(rng: random.Random) -> str:
    """Properties under keys drawn at random, in words in any order and as a JSON object."""
    keys = rng.sample(WORDS["key"], rng.randint(1, 4))
    record: dict[str, str | int] = {}
    for key in keys:
        text = word(rng.choice(_RECORD_KINDS), rng)
        record[key] = int(text) if text.isdigit() else text
    told = rng.sample(keys, len(keys))
    pairs = [rng.choice(PAIRINGS).format(key=key, value=record[key]) for key in told]
    sentence = rng.choice((", ", " and ", "; ")).join(pairs)
    return sentence + rng.choice((".", "")) + rng.choice(_SEPARATORS) + _json(record)


def _json(content: object) -> str:
    return json.dumps(content, separators=(",", ":"))


# Kinds whose words may stand in for others, singly or joined.
LOWER = ("item", "food", "animal", "colour", "adj", "material", "job", "common", "common", "key")
_RECORD_KINDS = ("item", "food", "place", "number", "common", "colour", "phrase", "name", "adj")
_KINDS: tuple[tuple[Callable[[random.Random], str], int], ...] = (
    (_story, 6),
    (_prose, 14),
    (_question, 8),
    (_copy, 12),
    (_listing, 5),
    (_lookup, 5),
    (_request, 35),
    (_record, 15),
)


def main() -> None:
    """Print some documents."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=20)
    options = parser.parse_args()
    for _, text in zip(range(options.count), documents(options.seed), strict=False):
        print(text, end="\n\n")


if __name__ == "__main__":
    main()
