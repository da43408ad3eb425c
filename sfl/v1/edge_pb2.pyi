from sfl.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Extent(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    EXTENT_NONE: _ClassVar[Extent]
    EXTENT_SAMPLE: _ClassVar[Extent]
    EXTENT_ALL: _ClassVar[Extent]

class Holder(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    HOLDER_UNSPECIFIED: _ClassVar[Holder]
    HOLDER_DEVICE: _ClassVar[Holder]
    HOLDER_EDGE: _ClassVar[Holder]
    HOLDER_STAGE: _ClassVar[Holder]
    HOLDER_STAGE2: _ClassVar[Holder]
    HOLDER_STAGE3: _ClassVar[Holder]
EXTENT_NONE: Extent
EXTENT_SAMPLE: Extent
EXTENT_ALL: Extent
HOLDER_UNSPECIFIED: Holder
HOLDER_DEVICE: Holder
HOLDER_EDGE: Holder
HOLDER_STAGE: Holder
HOLDER_STAGE2: Holder
HOLDER_STAGE3: Holder

class Heard(_message.Message):
    __slots__ = ("checksum",)
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    checksum: int
    def __init__(self, checksum: _Optional[int] = ...) -> None: ...

class DeviceHello(_message.Message):
    __slots__ = ("device", "wire_version", "compiled_codec", "run", "incarnation", "stage", "round_trips")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    WIRE_VERSION_FIELD_NUMBER: _ClassVar[int]
    COMPILED_CODEC_FIELD_NUMBER: _ClassVar[int]
    RUN_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    ROUND_TRIPS_FIELD_NUMBER: _ClassVar[int]
    device: str
    wire_version: int
    compiled_codec: bool
    run: str
    incarnation: bytes
    stage: StageHello
    round_trips: _containers.RepeatedCompositeFieldContainer[_tensor_pb2.RoundTrip]
    def __init__(self, device: _Optional[str] = ..., wire_version: _Optional[int] = ..., compiled_codec: _Optional[bool] = ..., run: _Optional[str] = ..., incarnation: _Optional[bytes] = ..., stage: _Optional[_Union[StageHello, _Mapping]] = ..., round_trips: _Optional[_Iterable[_Union[_tensor_pb2.RoundTrip, _Mapping]]] = ...) -> None: ...

class StageHello(_message.Message):
    __slots__ = ("server", "holder", "settings", "run_id", "run_key", "assignment", "model", "settings_digest")
    SERVER_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    RUN_KEY_FIELD_NUMBER: _ClassVar[int]
    ASSIGNMENT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    server: str
    holder: int
    settings: str
    run_id: str
    run_key: str
    assignment: Assignment
    model: str
    settings_digest: bytes
    def __init__(self, server: _Optional[str] = ..., holder: _Optional[int] = ..., settings: _Optional[str] = ..., run_id: _Optional[str] = ..., run_key: _Optional[str] = ..., assignment: _Optional[_Union[Assignment, _Mapping]] = ..., model: _Optional[str] = ..., settings_digest: _Optional[bytes] = ...) -> None: ...

class SettingsWanted(_message.Message):
    __slots__ = ("settings_digest",)
    SETTINGS_DIGEST_FIELD_NUMBER: _ClassVar[int]
    settings_digest: bytes
    def __init__(self, settings_digest: _Optional[bytes] = ...) -> None: ...

class TogetherWanted(_message.Message):
    __slots__ = ("digest",)
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    digest: bytes
    def __init__(self, digest: _Optional[bytes] = ...) -> None: ...

class Together(_message.Message):
    __slots__ = ("devices",)
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    devices: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, devices: _Optional[_Iterable[str]] = ...) -> None: ...

class Point(_message.Message):
    __slots__ = ("round", "step", "lineage")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    LINEAGE_FIELD_NUMBER: _ClassVar[int]
    round: int
    step: int
    lineage: int
    def __init__(self, round: _Optional[int] = ..., step: _Optional[int] = ..., lineage: _Optional[int] = ...) -> None: ...

class DeviceReady(_message.Message):
    __slots__ = ("num_examples", "num_eval_examples", "num_truncated", "num_dropped", "snapshot", "example_kind", "num_repeated", "num_tokens", "num_tokens_kept", "layout", "chat_template", "points", "cuts", "memory", "signature")
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    NUM_EVAL_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    NUM_TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    NUM_DROPPED_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    EXAMPLE_KIND_FIELD_NUMBER: _ClassVar[int]
    NUM_REPEATED_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_KEPT_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_FIELD_NUMBER: _ClassVar[int]
    CHAT_TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    CUTS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    num_examples: int
    num_eval_examples: int
    num_truncated: int
    num_dropped: int
    snapshot: str
    example_kind: str
    num_repeated: int
    num_tokens: int
    num_tokens_kept: int
    layout: str
    chat_template: str
    points: _containers.RepeatedCompositeFieldContainer[Point]
    cuts: _containers.RepeatedCompositeFieldContainer[LegalCut]
    memory: int
    signature: _tensor_pb2.Signature
    def __init__(self, num_examples: _Optional[int] = ..., num_eval_examples: _Optional[int] = ..., num_truncated: _Optional[int] = ..., num_dropped: _Optional[int] = ..., snapshot: _Optional[str] = ..., example_kind: _Optional[str] = ..., num_repeated: _Optional[int] = ..., num_tokens: _Optional[int] = ..., num_tokens_kept: _Optional[int] = ..., layout: _Optional[str] = ..., chat_template: _Optional[str] = ..., points: _Optional[_Iterable[_Union[Point, _Mapping]]] = ..., cuts: _Optional[_Iterable[_Union[LegalCut, _Mapping]]] = ..., memory: _Optional[int] = ..., signature: _Optional[_Union[_tensor_pb2.Signature, _Mapping]] = ...) -> None: ...

class LegalCut(_message.Message):
    __slots__ = ("cut_layer", "tail_layers", "memory")
    CUT_LAYER_FIELD_NUMBER: _ClassVar[int]
    TAIL_LAYERS_FIELD_NUMBER: _ClassVar[int]
    MEMORY_FIELD_NUMBER: _ClassVar[int]
    cut_layer: int
    tail_layers: int
    memory: int
    def __init__(self, cut_layer: _Optional[int] = ..., tail_layers: _Optional[int] = ..., memory: _Optional[int] = ...) -> None: ...

class Challenge(_message.Message):
    __slots__ = ("run_id", "edge", "nonce")
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    EDGE_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    run_id: str
    edge: str
    nonce: bytes
    def __init__(self, run_id: _Optional[str] = ..., edge: _Optional[str] = ..., nonce: _Optional[bytes] = ...) -> None: ...

class Proof(_message.Message):
    __slots__ = ("certificate", "nonce", "signature")
    CERTIFICATE_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    certificate: bytes
    nonce: bytes
    signature: bytes
    def __init__(self, certificate: _Optional[bytes] = ..., nonce: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class GradientNorm(_message.Message):
    __slots__ = ("round", "step", "squared", "before")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    SQUARED_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    round: int
    step: int
    squared: float
    before: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, round: _Optional[int] = ..., step: _Optional[int] = ..., squared: _Optional[float] = ..., before: _Optional[_Iterable[float]] = ...) -> None: ...

class DeviceMessage(_message.Message):
    __slots__ = ("hello", "ready", "tensor", "norm", "adapter", "report", "heartbeat", "goodbye", "proof", "start", "together", "checksum", "cannot_compute", "returns")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    NORM_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    GOODBYE_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    TOGETHER_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    CANNOT_COMPUTE_FIELD_NUMBER: _ClassVar[int]
    RETURNS_FIELD_NUMBER: _ClassVar[int]
    hello: DeviceHello
    ready: DeviceReady
    tensor: _tensor_pb2.TensorFrame
    norm: GradientNorm
    adapter: _tensor_pb2.AdapterFrame
    report: _tensor_pb2.RoundReport
    heartbeat: _tensor_pb2.Heartbeat
    goodbye: str
    proof: Proof
    start: Assignment
    together: Together
    checksum: int
    cannot_compute: bool
    returns: bool
    def __init__(self, hello: _Optional[_Union[DeviceHello, _Mapping]] = ..., ready: _Optional[_Union[DeviceReady, _Mapping]] = ..., tensor: _Optional[_Union[_tensor_pb2.TensorFrame, _Mapping]] = ..., norm: _Optional[_Union[GradientNorm, _Mapping]] = ..., adapter: _Optional[_Union[_tensor_pb2.AdapterFrame, _Mapping]] = ..., report: _Optional[_Union[_tensor_pb2.RoundReport, _Mapping]] = ..., heartbeat: _Optional[_Union[_tensor_pb2.Heartbeat, _Mapping]] = ..., goodbye: _Optional[str] = ..., proof: _Optional[_Union[Proof, _Mapping]] = ..., start: _Optional[_Union[Assignment, _Mapping]] = ..., together: _Optional[_Union[Together, _Mapping]] = ..., checksum: _Optional[int] = ..., cannot_compute: _Optional[bool] = ..., returns: _Optional[bool] = ...) -> None: ...

class EdgeAt(_message.Message):
    __slots__ = ("edge", "address")
    EDGE_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    edge: str
    address: str
    def __init__(self, edge: _Optional[str] = ..., address: _Optional[str] = ...) -> None: ...

class Edges(_message.Message):
    __slots__ = ("edges",)
    EDGES_FIELD_NUMBER: _ClassVar[int]
    edges: _containers.RepeatedCompositeFieldContainer[EdgeAt]
    def __init__(self, edges: _Optional[_Iterable[_Union[EdgeAt, _Mapping]]] = ...) -> None: ...

class Elsewhere(_message.Message):
    __slots__ = ("reason", "edges")
    REASON_FIELD_NUMBER: _ClassVar[int]
    EDGES_FIELD_NUMBER: _ClassVar[int]
    reason: str
    edges: _containers.RepeatedCompositeFieldContainer[EdgeAt]
    def __init__(self, reason: _Optional[str] = ..., edges: _Optional[_Iterable[_Union[EdgeAt, _Mapping]]] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("settings", "run_id", "assignment", "compiled_codec", "run_key", "points", "edge", "edges", "credits", "taught_tokens")
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    RUN_ID_FIELD_NUMBER: _ClassVar[int]
    ASSIGNMENT_FIELD_NUMBER: _ClassVar[int]
    COMPILED_CODEC_FIELD_NUMBER: _ClassVar[int]
    RUN_KEY_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    EDGE_FIELD_NUMBER: _ClassVar[int]
    EDGES_FIELD_NUMBER: _ClassVar[int]
    CREDITS_FIELD_NUMBER: _ClassVar[int]
    TAUGHT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    settings: str
    run_id: str
    assignment: Assignment
    compiled_codec: bool
    run_key: str
    points: _containers.RepeatedCompositeFieldContainer[Point]
    edge: str
    edges: _containers.RepeatedCompositeFieldContainer[EdgeAt]
    credits: int
    taught_tokens: int
    def __init__(self, settings: _Optional[str] = ..., run_id: _Optional[str] = ..., assignment: _Optional[_Union[Assignment, _Mapping]] = ..., compiled_codec: _Optional[bool] = ..., run_key: _Optional[str] = ..., points: _Optional[_Iterable[_Union[Point, _Mapping]]] = ..., edge: _Optional[str] = ..., edges: _Optional[_Iterable[_Union[EdgeAt, _Mapping]]] = ..., credits: _Optional[int] = ..., taught_tokens: _Optional[int] = ...) -> None: ...

class HeldSpan(_message.Message):
    __slots__ = ("first", "last", "embedding", "head", "holder")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    EMBEDDING_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    HOLDER_FIELD_NUMBER: _ClassVar[int]
    first: int
    last: int
    embedding: bool
    head: bool
    holder: Holder
    def __init__(self, first: _Optional[int] = ..., last: _Optional[int] = ..., embedding: _Optional[bool] = ..., head: _Optional[bool] = ..., holder: _Optional[_Union[Holder, str]] = ...) -> None: ...

class Assignment(_message.Message):
    __slots__ = ("round", "evaluate", "num_steps", "first_step", "total_steps", "codecs", "micro_batches", "rehearse", "plan", "rank", "scaling", "credits", "after", "lineage", "together", "share", "together_digest")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    EVALUATE_FIELD_NUMBER: _ClassVar[int]
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    FIRST_STEP_FIELD_NUMBER: _ClassVar[int]
    TOTAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    CODECS_FIELD_NUMBER: _ClassVar[int]
    MICRO_BATCHES_FIELD_NUMBER: _ClassVar[int]
    REHEARSE_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    SCALING_FIELD_NUMBER: _ClassVar[int]
    CREDITS_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    LINEAGE_FIELD_NUMBER: _ClassVar[int]
    TOGETHER_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    TOGETHER_DIGEST_FIELD_NUMBER: _ClassVar[int]
    round: int
    evaluate: Extent
    num_steps: int
    first_step: int
    total_steps: int
    codecs: str
    micro_batches: int
    rehearse: _containers.RepeatedScalarFieldContainer[int]
    plan: _containers.RepeatedCompositeFieldContainer[HeldSpan]
    rank: int
    scaling: float
    credits: int
    after: Point
    lineage: int
    together: _containers.RepeatedScalarFieldContainer[str]
    share: float
    together_digest: bytes
    def __init__(self, round: _Optional[int] = ..., evaluate: _Optional[_Union[Extent, str]] = ..., num_steps: _Optional[int] = ..., first_step: _Optional[int] = ..., total_steps: _Optional[int] = ..., codecs: _Optional[str] = ..., micro_batches: _Optional[int] = ..., rehearse: _Optional[_Iterable[int]] = ..., plan: _Optional[_Iterable[_Union[HeldSpan, _Mapping]]] = ..., rank: _Optional[int] = ..., scaling: _Optional[float] = ..., credits: _Optional[int] = ..., after: _Optional[_Union[Point, _Mapping]] = ..., lineage: _Optional[int] = ..., together: _Optional[_Iterable[str]] = ..., share: _Optional[float] = ..., together_digest: _Optional[bytes] = ...) -> None: ...

class Finish(_message.Message):
    __slots__ = ("ok", "reason", "run_key", "goes_on", "server", "checksum")
    OK_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    RUN_KEY_FIELD_NUMBER: _ClassVar[int]
    GOES_ON_FIELD_NUMBER: _ClassVar[int]
    SERVER_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    ok: bool
    reason: str
    run_key: str
    goes_on: bool
    server: str
    checksum: int
    def __init__(self, ok: _Optional[bool] = ..., reason: _Optional[str] = ..., run_key: _Optional[str] = ..., goes_on: _Optional[bool] = ..., server: _Optional[str] = ..., checksum: _Optional[int] = ...) -> None: ...

class EdgeMessage(_message.Message):
    __slots__ = ("welcome", "start", "adapter", "tensor", "norm", "heartbeat", "finish", "elsewhere", "edges", "settings_wanted", "together_wanted", "challenge", "checksum")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    TENSOR_FIELD_NUMBER: _ClassVar[int]
    NORM_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    ELSEWHERE_FIELD_NUMBER: _ClassVar[int]
    EDGES_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_WANTED_FIELD_NUMBER: _ClassVar[int]
    TOGETHER_WANTED_FIELD_NUMBER: _ClassVar[int]
    CHALLENGE_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    welcome: Welcome
    start: Assignment
    adapter: _tensor_pb2.AdapterFrame
    tensor: _tensor_pb2.TensorFrame
    norm: GradientNorm
    heartbeat: _tensor_pb2.Heartbeat
    finish: Finish
    elsewhere: Elsewhere
    edges: Edges
    settings_wanted: SettingsWanted
    together_wanted: TogetherWanted
    challenge: Challenge
    checksum: int
    def __init__(self, welcome: _Optional[_Union[Welcome, _Mapping]] = ..., start: _Optional[_Union[Assignment, _Mapping]] = ..., adapter: _Optional[_Union[_tensor_pb2.AdapterFrame, _Mapping]] = ..., tensor: _Optional[_Union[_tensor_pb2.TensorFrame, _Mapping]] = ..., norm: _Optional[_Union[GradientNorm, _Mapping]] = ..., heartbeat: _Optional[_Union[_tensor_pb2.Heartbeat, _Mapping]] = ..., finish: _Optional[_Union[Finish, _Mapping]] = ..., elsewhere: _Optional[_Union[Elsewhere, _Mapping]] = ..., edges: _Optional[_Union[Edges, _Mapping]] = ..., settings_wanted: _Optional[_Union[SettingsWanted, _Mapping]] = ..., together_wanted: _Optional[_Union[TogetherWanted, _Mapping]] = ..., challenge: _Optional[_Union[Challenge, _Mapping]] = ..., checksum: _Optional[int] = ...) -> None: ...

class ServedBlocks(_message.Message):
    __slots__ = ("cut_layer", "tail_layers", "ends")
    CUT_LAYER_FIELD_NUMBER: _ClassVar[int]
    TAIL_LAYERS_FIELD_NUMBER: _ClassVar[int]
    ENDS_FIELD_NUMBER: _ClassVar[int]
    cut_layer: int
    tail_layers: int
    ends: bool
    def __init__(self, cut_layer: _Optional[int] = ..., tail_layers: _Optional[int] = ..., ends: _Optional[bool] = ...) -> None: ...

class FilesRequest(_message.Message):
    __slots__ = ("device", "blocks", "checksum")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    device: str
    blocks: ServedBlocks
    checksum: int
    def __init__(self, device: _Optional[str] = ..., blocks: _Optional[_Union[ServedBlocks, _Mapping]] = ..., checksum: _Optional[int] = ...) -> None: ...

class FileEntry(_message.Message):
    __slots__ = ("name", "num_bytes", "sha256")
    NAME_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    name: str
    num_bytes: int
    sha256: str
    def __init__(self, name: _Optional[str] = ..., num_bytes: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...

class FileList(_message.Message):
    __slots__ = ("files", "checksum")
    FILES_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    files: _containers.RepeatedCompositeFieldContainer[FileEntry]
    checksum: int
    def __init__(self, files: _Optional[_Iterable[_Union[FileEntry, _Mapping]]] = ..., checksum: _Optional[int] = ...) -> None: ...

class FileRequest(_message.Message):
    __slots__ = ("device", "name", "offset", "blocks", "checksum")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    BLOCKS_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    device: str
    name: str
    offset: int
    blocks: ServedBlocks
    checksum: int
    def __init__(self, device: _Optional[str] = ..., name: _Optional[str] = ..., offset: _Optional[int] = ..., blocks: _Optional[_Union[ServedBlocks, _Mapping]] = ..., checksum: _Optional[int] = ...) -> None: ...

class FileChunk(_message.Message):
    __slots__ = ("data", "checksum")
    DATA_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    checksum: int
    def __init__(self, data: _Optional[bytes] = ..., checksum: _Optional[int] = ...) -> None: ...

class ProbeRequest(_message.Message):
    __slots__ = ("payload", "reply_bytes", "checksum")
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    REPLY_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    payload: bytes
    reply_bytes: int
    checksum: int
    def __init__(self, payload: _Optional[bytes] = ..., reply_bytes: _Optional[int] = ..., checksum: _Optional[int] = ...) -> None: ...

class ProbeReply(_message.Message):
    __slots__ = ("payload", "received_bytes", "checksum")
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    RECEIVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    payload: bytes
    received_bytes: int
    checksum: int
    def __init__(self, payload: _Optional[bytes] = ..., received_bytes: _Optional[int] = ..., checksum: _Optional[int] = ...) -> None: ...
