"""`docs/reference/wire.md`, from proto/ and sfl.transport: `python -m tools.wire_page`."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from sfl.codec.packet import MAX_TENSOR_BYTES
from sfl.transport.bulk import fetch, probe_service
from sfl.transport.frames import contract, wire
from sfl.transport.frames.seal import SEAL_BYTES
from sfl.transport.security import door
from sfl.transport.status import STATUS_OF

PROTO = Path(__file__).parent.parent / "proto" / "sfl" / "v1"
FILES = ("edge", "cloud", "tensor", "jobs", "serve")

_BLOCK = re.compile(r"^(message|enum) (\w+) \{$")
_FIELD = re.compile(r"^\s+(repeated )?([\w.]+) (\w+) = (\d+);(?:\s*//\s*(.*))?$")
_VALUE = re.compile(r"^\s+(\w+) = (\d+);(?:\s*//\s*(.*))?$")
_NOTE = re.compile(r"^\s*//\s?(.*)$")

METHODS = (
    wire.EDGE_SESSION,
    wire.EDGE_LIST_FILES,
    wire.EDGE_FETCH_FILE,
    wire.EDGE_PROBE,
    wire.CLOUD_SESSION,
    wire.GENERATE,
    wire.FETCH_ADAPTER,
    wire.ATTACH,
    *wire.JOB_METHODS,
)


def document() -> str:
    """The whole page."""
    return "\n".join([_intro(), *(section for name in FILES for section in _sections(name))])


def _intro() -> str:
    return f"""\
# Wire

<!-- Written by `python -m tools.wire_page > docs/reference/wire.md`; a test holds it in step. -->

Nodes speak gRPC over HTTP/2 with Protocol Buffers. The files in `proto/sfl/v1` are the contract.
A device dials its edge, and an edge dials the cloud. Nothing dials a device.

## Version

The wire version is **{wire.WIRE_VERSION}**. A device and an edge say theirs in their first message.
Another version is refused, with both numbers in the message. Use the same sfl on all nodes.

## Methods

| method | who calls | request | response |
|---|---|---|---|
{_methods()}

A session is one stream for the whole run. Under TLS a role may only call the methods of its peer.

## Checksum

Every message that travels by itself ends in `checksum`, field 15: XXH3 (64 bits) of all bytes
before it. It takes {SEAL_BYTES} bytes. It is checked before anything else is read. A message whose
checksum does not fit ends its call with `DATA_LOSS`. A checksum finds flipped bits. It does not
stop an attacker: TLS does.

## Frames

Tensors and adapters travel as frames. A frame holds at most {wire.FRAME_BYTES:,} bytes of payload.
The first frame has the header. Frames of one tensor arrive in order. Frames of different kinds may
alternate, so that gradients overtake activations.

Only rows of real tokens travel. The receiver rebuilds padding and masks from `lengths`. The payload
is a codec's packet. [Compression](../compression.md) describes the packets.

## Limits

| what | limit |
|---|---|
| a message | {8 << 20:,} bytes |
| payload of a frame | {wire.FRAME_BYTES:,} bytes |
| a decoded tensor | {MAX_TENSOR_BYTES:,} bytes |
| `ready` and `report` of a device, each | {contract.MOST_SAID:,} bytes |
| a proof, or the header of an adapter | {contract.MOST_BESIDE:,} bytes |
| payload of an adapter | 4 bytes for each value, 512 for each parameter, and 65,536 |
| heartbeats | 2 in each `network.heartbeat_interval` in the long run, 120 at once |
| files that an edge serves | {fetch.MOST_FILES} |
| a link test: message, stream, seconds, at once | {_probe()} |
| calls of one caller, at once | {door.CALLS} |
| connections of one address without a call | {door.SILENT} |
| one attempt to connect | {wire.ATTEMPT:g} s |
| silence before gRPC asks whether the peer is there | {wire.KEEPALIVE:g} s |

## Statuses

An error of sfl ends a stream with a status. The other end knows the error by its status.

| error | status |
|---|---|
{_statuses()}
"""


def _methods() -> str:
    callers = {
        "sfl.v1.Edge": "device",
        "sfl.v1.Cloud": "edge",
        "sfl.v1.Serve": "device",
        "sfl.v1.Agents": "edge, device",
        "sfl.v1.Jobs": "operator",
    }
    rows = []
    for method in METHODS:
        stream = ["stream of " if streams else "" for streams in method.streams]
        rows.append(
            f"| `{method.path}` | {callers[method.service]} "
            f"| {stream[0]}{_link(method.request.DESCRIPTOR.name)} "
            f"| {stream[1]}{_link(method.response.DESCRIPTOR.name)} |"
        )
    return "\n".join(rows)


def _link(message: str) -> str:
    return f"[{message}](#{message.lower()})"


def _probe() -> str:
    return (
        f"{probe_service.MESSAGE_BYTES:,} bytes, {probe_service.STREAM_BYTES:,} bytes, "
        f"{probe_service.STREAM_SECONDS:g} s, {probe_service.STREAMS}"
    )


def _statuses() -> str:
    return "\n".join(f"| {kind.__name__} | `{status.name}` |" for kind, status in STATUS_OF.items())


def _sections(name: str) -> Iterator[str]:
    """Each message and enum of a file, with the comment before it and beside its fields."""
    yield f"## {name}.proto\n"
    note: list[str] = []
    lines = iter((PROTO / f"{name}.proto").read_text(encoding="utf-8").splitlines())
    for line in lines:
        if (said := _NOTE.match(line)) is not None:
            note.append(said[1])
        elif (block := _BLOCK.match(line)) is not None:
            yield _section(block[2], " ".join(note), list(_rows(lines)))
            note = []
        else:
            note = []


def _section(name: str, note: str, rows: list[str]) -> str:
    enum = bool(rows) and rows[0].count("|") == 4
    head = (
        "| value | number | meaning |\n|---|---|---|"
        if enum
        else "| field | type | number | meaning |\n|---|---|---|---|"
    )
    return "\n".join([f"### {name}", "", *([note, ""] if note else []), head, *rows, ""])


def _rows(lines: Iterator[str]) -> Iterator[str]:
    """The rows of a block, up to its end; a comment of several lines is one text."""
    held, above = "", ""
    for line in lines:
        if line == "}":
            break
        row = _row(line, above)
        if row is not None:
            if held:
                yield f"{held} |"
            held, above = row, ""
        elif (said := _NOTE.match(line)) is not None:
            if line.startswith("   "):  # it goes on beside the field above
                held = f"{held} {said[1]}"
            else:
                above = f"{above} {said[1]}".strip()
    if held:
        yield f"{held} |"


def _row(line: str, above: str) -> str | None:
    if (field := _FIELD.match(line)) is not None:
        kind = f"{field[1] or ''}{field[2]}"
        return f"| `{field[3]}` | {kind} | {field[4]} | {_joined(above, field[5])}"
    if (value := _VALUE.match(line)) is not None:
        return f"| `{value[1]}` | {value[2]} | {_joined(above, value[3])}"
    return None


def _joined(above: str, beside: str | None) -> str:
    return " ".join(filter(None, [above, beside])).replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(document())
