"""How rows become text, fixed for the run by what most of its devices say before it begins."""

from __future__ import annotations

from typing import get_args

from sfl.config import RunConfig
from sfl.data.layout import Layout
from sfl.rounds import TextForm
from sfl.v1 import edge_pb2

PLAIN = ("text", "label")
"""Layouts that no chat template is applied to."""


def with_text_form(config: RunConfig, ready: edge_pb2.DeviceReady) -> RunConfig:
    """The settings with a device's layout of rows and its chat template, where they were open."""
    if ready.layout not in get_args(Layout) or ready.layout == "label":
        return config
    data = config.data
    changes: dict[str, object] = {"layout": ready.layout} if data.layout == "auto" else {}
    if data.chat_template and not data.chat_template_digest and ready.layout not in PLAIN:
        changes["chat_template"] = bool(ready.chat_template)
        changes["chat_template_digest"] = ready.chat_template[:64]
    return config.model_copy(update={"data": data.model_copy(update=changes)})


def text_form(ready: edge_pb2.DeviceReady) -> TextForm | None:
    """What a device has to say of it; None where its examples can have but one form."""
    if ready.layout not in get_args(Layout) or ready.layout == "label":
        return None
    return TextForm(ready.layout, "" if ready.layout in PLAIN else ready.chat_template[:64])


def unlike(config: RunConfig, ready: edge_pb2.DeviceReady) -> str:
    """Why a device's examples are not made as the run's are; empty where they are."""
    data = config.data
    if not ready.layout or ready.layout == "label" or data.layout == "auto":
        return ""
    runs = TextForm(data.layout)
    if ready.layout != data.layout:
        return TextForm(ready.layout).unlike(runs)
    applied = data.chat_template_digest if data.chat_template else ""
    if ready.layout not in PLAIN and ready.chat_template != applied:
        return TextForm(data.layout, ready.chat_template).unlike(runs)
    return ""
