"""What a caller of the endpoint asks, by OpenAI's interface: read, bounded, refused with a reason.

Only what is answered is taken. A field that would change the answer and is not known here is
refused, so that nobody believes it was heard; others are let pass, as OpenAI's own servers do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sfl.serving.sampling import Sampling

ROLES = ("system", "developer", "user", "assistant")
MOST_STOPS = 4
MOST_CHARACTERS = 1 << 20
LONGEST_STOP = 200
REFUSED = {
    "n": 1,
    "best_of": 1,
    "logprobs": False,
    "top_logprobs": 0,
    "echo": False,
    "suffix": None,
    "tools": None,
    "functions": None,
    "logit_bias": None,
    "frequency_penalty": 0,
    "presence_penalty": 0,
    "response_format": None,
}
"""Fields that are not known here, and the value at which they change nothing."""


class BadRequest(Exception):
    """A request that cannot be answered: which field, and why."""

    def __init__(self, param: str, problem: str) -> None:
        self.param = param
        super().__init__(f"{param}: {problem}" if param else problem)


@dataclass(frozen=True, slots=True)
class Asked:
    """An answer that is wished. `seed` is None where the caller leaves it open."""

    model: str
    prompt: str | tuple[tuple[str, str], ...]
    """A text to go on with, or messages as (role, content)."""
    max_tokens: int | None
    temperature: float
    top_p: float
    seed: int | None
    stops: tuple[str, ...]
    stream: bool
    include_usage: bool

    def sampling(self, free_seed: int) -> Sampling:
        """How tokens are drawn; `free_seed` counts where the caller gave none."""
        seed = free_seed if self.seed is None else self.seed
        return Sampling(self.temperature, self.top_p, seed)


def read_chat(body: Any) -> Asked:
    """Of `/v1/chat/completions`. Raises BadRequest."""
    table = _table(body)
    messages = table.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadRequest("messages", "a list with one message at least")
    return _asked(table, tuple(_message(n, message) for n, message in enumerate(messages)))


def read_completion(body: Any) -> Asked:
    """Of `/v1/completions`. Raises BadRequest."""
    table = _table(body)
    prompt = table.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str) or not prompt:
        raise BadRequest("prompt", "one text, which is not empty")
    return _asked(table, _whole("prompt", prompt))


def _asked(table: Mapping[str, Any], prompt: str | tuple[tuple[str, str], ...]) -> Asked:
    for name, harmless in REFUSED.items():
        if table.get(name) not in (None, harmless, [], {}):
            if name == "response_format" and table[name] == {"type": "text"}:
                continue
            raise BadRequest(name, "is not supported here")
    options = table.get("stream_options") or {}
    temperature = _number(table, "temperature", 1.0)
    top_p = _number(table, "top_p", 1.0)
    if (problem := Sampling(temperature, top_p).problem()) is not None:
        raise BadRequest(problem.partition(" ")[0], problem)
    tokens = _count(table, "max_completion_tokens") or _count(table, "max_tokens")
    seed = table.get("seed")
    if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool)):
        raise BadRequest("seed", "a whole number")
    return Asked(
        _text(table, "model"),
        prompt,
        tokens,
        temperature,
        top_p,
        None if seed is None else seed % (1 << 63),
        _stops(table.get("stop")),
        table.get("stream") is True,
        isinstance(options, Mapping) and options.get("include_usage") is True,
    )


def _table(body: Any) -> Mapping[str, Any]:
    if not isinstance(body, Mapping):
        raise BadRequest("", "the body is not a JSON object")
    return body


def _message(number: int, message: Any) -> tuple[str, str]:
    field = f"messages[{number}]"
    if not isinstance(message, Mapping) or message.get("role") not in ROLES:
        raise BadRequest(field, f"an object with a role: {', '.join(ROLES)}")
    content = message.get("content")
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
        if not all(isinstance(part, str) for part in parts):
            raise BadRequest(field, "only text is taken")
        content = "".join(map(str, parts))
    if not isinstance(content, str) or len(content) > MOST_CHARACTERS:
        raise BadRequest(field, f"its content is a text of at most {MOST_CHARACTERS} characters")
    role = "system" if message["role"] == "developer" else str(message["role"])
    return role, _whole(field, content)


def _whole(field: str, text: str) -> str:
    """A text as it is; JSON can spell half a character, of which no bytes can be made."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise BadRequest(field, "a text with half a character: a surrogate by itself") from None
    return text


def _text(table: Mapping[str, Any], name: str) -> str:
    value = table.get(name)
    if not isinstance(value, str) or not value:
        raise BadRequest(name, "a text is needed")
    return value


def _number(table: Mapping[str, Any], name: str, default: float) -> float:
    value = table.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadRequest(name, "a number")
    try:
        return float(value)
    except OverflowError:
        raise BadRequest(name, "a number of that size is none") from None


def _count(table: Mapping[str, Any], name: str) -> int | None:
    value = table.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise BadRequest(name, "a whole number above 0")
    return value


def _stops(value: Any) -> tuple[str, ...]:
    stops: Sequence[Any] = [value] if isinstance(value, str) else value or []
    if not isinstance(stops, list) or len(stops) > MOST_STOPS:
        raise BadRequest("stop", f"a text, or a list of at most {MOST_STOPS}")
    if not all(isinstance(stop, str) and 0 < len(stop) <= LONGEST_STOP for stop in stops):
        raise BadRequest("stop", f"texts of 1 to {LONGEST_STOP} characters")
    return tuple(stops)
