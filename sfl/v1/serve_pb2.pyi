from sfl.v1 import edge_pb2 as _edge_pb2
from sfl.v1 import tensor_pb2 as _tensor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AdapterPart(_message.Message):
    __slots__ = ("frame", "checksum")
    FRAME_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    frame: _tensor_pb2.AdapterFrame
    checksum: int
    def __init__(self, frame: _Optional[_Union[_tensor_pb2.AdapterFrame, _Mapping]] = ..., checksum: _Optional[int] = ...) -> None: ...

class AdapterRequest(_message.Message):
    __slots__ = ("device", "adapter", "cut_layer", "tail_layers", "ends", "checksum")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    CUT_LAYER_FIELD_NUMBER: _ClassVar[int]
    TAIL_LAYERS_FIELD_NUMBER: _ClassVar[int]
    ENDS_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    device: str
    adapter: str
    cut_layer: int
    tail_layers: int
    ends: bool
    checksum: int
    def __init__(self, device: _Optional[str] = ..., adapter: _Optional[str] = ..., cut_layer: _Optional[int] = ..., tail_layers: _Optional[int] = ..., ends: _Optional[bool] = ..., checksum: _Optional[int] = ...) -> None: ...

class ServeHello(_message.Message):
    __slots__ = ("device", "wire_version", "compiled_codec", "model")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    WIRE_VERSION_FIELD_NUMBER: _ClassVar[int]
    COMPILED_CODEC_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    device: str
    wire_version: int
    compiled_codec: bool
    model: str
    def __init__(self, device: _Optional[str] = ..., wire_version: _Optional[int] = ..., compiled_codec: _Optional[bool] = ..., model: _Optional[str] = ...) -> None: ...

class ServedAdapter(_message.Message):
    __slots__ = ("name", "digest")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    name: str
    digest: str
    def __init__(self, name: _Optional[str] = ..., digest: _Optional[str] = ...) -> None: ...

class ServeWelcome(_message.Message):
    __slots__ = ("edge", "adapters", "codec", "first", "last", "head", "prefill_chunk", "room", "max_tokens")
    EDGE_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    PREFILL_CHUNK_FIELD_NUMBER: _ClassVar[int]
    ROOM_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    edge: str
    adapters: _containers.RepeatedCompositeFieldContainer[ServedAdapter]
    codec: str
    first: int
    last: int
    head: bool
    prefill_chunk: int
    room: int
    max_tokens: int
    def __init__(self, edge: _Optional[str] = ..., adapters: _Optional[_Iterable[_Union[ServedAdapter, _Mapping]]] = ..., codec: _Optional[str] = ..., first: _Optional[int] = ..., last: _Optional[int] = ..., head: _Optional[bool] = ..., prefill_chunk: _Optional[int] = ..., room: _Optional[int] = ..., max_tokens: _Optional[int] = ...) -> None: ...

class SamplingSettings(_message.Message):
    __slots__ = ("temperature", "top_p", "seed", "key")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_p: float
    seed: int
    key: str
    def __init__(self, temperature: _Optional[float] = ..., top_p: _Optional[float] = ..., seed: _Optional[int] = ..., key: _Optional[str] = ...) -> None: ...

class OpenConversation(_message.Message):
    __slots__ = ("conversation", "name", "adapter", "digest", "first", "last", "ends", "reserved", "sampling", "exact")
    CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    ENDS_FIELD_NUMBER: _ClassVar[int]
    RESERVED_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    EXACT_FIELD_NUMBER: _ClassVar[int]
    conversation: int
    name: str
    adapter: str
    digest: str
    first: int
    last: int
    ends: bool
    reserved: int
    sampling: SamplingSettings
    exact: bool
    def __init__(self, conversation: _Optional[int] = ..., name: _Optional[str] = ..., adapter: _Optional[str] = ..., digest: _Optional[str] = ..., first: _Optional[int] = ..., last: _Optional[int] = ..., ends: _Optional[bool] = ..., reserved: _Optional[int] = ..., sampling: _Optional[_Union[SamplingSettings, _Mapping]] = ..., exact: _Optional[bool] = ...) -> None: ...

class TokenRows(_message.Message):
    __slots__ = ("count", "dtype", "data")
    COUNT_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    count: int
    dtype: str
    data: bytes
    def __init__(self, count: _Optional[int] = ..., dtype: _Optional[str] = ..., data: _Optional[bytes] = ...) -> None: ...

class GenerateStep(_message.Message):
    __slots__ = ("conversation", "number", "position", "wanted", "rows", "draft", "drafted")
    CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    WANTED_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    DRAFT_FIELD_NUMBER: _ClassVar[int]
    DRAFTED_FIELD_NUMBER: _ClassVar[int]
    conversation: int
    number: int
    position: int
    wanted: int
    rows: TokenRows
    draft: _containers.RepeatedScalarFieldContainer[int]
    drafted: int
    def __init__(self, conversation: _Optional[int] = ..., number: _Optional[int] = ..., position: _Optional[int] = ..., wanted: _Optional[int] = ..., rows: _Optional[_Union[TokenRows, _Mapping]] = ..., draft: _Optional[_Iterable[int]] = ..., drafted: _Optional[int] = ...) -> None: ...

class GenerateRequest(_message.Message):
    __slots__ = ("hello", "open", "step", "close", "heartbeat", "goodbye", "checksum")
    HELLO_FIELD_NUMBER: _ClassVar[int]
    OPEN_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    CLOSE_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    GOODBYE_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    hello: ServeHello
    open: OpenConversation
    step: GenerateStep
    close: int
    heartbeat: _tensor_pb2.Heartbeat
    goodbye: str
    checksum: int
    def __init__(self, hello: _Optional[_Union[ServeHello, _Mapping]] = ..., open: _Optional[_Union[OpenConversation, _Mapping]] = ..., step: _Optional[_Union[GenerateStep, _Mapping]] = ..., close: _Optional[int] = ..., heartbeat: _Optional[_Union[_tensor_pb2.Heartbeat, _Mapping]] = ..., goodbye: _Optional[str] = ..., checksum: _Optional[int] = ...) -> None: ...

class ConversationOpened(_message.Message):
    __slots__ = ("conversation", "length", "number")
    CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    conversation: int
    length: int
    number: int
    def __init__(self, conversation: _Optional[int] = ..., length: _Optional[int] = ..., number: _Optional[int] = ...) -> None: ...

class StepTokens(_message.Message):
    __slots__ = ("conversation", "number", "tokens")
    CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    conversation: int
    number: int
    tokens: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, conversation: _Optional[int] = ..., number: _Optional[int] = ..., tokens: _Optional[_Iterable[int]] = ...) -> None: ...

class StepRows(_message.Message):
    __slots__ = ("conversation", "number", "rows")
    CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    conversation: int
    number: int
    rows: TokenRows
    def __init__(self, conversation: _Optional[int] = ..., number: _Optional[int] = ..., rows: _Optional[_Union[TokenRows, _Mapping]] = ...) -> None: ...

class StepMissing(_message.Message):
    __slots__ = ("conversation", "number", "length")
    CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    LENGTH_FIELD_NUMBER: _ClassVar[int]
    conversation: int
    number: int
    length: int
    def __init__(self, conversation: _Optional[int] = ..., number: _Optional[int] = ..., length: _Optional[int] = ...) -> None: ...

class EdgeBusy(_message.Message):
    __slots__ = ("conversation", "retry_after")
    CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    RETRY_AFTER_FIELD_NUMBER: _ClassVar[int]
    conversation: int
    retry_after: float
    def __init__(self, conversation: _Optional[int] = ..., retry_after: _Optional[float] = ...) -> None: ...

class ServingEnded(_message.Message):
    __slots__ = ("status", "reason")
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    status: int
    reason: str
    def __init__(self, status: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class ConversationClosed(_message.Message):
    __slots__ = ("conversation", "reason")
    CONVERSATION_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    conversation: int
    reason: str
    def __init__(self, conversation: _Optional[int] = ..., reason: _Optional[str] = ...) -> None: ...

class GenerateReply(_message.Message):
    __slots__ = ("welcome", "opened", "tokens", "rows", "missing", "busy", "closed", "heartbeat", "ended", "checksum")
    WELCOME_FIELD_NUMBER: _ClassVar[int]
    OPENED_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    MISSING_FIELD_NUMBER: _ClassVar[int]
    BUSY_FIELD_NUMBER: _ClassVar[int]
    CLOSED_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    ENDED_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    welcome: ServeWelcome
    opened: ConversationOpened
    tokens: StepTokens
    rows: StepRows
    missing: StepMissing
    busy: EdgeBusy
    closed: ConversationClosed
    heartbeat: _tensor_pb2.Heartbeat
    ended: ServingEnded
    checksum: int
    def __init__(self, welcome: _Optional[_Union[ServeWelcome, _Mapping]] = ..., opened: _Optional[_Union[ConversationOpened, _Mapping]] = ..., tokens: _Optional[_Union[StepTokens, _Mapping]] = ..., rows: _Optional[_Union[StepRows, _Mapping]] = ..., missing: _Optional[_Union[StepMissing, _Mapping]] = ..., busy: _Optional[_Union[EdgeBusy, _Mapping]] = ..., closed: _Optional[_Union[ConversationClosed, _Mapping]] = ..., heartbeat: _Optional[_Union[_tensor_pb2.Heartbeat, _Mapping]] = ..., ended: _Optional[_Union[ServingEnded, _Mapping]] = ..., checksum: _Optional[int] = ...) -> None: ...
