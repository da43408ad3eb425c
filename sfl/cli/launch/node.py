"""One child process of `sfl run`: started, watched, stopped."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerProcess, SpawnProcess
from multiprocessing.process import BaseProcess, active_children
from pathlib import Path

import psutil

from sfl.cli.launch.certificates import CERTIFICATES
from sfl.cli.launch.child import deaf_children, run_child
from sfl.cli.launch.patience import Patience, Say, cpu_seconds
from sfl.config import DeviceConfig, EdgeConfig, LocalDevice, RunConfig, dump_toml
from sfl.config.base import Section
from sfl.errors import RunFailed
from sfl.node.files import write_atomic
from sfl.node.process import undisturbed


@dataclass(slots=True)
class Node:
    """A node of the run as a process of its own, with its file, log and failure reason."""

    kind: str
    name: str
    config: Path
    log: Path
    error_file: Path
    address_file: Path
    options: tuple[str, ...] = ()
    returns: bool = False
    """Whether another process can go on where this one's ended."""
    beginning: tuple[str, ...] = ()
    """Options of a process that begins a run, and does not go on with one."""
    resumes: Path | None = None
    """The folder of the run that a cloud goes on with, instead of one that begins."""
    process: BaseProcess | None = field(default=None)

    def start(self) -> None:
        """Start the process in a session of its own; it ends when this process is gone."""
        for folder in (self.log.parent, self.error_file.parent):
            folder.mkdir(parents=True, exist_ok=True)
        what = ["--resume", str(self.resumes)]
        if self.resumes is None:
            what = [str(self.config), *self.beginning]
        arguments = [*what, "--error-file", str(self.error_file), *self.options]
        kind = SpawnProcess if self.kind == "cloud" else ForkServerProcess
        process = kind(
            target=run_child, args=(self.kind, self.name, arguments, self.log), name=self.name
        )
        # Struck halfway, it would wait for what it is to do, or be somebody whom nobody stops.
        with undisturbed(hear_later=True), deaf_children():
            process.start()
            self.process = process  # only one that has started can be waited for

    def fork(self, say: Say) -> None:
        """Start the process once the nursery has imported what it needs. Raises RunFailed."""
        errors: list[Exception] = []

        def start() -> None:
            try:
                self.start()
            except (EOFError, OSError) as error:  # it died meanwhile
                errors.append(error)

        what = "reading torch and transformers"
        patience = Patience(what, "it has no log of its own", say, time.monotonic())
        starting = threading.Thread(target=start, name="start", daemon=True)
        starting.start()
        while starting.is_alive():
            starting.join(0.2)
            nodes = {process.pid for process in active_children()}
            nursery = {child.pid for child in psutil.Process().children()} - nodes
            patience.look(cpu_seconds(nursery), time.monotonic())
        if errors:
            reason = "the process that edge and devices are forked from died"
            raise RunFailed(f"{what}: {reason}; its output, if any, is above")

    def start_again(self, line: str) -> None:
        """Start another process in the place of one that has ended, and leave `line` in its log.

        Raises RunFailed where none can be started.
        """
        for file in (self.error_file, self.address_file):
            file.unlink(missing_ok=True)
        with self.log.open("a", encoding="utf-8") as log:
            log.write(f"--- {line}\n")
        try:
            self.start()
        except (EOFError, OSError) as error:
            raise RunFailed(f"{self.title} cannot be started again: {error}") from None

    def stay_at(self, address: str) -> None:
        """Let the next process listen where this one does, since others know that address."""
        self.options = (*self.options, "--set", f"{self.kind}.listen={address!r}")

    @property
    def title(self) -> str:
        """Kind and name, for a line."""
        return self.kind if self.kind == "cloud" else f"{self.kind} {self.name}"

    def exit_code(self) -> int | None:
        """Exit code, None while it runs; negative: the signal that killed it."""
        assert self.process is not None
        return self.process.exitcode

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self.process is not None and self.process.is_alive()

    def failure(self) -> str:
        """Why it ended, in its own words where it left any."""
        if self.error_file.exists():
            return self.error_file.read_text(encoding="utf-8").strip()
        code = self.exit_code()
        if code is not None and code < 0:
            return f"killed by {signal.Signals(-code).name}"
        return f"exit code {code}; its log: {self.log}"

    def await_address(self, say: Say, meanwhile: Callable[[], None]) -> str:
        """The address it really listens on. Raises RunFailed where it gives none.

        That may take as long as it is at work; `say` is told now and then, `meanwhile` is done.
        """
        assert self.process is not None and self.process.pid is not None
        what = f"{self.kind} {self.name} starts"
        patience = Patience(what, f"its log: {self.log}", say, time.monotonic())
        while self.exit_code() is None:
            if self.address_file.exists():
                return self.address_file.read_text(encoding="utf-8").strip()
            patience.look(cpu_seconds([self.process.pid]), time.monotonic())
            meanwhile()
            time.sleep(0.02)
        raise RunFailed(f"{self.kind} {self.name}: {self.failure()}")

    def ask_to_stop(self) -> None:
        """Send SIGTERM, if it still runs."""
        if self.process is not None and self.running:
            self.process.terminate()

    def await_end(self, deadline: float) -> None:
        """Wait until `deadline` (monotonic seconds), then kill."""
        if self.process is None:
            return
        self.process.join(max(0.1, deadline - time.monotonic()))
        if self.process.is_alive():
            self.process.kill()
            self.process.join()


def cloud_node(folder: Path, config: RunConfig, resume: bool = False) -> Node:
    """The cloud of a run, told its folder by `run.id` and `run.output_dir`, or by --resume."""
    node = _node("cloud", "cloud", folder, folder / "config.toml", config)
    node.options = (*node.options, "--address-file", str(node.address_file))
    node.beginning = (
        "--set",
        f"run.id={folder.name!r}",
        "--set",
        f"run.output_dir={json.dumps(str(folder.parent), ensure_ascii=False)}",
    )
    node.resumes = folder if resume else None
    return node


def stage_node(folder: Path, config: RunConfig, own: EdgeConfig, behind: str) -> Node:
    """A stage of a run; `behind` is the address of the one behind it, if there is one."""
    own = own.model_copy(update={"next": behind, "service": ""})
    node = _node("stage", own.name, folder, _write(folder, "stage", own), config)
    node.options = (*node.options, "--address-file", str(node.address_file))
    node.returns = True
    return node


def edge_node(
    folder: Path, config: RunConfig, name: str, cloud_address: str, behind: str = ""
) -> Node:
    """An edge of a run; all have the settings of `[edge]`.

    `behind` is the address of the stage behind them, if there is one.
    """
    changes = {"cloud": cloud_address, "service": "", "next": behind or config.edge.next}
    edge = config.edge.model_copy(update={"name": name, **changes})
    node = _node("edge", edge.name, folder, _write(folder, "edge", edge), config)
    node.options = (*node.options, "--address-file", str(node.address_file))
    node.returns = True
    return node


def device_node(folder: Path, config: RunConfig, name: str, edges: Mapping[str, str]) -> Node:
    """One device of a run, with its edges' addresses; under `sfl run` the model's folder is there.

    Whoever starts a run on one machine owns its device too: the paths and the cut of the run's file
    are the device's own.
    """
    entry = config.device(name)
    local = entry.model_dump(include={"name", *LocalDevice.model_fields})
    own = {
        "edge": edges[home_of(config, name)],
        "edges": dict(edges) if len(edges) > 1 else {},
        "model": entry.model or None,
        "shared_train": config.data.train,
        "shared_eval": config.data.eval,
        "teacher": entry.teacher or config.distil.teacher or None,
        "consent": {
            "min_cut_layer": min(1, entry.least_cut),
            "teacher": config.distil.is_on,
        },
    }
    device = DeviceConfig.model_validate({**local, **own})
    node = _node("device", name, folder, _write(folder, "device", device), config)
    node.returns = True
    return node


def home_of(config: RunConfig, device: str) -> str:
    """The edge that a device dials first: its own, or each in turn."""
    in_turn = config.edges[config.device_index(device) % len(config.edges)]
    return config.device(device).edge or in_turn


def _node(kind: str, name: str, folder: Path, file: Path, config: RunConfig) -> Node:
    nodes, certificates = folder / "nodes", folder / CERTIFICATES / name
    options: tuple[str, ...] = ("--insecure",) if config.network.insecure else ()
    if certificates.is_dir():
        options += ("--certs", str(certificates))
    return Node(
        kind=kind,
        name=name,
        config=file,
        log=folder / "logs" / f"{name}.log",
        error_file=nodes / f"{name}.error",
        address_file=nodes / f"{name}.address",
        options=options,
    )


def _write(folder: Path, kind: str, settings: DeviceConfig | EdgeConfig) -> Path:
    path = folder / "nodes" / f"{settings.name}.toml"
    write_atomic(path, f"[{kind}]\n" + _as_table(kind, settings))
    return path


def _as_table(kind: str, settings: Section) -> str:
    """A section's TOML, its inner tables under the section's own name."""
    return dump_toml(settings).replace("\n[", f"\n[{kind}.")
