from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TensorKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TENSOR_KIND_UNSPECIFIED: _ClassVar[TensorKind]
    TENSOR_KIND_ACTIVATION: _ClassVar[TensorKind]
    TENSOR_KIND_GRADIENT: _ClassVar[TensorKind]
    TENSOR_KIND_SCORE: _ClassVar[TensorKind]

class Purpose(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PURPOSE_UNSPECIFIED: _ClassVar[Purpose]
    PURPOSE_TRAINING: _ClassVar[Purpose]
    PURPOSE_EVALUATION: _ClassVar[Purpose]
TENSOR_KIND_UNSPECIFIED: TensorKind
TENSOR_KIND_ACTIVATION: TensorKind
TENSOR_KIND_GRADIENT: TensorKind
TENSOR_KIND_SCORE: TensorKind
PURPOSE_UNSPECIFIED: Purpose
PURPOSE_TRAINING: Purpose
PURPOSE_EVALUATION: Purpose

class Score(_message.Message):
    __slots__ = ("loss_sum", "num_targets", "num_correct", "num_examples")
    LOSS_SUM_FIELD_NUMBER: _ClassVar[int]
    NUM_TARGETS_FIELD_NUMBER: _ClassVar[int]
    NUM_CORRECT_FIELD_NUMBER: _ClassVar[int]
    NUM_EXAMPLES_FIELD_NUMBER: _ClassVar[int]
    loss_sum: float
    num_targets: int
    num_correct: int
    num_examples: int
    def __init__(self, loss_sum: _Optional[float] = ..., num_targets: _Optional[int] = ..., num_correct: _Optional[int] = ..., num_examples: _Optional[int] = ...) -> None: ...

class NamedTensor(_message.Message):
    __slots__ = ("name", "codec", "dtype", "shape", "num_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    codec: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    num_bytes: int
    def __init__(self, name: _Optional[str] = ..., codec: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., num_bytes: _Optional[int] = ...) -> None: ...

class TensorHeader(_message.Message):
    __slots__ = ("kind", "purpose", "round", "step", "micro_batch", "num_micro_batches", "lengths", "labels", "normalizer", "codec", "dtype", "shape", "num_bytes", "loss", "score", "named", "arrived_us", "held_us", "ids", "sequence_keys")
    KIND_FIELD_NUMBER: _ClassVar[int]
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    MICRO_BATCH_FIELD_NUMBER: _ClassVar[int]
    NUM_MICRO_BATCHES_FIELD_NUMBER: _ClassVar[int]
    LENGTHS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    NORMALIZER_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    NAMED_FIELD_NUMBER: _ClassVar[int]
    ARRIVED_US_FIELD_NUMBER: _ClassVar[int]
    HELD_US_FIELD_NUMBER: _ClassVar[int]
    IDS_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_KEYS_FIELD_NUMBER: _ClassVar[int]
    kind: TensorKind
    purpose: Purpose
    round: int
    step: int
    micro_batch: int
    num_micro_batches: int
    lengths: _containers.RepeatedScalarFieldContainer[int]
    labels: bytes
    normalizer: int
    codec: str
    dtype: str
    shape: _containers.RepeatedScalarFieldContainer[int]
    num_bytes: int
    loss: float
    score: Score
    named: _containers.RepeatedCompositeFieldContainer[NamedTensor]
    arrived_us: int
    held_us: int
    ids: bytes
    sequence_keys: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, kind: _Optional[_Union[TensorKind, str]] = ..., purpose: _Optional[_Union[Purpose, str]] = ..., round: _Optional[int] = ..., step: _Optional[int] = ..., micro_batch: _Optional[int] = ..., num_micro_batches: _Optional[int] = ..., lengths: _Optional[_Iterable[int]] = ..., labels: _Optional[bytes] = ..., normalizer: _Optional[int] = ..., codec: _Optional[str] = ..., dtype: _Optional[str] = ..., shape: _Optional[_Iterable[int]] = ..., num_bytes: _Optional[int] = ..., loss: _Optional[float] = ..., score: _Optional[_Union[Score, _Mapping]] = ..., named: _Optional[_Iterable[_Union[NamedTensor, _Mapping]]] = ..., arrived_us: _Optional[int] = ..., held_us: _Optional[int] = ..., ids: _Optional[bytes] = ..., sequence_keys: _Optional[_Iterable[bytes]] = ...) -> None: ...

class TensorFrame(_message.Message):
    __slots__ = ("header", "data", "last", "kind")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    header: TensorHeader
    data: bytes
    last: bool
    kind: TensorKind
    def __init__(self, header: _Optional[_Union[TensorHeader, _Mapping]] = ..., data: _Optional[bytes] = ..., last: _Optional[bool] = ..., kind: _Optional[_Union[TensorKind, str]] = ...) -> None: ...

class Signature(_message.Message):
    __slots__ = ("sequence", "value")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    value: bytes
    def __init__(self, sequence: _Optional[int] = ..., value: _Optional[bytes] = ...) -> None: ...

class AdapterHeader(_message.Message):
    __slots__ = ("round", "final_step", "device", "side", "num_bytes", "codec", "scaling", "number", "signature")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    FINAL_STEP_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    SIDE_FIELD_NUMBER: _ClassVar[int]
    NUM_BYTES_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    SCALING_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    round: int
    final_step: int
    device: str
    side: str
    num_bytes: int
    codec: str
    scaling: float
    number: int
    signature: Signature
    def __init__(self, round: _Optional[int] = ..., final_step: _Optional[int] = ..., device: _Optional[str] = ..., side: _Optional[str] = ..., num_bytes: _Optional[int] = ..., codec: _Optional[str] = ..., scaling: _Optional[float] = ..., number: _Optional[int] = ..., signature: _Optional[_Union[Signature, _Mapping]] = ...) -> None: ...

class AdapterFrame(_message.Message):
    __slots__ = ("header", "data", "last")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    header: AdapterHeader
    data: bytes
    last: bool
    def __init__(self, header: _Optional[_Union[AdapterHeader, _Mapping]] = ..., data: _Optional[bytes] = ..., last: _Optional[bool] = ...) -> None: ...

class RoundTrip(_message.Message):
    __slots__ = ("edge", "seconds")
    EDGE_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    edge: str
    seconds: float
    def __init__(self, edge: _Optional[str] = ..., seconds: _Optional[float] = ...) -> None: ...

class RoundReport(_message.Message):
    __slots__ = ("round", "device", "num_steps", "train_loss", "num_tokens", "train_seconds", "evaluation", "snapshot", "evaluation_seconds", "spans", "edge_spans", "rehearsal", "sample", "edge_passes", "round_trips", "asks_for", "signature")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    NUM_STEPS_FIELD_NUMBER: _ClassVar[int]
    TRAIN_LOSS_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TRAIN_SECONDS_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SPANS_FIELD_NUMBER: _ClassVar[int]
    EDGE_SPANS_FIELD_NUMBER: _ClassVar[int]
    REHEARSAL_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_FIELD_NUMBER: _ClassVar[int]
    EDGE_PASSES_FIELD_NUMBER: _ClassVar[int]
    ROUND_TRIPS_FIELD_NUMBER: _ClassVar[int]
    ASKS_FOR_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    round: int
    device: str
    num_steps: int
    train_loss: float
    num_tokens: int
    train_seconds: float
    evaluation: Score
    snapshot: str
    evaluation_seconds: float
    spans: str
    edge_spans: str
    rehearsal: _containers.RepeatedScalarFieldContainer[float]
    sample: Score
    edge_passes: str
    round_trips: _containers.RepeatedCompositeFieldContainer[RoundTrip]
    asks_for: str
    signature: Signature
    def __init__(self, round: _Optional[int] = ..., device: _Optional[str] = ..., num_steps: _Optional[int] = ..., train_loss: _Optional[float] = ..., num_tokens: _Optional[int] = ..., train_seconds: _Optional[float] = ..., evaluation: _Optional[_Union[Score, _Mapping]] = ..., snapshot: _Optional[str] = ..., evaluation_seconds: _Optional[float] = ..., spans: _Optional[str] = ..., edge_spans: _Optional[str] = ..., rehearsal: _Optional[_Iterable[float]] = ..., sample: _Optional[_Union[Score, _Mapping]] = ..., edge_passes: _Optional[str] = ..., round_trips: _Optional[_Iterable[_Union[RoundTrip, _Mapping]]] = ..., asks_for: _Optional[str] = ..., signature: _Optional[_Union[Signature, _Mapping]] = ...) -> None: ...

class Heartbeat(_message.Message):
    __slots__ = ("snapshot", "devices")
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    snapshot: str
    devices: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, snapshot: _Optional[str] = ..., devices: _Optional[_Iterable[str]] = ...) -> None: ...
