"""Conversations between values and the wire's messages; what a peer says is checked here."""

from __future__ import annotations

from dataclasses import dataclass

import grpc

from sfl.config.serve import MOST_DRAFTED
from sfl.errors import ProtocolError, SflError
from sfl.node.text import plain
from sfl.serving.sampling import Sampling
from sfl.serving.steps import MOST_RESERVED
from sfl.stage.serving.messages import (
    Answer,
    Later,
    Missing,
    Opened,
    Opening,
    Rows,
    Step,
    Tokens,
)
from sfl.transport.frames import contract
from sfl.transport.inproc import Status
from sfl.transport.serve.rows import RowCodec
from sfl.transport.status import LONGEST_DETAILS, error_of, status_of
from sfl.v1 import serve_pb2

MOST_NAME = 200
"""Characters of a conversation's name, and of a sampling's key."""
MOST_ADAPTERS = 10_000
LONGEST_WAIT = 3600.0


@dataclass(frozen=True, slots=True)
class ServedHere:
    """What an edge tells a device that comes in: adapters by name with their digests, blocks."""

    edge: str
    adapters: tuple[tuple[str, str], ...]
    codec: str
    first: int
    last: int
    head: bool
    prefill_chunk: int
    room: int
    """Tokens that fit in all."""
    max_tokens: int


def to_ended(error: SflError) -> serve_pb2.GenerateReply:
    """As the wire has it."""
    number, _ = status_of(error).value
    reason = plain(str(error), LONGEST_DETAILS)
    return serve_pb2.GenerateReply(ended=serve_pb2.ServingEnded(status=number, reason=reason))


def from_ended(ended: serve_pb2.ServingEnded, peer: str) -> SflError:
    """What to raise, as if the call had ended so."""
    codes = {code.value[0]: code for code in grpc.StatusCode}
    code = codes.get(ended.status, grpc.StatusCode.UNKNOWN)
    return error_of(Status(code, ended.reason).raised(), peer)


def to_welcome(here: ServedHere) -> serve_pb2.GenerateReply:
    """As the wire has it."""
    welcome = serve_pb2.ServeWelcome(
        edge=here.edge,
        adapters=[serve_pb2.ServedAdapter(name=name, digest=d) for name, d in here.adapters],
        codec=here.codec,
        first=here.first,
        last=here.last,
        head=here.head,
        prefill_chunk=here.prefill_chunk,
        room=here.room,
        max_tokens=here.max_tokens,
    )
    return serve_pb2.GenerateReply(welcome=welcome)


def from_welcome(said: serve_pb2.ServeWelcome) -> ServedHere:
    """What an edge says. Raises ProtocolError."""
    contract.name("edge", said.edge)
    contract.whole("adapters", len(said.adapters), 1, MOST_ADAPTERS)
    contract.whole("last", said.last, said.first + 1, contract.MOST_BLOCKS)
    contract.whole("prefill_chunk", said.prefill_chunk, 1, MOST_RESERVED)
    contract.whole("max_tokens", said.max_tokens, 1, MOST_RESERVED)
    return ServedHere(
        said.edge,
        tuple((plain(one.name, MOST_NAME), one.digest) for one in said.adapters),
        said.codec,
        said.first,
        said.last,
        said.head,
        said.prefill_chunk,
        said.room,
        said.max_tokens,
    )


def to_open(conversation: int, opening: Opening, digest: str) -> serve_pb2.GenerateRequest:
    """As the wire has it."""
    own = opening.sampling
    return serve_pb2.GenerateRequest(
        open=serve_pb2.OpenConversation(
            conversation=conversation,
            name=opening.name,
            adapter=opening.adapter,
            digest=digest,
            first=opening.first,
            last=opening.last,
            ends=opening.ends,
            reserved=opening.reserved,
            exact=opening.exact,
            sampling=serve_pb2.SamplingSettings(
                temperature=own.temperature, top_p=own.top_p, seed=own.seed, key=own.key
            ),
        )
    )


def from_open(said: serve_pb2.OpenConversation) -> Opening:
    """What a device asks; whether it can be had is decided elsewhere. Raises ProtocolError."""
    if not said.name or len(said.name) > MOST_NAME or len(said.sampling.key) > MOST_NAME:
        raise ProtocolError(f"a conversation's name has 1 to {MOST_NAME} characters")
    own = said.sampling
    sampling = Sampling(own.temperature, own.top_p, own.seed, own.key)
    return Opening(
        said.name,
        said.adapter,
        said.first,
        said.last,
        said.ends,
        said.reserved,
        sampling,
        said.exact,
    )


def to_opened(conversation: int, opened: Opened) -> serve_pb2.GenerateReply:
    """As the wire has it."""
    return serve_pb2.GenerateReply(
        opened=serve_pb2.ConversationOpened(
            conversation=conversation, length=opened.length, number=opened.number
        )
    )


def to_step(conversation: int, step: Step, codec: RowCodec) -> serve_pb2.GenerateRequest:
    """As the wire has it."""
    return serve_pb2.GenerateRequest(
        step=serve_pb2.GenerateStep(
            conversation=conversation,
            number=step.number,
            position=step.position,
            wanted=step.wanted,
            rows=codec.encode(step.rows),
            draft=step.draft,
            drafted=0 if step.draft else step.drafted,
        )
    )


def from_step(said: serve_pb2.GenerateStep, name: str, codec: RowCodec) -> Step:
    """A step, with rows that are finite. Raises ProtocolError."""
    drafted = len(said.draft) or said.drafted
    contract.whole("drafted tokens of a step", drafted, 0, MOST_DRAFTED)
    try:
        rows = codec.decode(said.rows)
    except ProtocolError as error:
        raise ProtocolError(f"conversation {name}, step {said.number}: {error}") from None
    return Step(name, said.number, said.position, rows, said.wanted, drafted, tuple(said.draft))


def to_answer(conversation: int, answer: Answer, codec: RowCodec) -> serve_pb2.GenerateReply:
    """As the wire has it."""
    match answer:
        case Tokens(number, tokens):
            return serve_pb2.GenerateReply(
                tokens=serve_pb2.StepTokens(conversation=conversation, number=number, tokens=tokens)
            )
        case Rows(number, rows):
            return serve_pb2.GenerateReply(
                rows=serve_pb2.StepRows(
                    conversation=conversation, number=number, rows=codec.encode(rows)
                )
            )
        case Missing(number, length):
            return serve_pb2.GenerateReply(
                missing=serve_pb2.StepMissing(
                    conversation=conversation, number=number, length=length
                )
            )
        case Later(retry_after):
            return to_busy(conversation, retry_after)


def to_busy(conversation: int, retry_after: float) -> serve_pb2.GenerateReply:
    """As the wire has it."""
    return serve_pb2.GenerateReply(
        busy=serve_pb2.EdgeBusy(conversation=conversation, retry_after=retry_after)
    )


def to_closed(conversation: int, reason: str) -> serve_pb2.GenerateReply:
    """As the wire has it."""
    return serve_pb2.GenerateReply(
        closed=serve_pb2.ConversationClosed(conversation=conversation, reason=reason)
    )


@dataclass(frozen=True, slots=True)
class Closed:
    """The edge has closed a conversation, or did not open it, and why."""

    reason: str


Reply = Opened | Answer | Closed


def from_reply(
    said: serve_pb2.GenerateReply, codec: RowCodec, vocab_size: int
) -> tuple[int, Reply]:
    """Which conversation it is of, and what is said. Raises ProtocolError."""
    match said.WhichOneof("body"):
        case "opened":
            opened = said.opened
            return opened.conversation, Opened(opened.length, opened.number)
        case "tokens":
            tokens = said.tokens
            if not all(token < vocab_size for token in tokens.tokens):
                raise ProtocolError(f"a token that is none of {vocab_size}")
            return tokens.conversation, Tokens(tokens.number, tuple(tokens.tokens))
        case "rows":
            rows = said.rows
            return rows.conversation, Rows(rows.number, codec.decode(rows.rows))
        case "missing":
            missing = said.missing
            return missing.conversation, Missing(missing.number, missing.length)
        case "busy":
            busy = said.busy
            contract.number("retry_after", busy.retry_after, 0.0, LONGEST_WAIT)
            return busy.conversation, Later(busy.retry_after)
        case "closed":
            return said.closed.conversation, Closed(contract.reason(said.closed.reason))
        case body:
            raise ProtocolError(f"{body or 'an empty message'} was not expected")
