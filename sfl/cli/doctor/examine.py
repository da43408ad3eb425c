"""The order of an examination: the machine, the file, speeds, the link, what fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from sfl.cli.doctor.edge import check_own_edge, check_stages
from sfl.cli.doctor.files import (
    Config,
    NotHere,
    check_config,
    check_data,
    load_config,
    model_name,
    open_local,
)
from sfl.cli.doctor.fits import check_cuts, check_devices, cut_rows, load_of, measure_base
from sfl.cli.doctor.hardware import (
    check_accelerator,
    check_board,
    check_cores,
    check_disk,
    check_memory,
    check_pause,
)
from sfl.cli.doctor.quantised import check_bitsandbytes
from sfl.cli.doctor.question import Question
from sfl.cli.doctor.report import Check, CutRow, Report, problem
from sfl.cli.doctor.serving import ServeFile, check_serving, load_served
from sfl.cli.doctor.speed import check_codec, check_precision
from sfl.cli.launch.nearby import perhaps_meant, pointed
from sfl.config import DeviceConfig, EdgeConfig, LocalDevice, RunConfig
from sfl.config.node import certain
from sfl.config.pausing import PauseSettings
from sfl.config.size import size
from sfl.errors import ModelError, SflError
from sfl.models.folder import ModelFolder, check_length
from sfl.models.memory.footprint import Load
from sfl.node import machine
from sfl.node.board import board_root, read_board
from sfl.node.certificates.own import own_certificate, own_in
from sfl.transport.bulk.probe import LinkSpeed, probe_edge

Tell = Callable[[str], None]
Show = Callable[[Check], None]


def examine(question: Question, memory: machine.Memory, tell: Tell, show: Show) -> Report:
    """Look at everything; `tell` hears what is under way, `show` each check as it is done.

    `memory` is from before this module was imported: torch, which comes with it, would count as
    taken.
    """
    examination = _Examination(question, memory, tell)
    checks = []
    for check in examination.checks():
        show(check)
        checks.append(check)
    return Report(tuple(checks), tuple(examination.rows))


class _Examination:
    """What later checks take from earlier ones."""

    def __init__(self, question: Question, memory: machine.Memory, tell: Tell) -> None:
        self.question, self.memory, self.tell = question, memory, tell
        self.config: Config | None = None
        self.served: ServeFile | None = None
        self.rows: list[CutRow] = []

    def checks(self) -> Iterator[Check]:
        """All of them, in order."""
        yield check_cores()
        yield check_memory(self.memory)
        unread = self._read_file()
        yield check_disk(self._local.cache_dir)
        yield from self._board()
        model, lacking = self._open_model()
        yield from self._file_checks(unread, model)
        yield from lacking
        yield from self._speeds()
        yield from self._link()
        if model is not None:
            yield from self._fits(model)

    def _board(self) -> Iterator[Check]:
        board = read_board(board_root(), ask_metered=True)
        yield check_board(board)
        rules = self._local.pause
        if rules != PauseSettings():
            yield check_pause(rules, board, datetime.now().time())

    @property
    def _local(self) -> LocalDevice:
        if self.served is not None and self.served.edge is None:
            return self.served.devices[0].device
        return self.config if isinstance(self.config, DeviceConfig) else LocalDevice()

    def _read_file(self) -> Check | None:
        """Load the file; what is wrong with it, where that fails."""
        if self.question.file is None:
            return None
        try:
            self.served = load_served(self.question.file, self.question.overrides)
            if self.served is None:
                self.config = load_config(self.question.file, self.question.overrides)
        except SflError as error:
            return problem("file", error)
        return None

    def _file_checks(self, unread: Check | None, model: ModelFolder | None) -> Iterator[Check]:
        if unread is not None:
            yield unread
        if self.question.file is None:
            return
        if self.served is not None:
            yield Check("file", "ok", f"{self.question.file}: {self.served.words}")
        if self.config is None:
            return
        yield check_config(self.question.file, self.config, model)
        if not isinstance(self.config, EdgeConfig):
            self.tell("reading the data")
            yield from check_data(self.config, model, self._folders)

    def _open_model(self) -> tuple[ModelFolder | None, list[Check]]:
        """The model; or why there is none."""
        field, name = model_name(self.config) if self.served is None else self.served.model
        if self.question.model is not None:
            field, name = "--model", self.question.model
        if name is None and self.served is not None:
            text = "device.model is not given: the edge sends this device's blocks"
            return None, [Check("model", "ok", f"{text}; --model PATH shows what fits")]
        if name is None:
            return None, []
        try:
            folder = open_local(name)
        except NotHere:
            text = (
                f"{field} = {name!r}: no such folder, so it is read as a model's name on the "
                "hub; it was not fetched yet, and what fits is not known"
            )
            fix = perhaps_meant(name, self._folders) + "A run fetches it from the hub."
            return None, [Check("model", "warning", text, fix)]
        except ModelError as error:
            named = ModelError(field, error.value, error.problem, error.fix)
            return None, [problem("model", pointed(named, self._folders))]
        except SflError as error:
            return None, [problem("model", error)]
        return folder, []

    @property
    def _folders(self) -> list[Path]:
        """Where a relative path may lead from."""
        file = self.question.file
        return [Path.cwd()] if file is None else [file.resolve().parent, Path.cwd()]

    def _speeds(self) -> Iterator[Check]:
        accelerator = check_accelerator()
        yield accelerator
        wanted = self._local.threads
        threads = machine.cores().usable if wanted == "auto" else wanted
        self.tell("measuring float32 and bfloat16")
        yield check_precision(threads)
        if accelerator.figures["devices"]:
            yield check_precision(threads, "cuda:0")
        self.tell("measuring the codec")
        yield check_codec(threads)
        self.tell("trying bitsandbytes")
        yield check_bitsandbytes()

    def _probe(self, address: str) -> LinkSpeed:
        own = None
        if self.question.certs is not None:
            own = own_in(self.question.certs)
        elif isinstance(self.config, DeviceConfig):
            own = own_certificate("device", self.config.name, self.config.tls)
        proxy = isinstance(self.config, DeviceConfig) and self.config.proxy
        return probe_edge(address, self.question.insecure, own=own, proxy=proxy)

    def _link(self) -> Iterator[Check]:
        address = self.question.edge
        if address is None and isinstance(self.config, DeviceConfig):
            address = self.config.edge or None
        if address is None:
            return
        self.tell(f"testing the link to {address}")
        try:
            yield _link_check(address, self._probe(address))
        except SflError as error:
            found = problem("link", error)
            fix = found.fix or "Start the edge (sfl edge FILE), and check address and firewall."
            yield replace(found, fix=fix, figures={"address": address})

    def _fits(self, folder: ModelFolder) -> Iterator[Check]:
        run = self.config if isinstance(self.config, RunConfig) else None
        room = self.memory.usable if self.question.room is None else self.question.room
        if self.served is not None:
            self.tell("measuring a device's process")
            base = measure_base(folder.family.layout(folder.config, "causal_lm").package)
            yield from check_serving(self.served, folder, room, base.num_bytes)
            return
        try:
            load = self._load(folder, run)
            self.tell("measuring a device's process")
            base = measure_base(folder.family.layout(folder.config, load.task).package)
            if not base.measured:
                text = f"could not be measured, {size(base.num_bytes)} are assumed"
                fix = "Try again when the machine is less busy."
                yield Check("process", "warning", f"a device's process without a model {text}", fix)
            self.rows = cut_rows(folder, load, run, room, base, self._local)
            yield check_cuts(folder, load, self.rows, room)
        except SflError as error:
            yield problem("cuts", error)
            return
        if run is not None:
            yield from check_devices(run, load, folder, self.rows, room, base)
        if isinstance(self.config, RunConfig | EdgeConfig):
            yield check_own_edge(self.config, load, folder, self.question.cuts, room)
        if isinstance(self.config, RunConfig):
            yield from check_stages(self.config, load, folder, room)

    def _load(self, folder: ModelFolder, run: RunConfig | None) -> Load:
        """The run's load, or a usual one, with what the question says instead."""
        if run is not None:
            load = load_of(run, folder)
        else:
            load = Load(
                batch_size=8, length=min(512, folder.context_length), task=folder.family.tasks[0]
            )
        if isinstance(self.config, DeviceConfig):
            own = self.config
            load = replace(load, dtype=own.dtype or load.dtype, quantised=certain(own.quantised))
        question = self.question
        if question.length is not None:
            check_length(question.length, folder.context_length, "--max-length")
        return replace(
            load,
            batch_size=question.batch_size or load.batch_size,
            length=question.length or load.length,
            rank=question.rank or load.rank,
        )


def _link_check(address: str, speed: LinkSpeed) -> Check:
    return Check(
        "link",
        "ok",
        f"edge at {address}: round trip {speed.median_seconds * 1e3:.3g} ms (95 % within "
        f"{speed.p95_seconds * 1e3:.3g} ms), up {_rate(speed.up_bytes_per_second)}, down "
        f"{_rate(speed.down_bytes_per_second)}",
        figures={
            "address": address,
            "round_trip_median_seconds": speed.median_seconds,
            "round_trip_p95_seconds": speed.p95_seconds,
            "up_bytes_per_second": speed.up_bytes_per_second,
            "down_bytes_per_second": speed.down_bytes_per_second,
            "up_bytes": speed.up_bytes,
            "down_bytes": speed.down_bytes,
        },
    )


def _rate(bytes_per_second: float) -> str:
    return f"{size(bytes_per_second)}/s"
