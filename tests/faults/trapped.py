"""A node of a fault test: `sfl` itself, in a process that tells what it does and where it is hit.

    trapped.py NODE FOLDER COMMAND...

Functions of the product are wrapped from outside. At the place that `FOLDER/trap.json` names, and
once in a run, the victim is sent its signal: the process itself, or another one while this one
stands right there. Or a disk is filled. What nodes do is a line each in `FOLDER/seen.jsonl`.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import json
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Where = Callable[..., bool]
PAUSE = 0.2
"""Seconds for what is under way elsewhere, before another node is hit."""


class Node:
    """This process: who it is, and what becomes of it."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        (folder / f"{name}.pid").write_text(str(os.getpid()))
        path = folder / "trap.json"
        self.trap: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
        self._hits = 0

    def saw(self, what: str, **more: Any) -> None:
        """Keep a line of what happened, whole, also when this process dies right after."""
        told = {"at": time.monotonic(), "node": self.name, "pid": os.getpid(), "what": what}
        line = json.dumps({**told, **more}) + "\n"
        file = os.open(self.folder / "seen.jsonl", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        os.write(file, line.encode())
        os.close(file)

    def armed(self, place: str) -> bool:
        """Whether this is where the trap is."""
        return (self.trap.get("node"), self.trap.get("place")) == (self.name, place)

    def here(self) -> None:
        """This process is at the trap's place."""
        self._hits += 1
        if self._hits != self.trap.get("count", 1):
            return
        try:
            os.close(os.open(self.folder / "sprung", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return
        victim = self.trap["victim"]
        if "fill" in self.trap:
            fill(Path(self.trap["fill"]))
            self.saw("hit", victim=victim, place=self.trap["place"])
            return
        if victim != self.name:
            time.sleep(PAUSE)
        pid = int((self.folder / f"{victim}.pid").read_text())
        recovers = self.trap.get("recovers", victim)
        self.saw("hit", victim=recovers, place=self.trap["place"], signal=self.trap["signal"])
        os.kill(pid, self.trap["signal"])
        if self.trap["signal"] == signal.SIGKILL and victim != self.name:
            time.sleep(PAUSE)


def fill(file: Path) -> None:
    """Take all the room that is left on a disk."""
    with file.open("wb", buffering=0) as out:
        for size in (1 << 20, 1 << 12):
            with contextlib.suppress(OSError):
                while out.write(bytes(size)) == size:
                    pass


def around(
    where: str,
    before: Callable[..., None] | None = None,
    after: Callable[..., None] | None = None,
) -> None:
    """Have `module:name` or `module:Class.name` call these with its arguments."""
    module, _, path = where.partition(":")
    *outer, name = path.split(".")
    owner = functools.reduce(getattr, outer, importlib.import_module(module))
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(*given: Any, **named: Any) -> Any:
        if before is not None:
            before(*given, **named)
        result = original(*given, **named)
        if after is not None:
            after(*given, **named)
        return result

    setattr(owner, name, wrapped)


def always(*given: Any, **named: Any) -> bool:
    return True


def of_message(purpose: str, round_: int, step: int | None = None) -> Where:
    """Of a tensor on its way in or out of a node."""

    def due(own: Any, message: Any, *rest: Any) -> bool:
        key = getattr(message, "key", None)
        if key is None or (key.purpose.name, key.round) != (purpose, round_):
            return False
        return message.kind.name == "ACTIVATION" and step in (None, key.step)

    return due


def in_round(round_: int) -> Where:
    """Of whatever has a round among its arguments, or belongs to an open one."""

    def due(*given: Any, **named: Any) -> bool:
        for one in given:
            if getattr(one, "round", None) == round_:
                return True
            assigned = getattr(one, "assignment", one)
            if assigned == round_ or getattr(assigned, "round", None) == round_:
                return True
        return False

    return due


def _to_device(own: Any, message: Any) -> bool:
    return bool(message.key.round == 2 and message.key.step == 1)


def _to_go(own: Any, edge: str, word: Any) -> bool:
    return type(word).__name__ == "GoElsewhere"


def _torn(node: Node) -> Callable[..., None]:
    """A snapshot of round 2 is half written, beside its name."""

    def before(path: Path, pieces: Sequence[bytes | memoryview], **named: Any) -> None:
        if "round-000002" in path.name:
            path.parent.mkdir(parents=True, exist_ok=True)
            aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            content = b"".join(pieces)
            aside.write_bytes(content[: len(content) // 2])
            node.here()

    return before


def _marked(own: Any, state: Any) -> bool:
    return bool(state.round == 2)


Place = tuple[str, str, Where]
"""A function, whether before or after it, and which of its calls."""

LINK, EDGE = "sfl.transport.device.link", "edge_server.host:DeviceHost"
TRAINER, SESSION = "sfl.stage.trainer:Trainer", "sfl.stage.training.session:TrainingSession"
PLACES: dict[str, Place] = {
    "ready": (f"{LINK}:DeviceLink.ready", "before", always),
    "admitting": (f"{EDGE}.answer", "before", always),
    "admitting d0": (f"{EDGE}.answer", "before", lambda own, said: said.device == "d0"),
    "told to go": ("device_agent.roaming:Roaming.go", "before", always),
    "handing over": ("sfl.transport.device.service:EdgeService.hand_over", "before", always),
    "sending on": ("sfl.transport.cloud.service:CloudService.post", "before", _to_go),
    "adding up": (f"{EDGE}.add_up", "before", in_round(2)),
    "cloud hears a device": ("cloud_aggregator.host:EdgeHost.device_joined", "before", always),
    "fetching": ("sfl.transport.bulk.fetch:_sha256", "before", always),
    "serving a file": (f"{EDGE}.read_file", "before", always),
    "activation sent": (f"{LINK}:DeviceLink.send", "after", of_message("TRAINING", 2, 1)),
    "activation came": (f"{SESSION}.handle", "before", of_message("TRAINING", 2, 1)),
    "gradient came": ("sfl.stage.pipeline:Pipeline._land", "before", _to_device),
    "gradient made": (f"{SESSION}.returned", "before", _to_device),
    "device before step": (
        f"{TRAINER}._stepping",
        "before",
        lambda own, told, step, ends=False: ends and (told.round, step) == (2, 1),
    ),
    "edge after step": ("sfl.stage.training.stepper:Stepper._apply", "after", in_round(2)),
    "journal's mark": ("sfl.report.journal:SqliteJournal.mark", "before", _marked),
    "update half sent": (f"{LINK}:to_report", "before", in_round(2)),
    "update relayed": (f"{EDGE}.relay_adapter", "before", in_round(2)),
    "update half written": (
        "sfl.transport.cloud.spool:Part.write",
        "after",
        lambda own, data: own.header.round == 2,
    ),
    "averaging": ("cloud_aggregator.averaging:Averaging.average", "before", in_round(2)),
    "averaged": ("cloud_aggregator.averaging:StrategyMemory.save", "after", in_round(2)),
    "orders go out": ("cloud_aggregator.dispatch:Dispatch.start", "before", in_round(2)),
    "stage's part sent": ("sfl.transport.stage.served:Carried.send_part", "before", in_round(2)),
    "stage begins": (f"{SESSION}.begin_round", "before", in_round(2)),
    "orders came": ("sfl.transport.device.training:Training.begin_round", "before", in_round(2)),
    "round begins": (f"{TRAINER}.run_round", "before", in_round(2)),
    "evaluation sent": (f"{LINK}:DeviceLink.send", "after", of_message("EVALUATION", 2)),
    "evaluation came": (f"{SESSION}.handle", "before", of_message("EVALUATION", 2)),
    "last step sent": (f"{LINK}:DeviceLink.send", "after", of_message("TRAINING", 3, 3)),
    "last step came": (f"{SESSION}.handle", "before", of_message("TRAINING", 3, 3)),
    "last evaluation sent": (f"{LINK}:DeviceLink.send", "after", of_message("EVALUATION", 4)),
    "last evaluation came": (f"{SESSION}.handle", "before", of_message("EVALUATION", 4)),
}
SNAPSHOT = "snapshot half written"


def set_trap(node: Node) -> None:
    for place, (where, when, due) in PLACES.items():
        if not node.armed(place):
            continue

        def reached(*given: Any, due: Where = due, **named: Any) -> None:
            if due(*given, **named):
                node.here()

        around(where, **{when: reached})  # type: ignore[arg-type]
    if node.armed(SNAPSHOT):
        around("sfl.stage.snapshots:write_pieces", before=_torn(node))


def watch(node: Node) -> None:
    """Lines of a round's work, as the three roles do it."""

    def begun(own: Any, order: Any, *rest: Any) -> None:
        node.saw("round", round=order.assignment.round)

    def stepped(own: Any, told: Any, step: int) -> None:
        node.saw("step", round=told.round, step=step)

    def heard(own: Any, entry: Any) -> None:
        if (event := type(entry.event).__name__) not in ("CloudRestarted", "NodeHeard", "Tick"):
            node.saw("event", event=event)

    around(f"{TRAINER}.run_round", before=begun)
    around(f"{TRAINER}.train_step", after=stepped)
    around(f"{SESSION}.handle", after=lambda *given: node.saw("work"))
    around("sfl.report.journal:SqliteJournal.append", before=heard)


def sample(node: Node, seconds: float) -> None:
    """A line of what this process holds, every so many seconds, for as long as it lives."""
    status, page = Path("/proc/self/statm"), os.sysconf("SC_PAGE_SIZE")

    def resident() -> int:
        return int(status.read_text().split()[1]) * page

    def sampling() -> None:
        while True:
            time.sleep(seconds)
            before = resident()
            gc.collect()
            files = [_target(path) for path in Path("/proc/self/fd").iterdir()]
            node.saw(
                "sample",
                rss=before,
                rss_after_gc=resident(),
                threads=len(list(Path("/proc/self/task").iterdir())),
                sockets=sum(name.startswith("socket:") for name in files),
                files=sum(not name.startswith("socket:") for name in files),
            )

    threading.Thread(target=sampling, name="sampling", daemon=True).start()


def _target(path: Path) -> str:
    try:
        return str(path.readlink())
    except OSError:
        return "gone"


def main() -> None:
    name, folder, *command = sys.argv[1:]
    node = Node(name, Path(folder))
    if (asked := node.folder / "sample").exists():
        sample(node, float(asked.read_text()))
    else:
        watch(node)
    set_trap(node)
    sys.argv = ["sfl", *command]
    runpy.run_module("sfl.cli", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
