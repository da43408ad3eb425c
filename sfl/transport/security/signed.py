"""What a device signs of what its edge passes on, and the cloud's check of it.

A join answers a challenge that the cloud made for one edge's stream, with a number used once.
Every later statement names that join, so that none counts for another run, edge, device, join or
round; and each kind counts upward, so that none counts twice. An adapter is signed by its values:
its edge decodes what came coded, and both ends know exactly what came out. No torch here.

Without TLS nobody signs, and everything passes.
"""

from __future__ import annotations

import copy
import hashlib
import secrets
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError, safe_open

from sfl.errors import Refused, SflError
from sfl.node.certificates.identity import Identity
from sfl.node.certificates.own import OwnCertificate
from sfl.v1 import cloud_pb2, edge_pb2, tensor_pb2

if TYPE_CHECKING:
    from sfl.node.certificates.signing import PublicKey, Signer, Trust

DOMAIN = "sfl/1 device"
"""First part of each statement: the key signs TLS handshakes as well."""

NONCE_BYTES = 16
"""Of the number that a device uses once; the cloud remembers each."""

Part = str | bytes | int | float


class NotSigned(SflError):
    """Something that an edge passes on does not carry its device's own signature."""

    def __init__(self, device: str, what: str, why: str) -> None:
        self.device = device
        super().__init__(f"its {what} is not signed by it: {why}")


def statement(*parts: Part) -> bytes:
    """Parts as bytes, each with its length before it, so that none runs into the next."""
    return b"".join(struct.pack(">I", len(raw)) + raw for raw in map(_raw, (DOMAIN, *parts)))


def _raw(part: Part) -> bytes:
    match part:
        case bytes():
            return part
        case str():
            return part.encode()
        case int():
            return struct.pack(">Q", part)
        case float():
            return struct.pack(">d", part)


def digest(tensors: Iterable[tuple[str, np.ndarray]]) -> bytes:
    """SHA-256 of an adapter's float32 values, their names in order."""
    total = hashlib.sha256()
    for name, values in tensors:
        total.update(statement(name, *values.shape))
        total.update(np.ascontiguousarray(values, "<f4").data)
    return total.digest()


def values_digest(values: Mapping[str, np.ndarray]) -> bytes:
    """The digest of values in memory."""
    return digest((name, values[name]) for name in sorted(values))


def file_digest(path: Path) -> bytes:
    """The digest of a safetensors file, one tensor in memory at a time. Raises SafetensorError."""
    try:
        with safe_open(path, framework="numpy") as file:
            return digest((name, _float32(file, name)) for name in sorted(file.keys()))
    except ValueError as error:  # a shape that safetensors takes and numpy does not
        raise SafetensorError(str(error)) from None


def _float32(file: Any, name: str) -> np.ndarray:
    if (dtype := file.get_slice(name).get_dtype()) != "F32":
        raise SafetensorError(f"{name} is {dtype}, not F32")
    values: np.ndarray = file.get_tensor(name)
    return values


def _content(message: edge_pb2.DeviceReady | tensor_pb2.RoundReport) -> bytes:
    """What a device said, less what its edge adds."""
    said = copy.deepcopy(message)
    said.ClearField("signature")
    # What a device remembers is news with every round, and its edge has seen it come about.
    if isinstance(said, tensor_pb2.RoundReport):
        said.ClearField("edge_spans")
        said.ClearField("edge_passes")
    else:
        said.ClearField("points")
    return hashlib.sha256(said.SerializeToString(deterministic=True)).digest()


def _update(header: tensor_pb2.AdapterHeader, values: bytes) -> tuple[Part, ...]:
    return header.round, header.final_step, header.scaling, values


@dataclass(frozen=True, slots=True)
class Joining:
    """One joining of a device: what all of its statements begin with."""

    run_id: str
    edge: str
    challenge: bytes
    device: str
    nonce: bytes

    def statement(self, kind: str, *parts: Part) -> bytes:
        """A statement of that kind, as bytes."""
        ours = (self.run_id, self.edge, self.challenge, self.device, self.nonce)
        return statement(kind, *ours, *parts)


class DeviceSignatures:
    """The device's end. Where it has no certificate, or nobody asks, it signs nothing."""

    def __init__(self, device: str, own: OwnCertificate | None = None) -> None:
        self._device = device
        self._own = own
        self._signer: Signer | None = None
        self._joining: Joining | None = None
        self._count = 0

    def proof(self, challenge: edge_pb2.Challenge) -> edge_pb2.Proof:
        """The answer to a challenge; from here on the rest is signed too. Raises ConfigError."""
        if self._own is None:
            return edge_pb2.Proof()
        # Imported here: without TLS a device needs no such package.
        from sfl.node.certificates.signing import Signer

        self._signer = self._signer or Signer(self._own)
        self._joining = Joining(
            challenge.run_id,
            challenge.edge,
            challenge.nonce,
            self._device,
            secrets.token_bytes(NONCE_BYTES),
        )
        return edge_pb2.Proof(
            certificate=self._signer.certificate,
            nonce=self._joining.nonce,
            signature=self._signer.sign(self._joining.statement("join")),
        )

    def ready(self, ready: edge_pb2.DeviceReady) -> None:
        """Sign that span and data are there."""
        self._sign(ready, "ready", _content(ready))

    def report(self, report: tensor_pb2.RoundReport) -> None:
        """Sign the report of a round."""
        self._sign(report, "report", report.round, _content(report))

    def update(self, header: tensor_pb2.AdapterHeader, values: Mapping[str, np.ndarray]) -> None:
        """Sign this device's part of an adapter, by the values that its receiver has."""
        self._sign(header, "update", *_update(header, values_digest(values)))

    def _sign(self, message: Any, kind: str, *parts: Part) -> None:
        if self._signer is None or self._joining is None:
            return
        self._count += 1
        signature = self._signer.sign(self._joining.statement(kind, self._count, *parts))
        message.signature.CopyFrom(tensor_pb2.Signature(sequence=self._count, value=signature))


@dataclass(slots=True)
class _Joined:
    """A device as it joined, and the last of each kind that it signed."""

    joining: Joining
    key: PublicKey
    last: dict[str, int] = field(default_factory=dict)


class SignatureCheck:
    """The cloud's end, for one edge; without a certificate of its own it asks nobody.

    Over each of its streams an edge may present the devices again that it has, by the same join.
    """

    def __init__(self, run_id: str, edge: str, trust: Trust | None, challenge: bytes = b"") -> None:
        """`challenge` is one that devices of this edge may know already; else it is a new one."""
        self._run_id = run_id
        self._edge = edge
        self._trust = trust
        self.challenge = b"" if trust is None else challenge or secrets.token_bytes(32)
        self._asking: dict[str, _Joined] = {}
        self._joined: dict[str, _Joined] = {}
        self._again: dict[str, _Joined] = {}
        """Those that the stream may present again."""
        self._used: set[bytes] = set()

    def begin_stream(self) -> None:
        """The edge has a new stream."""
        self._again = {**self._joined, **self._asking}
        self._asking.clear()

    def join(self, join: cloud_pb2.DeviceJoin) -> None:
        """A device asks to take part. Raises NotSigned."""
        if self._trust is None:
            return
        device, proof = join.device, join.proof
        try:
            key = self._trust.key_of(proof.certificate, Identity("device", device))
        except Refused as error:
            raise NotSigned(device, "join", str(error)) from None
        joining = Joining(self._run_id, self._edge, self.challenge, device, proof.nonce)
        self._hold(device, "join", key, joining.statement("join"), proof.signature)
        if len(proof.nonce) != NONCE_BYTES:
            raise NotSigned(device, "join", f"its number has not {NONCE_BYTES} bytes")
        before = self._again.pop(device, None)
        same = before is not None and before.joining == joining
        if proof.nonce in self._used and not same:
            raise NotSigned(device, "join", "it was sent before")
        self._used.add(proof.nonce)
        self._asking[device] = _Joined(joining, key)

    def admitted(self, device: str) -> None:
        """The device is in: what it signs from here on belongs to this joining."""
        if device in self._asking:
            self._joined[device] = self._asking.pop(device)

    def ready(self, device: str, ready: edge_pb2.DeviceReady) -> None:
        """A device is ready. Raises NotSigned."""
        self._check(device, ready.signature, "ready", _content(ready))

    def report(self, report: tensor_pb2.RoundReport) -> None:
        """A device reports. Raises NotSigned."""
        self._check(report.device, report.signature, "report", report.round, _content(report))

    def update(self, header: tensor_pb2.AdapterHeader, file: Path) -> None:
        """A part is in a file; only the device's can be signed by it. Raises NotSigned."""
        if self._trust is None or header.side != "device":
            return
        try:
            values = file_digest(file)
        except SafetensorError as error:
            raise NotSigned(header.device, "update", str(error)) from None
        self._check(header.device, header.signature, "update", *_update(header, values))

    def held(self, header: tensor_pb2.AdapterHeader, values: bytes) -> None:
        """A part stays at its edge, which says the digest of its `values`. Raises NotSigned.

        The device has signed an update of these values. That they are in a sum nobody can see.
        """
        if self._trust is not None and header.side == "device":
            self._check(header.device, header.signature, "update", *_update(header, values))

    def _check(self, device: str, signature: tensor_pb2.Signature, kind: str, *parts: Part) -> None:
        if self._trust is None:
            return
        joined = self._joined.get(device)
        if joined is None:
            raise NotSigned(device, kind, "it has not joined through this edge")
        said = joined.joining.statement(kind, signature.sequence, *parts)
        self._hold(device, kind, joined.key, said, signature.value)
        if signature.sequence <= joined.last.get(kind, 0):
            raise NotSigned(device, kind, "it was sent before")
        joined.last[kind] = signature.sequence

    def _hold(self, device: str, kind: str, key: PublicKey, said: bytes, signature: bytes) -> None:
        from sfl.node.certificates.signing import is_signed

        if not is_signed(key, said, signature):
            why = "the signature does not fit" if signature else "there is no signature"
            raise NotSigned(device, kind, why)
