"""`docs/configuration.md`, written from the settings types: `python -m tools.configuration_page`."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from sfl.config.base import OneOf
from sfl.config.codec import CodecChange, CodecSettings, ScheduledCodec
from sfl.config.evaluation import EvaluationSettings
from sfl.config.node import (
    CloudNode,
    ConsentSettings,
    DeviceConfig,
    EdgeConfig,
    MetricsSettings,
    PauseSettings,
    TlsSettings,
    TracingSettings,
)
from sfl.config.run import (
    AggregationSettings,
    DataSettings,
    DeviceEntry,
    LinkSettings,
    LoraSettings,
    ModelSettings,
    NetworkSettings,
    RunSection,
    TrainingSettings,
)

INTRO = """\
# Configuration

<!-- Written by `python -m tools.configuration_page`; a test holds it to the settings types. -->

One TOML file describes a run. `sfl init` writes a commented one, `sfl config show FILE` prints it
with every default and every `auto` filled in, `--set section.key=value` overrides one setting
(`--set devices.NAME.cut_layer=2` one device's). An unknown key is an error that names the nearest
known one. Relative paths are relative to the file.

The **cloud owns the run's settings** (`[run]` to `[[devices]]`) and sends them to every node. What
is local to a node stands in that node's own file: `sfl edge FILE` reads a table `[edge]`,
`sfl device FILE` a table `[device]`. Under `sfl run` one file holds everything, and each entry of
`[[devices]]` also has the local keys of its device.

The same run laid over three machines:

```
sfl cloud run.toml --set cloud.listen=0.0.0.0:7000   # run.toml: everything but the nodes
sfl edge edge.toml                                   # [edge]: listen, cloud = "CLOUD:7000"
sfl device pi.toml                                   # [device]: name, edge = "EDGE:7001", train
```

A path never comes from another machine: a device opens the files that its own file names, and no
others. What else it agrees to says its `[device.consent]`. Where the machines have more than one
edge, `run.edges` names them all.

Each with its certificate, as a table `tls` (`[edge.tls]`) or a folder (`--certs DIR`), from
`sfl ca issue`; see [security](security.md). Without, addresses other than loopback need
`--insecure`.

Every run writes the settings that took effect to `runs/ID/config.toml`; `sfl run` on that file
repeats the run.
"""

SECTIONS: tuple[tuple[str, type[BaseModel]], ...] = (
    ("[run]", RunSection),
    ("[model]", ModelSettings),
    ("[lora]", LoraSettings),
    ("[training]", TrainingSettings),
    ("[aggregation]", AggregationSettings),
    ("[codec]", CodecSettings),
    ("[[codec.schedule]]", ScheduledCodec),
    ("[data]", DataSettings),
    ("[evaluation]", EvaluationSettings),
    ("[network]", NetworkSettings),
    ("[[devices]]", DeviceEntry),
    ("[devices.codec]", CodecChange),
    ("[devices.link]", LinkSettings),
    ("[cloud]", CloudNode),
    ("[cloud.tracing]", TracingSettings),
    ("[edge]", EdgeConfig),
    ("[device]", DeviceConfig),
    ("[device.consent]", ConsentSettings),
    ("[device.pause], [devices.pause]", PauseSettings),
    ("[cloud.tls], [edge.tls], [device.tls]", TlsSettings),
    ("[cloud.metrics], [edge.metrics], [device.metrics]", MetricsSettings),
)


def document() -> str:
    """The whole page as Markdown."""
    parts = [INTRO, *(_section(title, kind) for title, kind in SECTIONS)]
    return "\n".join(parts)


def _section(title: str, kind: type[BaseModel]) -> str:
    summary = textwrap.fill(" ".join((kind.__doc__ or "").split()), 100, break_on_hyphens=False)
    rows = "\n".join(_row(name, field) for name, field in kind.model_fields.items())
    return f"## `{title}`\n\n{summary}\n\n| key | type | default | meaning |\n|---|---|---|---|\n{rows}\n"


def _row(name: str, field: FieldInfo) -> str:
    meaning = " ".join((field.description or "").split()).replace("|", "\\|")
    return f"| `{name}` | {_kind(field)} | {_default(field)} | {meaning} |"


def _kind(field: FieldInfo) -> str:
    tables = [one.table for one in field.metadata if isinstance(one, OneOf)]
    return _names(tables[0]) if tables else _type(field.annotation)


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
