"""What is wrong with a setting, in words: the field as its user knows it, the value, what to do."""

from __future__ import annotations

import difflib
import re
import types
import typing
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from sfl.config.base import MOST_CHARACTERS, NODE_NAME, PACKAGE, RUN_ID
from sfl.config.node import PLACE, POSTGRES
from sfl.errors import ConfigError

MOVED = {
    "data.max_eval_examples": "evaluation.max_examples",
    "edge.rest_dir": "edge.swap_dir",
    "edge.rest_in": "edge.swap_to",
    "serve.codec": "codec.serve",
}
"""Keys of earlier versions, and where what they set stands now."""

NEAR = 0.75
"""From here on one word is taken for a slip of another."""
SEE = "docs/configuration.md has every setting."

NAMES = "letters, digits, '_', '.' and '-' only, and a letter or a digit first"
PATTERNS = {
    RUN_ID: ("a run's name has letters, digits, '_', '.' and '-' only, and no '.' or '-' first"),
    NODE_NAME: f"a name has {NAMES}",
    PACKAGE: "a plug-in is named with its version, as name==1.0",
    r"^(https?://.+)?$": "an address begins with http:// or https://",
    PLACE: "a store is s3://BUCKET/PREFIX or file:///FOLDER",
    POSTGRES: "an address of a database begins with postgresql+psycopg://",
}
"""What each regular expression of a setting asks for."""

_KINDS = {
    "int": "is not a whole number",
    "float": "is not a number",
    "bool": "is neither true nor false",
    "string": "is not text",
    "path": "is not a path",
    "tuple": "is not a list",
    "list": "is not a list",
    "dict": "is not a table",
    "model": "is not a table",
}
"""By the first word of pydantic's error type, where a value is of another type."""

_BOUNDS = {
    "greater_than": ("gt", "must be greater than"),
    "greater_than_equal": ("ge", "must be at least"),
    "less_than": ("lt", "must be less than"),
    "less_than_equal": ("le", "must be at most"),
}


def as_config_error(
    kind: type[BaseModel], error: ValidationError, table: Mapping[str, Any], prefix: str
) -> ConfigError:
    """The first thing that is wrong with `table`, which was read as a `kind`."""
    first = error.errors()[0]
    where = first["loc"]
    field = prefix + ".".join(_steps(where, table))
    if first["type"] == "extra_forbidden":
        known = _keys_at(kind, where[:-1])
        return unknown_key(str(where[-1]), known, field, first["input"], keys_of(kind))
    if first["type"] == "missing":
        return ConfigError(field, None, "is required", f"Add `{where[-1]} = ...`.")
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return _by_our_own_rule(first, field, message)
    wrong, fix = _in_words(first)
    value = _without_user(first["input"]) if _is_place(first) else first["input"]
    return ConfigError(field, value, wrong + _or_words(error.errors()), fix)


def _is_place(error: ErrorDetails) -> bool:
    return error.get("ctx", {}).get("pattern") in (PLACE, POSTGRES)


def _without_user(value: str) -> str:
    """What is not written as a URL may have a password anywhere before its host."""
    return f"***{value[value.rindex('@') :]}" if "@" in value and "://" not in value else value


def _or_words(errors: list[ErrorDetails]) -> str:
    """The words that may stand in place of the number that the first error asks for."""
    where = errors[0]["loc"][:-1]
    for other in errors[1:]:
        if other["type"] == "literal_error" and other["loc"][:-1] == where:
            return f", nor {other['ctx']['expected']}"
    return ""


def unknown_key(
    key: str, known: list[str], field: str, value: Any, everywhere: Iterable[str] = ()
) -> ConfigError:
    """`known` are the keys that may stand there, `everywhere` all dotted ones.

    A key that is right in another place is meant rather than one that is only a little like it.
    """
    if field in MOVED:
        return ConfigError(field, value, "unknown key", f"It is {MOVED[field]!r} now.")
    elsewhere = [name for name in everywhere if name.rpartition(".")[2] == key]
    fix = (
        did_you_mean(key, known, cutoff=NEAR)
        or did_you_mean(key, elsewhere, cutoff=0.0)
        or did_you_mean(key, known)
    )
    return ConfigError(
        field or key, value, "unknown key", fix.strip() or f"Known: {', '.join(sorted(known))}."
    )


def did_you_mean(value: object, known: Iterable[str], cutoff: float = 0.5) -> str:
    """A question, with a space behind it, where one of the known is near; else nothing."""
    text = str(value)
    ratios = [(difflib.SequenceMatcher(None, name, text).ratio(), name) for name in known]
    # The first of equals: the field that is declared before its relatives.
    ratio, near = max(ratios, key=lambda one: one[0], default=(0.0, ""))
    return f"Did you mean {near!r}? " if near and ratio >= cutoff else ""


def keys_of(kind: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key of a section and of those within it."""
    for name, field in kind.model_fields.items():
        inner = _model_in(field.annotation)
        if inner is None:
            yield prefix + name
        else:
            yield from keys_of(inner, f"{prefix}{name}.")


def _in_words(error: ErrorDetails) -> tuple[str, str]:
    """(what is wrong, what to do)."""
    kind, context = error["type"], error.get("ctx", {})
    if kind == "literal_error":
        known = re.findall(r"'([^']*)'", str(context["expected"]))
        return f"is none of {', '.join(map(repr, known))}", did_you_mean(
            error["input"], known
        ).strip() or SEE
    if kind == "string_pattern_mismatch":
        return PATTERNS.get(context["pattern"], error["msg"]), "Write it otherwise."
    if kind in _BOUNDS:
        name, words = _BOUNDS[kind]
        return f"{words} {context[name]:g}", SEE
    if kind == "finite_number":
        return "is not a finite number", SEE
    word = kind.partition("_")[0]
    if word in _KINDS and ("type" in kind or "parsing" in kind or kind == "int_from_float"):
        return _KINDS[word], "Put it in quotes." if word == "string" else SEE
    return error["msg"], SEE


def _by_our_own_rule(error: ErrorDetails, field: str, message: str) -> ConfigError:
    """A rule of the section's own: its message may begin with the field that it is about."""
    if ": " not in message:
        return ConfigError(field, error["input"], message, SEE)
    name, message = message.split(": ", 1)
    field = f"{field.rstrip('.')}.{name}" if field else name
    return ConfigError(field, _look_up(error["input"], name), message, SEE)


def _steps(where: tuple[int | str, ...], table: Any) -> Iterator[str]:
    """The parts of a field's name; an entry of a list goes by its own name where it has one."""
    for step in where:
        if isinstance(table, str | int | float):
            return  # pydantic's name of one of the types that the value may have
        try:
            table = table[step]
        except (LookupError, TypeError):
            table = None
        name = table.get("name") if isinstance(step, int) and isinstance(table, Mapping) else None
        known = isinstance(name, str) and len(name) <= MOST_CHARACTERS
        yield str(name) if known and re.search(NODE_NAME, str(name)) else str(step)


def _look_up(value: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        if isinstance(value, list):
            tables = (entry for entry in value if isinstance(entry, Mapping))
            value = next((entry for entry in tables if entry.get("name") == part), None)
        else:
            value = value.get(part) if isinstance(value, Mapping) else None
    return value


def _keys_at(kind: type[BaseModel], where: tuple[int | str, ...]) -> list[str]:
    model: type[BaseModel] = kind
    for part in where:
        if isinstance(part, str) and part in model.model_fields:
            model = _model_in(model.model_fields[part].annotation) or model
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, BaseModel) else None
    for argument in typing.get_args(annotation):
        found = _model_in(argument)
        if found is not None:
            return found
    return None
