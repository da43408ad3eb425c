"""How rows become text, fixed for the run by what most of its devices say before it begins."""

from __future__ import annotations

from typing import get_args

from sfl.config import RunConfig
from sfl.data.layout import Layout
from sfl.rounds import TextForm
from sfl.rounds.values import DeviceFacts

PLAIN = "text"
"""The layout that no chat template is applied to."""


def text_form(facts: DeviceFacts) -> TextForm | None:
    """What a device has to say of it; None where its examples can have but one form."""
    if facts.layout not in get_args(Layout) or facts.layout == "label":
        return None
    return TextForm(facts.layout, "" if facts.layout == PLAIN else facts.chat_template[:64])


def with_text_form(config: RunConfig, form: TextForm | None) -> RunConfig:
    """The settings with a device's layout of rows and its chat template, where they were open."""
    if form is None:
        return config
    data = config.data
    changes: dict[str, object] = {"layout": form.layout} if data.layout == "auto" else {}
    if data.chat_template and not data.chat_template_digest and form.layout != PLAIN:
        changes["chat_template"] = bool(form.chat_template)
        changes["chat_template_digest"] = form.chat_template
    return config.model_copy(update={"data": data.model_copy(update=changes)})


def unlike(config: RunConfig, form: TextForm | None) -> str:
    """Why a device's examples are not made as the run's are; empty where they are."""
    data = config.data
    if form is None or data.layout == "auto":
        return ""
    applied = data.chat_template_digest if data.chat_template and data.layout != PLAIN else ""
    runs = TextForm(data.layout, applied)
    return "" if form == runs else form.unlike(runs)
