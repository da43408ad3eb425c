"""The live view of a run: a picture that redraws itself on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sfl.report import text
from sfl.report.status import LEFT_OUT, OF_A_PHASE, DeviceStatus, RunStatus, ServerStatus, Wait

_STYLES = {"finished": "bold green", "failed": "bold red"}
_WIDE = 96  # letters that the whole table needs
_FRAME = 4  # lines of a table beside its rows, and one to spare
_WAITS = 3  # waits that are shown beside nodes
_BADNESS = (
    *(LEFT_OUT, "lost", "away", "failed", "not here yet", "never joined"),
    *("loading", "paused", "ready"),
)
"""States of a device from the worst on; all others are better than these."""
_BUSY = ("training", "evaluating", "aggregating")


class LiveView:
    """Shows a run's status on `console`; a context, `update` it about twice a second.

    Anything but a terminal gets one line for each change of round or phase, and for each fault.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._started = clock()
        self._live = (
            Live(console=console, auto_refresh=False, transient=True)
            if console.is_terminal
            else None
        )
        self._shown: tuple[int, str, str] | None = None
        self._faults = 0
        self._plan = ""
        self._waits: set[tuple[str, str, str]] = set()

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, status: RunStatus) -> None:
        """Show `status` in the place of what was shown before, or say what changed."""
        if self._live is not None:
            seconds = self._clock() - self._started
            picture = status_picture(status, seconds, self._console.width, self._console.height)
            self._live.update(picture, refresh=True)
            return
        for fault in status.faults[self._faults :]:
            self._say(f"fault: {text.printable(fault)}")
        self._faults = len(status.faults)
        self._say_waits(status)
        if status.plan != self._plan:
            self._plan = status.plan
            self._say(f"plan: {text.printable(status.plan)}")
        shown = (status.round, status.phase, status.message if status.phase not in _BUSY else "")
        if shown != self._shown:
            self._shown = shown
            self._say(status_line(status))

    def _say_waits(self, status: RunStatus) -> None:
        """Those that hold somebody up, once each; who has nothing to do is none of them."""
        waits = {(w.who, w.whom, w.kind): w for w in _remarkable(status) if w.kind != "orders"}
        for key, wait in waits.items():
            if key not in self._waits:
                self._say(text.printable(str(wait)))
        self._waits = set(waits)

    def note(self, line: str) -> None:
        """Say what happened to a node; a picture stays below it."""
        self._say(text.printable(line))

    def _say(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)


def status_line(status: RunStatus) -> str:
    """A status as one plain line."""
    parts = [f"round {status.round}/{status.rounds}  {status.phase}{buffer_fill(status)}"]
    if status.message:
        parts.append(text.printable(status.message))
    known = [device for device in status.devices if device.loss is not None]
    if known:
        parts.append("loss " + ", ".join(f"{d.name} {text.loss(d.loss)}" for d in known))
    scored = [device for device in status.devices if device.eval_accuracy is not None]
    if scored:
        scores = ", ".join(f"{d.name} {text.percent(d.eval_accuracy)}" for d in scored)
        parts.append(f"{text.score_name(status.task)}{_of_adapter(scored)} {scores}")
    if known:
        up = sum(device.bytes_up for device in status.devices)
        down = sum(device.bytes_down for device in status.devices)
        parts.append(f"up {text.size(up)}, down {text.size(down)}")
    return "  |  ".join(parts)


def buffer_fill(status: RunStatus) -> str:
    """How many updates wait for an average, where updates may be late."""
    if status.buffered is None or status.over:
        return ""
    needed = f" of {status.buffer_size}" if status.buffer_size else ""
    return f", {status.buffered}{needed} updates wait"


def _of_adapter(scored: Sequence[DeviceStatus]) -> str:
    """Of which round's adapter scores are, where they are of one."""
    rounds = {device.eval_round for device in scored}
    number = rounds.pop()
    if rounds or number is None:
        return ""
    return f" after round {number}" if number else " before training"


def status_picture(
    status: RunStatus,
    seconds: float,
    width: int = 100,
    height: int = 1000,
    all_waits: bool = False,
) -> RenderableType:
    """A status as a picture for a terminal of `width` letters and `height` lines.

    `seconds` is the time since the view began. With `all_waits` a table has every wait. Where there
    are more devices than lines, faults, edges and the cloud come first, then the devices that are
    worst off.
    """
    parts: list[RenderableType] = [_progress(status, seconds)]
    if status.message:
        parts.append(Text(text.printable(status.message), style="dim"))
    if status.plan:
        parts.append(Text(f"plan: {text.printable(status.plan)}", style="dim"))
    faults = [Text(f"  ! {text.printable(f)}", style="yellow") for f in status.faults[-3:]]
    faults += [] if all_waits else _wait_lines(status)
    servers = [*status.edges, *status.stages, status.cloud]
    room = height - len(parts) - len(faults) - len(servers) - _FRAME
    if len(status.devices) <= room:
        table = [waits_table(status)] if all_waits and status.waits else []
        return Group(*parts, _nodes(status, status.devices, width < _WIDE), *faults, *table)
    shown = worst_first(status.devices)[: max(1, room - 1)]
    more = Text(f"+{len(status.devices) - len(shown)} more", style="dim")
    return Group(*parts, *faults, _nodes(status, shown, width < _WIDE, servers_first=True), more)


def waits_table(status: RunStatus) -> RenderableType:
    """Who waits for whom, for what, since when and until when: a row each."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for heading in ("who waits", "for whom", "for what", "since", "until"):
        table.add_column(heading, overflow="fold")
    for wait in status.waits:
        left = wait.seconds_left
        until = "no end" if left is None else f"in {text.duration(left)}"
        said = f" (said {text.duration(wait.said)} ago)" if wait.is_old else ""
        since = f"{text.duration(wait.seconds)} ago{said}"
        cells = (wait.who, wait.whom, wait.what, since, until)
        table.add_row(*(Text(text.printable(cell)) for cell in cells))
    if not status.more_waits:
        return table
    return Group(table, Text(f"+{status.more_waits} more waits", style="dim"))


def _remarkable(status: RunStatus) -> list[Wait]:
    """All waits but those of the cloud that belong to a phase: phase and devices tell these."""
    return [w for w in status.waits if w.away or w.who != "cloud" or w.kind not in OF_A_PHASE]


def _wait_lines(status: RunStatus) -> list[Text]:
    waits = _remarkable(status)
    lines = [
        Text(f"  … {text.printable(str(wait))}", style="dim" if wait.kind == "orders" else "yellow")
        for wait in waits[:_WAITS]
    ]
    if len(waits) <= _WAITS:
        return lines
    return [*lines, Text(f"  … +{len(waits) - _WAITS} more: sfl status", style="dim")]


def worst_first(devices: Sequence[DeviceStatus]) -> list[DeviceStatus]:
    """Those that are lost, then those that are not there yet, then those the furthest behind."""
    return sorted(devices, key=lambda d: (_badness(d.state), d.step / d.steps if d.steps else 0.0))


def _badness(state: str) -> int:
    word = state.partition(":")[0]
    return _BADNESS.index(word) if word in _BADNESS else len(_BADNESS)


def run_share(status: RunStatus) -> float:
    """How much of the run's training is done, 0 to 1."""
    if status.phase == "finished":
        return 1.0
    if status.round < 1 or status.rounds < 1:
        return 0.0
    steps = [device for device in status.devices if device.steps]
    share = sum(device.step / device.steps for device in steps) / len(steps) if steps else 0.0
    within = {"training": share, "aggregating": 1.0, "evaluating": 1.0}.get(status.phase, 0.0)
    return min(1.0, (status.round - 1 + within) / status.rounds)


def _progress(status: RunStatus, seconds: float) -> Table:
    line = Table.grid(padding=(0, 2))
    line.add_row(
        Text(status.run_id, style="bold"),
        Text(f"round {status.round} of {status.rounds}{buffer_fill(status)}"),
        ProgressBar(total=1.0, completed=run_share(status), width=16),
        Text(text.duration(seconds), style="dim"),
        Text(status.phase, style=_STYLES.get(status.phase, "cyan")),
    )
    return line


def _nodes(
    status: RunStatus,
    devices: Sequence[DeviceStatus],
    narrow: bool,
    servers_first: bool = False,
) -> Table:
    """These devices and all servers, a row each; a narrow table leaves the peak of memory out."""
    scored = any(device.eval_accuracy is not None for device in status.devices)
    quality = text.score_name(status.task) if scored else "held-out loss"
    quality, speed = (quality.split()[0], "tok/s") if narrow else (quality, "tokens/s")
    rounds = {d.eval_round for d in status.devices if d.eval_round is not None}
    if len(rounds) == 1:  # of which round's adapter: not every one is evaluated
        quality += f", r{rounds.pop()}"
    headings = ["step", "loss", quality, speed, "up", "down", "memory", "peak"]
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False, collapse_padding=narrow)
    table.add_column("")
    table.add_column("state")
    for heading in headings[:-1] if narrow else headings:
        table.add_column(heading, justify="right")
    num_columns = len(table.columns)
    rows = [(_device_cells(device, scored)[:num_columns], "") for device in devices]
    nodes = (*status.edges, *status.stages, status.cloud)
    servers = [(_server_cells(s)[:num_columns], "dim") for s in nodes]
    for cells, style in [*servers, *rows] if servers_first else [*rows, *servers]:
        table.add_row(*cells, style=style)
    return table


def _device_cells(device: DeviceStatus, scored: bool) -> list[Text]:
    quality = text.percent(device.eval_accuracy) if scored else text.loss(device.eval_loss)
    lost = device.state.partition(":")[0] in (LEFT_OUT, "lost", "away", "failed")
    return [
        Text(device.name, style="bold"),
        Text(text.printable(device.state) + _behind(device), style="red" if lost else ""),
        Text(f"{device.step}/{device.steps}" if device.steps else "–"),
        Text(text.loss(device.loss)),
        Text(quality),
        Text(text.rate(device.tokens_per_second)),
        Text(text.size(device.bytes_up)),
        Text(text.size(device.bytes_down)),
        Text(text.size(device.resident_bytes)),
        Text(text.size(device.peak_resident_bytes)),
    ]


def _behind(device: DeviceStatus) -> str:
    """How many adapters were made since a device began, where that are any."""
    return f", {device.staleness} behind" if device.staleness else ""


def _server_cells(server: ServerStatus) -> list[Text]:
    memory = (text.size(server.resident_bytes), text.size(server.peak_resident_bytes))
    return [Text(cell) for cell in (server.name, *[""] * 7, *memory)]
