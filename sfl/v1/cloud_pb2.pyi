from sfl.v1 import edge_pb2 as _edge_pb2
from sfl.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Cause(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CAUSE_LINK: _ClassVar[Cause]
    CAUSE_SILENCE: _ClassVar[Cause]
    CAUSE_OFFENCE: _ClassVar[Cause]
    CAUSE_ADAPTER: _ClassVar[Cause]
    CAUSE_LEFT: _ClassVar[Cause]
    CAUSE_STUCK: _ClassVar[Cause]
CAUSE_LINK: Cause
CAUSE_SILENCE: Cause
CAUSE_OFFENCE: Cause
CAUSE_ADAPTER: Cause
CAUSE_LEFT: Cause
CAUSE_STUCK: Cause

class EdgeHello(_message.Message):
    __slots__ = ("edge", "wire_version", "run", "incarnation")
    EDGE_FIELD_NUMBER: _ClassVar[int]
    WIRE_VERSION_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    edge: str
    wire_version: int
    run: str
    incarnation: bytes
    def __init__(self, edge: _Optional[str] = ..., wire_version: _Optional[int] = ..., run: _Optional[str] = ..., incarnation: _Optional[bytes] = ...) -> None: ...

class EdgeReady(_message.Message):
    __slots__ = ("manifest", "address", "given", "credits", "store", "keeps")
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    GIVEN_FIELD_NUMBER: _ClassVar[int]
    CREDITS_FIELD_NUMBER: _ClassVar[int]
    STORE_FIELD_NUMBER: _ClassVar[int]
    KEEPS_FIELD_NUMBER: _ClassVar[int]
    manifest: str
    address: str
    given: bytes
    credits: int
    store: str
    keeps: _containers.RepeatedCompositeFieldContainer[KeptUpdate]
    def __init__(self, manifest: _Optional[str] = ..., address: _Optional[str] = ..., given: _Optional[bytes] = ..., credits: _Optional[int] = ..., store: _Optional[str] = ..., keeps: _Optional[_Iterable[_Union[KeptUpdate, _Mapping]]] = ...) -> None: ...

class KeptUpdate(_message.Message):
    __slots__ = ("device", "round")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    device: str
    round: int
    def __init__(self, device: _Optional[str] = ..., round: _Optional[int] = ...) -> None: ...

class HeldUpdate(_message.Message):
    __slots__ = ("device", "parts", "digest", "length")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    device: str
    parts: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.AdapterHeader]
    digest: bytes
    length: Length
    def __init__(self, device: _Optional[str] = ..., parts: _Optional[_Iterable[_Union[_tensor_pb2.AdapterHeader, _Mapping]]] = ..., digest: _Optional[bytes] = ..., length: _Optional[_Union[Length, _Mapping]] = ...) -> None: ...

class Length(_message.Message):
    __slots__ = ("norm", "start", "values")
    NORM_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    norm: float
    start: float
    values: int
    def __init__(self, norm: _Optional[float] = ..., start: _Optional[float] = ..., values: _Optional[int] = ...) -> None: ...

class DeviceJoin(_message.Message):
    __slots__ = ("device", "round_trips", "proof")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    ROUND_TRIPS_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    device: str
    round_trips: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.RoundTrip]
    proof: _edge_pb2.Proof
    def __init__(self, device: _Optional[str] = ..., round_trips: _Optional[_Iterable[_Union[_tensor_pb2.RoundTrip, _Mapping]]] = ..., proof: _Optional[_Union[_edge_pb2.Proof, _Mapping]] = ...) -> None: ...

class DeviceIsReady(_message.Message):
    __slots__ = ("device", "ready", "points", "begun")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    BEGUN_FIELD_NUMBER: _ClassVar[int]
    device: str
    ready: _edge_pb2.DeviceReady
    points: _containers.RepeatedCompositeFieldContainer[_edge_pb2.Point]
    begun: _edge_pb2.Point
    def __init__(self, device: _Optional[str] = ..., ready: _Optional[_Union[_edge_pb2.DeviceReady, _Mapping]] = ..., points: _Optional[_Iterable[_Union[_edge_pb2.Point, _Mapping]]] = ..., begun: _Optional[_Union[_edge_pb2.Point, _Mapping]] = ...) -> None: ...

class DeviceLeft(_message.Message):
    __slots__ = ("device", "reason", "cause")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CAUSE_FIELD_NUMBER: _ClassVar[int]
    device: str
    reason: str
    cause: Cause
    def __init__(self, device: _Optional[str] = ..., reason: _Optional[str] = ..., cause: _Optional[_Union[Cause, str]] = ...) -> None: ...

class EdgeReportMessage(_message.Message):
    __slots__ = ("hello", "ready", "join", "device_ready", "left", "adapter", "report", "heartbeat", "failure", "goodbye", "held", "sum", "checksum")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    JOIN_FIELD_NUMBER: _ClassVar[int]
    DEVICE_READY_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    GOODBYE_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    SUM_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    hello: EdgeHello
    ready: EdgeReady
    join: DeviceJoin
    device_ready: DeviceIsReady
    left: DeviceLeft
    adapter: _tensor_pb2.AdapterFrame
    report: _tensor_pb2.RoundReport
    heartbeat: _tensor_pb2.Heartbeat
    failure: str
    goodbye: str
    held: HeldUpdate
    sum: _tensor_pb2.AdapterFrame
    checksum: int
    def __init__(self, hello: _Optional[_Union[EdgeHello, _Mapping]] = ..., ready: _Optional[_Union[EdgeReady, _Mapping]] = ..., join: _Optional[_Union[DeviceJoin, _Mapping]] = ..., device_ready: _Optional[_Union[DeviceIsReady, _Mapping]] = ..., left: _Optional[_Union[DeviceLeft, _Mapping]] = ..., adapter: _Optional[_Union[_tensor_pb2.AdapterFrame, _Mapping]] = ..., report: _Optional[_Union[_tensor_pb2.RoundReport, _Mapping]] = ..., heartbeat: _Optional[_Union[_tensor_pb2.Heartbeat, _Mapping]] = ..., failure: _Optional[str] = ..., goodbye: _Optional[str] = ..., held: _Optional[_Union[HeldUpdate, _Mapping]] = ..., sum: _Optional[_Union[_tensor_pb2.AdapterFrame, _Mapping]] = ..., checksum: _Optional[int] = ...) -> None: ...

class Settings(_message.Message):
    __slots__ = ("settings", "run_id", "run_key", "challenge")
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_KEY_FIELD_NUMBER: _ClassVar[int]
    CHALLENGE_FIELD_NUMBER: _ClassVar[int]
    settings: str
    run_id: str
    run_key: str
    challenge: bytes
    def __init__(self, settings: _Optional[str] = ..., run_id: _Optional[str] = ..., run_key: _Optional[str] = ..., challenge: _Optional[bytes] = ...) -> None: ...

class Admission(_message.Message):
    __slots__ = ("device", "refusal", "in_use", "assignment", "edges")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    REFUSAL_FIELD_NUMBER: _ClassVar[int]
    IN_USE_FIELD_NUMBER: _ClassVar[int]
    ASSIGNMENT_FIELD_NUMBER: _ClassVar[int]
    EDGES_FIELD_NUMBER: _ClassVar[int]
    device: str
    refusal: str
    in_use: bool
    assignment: _edge_pb2.Assignment
    edges: _containers.RepeatedCompositeFieldContainer[_edge_pb2.EdgeAt]
    def __init__(self, device: _Optional[str] = ..., refusal: _Optional[str] = ..., in_use: _Optional[bool] = ..., assignment: _Optional[_Union[_edge_pb2.Assignment, _Mapping]] = ..., edges: _Optional[_Iterable[_Union[_edge_pb2.EdgeAt, _Mapping]]] = ...) -> None: ...

class HandOver(_message.Message):
    __slots__ = ("device", "elsewhere")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    ELSEWHERE_FIELD_NUMBER: _ClassVar[int]
    device: str
    elsewhere: _edge_pb2.Elsewhere
    def __init__(self, device: _Optional[str] = ..., elsewhere: _Optional[_Union[_edge_pb2.Elsewhere, _Mapping]] = ...) -> None: ...

class DeviceStart(_message.Message):
    __slots__ = ("device", "start")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    device: str
    start: _edge_pb2.Assignment
    def __init__(self, device: _Optional[str] = ..., start: _Optional[_Union[_edge_pb2.Assignment, _Mapping]] = ...) -> None: ...

class EdgeRoundStart(_message.Message):
    __slots__ = ("round", "devices", "begun", "order", "edges", "together")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    BEGUN_FIELD_NUMBER: _ClassVar[int]
    ORDER_FIELD_NUMBER: _ClassVar[int]
    EDGES_FIELD_NUMBER: _ClassVar[int]
    TOGETHER_FIELD_NUMBER: _ClassVar[int]
    round: int
    devices: _containers.RepeatedCompositeFieldContainer[DeviceStart]
    begun: bool
    order: _containers.RepeatedScalarFieldContainer[str]
    edges: _containers.RepeatedCompositeFieldContainer[_edge_pb2.EdgeAt]
    together: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, round: _Optional[int] = ..., devices: _Optional[_Iterable[_Union[DeviceStart, _Mapping]]] = ..., begun: _Optional[bool] = ..., order: _Optional[_Iterable[str]] = ..., edges: _Optional[_Iterable[_Union[_edge_pb2.EdgeAt, _Mapping]]] = ..., together: _Optional[_Iterable[str]] = ...) -> None: ...

class Evict(_message.Message):
    __slots__ = ("device", "reason", "final")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    FINAL_FIELD_NUMBER: _ClassVar[int]
    device: str
    reason: str
    final: bool
    def __init__(self, device: _Optional[str] = ..., reason: _Optional[str] = ..., final: _Optional[bool] = ...) -> None: ...

class Reduce(_message.Message):
    __slots__ = ("round", "number", "shares")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    SHARES_FIELD_NUMBER: _ClassVar[int]
    round: int
    number: int
    shares: _containers.RepeatedCompositeFieldContainer[Share]
    def __init__(self, round: _Optional[int] = ..., number: _Optional[int] = ..., shares: _Optional[_Iterable[_Union[Share, _Mapping]]] = ...) -> None: ...

class Share(_message.Message):
    __slots__ = ("device", "weight", "factor")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    FACTOR_FIELD_NUMBER: _ClassVar[int]
    device: str
    weight: int
    factor: float
    def __init__(self, device: _Optional[str] = ..., weight: _Optional[int] = ..., factor: _Optional[float] = ...) -> None: ...

class CloudMessage(_message.Message):
    __slots__ = ("settings", "admission", "start", "adapter", "evict", "heartbeat", "finish", "hand_over", "reduce", "checksum")
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    ADMISSION_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    EVICT_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    HAND_OVER_FIELD_NUMBER: _ClassVar[int]
    REDUCE_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    settings: Settings
    admission: Admission
    start: EdgeRoundStart
    adapter: _tensor_pb2.AdapterFrame
    evict: Evict
    heartbeat: _tensor_pb2.Heartbeat
    finish: _edge_pb2.Finish
    hand_over: HandOver
    reduce: Reduce
    checksum: int
    def __init__(self, settings: _Optional[_Union[Settings, _Mapping]] = ..., admission: _Optional[_Union[Admission, _Mapping]] = ..., start: _Optional[_Union[EdgeRoundStart, _Mapping]] = ..., adapter: _Optional[_Union[_tensor_pb2.AdapterFrame, _Mapping]] = ..., evict: _Optional[_Union[Evict, _Mapping]] = ..., heartbeat: _Optional[_Union[_tensor_pb2.Heartbeat, _Mapping]] = ..., finish: _Optional[_Union[_edge_pb2.Finish, _Mapping]] = ..., hand_over: _Optional[_Union[HandOver, _Mapping]] = ..., reduce: _Optional[_Union[Reduce, _Mapping]] = ..., checksum: _Optional[int] = ...) -> None: ...
