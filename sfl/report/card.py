"""The model card of an adapter or a merged model: README.md as hubs show it, from a summary."""

from __future__ import annotations

import json
from dataclasses import dataclass

from sfl.config import RunSettings
from sfl.report import text
from sfl.report.summary import DeviceSummary, RunSummary

_PIPELINES = {"causal_lm": "text-generation", "sequence_classification": "text-classification"}
_CLASSES = {
    "causal_lm": "AutoModelForCausalLM",
    "sequence_classification": "AutoModelForSequenceClassification",
}


@dataclass(frozen=True, slots=True)
class Base:
    """The model that the adapter goes on: a name on the hub, or a folder of one machine's."""

    name: str
    on_hub: bool


def model_card(
    summary: RunSummary,
    settings: RunSettings,
    base: Base,
    *,
    best: bool = False,
    tokenizer: bool = True,
) -> str:
    """An adapter's: Markdown with the hub's YAML in front; base, data, rounds, scores, how to load.

    `tokenizer`: whether the folder has one.
    """
    about = f"A LoRA adapter for {_named(base)}"
    parts = [
        _front("peft", "adapter", settings, base),
        *_story("LoRA adapter", about, summary, settings, base, best),
        _adapter_usage(settings, base, tokenizer),
    ]
    return "\n".join(parts)


def merged_card(
    summary: RunSummary, settings: RunSettings, base: Base, *, best: bool = False
) -> str:
    """The same of a model that the adapter was merged into; the folder has its tokenizer."""
    about = f"{_named(base)} with the LoRA adapter of the run merged into it"
    parts = [
        _front("transformers", "finetune", settings, base),
        *_story("Model", about, summary, settings, base, best),
        _merged_usage(settings),
    ]
    return "\n".join(parts)


def _story(
    what: str, about: str, summary: RunSummary, settings: RunSettings, base: Base, best: bool
) -> list[str]:
    """What it is, and how it came about."""
    return [
        f"# {what} of run {text.printable(summary.run_id)}\n",
        f"{about}, trained by split-federated learning with sfl {summary.sfl_version}.\n",
        "## Training\n",
        _table(_facts(summary, settings, base, best)),
        "## Data\n",
        _table([(device.name, _rows(device)) for device in summary.devices], ("device", "rows")),
        "## Use\n",
    ]


def _front(library: str, relation: str, settings: RunSettings, base: Base) -> str:
    lines = ["---", f"library_name: {library}", f"pipeline_tag: {_PIPELINES[settings.model.task]}"]
    tags = ["lora", "peft", "sfl", "transformers"]
    if base.on_hub:
        lines += [f"base_model: {json.dumps(base.name)}", f"base_model_relation: {relation}"]
        tags.insert(0, f"base_model:{relation}:{base.name}")
    lines += ["tags:", *(f"- {json.dumps(tag)}" for tag in tags), "---", ""]
    return "\n".join(lines)


def _facts(
    summary: RunSummary, settings: RunSettings, base: Base, best: bool
) -> list[tuple[str, str]]:
    lora, strategy = settings.lora, settings.aggregation.strategy
    before, after = text.loss(summary.eval_loss_before), text.loss(summary.eval_loss_after)
    # Scores are of the run's last adapter; beside an earlier one they say so.
    other = best and summary.best_round not in (None, summary.rounds)
    when = "before, and of the run's last adapter" if other else "before and after"
    rows = [
        ("base", _named(base)),
        ("task", settings.model.task),
        ("rounds", f"{summary.rounds} of {summary.rounds_planned}"),
        ("devices", str(len(summary.devices))),
        ("topology", summary.topology),
        ("LoRA", f"rank {lora.rank}, alpha {lora.alpha:g}"),
        ("aggregation", strategy),
        ("codec", f"activations {summary.codec_activation}, gradients {summary.codec_gradient}"),
        ("tokens trained on", f"{summary.tokens_trained:,}"),
        (f"held-out loss, {when}", f"{before} → {after}"),
    ]
    if summary.eval_accuracy_after is not None:
        change = [
            text.percent(s) for s in (summary.eval_accuracy_before, summary.eval_accuracy_after)
        ]
        name = text.score_name(summary.task)
        rows.append((f"{name} on held-out examples, {when}", " → ".join(change)))
    if settings.model.labels:
        rows.append(("classes", ", ".join(settings.model.labels)))
    if best and summary.best_round is not None:
        rows.append(("this adapter", f"of round {summary.best_round}, the least held-out loss"))
    if summary.failure is not None:
        rows.append(("the run ended early", summary.failure))
    return rows


def _rows(device: DeviceSummary) -> str:
    return f"{device.num_examples:,} examples, {device.eval_examples:,} held out"


def _table(rows: list[tuple[str, str]], heading: tuple[str, str] = ("", "")) -> str:
    lines = [f"| {heading[0]} | {heading[1]} |", "|---|---|"]
    lines += [f"| {_cell(name)} | {_cell(value)} |" for name, value in rows]
    return "\n".join([*lines, ""])


def _adapter_usage(settings: RunSettings, base: Base, tokenizer: bool) -> str:
    kind = _CLASSES[settings.model.task]
    more = f", id2label={dict(enumerate(settings.model.labels))}" if settings.model.labels else ""
    lines = [
        "```python",
        "from peft import PeftModel",
        f"from transformers import AutoTokenizer, {kind}",
        "",
        f"base = {kind}.from_pretrained({base.name!r}{more})",
        "model = PeftModel.from_pretrained(base, FOLDER)  # the folder of this file",
        f"tokenizer = AutoTokenizer.from_pretrained({'FOLDER' if tokenizer else repr(base.name)})",
        "```",
        "",
    ]
    if not tokenizer:
        lines += ["This folder has no tokenizer: the base's is the one that was trained with.", ""]
    if not base.on_hub:
        lines += ["The base is a folder on the machine of the run; put yours in its place.", ""]
    return "\n".join(lines)


def _merged_usage(settings: RunSettings) -> str:
    kind = _CLASSES[settings.model.task]
    lines = [
        "```python",
        f"from transformers import AutoTokenizer, {kind}",
        "",
        f"model = {kind}.from_pretrained(FOLDER)  # the folder of this file",
        "tokenizer = AutoTokenizer.from_pretrained(FOLDER)",
        "```",
        "",
    ]
    return "\n".join(lines)


def _named(base: Base) -> str:
    return base.name if base.on_hub else f"`{text.printable(base.name)}`"


def _cell(value: str) -> str:
    return text.printable(value).replace("|", "\\|").replace("<", "&lt;")
