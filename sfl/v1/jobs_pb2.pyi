from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class SubmitRequest(_message.Message):
    __slots__ = ("settings", "key", "checksum")
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    settings: str
    key: str
    checksum: int
    def __init__(self, settings: _Optional[str] = ..., key: _Optional[str] = ..., checksum: _Optional[int] = ...) -> None: ...

class Refusal(_message.Message):
    __slots__ = ("field", "value", "problem", "fix")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    FIX_FIELD_NUMBER: _ClassVar[int]
    field: str
    value: str
    problem: str
    fix: str
    def __init__(self, field: _Optional[str] = ..., value: _Optional[str] = ..., problem: _Optional[str] = ..., fix: _Optional[str] = ...) -> None: ...

class Submitted(_message.Message):
    __slots__ = ("run", "refusal", "checksum")
    RUN_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    run: str
    refusal: Refusal
    checksum: int
    def __init__(self, run: _Optional[str] = ..., refusal: _Optional[_Union[Refusal, _Mapping]] = ..., checksum: _Optional[int] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ("checksum",)
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    checksum: int
    def __init__(self, checksum: _Optional[int] = ...) -> None: ...

class RunRequest(_message.Message):
    __slots__ = ("run", "checksum")
    RUN_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    run: str
    checksum: int
    def __init__(self, run: _Optional[str] = ..., checksum: _Optional[int] = ...) -> None: ...

class LogsRequest(_message.Message):
    __slots__ = ("run", "node", "follow", "checksum")
    RUN_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    run: str
    node: str
    follow: bool
    checksum: int
    def __init__(self, run: _Optional[str] = ..., node: _Optional[str] = ..., follow: _Optional[bool] = ..., checksum: _Optional[int] = ...) -> None: ...

class StopRequest(_message.Message):
    __slots__ = ("run", "reason", "checksum")
    RUN_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    run: str
    reason: str
    checksum: int
    def __init__(self, run: _Optional[str] = ..., reason: _Optional[str] = ..., checksum: _Optional[int] = ...) -> None: ...

class RunRow(_message.Message):
    __slots__ = ("run", "state", "round", "rounds", "submitted_at", "started_at", "ended_at", "waits", "waits_since", "reason", "waits_until")
    RUN_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    SUBMITTED_AT_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    ENDED_AT_FIELD_NUMBER: _ClassVar[int]
    WAITS_FIELD_NUMBER: _ClassVar[int]
    WAITS_SINCE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    WAITS_UNTIL_FIELD_NUMBER: _ClassVar[int]
    run: str
    state: str
    round: int
    rounds: int
    submitted_at: float
    started_at: float
    ended_at: float
    waits: str
    waits_since: float
    reason: str
    waits_until: float
    def __init__(self, run: _Optional[str] = ..., state: _Optional[str] = ..., round: _Optional[int] = ..., rounds: _Optional[int] = ..., submitted_at: _Optional[float] = ..., started_at: _Optional[float] = ..., ended_at: _Optional[float] = ..., waits: _Optional[str] = ..., waits_since: _Optional[float] = ..., reason: _Optional[str] = ..., waits_until: _Optional[float] = ...) -> None: ...

class RunList(_message.Message):
    __slots__ = ("runs", "now", "checksum")
    RUNS_FIELD_NUMBER: _ClassVar[int]
    NOW_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[RunRow]
    now: float
    checksum: int
    def __init__(self, runs: _Optional[_Iterable[_Union[RunRow, _Mapping]]] = ..., now: _Optional[float] = ..., checksum: _Optional[int] = ...) -> None: ...

class AgentRow(_message.Message):
    __slots__ = ("role", "name", "via", "max_runs", "runs", "attached_at")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    VIA_FIELD_NUMBER: _ClassVar[int]
    MAX_RUNS_FIELD_NUMBER: _ClassVar[int]
    RUNS_FIELD_NUMBER: _ClassVar[int]
    ATTACHED_AT_FIELD_NUMBER: _ClassVar[int]
    role: str
    name: str
    via: str
    max_runs: int
    runs: _containers.RepeatedScalarFieldContainer[str]
    attached_at: float
    def __init__(self, role: _Optional[str] = ..., name: _Optional[str] = ..., via: _Optional[str] = ..., max_runs: _Optional[int] = ..., runs: _Optional[_Iterable[str]] = ..., attached_at: _Optional[float] = ...) -> None: ...

class Standing(_message.Message):
    __slots__ = ("runs", "agents", "max_runs", "status", "now", "checksum")
    RUNS_FIELD_NUMBER: _ClassVar[int]
    AGENTS_FIELD_NUMBER: _ClassVar[int]
    MAX_RUNS_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    NOW_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    runs: _containers.RepeatedCompositeFieldContainer[RunRow]
    agents: _containers.RepeatedCompositeFieldContainer[AgentRow]
    max_runs: int
    status: str
    now: float
    checksum: int
    def __init__(self, runs: _Optional[_Iterable[_Union[RunRow, _Mapping]]] = ..., agents: _Optional[_Iterable[_Union[AgentRow, _Mapping]]] = ..., max_runs: _Optional[int] = ..., status: _Optional[str] = ..., now: _Optional[float] = ..., checksum: _Optional[int] = ...) -> None: ...

class LogChunk(_message.Message):
    __slots__ = ("node", "data", "checksum")
    NODE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    node: str
    data: bytes
    checksum: int
    def __init__(self, node: _Optional[str] = ..., data: _Optional[bytes] = ..., checksum: _Optional[int] = ...) -> None: ...

class HeldRun(_message.Message):
    __slots__ = ("run", "address")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    run: str
    address: str
    def __init__(self, run: _Optional[str] = ..., address: _Optional[str] = ...) -> None: ...

class AgentHello(_message.Message):
    __slots__ = ("role", "name", "wire_version", "incarnation", "max_runs", "held")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    WIRE_VERSION_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    MAX_RUNS_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    role: str
    name: str
    wire_version: int
    incarnation: bytes
    max_runs: int
    held: _containers.RepeatedCompositeFieldContainer[HeldRun]
    def __init__(self, role: _Optional[str] = ..., name: _Optional[str] = ..., wire_version: _Optional[int] = ..., incarnation: _Optional[bytes] = ..., max_runs: _Optional[int] = ..., held: _Optional[_Iterable[_Union[HeldRun, _Mapping]]] = ...) -> None: ...

class NodeStarted(_message.Message):
    __slots__ = ("run", "address")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    run: str
    address: str
    def __init__(self, run: _Optional[str] = ..., address: _Optional[str] = ...) -> None: ...

class NodeEnded(_message.Message):
    __slots__ = ("run", "exit_code", "reason")
    RUN_FIELD_NUMBER: _ClassVar[int]
    EXIT_CODE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    run: str
    exit_code: int
    reason: str
    def __init__(self, run: _Optional[str] = ..., exit_code: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class LogPart(_message.Message):
    __slots__ = ("run", "offset", "data")
    RUN_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    run: str
    offset: int
    data: bytes
    def __init__(self, run: _Optional[str] = ..., offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Alive(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AgentMessage(_message.Message):
    __slots__ = ("device", "hello", "started", "ended", "log", "heartbeat", "left", "checksum")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    HELLO_FIELD_NUMBER: _ClassVar[int]
    STARTED_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    device: str
    hello: AgentHello
    started: NodeStarted
    ended: NodeEnded
    log: LogPart
    heartbeat: Alive
    left: str
    checksum: int
    def __init__(self, device: _Optional[str] = ..., hello: _Optional[_Union[AgentHello, _Mapping]] = ..., started: _Optional[_Union[NodeStarted, _Mapping]] = ..., ended: _Optional[_Union[NodeEnded, _Mapping]] = ..., log: _Optional[_Union[LogPart, _Mapping]] = ..., heartbeat: _Optional[_Union[Alive, _Mapping]] = ..., left: _Optional[str] = ..., checksum: _Optional[int] = ...) -> None: ...

class ServiceWelcome(_message.Message):
    __slots__ = ("via",)
    VIA_FIELD_NUMBER: _ClassVar[int]
    via: str
    def __init__(self, via: _Optional[str] = ...) -> None: ...

class StartNode(_message.Message):
    __slots__ = ("run", "address", "log_offset")
    RUN_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    LOG_OFFSET_FIELD_NUMBER: _ClassVar[int]
    run: str
    address: str
    log_offset: int
    def __init__(self, run: _Optional[str] = ..., address: _Optional[str] = ..., log_offset: _Optional[int] = ...) -> None: ...

class StopNode(_message.Message):
    __slots__ = ("run", "reason")
    RUN_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    run: str
    reason: str
    def __init__(self, run: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ServiceMessage(_message.Message):
    __slots__ = ("device", "welcome", "start", "stop", "refused", "heartbeat", "in_use", "checksum")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    IN_USE_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    device: str
    welcome: ServiceWelcome
    start: StartNode
    stop: StopNode
    refused: str
    heartbeat: Alive
    in_use: bool
    checksum: int
    def __init__(self, device: _Optional[str] = ..., welcome: _Optional[_Union[ServiceWelcome, _Mapping]] = ..., start: _Optional[_Union[StartNode, _Mapping]] = ..., stop: _Optional[_Union[StopNode, _Mapping]] = ..., refused: _Optional[str] = ..., heartbeat: _Optional[_Union[Alive, _Mapping]] = ..., in_use: _Optional[bool] = ..., checksum: _Optional[int] = ...) -> None: ...
