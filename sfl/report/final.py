"""What the terminal says at the end of a run, for somebody who has never seen one."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from sfl.data.example import DataNotes
from sfl.report import text
from sfl.report.summary import DeviceSummary, RunSummary
from sfl.report.traffic import by_purpose

DEFAULT = "runs"
"""Where commands look for runs."""


def print_final(console: Console, summary: RunSummary) -> None:
    """Print the final table; the command at its end whole, to be copied, however long it is."""
    console.print(final_table(summary), crop=False)


def final_table(summary: RunSummary, prompt: str = "...") -> RenderableType:
    """A run's outcome by device, what it cost, and how to use what came out.

    `prompt` is put into the line that tries the adapter.
    """
    parts: list[RenderableType] = [_headline(summary), "", _devices(summary), _facts(summary)]
    parts += [Text(f"! {text.printable(str(fault))}", style="yellow") for fault in summary.faults]
    if summary.adapter is not None:
        parts += ["", Text("Try it:"), _command(summary, prompt)]
    return Group(*parts)


def _headline(summary: RunSummary) -> Text:
    name = text.score_name(summary.task)
    if summary.failure is not None:
        why = text.printable(summary.failure)
        return Text(f"Run {summary.run_id} failed: {why}", style="bold red")
    headline = Text(f"Run {summary.run_id} finished", style="bold green")
    if summary.eval_accuracy_after is not None:
        before, after = summary.eval_accuracy_before, summary.eval_accuracy_after
        headline.append(f": {name} on held-out examples went from ", style="default")
        headline.append(f"{text.percent(before)} to {text.percent(after)}")
    return headline


def _devices(summary: RunSummary) -> Table:
    scored = any(device.eval_accuracy is not None for device in summary.devices)
    table = Table(
        box=box.SIMPLE,
        pad_edge=False,
        collapse_padding=True,
        title="Held-out examples before and after training, and what each device used",
        title_style="italic",
        title_justify="left",
        show_footer=len(summary.devices) > 1,
    )
    both = summary
    table.add_column("device", "all")
    if scored:
        change = _change(
            text.percent(both.eval_accuracy_before), text.percent(both.eval_accuracy_after)
        )
        table.add_column(text.score_name(summary.task), change, justify="right")
    change = _change(text.loss(both.eval_loss_before), text.loss(both.eval_loss_after))
    table.add_column("loss", change, justify="right")
    devices = summary.devices
    sums = (
        f"{sum(device.num_examples for device in devices):,}",
        text.size(sum(device.traffic.bytes_up for device in devices)),
        text.size(sum(device.traffic.bytes_down for device in devices)),
        "",
    )
    headings = ("examples", "sent", "received", "memory")
    for heading, footer in zip(headings, sums, strict=True):
        table.add_column(heading, footer, justify="right")
    for device in devices:
        table.add_row(*_device_cells(device, scored))
    return table


def _device_cells(device: DeviceSummary, scored: bool) -> list[Text]:
    if not device.joined:
        dashes = [Text("–")] * (5 if scored else 4)
        return [Text(device.name, style="bold"), Text(text.NEVER_JOINED), *dashes]
    before, after = device.eval_accuracy_before, device.eval_accuracy
    accuracy = [_change(text.percent(before), text.percent(after))] if scored else []
    return [
        Text(device.name, style="bold"),
        *accuracy,
        _change(text.loss(device.eval_loss_before), text.loss(device.eval_loss)),
        Text(f"{device.num_examples:,}"),
        Text(text.size(device.traffic.bytes_up)),
        Text(text.size(device.traffic.bytes_down)),
        Text(text.size(device.peak_rss_bytes)),
    ]


def _change(before: str, after: str) -> Text:
    return Text.assemble(f"{before} → ", (after, "bold"))


def _facts(summary: RunSummary) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    for name, value in _fact_rows(summary):
        grid.add_row(name, Text(value))
    return grid


def _fact_rows(summary: RunSummary) -> list[tuple[str, str]]:
    rows = [
        ("data", data_sentence(summary)),
        ("over the wire", total_sentence(summary)),
        ("compressed", wire_sentence(summary)),
    ]
    between = summary.bytes_between_servers
    if between:
        rows.insert(2, ("between servers", f"{text.size(between)} from edges to stages and back"))
    peaks = [f"{server.name} {text.size(server.peak_rss_bytes)}" for server in summary.servers]
    memory = ", ".join(peaks)
    largest = max((device.peak_rss_bytes for device in summary.devices), default=0)
    memory += f", largest device {text.size(largest)}"
    rows.append(("peak memory", memory))
    rows.append(
        (
            "time",
            f"{text.duration(summary.train_seconds)} training, "
            f"{text.duration(summary.wall_seconds)} in all, "
            f"{summary.tokens_trained:,} tokens trained on",
        )
    )
    if stale := staleness_sentence(summary):
        rows.append(("staleness", stale))
    if summary.adapter is not None:
        rows.append(("adapter", f"{summary.adapter} (PEFT format)"))
    return rows


def staleness_sentence(summary: RunSummary) -> str:
    """How old each device's updates were when they counted; empty where none may be late."""
    told = [(device.name, device.staleness) for device in summary.devices]
    parts = [f"{name} {staleness}" for name, staleness in told if staleness is not None]
    return f"mean (most) of each device's updates: {', '.join(parts)}" if parts else ""


def total_sentence(summary: RunSummary) -> str:
    """How many bytes crossed the links of devices, and what for."""
    parts = {purpose: up + down for purpose, (up, down) in by_purpose(summary).items()}
    said = ", ".join(f"{purpose} {text.size(size)}" for purpose, size in parts.items() if size)
    total = f"{text.size(summary.bytes_in_all)} in all over device links"
    return f"{total}: {said}" if said else total


def data_sentence(summary: RunSummary) -> str:
    """How much of the data is trained on, and what was left out of it."""
    notes = sum((device.data for device in summary.devices), DataNotes())
    if not notes.tokens:
        return "–"
    kept = f"{notes.tokens_kept:,} of {notes.tokens:,} tokens are in training examples"
    parts = [f"{kept} ({notes.tokens_kept / notes.tokens:.1%})"]
    counts = (
        (notes.truncated, "examples were cut"),
        (notes.dropped, "had nothing left to score"),
        (notes.repeated, "held-out examples are also trained on"),
    )
    return ", ".join([*parts, *(f"{count:,} {what}" for count, what in counts if count)])


def wire_sentence(summary: RunSummary) -> str:
    """How many bytes training sent, and against uncompressed float32 and float16."""
    sent = f"{text.size(summary.training_bytes)} of activations and gradients"
    if not summary.training_bytes:
        return sent
    fp32 = summary.training_bytes_fp32
    return (
        f"{sent}: {text.against(summary.reduction_vs_fp32, 'fp32')} ({text.size(fp32)}), "
        f"{text.against(summary.reduction_vs_fp16, 'fp16')} ({text.size(fp32 / 2)})"
    )


def _command(summary: RunSummary, prompt: str) -> Text:
    if summary.task == "causal_lm":
        words = re.sub(r'([\\"$`])', r"\\\1", text.printable(prompt))
        line = f'sfl generate --run {summary.run_id}{_where(summary)} "{words}"'
    else:
        line = f"sfl eval --run {summary.run_id}{_where(summary)}"
    return Text(f"  {line}", style="bold", no_wrap=True, overflow="ignore")


def _where(summary: RunSummary) -> str:
    """The option that finds the run, unless it is where the commands look by themselves."""
    place = Path(summary.adapter or "").parent.parent
    if summary.adapter is None or place.absolute() == Path(DEFAULT).absolute():
        return ""
    return f" --output-dir {shlex.quote(str(place))}"
