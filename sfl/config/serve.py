"""What an edge serves, and how a device answers with it: the tables `[serve]` of their files."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from sfl.config.base import NodeName, Section, given_twice
from sfl.config.codec import ServeCodec
from sfl.config.load import anchored, anchored_model, anchored_served, read_tables, validated
from sfl.config.node import DeviceConfig, EdgeConfig
from sfl.config.serving import ServeSettings
from sfl.errors import ConfigError

MOST_DRAFTED = 15
"""Tokens of one draft: an edge computes steps of so many and one more together."""
BESIDE = "[serve] is of an edge that only serves, [edge.serve] of one that trains as well"
DRAFTS = ("none", "lookup", "exit", "model")
"""Kinds of drafts; the last two are of a folder."""


class AnswerSettings(Section):
    """How a device answers: which blocks are its own, and where it listens."""

    cut_layer: NonNegativeInt = 1
    """Blocks before the edge's that are this device's, with the embedding."""
    topology: Literal["vanilla", "u_shaped"] = "vanilla"
    """`u_shaped`: the head is the device's too. Then the edge never sees a token of an answer."""
    tail_layers: NonNegativeInt = 0
    """U-shaped: blocks behind the edge's that are this device's, with the head."""
    listen: str = "127.0.0.1:8080"
    """`host:port` of the endpoint. Port 0 takes a free one."""
    api_key_file: Path | None = None
    """File with the key that a caller has to have. Needed if `listen` is not loopback."""
    origins: tuple[str, ...] = ()
    """Web pages that may call the endpoint from a browser, beside its own, such as
    `http://localhost:3000`."""
    context: PositiveInt | None = None
    """Most tokens of one conversation. Default: the model's context."""
    conversations: PositiveInt = 4
    """Conversations of that length whose keys and values this device has room for."""
    draft: str = "none"
    """Where guesses at the next tokens come from, which are checked in one round trip. `lookup`:
    from the text so far. `exit:FOLDER`: from a block over this device's own, which `sfl draft`
    trains. `model:FOLDER`: from a small model with the same tokens. The text stays the same."""
    draft_tokens: Annotated[PositiveInt, Field(le=MOST_DRAFTED)] = 4
    """Most tokens that are guessed at a time."""
    exact: bool = False
    """Check guesses one by one, and by themselves. Then answers have the same bits as without a
    draft, and without others at the edge."""

    @property
    def draft_source(self) -> tuple[str, str]:
        """Which kind of `DRAFTS`, and the folder that it is of."""
        kind, _, folder = self.draft.partition(":")
        return kind, folder

    @model_validator(mode="after")
    def _a_tail_needs_the_u(self) -> Self:
        if self.tail_layers and self.topology != "u_shaped":
            raise ValueError('tail_layers: needs topology "u_shaped"')
        return self

    @model_validator(mode="after")
    def _a_draft_has_a_source(self) -> Self:
        kind, folder = self.draft_source
        if kind not in DRAFTS or bool(folder) != (kind in ("exit", "model")):
            raise ValueError(
                f"draft: {self.draft!r} is none of none, lookup, exit:FOLDER and model:FOLDER"
            )
        return self


class ServeEdgeConfig(Section):
    """The file of an edge that serves: `[edge]` as ever, and `[serve]`."""

    edge: EdgeConfig
    """The edge's own settings. `model` is needed."""
    serve: ServeSettings = ServeSettings()
    """What it serves."""
    codec: ServeCodec = ServeCodec()
    """How rows travel."""


class ServeDeviceConfig(Section):
    """The file of a device that serves: `[device]` as ever, and `[serve]`."""

    device: DeviceConfig
    """The device's own settings. `edge` is needed. Without `model` the edge sends its blocks."""
    serve: AnswerSettings = AnswerSettings()
    """How it answers."""


class ServedModel(Section):
    """The model of all nodes."""

    path: str
    """A folder, or a model's name on the hub."""


class ServedDevice(AnswerSettings):
    """A device on this machine."""

    name: NodeName
    """Its name."""
    listen: str = "127.0.0.1:0"
    """`host:port` of its endpoint. Port 0 takes a free one."""


class ServeConfig(Section):
    """The file of `sfl serve`: an edge and its devices, all on this machine."""

    model: ServedModel
    """What is served."""
    serve: ServeSettings = ServeSettings()
    """What the edge serves, as in its own file."""
    codec: ServeCodec = ServeCodec()
    """How rows travel."""
    edge: EdgeConfig = EdgeConfig()
    """The edge's own settings, where they are others than the default."""
    devices: tuple[ServedDevice, ...] = (ServedDevice(name="device", listen="127.0.0.1:8080"),)
    """The devices. Default: one, at port 8080."""

    @model_validator(mode="after")
    def _names_are_their_own(self) -> Self:
        if (twice := given_twice(device.name for device in self.devices)) is not None:
            raise ValueError(f"devices: {twice!r} is given twice")
        return self


def serves(path: Path) -> bool:
    """Whether an edge's file is that of one that serves. What is wrong with it is said later."""
    try:
        return "serve" in tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return False


def load_serve(path: Path, overrides: Iterable[str] = ()) -> ServeConfig:
    """Read the file of `sfl serve`. Raises ConfigError."""
    table = read_tables(path, overrides, ("model", "serve", "codec", "edge", "devices"))
    anchored_model(table.get("model"), "path", path)
    anchored_served(table.get("serve"), path.resolve().parent)
    for device in table.get("devices", ()):
        _anchor_answers(device, path)
    return validated(ServeConfig, table, "")


def _anchor_answers(table: Any, path: Path) -> None:
    anchored(table, "api_key_file", path)
    draft = table.get("draft") if isinstance(table, dict) else None
    if isinstance(draft, str) and (parts := draft.partition(":"))[2]:
        source = {"folder": parts[2]}
        (anchored_model if parts[0] == "model" else anchored)(source, "folder", path)
        table["draft"] = f"{parts[0]}:{source['folder']}"


def load_serve_edge(path: Path, overrides: Iterable[str] = ()) -> ServeEdgeConfig:
    """Read the file of an edge that serves. Raises ConfigError."""
    table = _tables(path, overrides, "edge", "codec")
    anchored_served(table.get("serve"), path.resolve().parent)
    config = validated(ServeEdgeConfig, table, "")
    _need("edge.model", config.edge.model, "The model's folder or its name on the hub.")
    if config.edge.serve is not None:
        given = config.edge.serve.model_dump(mode="json", exclude_unset=True)
        raise ConfigError("edge.serve", given, BESIDE, "Leave one of the two out.")
    return config


def load_serve_device(path: Path, overrides: Iterable[str] = ()) -> ServeDeviceConfig:
    """Read the file of a device that serves. Raises ConfigError."""
    table = _tables(path, overrides, "device")
    _anchor_answers(table.get("serve"), path)
    config = validated(ServeDeviceConfig, table, "")
    _need("device.edge", config.device.edge, "host:port of the edge that serves.")
    return config


def _tables(path: Path, overrides: Iterable[str], node: str, *more: str) -> dict[str, Any]:
    table = read_tables(path, overrides, (node, "serve", *more))
    if not isinstance(table.get(node), dict):
        raise ConfigError(node, str(path), "the table is missing", f"Start it with [{node}].")
    return table


def _need(field: str, value: str | None, fix: str) -> None:
    if not value:
        raise ConfigError(field, value, "serving needs it", fix)
