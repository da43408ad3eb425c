"""`docs/configuration.md`, written from the settings types: `python -m tools.configuration_page`."""

from __future__ import annotations

import re
import sys
import textwrap
from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from sfl.config.aggregation import AggregationSettings
from sfl.config.base import OneOf
from sfl.config.codec import CodecChange, CodecSettings, ScheduledCodec
from sfl.config.data import DataSettings
from sfl.config.devices import DeviceEntry, LinkSettings
from sfl.config.distil import DistilSettings
from sfl.config.evaluation import EvaluationSettings
from sfl.config.model import LoraSettings, ModelSettings
from sfl.config.network import NetworkSettings
from sfl.config.node import (
    CloudNode,
    ConsentSettings,
    DeviceConfig,
    EdgeConfig,
    MetricsSettings,
    StageConfig,
    TlsSettings,
    TracingSettings,
)
from sfl.config.pausing import PauseSettings
from sfl.config.planner import PlannerSettings
from sfl.config.recovery import RecoverySettings
from sfl.config.run import LaunchSettings
from sfl.config.sections import RunSection
from sfl.config.serve import AnswerSettings
from sfl.config.service import ServiceSettings
from sfl.config.serving import ServeSettings
from sfl.config.simulate import (
    BitsSettings,
    DeviceClass,
    FailureSettings,
    PassTimes,
    PowerSettings,
    RadioSettings,
    SimulatedCloud,
    SimulatedEdge,
    SimulatedModel,
    SimulateSettings,
)
from sfl.config.stages import StagesSettings
from sfl.config.training import TrainingSettings

INTRO = """\
# Configuration

<!-- Written by `python -m tools.configuration_page`; a test holds it to the settings types. -->

One TOML file describes a run. An unknown key is an error that names the nearest known one. Relative
paths are relative to the file.

| to | use |
|---|---|
| get a commented file | `sfl init` |
| print the file with every default and every `auto` filled in | `sfl config show FILE` |
| override one setting | `--set section.key=value` |
| override one device's setting | `--set devices.NAME.cut_layer=2` |
| repeat a run with the settings that took effect | `sfl run runs/ID/config.toml` |

## Which file has which settings?

The **cloud owns the run's settings** (`[run]` to `[[devices]]`) and sends them to every node. A
node's own file has what is local to the node.

| command | its file has |
|---|---|
| `sfl run FILE` | everything; each entry of `[[devices]]` also has the local keys of its device |
| `sfl cloud FILE` | everything but the nodes |
| `sfl edge FILE` | a table `[edge]` |
| `sfl stage FILE` | a table `[stage]` |
| `sfl device FILE` | a table `[device]` |
| `sfl serve FILE` | `[model]`, `[serve]`, `[edge]` and `[[devices]]` ([serving](serving.md)) |
| `sfl edge FILE` that serves | `[edge]` and `[serve]` |
| `sfl serve --device FILE` | `[device]`, and a `[serve]` of its own |
| `sfl cloud` without a file | nothing: `[service]` is given by `--set` alone |

The same run on three machines:

```
sfl cloud run.toml --set cloud.listen=0.0.0.0:7000   # run.toml: everything but the nodes
sfl edge edge.toml                                   # [edge]: listen, cloud = "CLOUD:7000"
sfl device pi.toml                                   # [device]: name, edge = "EDGE:7001", train
```

- A path never comes from another machine. A device opens only the files that its own file names.
  `[device.consent]` says what else it agrees to.
- With more than one edge, `run.edges` names them all.
- Each node has its certificate from `sfl ca issue`: as a table `tls` (`[edge.tls]`), or as a folder
  (`--certs DIR`). See [security](security.md). Without certificates, addresses other than loopback
  need `--insecure`.
"""

MOST_IN_A_CELL = 200
"""Characters of a table's cell; what is longer has its first sentence there, the rest below."""

_SENTENCE_END = re.compile(r"(?<=[.:]) (?=[A-Z`])|(?<=\.\)) ")
_CODE = re.compile(r"`[^`]+`")
_PAGE = re.compile(r"\bdocs/([\w-]+)\.md\b")

SECTIONS: tuple[tuple[str, type[BaseModel]], ...] = (
    ("[run]", RunSection),
    ("[model]", ModelSettings),
    ("[lora]", LoraSettings),
    ("[distil]", DistilSettings),
    ("[training]", TrainingSettings),
    ("[aggregation]", AggregationSettings),
    ("[codec]", CodecSettings),
    ("[[codec.schedule]]", ScheduledCodec),
    ("[data]", DataSettings),
    ("[evaluation]", EvaluationSettings),
    ("[network]", NetworkSettings),
    ("[recovery]", RecoverySettings),
    ("[planner]", PlannerSettings),
    ("[stages]", StagesSettings),
    ("[[devices]]", DeviceEntry),
    ("[devices.codec]", CodecChange),
    ("[devices.link]", LinkSettings),
    ("[cloud]", CloudNode),
    ("[cloud.tracing]", TracingSettings),
    ("[edge]", EdgeConfig),
    ("[stage]", StageConfig),
    ("[launch]", LaunchSettings),
    ("[simulate]", SimulateSettings),
    ("[simulate.model]", SimulatedModel),
    ("[simulate.edge]", SimulatedEdge),
    ("[simulate.cloud]", SimulatedCloud),
    ("[simulate.bits]", BitsSettings),
    ("[[simulate.classes]]", DeviceClass),
    ("[simulate.classes.radio]", RadioSettings),
    ("[simulate.classes.power]", PowerSettings),
    ("[simulate.classes.failures]", FailureSettings),
    ("[simulate.classes.block], [simulate.edge.block]", PassTimes),
    ("[service]", ServiceSettings),
    ("[device]", DeviceConfig),
    ("[device.consent]", ConsentSettings),
    ("[serve]", ServeSettings),
    ("[serve] of a device", AnswerSettings),
    ("[device.pause], [devices.pause]", PauseSettings),
    ("[cloud.tls], [edge.tls], [stage.tls], [device.tls]", TlsSettings),
    ("[cloud.metrics], [edge.metrics], [stage.metrics], [device.metrics]", MetricsSettings),
)


def document() -> str:
    """The whole page as Markdown."""
    parts = [INTRO, *(_section(title, kind) for title, kind in SECTIONS)]
    return "\n".join(parts)


def _section(title: str, kind: type[BaseModel]) -> str:
    # A stage's other keys are those of [edge].
    shown = kind.__annotations__ if kind is StageConfig else kind.model_fields
    fields = [(name, kind.model_fields[name]) for name in shown]
    rows = "\n".join(_row(name, field) for name, field in fields)
    table = f"| key | type | default | meaning |\n|---|---|---|---|\n{rows}\n"
    more = [_item(name, rest) for name, field in fields if (rest := _meaning(field)[1])]
    details = ["More about these keys:\n", *more, ""] if more else []
    return "\n".join(
        [f"## `{title}`\n", f"{_filled(_linked(kind.__doc__ or ''))}\n", table, *details]
    )


def _row(name: str, field: FieldInfo) -> str:
    meaning = _meaning(field)[0].replace("|", "\\|")
    return f"| `{name}` | {_kind(field)} | {_default(field)} | {meaning} |"


def _meaning(field: FieldInfo) -> tuple[str, str]:
    """What a key means: for its cell, and what is too long for one."""
    whole = _linked(" ".join((field.description or "").split()))
    if len(whole) <= MOST_IN_A_CELL:
        return whole, ""
    first, *rest = _SENTENCE_END.split(whole)
    return f"{first} See below.", " ".join(rest)


def _item(name: str, text: str) -> str:
    return _filled(f"- **`{name}`**: {text}", "  ")


def _linked(text: str) -> str:
    """`docs/NAME.md` as a link to that page."""
    return _PAGE.sub(r"[\1](\1.md)", text)


def _filled(text: str, indent: str = "") -> str:
    """Lines of at most 100 characters; inline code stays on one."""
    whole = _CODE.sub(lambda code: code[0].replace(" ", "\0"), " ".join(text.split()))
    filled = textwrap.fill(whole, 100, subsequent_indent=indent, break_on_hyphens=False)
    return filled.replace("\0", " ")


def _kind(field: FieldInfo) -> str:
    tables = [one.table for one in field.metadata if isinstance(one, OneOf)]
    return _names(tables[0].built_in) if tables else _type(field.annotation)


def _names(names: Iterable[str]) -> str:
    return ", ".join(f'`"{name}"`' for name in names)


def _type(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return _names(get_args(annotation))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "table"
    arguments = [a for a in get_args(annotation) if a not in (type(None), ...)]
    if get_origin(annotation) is tuple:
        return f"list of {_type(arguments[0])}"
    if arguments:
        kept = arguments[:1] if hasattr(annotation, "__metadata__") else arguments
        return " or ".join(dict.fromkeys(_type(argument) for argument in kept))
    names = {
        "str": "text",
        "int": "integer",
        "float": "number",
        "bool": "true/false",
        "Path": "path",
    }
    name = getattr(annotation, "__name__", str(annotation))
    return names.get(name, name)


def _default(field: FieldInfo) -> str:
    value = field.default
    if value is PydanticUndefined:
        return "**required**"
    if isinstance(value, BaseModel):
        changed = ", ".join(
            f"{key} = {_toml(v)}"
            for key, v in value.model_dump(exclude_defaults=True, mode="json").items()
        )
        return f"`{changed}`" if changed else ""
    return "" if value is None else f"`{_toml(value)}`"


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, int | float):
        return repr(value)
    return f'"{value}"'


if __name__ == "__main__":
    sys.stdout.write(document())
