"""`sfl chat`: turns typed in a terminal, or piped, and answers as they come."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import typer

from sfl.cli.serve.source import Source, open_source
from sfl.cli.serve.speaker import Speaker, speaker_of
from sfl.config import RunConfig
from sfl.errors import ConfigError
from sfl.node.paths import is_utf8

if TYPE_CHECKING:
    from sfl.data import Tokenizer

Turn = dict[str, str]
PROMPT = "> "
HELP = (
    "/reset begins anew, /quit ends. Ctrl-C stops an answer, Ctrl-D ends.",
    "Each line is a turn.",
)
ALONE = "This model has no chat template: each line is answered by itself."
LEAST = 16
"""Tokens that an answer has room for, or the oldest turns are forgotten."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Which model is talked to, and how long it may talk."""

    source: Source
    max_new_tokens: int
    system: str = ""
    split: bool = False


def chat(asked: Asked) -> None:
    """Talk until the end of what is typed. Raises SflError."""
    from sfl.data import load_tokenizer

    opened = open_source(asked.source)
    tokenizer = load_tokenizer(opened.model.path)
    with speaker_of(opened, tokenizer, asked.split) as speaker:
        length = opened.model.context_length
        talk = Conversation(speaker, tokenizer, opened.config, length, asked)
        talk.take(lines())


class Conversation:
    """Turns so far, and what is said to the next one."""

    def __init__(
        self,
        speaker: Speaker,
        tokenizer: Tokenizer,
        config: RunConfig,
        context_length: int,
        asked: Asked,
    ) -> None:
        from sfl.data.encode import remembers_turns

        self._speaker = speaker
        self._tokenizer = tokenizer
        self._data = config.data
        self._context = context_length
        self._most = asked.max_new_tokens
        self._remembers = remembers_turns(tokenizer, config.data)
        self._begin: list[Turn] = []
        if asked.system:
            if not self._remembers:
                raise ConfigError("--system", asked.system, ALONE, "Leave it out.")
            self._begin = [{"role": "system", "content": asked.system}]
        self._turns = list(self._begin)

    def take(self, typed: Iterator[str]) -> None:
        """Answer each line. Raises SflError."""
        commands: dict[str, Callable[[], None]] = {"/reset": self._reset, "/help": _help}
        _help()
        if not self._remembers:
            hint(ALONE)
        for line in typed:
            text = line.strip()
            if text == "/quit":
                return
            if text in commands:
                commands[text]()
            elif text.startswith("/"):
                hint(f"{text.split()[0]} is none of {', '.join((*commands, '/quit'))}")
            elif text:
                self._answer_or_stop(text)

    def _reset(self) -> None:
        self._turns = list(self._begin)
        hint("It begins anew.")

    def _answer_or_stop(self, text: str) -> None:
        """An answer that Ctrl-C met before its first word was never asked for."""
        before = list(self._turns)
        try:
            self._answer(text)
        except KeyboardInterrupt:
            self._turns = before

    def _answer(self, text: str) -> None:
        if not is_utf8(text):
            hint("That line is not UTF-8.")
            return
        before = list(self._turns)
        self._turns.append({"role": "user", "content": text})
        ids = self._ids()
        room = self._context - len(ids)
        if not ids or room < 1:
            self._turns = before
            hint(f"That is too long: {len(ids)} tokens, and the model's context is {self._context}")
            return
        said = self._say(ids, min(self._most, room))
        self._turns.append({"role": "assistant", "content": said})

    def _say(self, ids: Sequence[int], most: int) -> str:
        """Print the answer as it comes, and return it; Ctrl-C ends it where it is."""
        from sfl.serving.text import RunningText

        text, said = RunningText(self._tokenizer.decode, ids), ""

        def show(piece: str) -> str:
            # Where the answer begins there may be a space, which is of the prompt's last word.
            piece = piece if said else piece.lstrip()
            sys.stdout.write(piece)
            sys.stdout.flush()
            return piece

        try:
            with closing(self._speaker.answer(ids, most)) as tokens:
                for token in tokens:
                    said += show(text.add(token))
            said += show(text.end())
        except KeyboardInterrupt:
            sys.stdout.write(" ...")
        sys.stdout.write("\n")
        sys.stdout.flush()
        return said.rstrip()

    def _ids(self) -> list[int]:
        """Of all turns, or the last ones that leave room for an answer."""
        from sfl.data.encode import conversation_ids

        if not self._remembers:
            self._turns = self._turns[-1:]
        while True:
            ids = conversation_ids(self._tokenizer, self._turns, self._data)
            first = len(self._begin)
            if len(ids) + min(LEAST, self._most) <= self._context or len(self._turns) < first + 3:
                return ids
            hint("The oldest turn does not fit any more, and is forgotten.")
            del self._turns[first : first + 2]


def lines() -> Iterator[str]:
    """What is typed, or piped in, until its end. At a terminal Ctrl-C empties the line."""
    if not sys.stdin.isatty():
        try:
            yield from sys.stdin
        except UnicodeDecodeError as error:
            fix = "Give text in UTF-8."
            raise ConfigError("standard input", error.reason, "it is not UTF-8", fix) from None
        return
    _edited()
    while True:
        try:
            yield input(PROMPT)
        except KeyboardInterrupt:
            hint("\n/quit or Ctrl-D ends.")
        except EOFError:
            sys.stdout.write("\n")
            return


def _edited() -> None:
    """Let arrows and the history of lines work, where the system can."""
    try:
        import readline  # noqa: F401 - `input` uses it once it is there
    except ImportError:
        return


def _help() -> None:
    hint("\n".join(HELP))


def hint(text: str) -> None:
    """For the person, beside the answers."""
    typer.secho(text, dim=True, err=True)
