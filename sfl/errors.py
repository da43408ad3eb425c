"""The exceptions of `sfl`; every one that reaches a user is one line that names the fix.

SflError                     anything this project raises on purpose (exit code 1)
├── UserError                the user can fix it: field, value, fix (exit code 2)
│   ├── ConfigError          a setting
│   │   └── NotYet           nothing that time may not fix (exit code 75)
│   │       ├── NotYetValid  a certificate of tomorrow
│   │       └── NoAnswer     a server that a setting names does not answer
│   ├── DataError            a data file or a row of it
│   └── ModelError           a model folder, a name, its weights
├── TransportError           something between two processes
│   ├── PeerUnavailable      nobody answered until the timeout
│   ├── LinkLost             a stream broke
│   │   ├── FellSilent       nothing came for too long
│   │   ├── LeftBehind       others waited for a device, and go on without it
│   │   ├── Corrupted        bytes changed on the way
│   │   └── SnapshotMissing  what is to be gone on from is not here
│   ├── Goodbye              the peer left on purpose
│   ├── Refused              the peer declined, and said why
│   │   ├── NameInUse        somebody of that name is connected: a moment may fix it
│   │   └── Elsewhere        a device is to go to another edge
│   └── ProtocolError        a message that breaks the contract; closes its own stream only
│       └── AdapterRefused   what comes of the round's adapter is nothing to compute with
├── RunIsOver                the run ended well before a device came back to it (exit code 0)
├── DiskError                a folder cannot be written or read: full, read-only, gone
│   └── Damaged              what is read is not what was written
└── RunFailed                the run as a whole did not reach its end
    ├── AnotherRun           who was lost is back in another run
    ├── Bug                  what nobody foresaw (exit code 70)
    └── OutOfMemory          a node had too little memory for its work (exit code 71)
"""

from collections.abc import Mapping

from sfl.urls import hidden


class SflError(Exception):
    """Anything this project raises on purpose."""

    exit_code = 1


class UserError(SflError):
    """A mistake the user can fix: `field` = `value`: what is wrong. What to do.

    No URL in it has a password.
    """

    exit_code = 2

    def __init__(self, field: str, value: object, problem: str, fix: str) -> None:
        value = hidden(value) if isinstance(value, str) else value
        self.field, self.value, self.problem, self.fix = field, value, problem, fix
        shown = repr(value) if isinstance(value, str) else hidden(repr(value))
        super().__init__(f"{field} = {shown}: {problem}. {fix}")


class ConfigError(UserError):
    """A setting is unknown, out of range or contradicts another."""


class NotYet(ConfigError):
    """What a setting names is not ready; as it is, it may be later."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again, as a service manager does


class NotYetValid(NotYet):
    """A certificate is not valid yet; mostly the clock of a board that has not asked the time."""


class NoAnswer(NotYet):
    """A server that keeps a run does not answer: it is down, or on its way up."""


class DataError(UserError):
    """A data file is missing, empty or malformed."""


class ModelError(UserError):
    """A model is missing, of an unknown family or in an unsafe format."""


class TransportError(SflError):
    """Something between two processes went wrong."""


class PeerUnavailable(TransportError):
    """Nobody answered at an address until `connect_timeout`."""


class LinkLost(TransportError):
    """An open stream to a peer broke."""


class FellSilent(LinkLost):
    """Nothing came from a peer for as long as that may be."""


class LeftBehind(LinkLost):
    """Others waited for what this device was to send, and go on with the round without it."""


class Corrupted(LinkLost):
    """A message is not what its sender sent: its checksum does not fit. Sent again, it may be."""


class SnapshotMissing(LinkLost):
    """A side is to go on from a point that it has not; on its next stream it says what it has."""


class Goodbye(TransportError):
    """The peer left on purpose, and said why; where it `returns` it may come back."""

    def __init__(self, reason: str, returns: bool = False) -> None:
        self.returns = returns
        super().__init__(reason)


class Refused(TransportError):
    """The peer answered, and declined."""


class NameInUse(Refused):
    """A node of that name is connected, or has not been given up yet; asking again may help."""


class Elsewhere(Refused):
    """The cloud has another edge for a device: the only one of `edges`, or the nearest of them.

    `edges` are addresses by name, empty where only the device may know one.
    """

    def __init__(self, reason: str, edges: Mapping[str, str]) -> None:
        self.edges = dict(edges)
        super().__init__(reason)


class ProtocolError(TransportError):
    """A message broke the wire contract: version, shape, dtype, step or non-finite values."""


class AdapterRefused(ProtocolError):
    """The round's adapter, or what comes of it, holds values that nobody can compute with.

    They are NaN, infinite, or beyond what a codec holds. A device leaves its round with that.
    """


class RunFailed(SflError):
    """A round closed with fewer than `min_devices`, or a node of the run failed."""


class AnotherRun(RunFailed):
    """Whoever was lost is back in another run than this node is in."""


class Bug(RunFailed):
    """What nobody foresaw; a node's log has its traceback."""

    exit_code = 70  # EX_SOFTWARE of sysexits.h


class OutOfMemory(RunFailed):
    """A node had too little memory for what it was to do."""

    exit_code = 71  # EX_OSERR of sysexits.h: another time there may be more


class RunIsOver(SflError):
    """The run ended well while this device was away; all that was due of it had arrived."""

    exit_code = 0

    def __init__(self, run_key: str) -> None:
        self.run_key = run_key
        super().__init__("the run ended well while this device was away")


class DiskError(SflError):
    """A folder that this node writes to is full, read-only, gone, or may not be written."""


class Damaged(DiskError):
    """What is read is not what was written, and never will be."""
