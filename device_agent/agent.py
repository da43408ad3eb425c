"""The device process: its own span, its own data, one connection out to its edge."""

from __future__ import annotations

import contextlib
import logging
import secrets
import time
from dataclasses import replace

import torch

from device_agent.board_watch import BoardWatch
from device_agent.consent import Consent
from device_agent.goodbye import saying_goodbye
from device_agent.loaded import Loaded
from device_agent.rejoining import Patience
from device_agent.roaming import Roaming
from device_agent.taught import load_teacher_front, taught_by
from sfl.config import DeviceConfig, RunSettings
from sfl.config.ranges import plans_to_fit
from sfl.data import Dataset, Tokenizer, load_tokenizer, prepare
from sfl.errors import (
    AdapterRefused,
    Elsewhere,
    LinkLost,
    NameInUse,
    PeerUnavailable,
    RunIsOver,
)
from sfl.metrics.memory import memory_use, working_bytes
from sfl.metrics.prometheus import NodeCollector, serve_as_set
from sfl.metrics.stats import NodeStats
from sfl.metrics.waits import OpenWait
from sfl.models.folder import ModelFolder, open_model
from sfl.models.memory.cuts import told_cuts
from sfl.models.memory.device_budget import device_load, fit_plan
from sfl.models.memory.footprint import Load, Thrift
from sfl.models.modeling import import_modeling
from sfl.node.board import board_root
from sfl.node.certificates.own import OwnCertificate
from sfl.node.energy import EnergyMeter
from sfl.node.extras import require_cryptography
from sfl.node.finishing import Finishing
from sfl.node.logs import describe_node
from sfl.node.notify import notifier
from sfl.node.process import trim_heap
from sfl.rounds.values import Assignment
from sfl.stage.base import settle
from sfl.stage.device import DeviceStage, check_blocks
from sfl.stage.snapshots import forget_old_runs, forget_run
from sfl.stage.trainer import Trainer
from sfl.transport.bulk.fetch import fetch_model
from sfl.transport.device.line import Line, dial
from sfl.transport.device.link import CameFrom, DeviceLink, Joined
from sfl.transport.device.teaching import teaching_tensors
from sfl.transport.security.signed import DeviceSignatures

log = logging.getLogger("sfl.device")

REJOIN_PAUSE = 0.5  # seconds before a device that lost its link dials again, at first and at most


class DeviceAgent:
    """Takes part in a run; after a lost link it joins again, and keeps what it has loaded."""

    def __init__(
        self,
        config: DeviceConfig,
        insecure: bool,
        returns_memory: bool = False,
        own: OwnCertificate | None = None,
    ) -> None:
        if own is not None:
            require_cryptography("device.tls")  # to sign what the cloud is told
        self.own = own
        self.config = config
        self.returns_memory = returns_memory
        self.insecure = insecure
        self.consent = Consent(config)
        self.consent.check_sources()
        self.stats = NodeStats(config.name, "device")
        self.stats.threads = torch.get_num_threads()
        self.stats.meter = EnergyMeter(board_root())
        self.stats.certificate_expiry = None if own is None else own.not_after
        self._run_id = ""
        self._loaded: Loaded | None = None
        self._away: OpenWait | None = None
        self._came_from = CameFrom(incarnation=secrets.token_bytes(16))
        self.roaming = Roaming(config, self.stats, insecure, own)
        self._patience = Patience(config.connect_timeout)
        self._finishing = Finishing()
        self.service = notifier()
        self.board = BoardWatch(config.pause, self.stats, self.service, board_root())
        describe_node(self._log_fields)

    def run(self, connect_timeout: float) -> None:
        """Take part until the run is over. Raises SflError where it ends badly."""
        forget_old_runs(self.config.cache_dir, self.config.name, time.time())
        with self._metrics(), self.board:
            self.service.ready()
            patience = self._patience = Patience(connect_timeout)
            while True:
                self.board.rest()
                self.service.status(f"joining the edge at {self.roaming.edges.address}")
                try:
                    line = self._dial(connect_timeout)
                    with saying_goodbye(line):
                        link = self._join(line, connect_timeout)
                        self._taken_in(link.joined)
                        self._take_part(link)
                    return
                except RunIsOver as error:
                    log.info("%s", error)
                    forget_run(self.config.cache_dir, error.run_key, self.config.name)
                    return
                except Elsewhere as error:
                    log.info("%s", error)
                    self.roaming.go(error)
                    continue
                except LinkLost as error:
                    patience.spend(error, time.monotonic())
                    log.warning("%s; joining again", error)
                    self.roaming.missed()
                except NameInUse as error:
                    patience.spend(error, time.monotonic())
                    log.info("%s; asking again", error)
                except AdapterRefused as error:
                    self.stats.nonfinite_losses += 1  # the step did not come to its own count
                    patience.refuse(error)
                    log.warning("%s; joining again, for the next round's adapter", error)
                except PeerUnavailable as error:
                    if not self.roaming.missed():
                        patience.unreached(error, time.monotonic())
                    log.warning("%s; dialling again", error)
                self._lost(patience.left(time.monotonic()))
                time.sleep(patience.pause(REJOIN_PAUSE))

    def _taken_in(self, joined: Joined) -> None:
        self._patience.taken_in(joined.settings.network.rejoin_timeout)
        self.roaming.taken_in(joined)
        self._back()

    def _lost(self, seconds: float | None) -> None:
        """The edge is dialled again, for so long at most."""
        if self._away is None:
            whom = f"edge at {self.roaming.edges.address}"
            self._away = self.stats.waits.begin(whom, "return", "to be let in again", seconds)
        self.stats.waits.say()

    def _back(self) -> None:
        """The edge has let this device in."""
        if self._away is not None:
            self._away.close()
        self._away = None

    def _dial(self, patience: float) -> Line:
        edges, config = self.roaming.edges, self.config
        patience = edges.patience(patience, time.monotonic())
        return dial(
            edges.address,
            self.stats,
            patience,
            self.insecure,
            self.own,
            config.proxy,
            edges.refused_after,
        )

    def _join(self, line: Line, patience: float) -> DeviceLink:
        signatures = DeviceSignatures(self.config.name, self.own)
        agree = self._agree
        cache = self.config.cache_dir
        came_from = replace(self._came_from, round_trips=self.roaming.round_trips)
        hear = self.roaming.edges.hear
        return DeviceLink.join(line, signatures, patience, cache, agree, came_from, hear)

    def _agree(self, told: Assignment) -> None:
        """Before anything of a round is held. Raises ConfigError."""
        self.consent.check(told)
        if self._loaded is not None:
            self._loaded.check_room(told.plan, self.config.memory)

    def _log_fields(self) -> dict[str, object]:
        stats, name = self.stats, self.config.name
        return {
            "kind": stats.kind,
            "node": name,
            "run": self._run_id,
            "round": stats.round,
            "step": stats.step,
            "device": name,
        }

    def _take_part(self, link: DeviceLink) -> None:
        """Load, say so, and run rounds until there are no more."""
        joined = link.joined
        self._enter(joined)
        joined = replace(joined, settings=self.consent.agreed(joined.settings, joined.assignment))
        loaded = self._loaded = self._as_loaded(link, joined)
        trainer = self._trainer(loaded, link)
        width, tokens = loaded.teacher_width, joined.taught_tokens
        named = teaching_tensors(joined.settings, width, tokens)
        link.expect(trainer.stage.shapes_of, trainer.stage.front.model.hidden_size, named)
        link.ready(loaded.dataset, loaded.cuts, self.config.memory)
        try:
            self._run_rounds(link, trainer)
        finally:
            link.written()  # the next link reads it
        forget_run(self.config.cache_dir, joined.run_key, self.config.name)

    def _enter(self, joined: Joined) -> None:
        """This device is in a run now; whether that is the one it was in, the log says."""
        before = self._came_from.run_key
        if before not in ("", joined.run_key):
            begins = "this device was in %s, and begins anew"
            log.warning(f"the edge is in another run, %s: {begins}", joined.run_id, self._run_id)
        self._run_id = joined.run_id
        self._came_from = replace(self._came_from, run_key=joined.run_key)

    def _run_rounds(self, link: DeviceLink, trainer: Trainer) -> None:
        self.service.status(f"run {self._run_id}: waiting for its first round")
        for order in link.orders(trainer.fold):
            self.service.status(f"run {self._run_id}: round {order.assignment.round}")
            self.roaming.begin_round(link.joined.settings)
            with self._finishing.working():
                link.deliver(trainer.run_round(order), *self.roaming.told())
            self._patience.round_done()
            if self.config.heap == "keep":
                trim_heap()

    def _as_loaded(self, link: DeviceLink, joined: Joined) -> Loaded:
        """What the edge asks for: what is still here from the link before, or loaded now."""
        before, self._loaded = self._loaded, None
        if before is None or not before.fits(joined):
            before = None  # its memory is needed
            return self._load(link, joined)
        if before.same_data(joined):
            log.info("model and data are still loaded")
            return replace(before, joined=joined)
        log.info("the model is still loaded")
        tokenizer = load_tokenizer(self._folder(link, joined.settings.network.idle_timeout).path)
        dataset = self._prepared(joined.settings, tokenizer)
        return replace(before, joined=joined, dataset=dataset, pad_id=tokenizer.pad_id)

    def _prepared(self, settings: RunSettings, tokenizer: Tokenizer) -> Dataset:
        dataset = prepare(self.config, self.config.name, settings, tokenizer)
        for line in dataset.warnings(settings.model.max_length):
            log.warning("%s", line)
        log.info("%d examples, %d held out", len(dataset.train), len(dataset.eval))
        return dataset

    def _trainer(self, loaded: Loaded, link: DeviceLink) -> Trainer:
        return Trainer(
            self.config.name,
            loaded.stage,
            loaded.dataset,
            loaded.pad_id,
            loaded.joined.settings,
            link,
            self.stats,
            self._rest,
            link.keep,
            taught_by(loaded.joined.settings, loaded.joined.taught_tokens, loaded.teacher),
        )

    def _rest(self) -> None:
        """Between two steps: where SIGTERM strikes, and the board may need a pause."""
        with self._finishing.between():
            self.board.rest()

    def _load(self, link: DeviceLink, joined: Joined) -> Loaded:
        """This device's span, tokenizer and data."""
        settings, name = joined.settings, self.config.name
        folds = settings.aggregation.traits.folds
        form = settle(self.config, settings.model, torch.get_num_threads(), folds)
        folder = self._folder(link, settings.network.idle_timeout)
        check_blocks(joined.assignment.plan, folder)
        import_modeling(folder.family.layout(folder.config, settings.model.task).package)
        # What this process is by itself is measured, what it will take on top foretold.
        base = working_bytes()
        load = device_load(folder, settings, joined.assignment.rank, form.dtype, form.quantised)
        open_dtype = (self.config.dtype or settings.model.dtype) == "auto"
        own, thrift = self._fitted(joined, folder, load, base, open_dtype)
        joined = replace(joined, assignment=own)
        if thrift.bfloat16:
            form = replace(form, dtype="bfloat16")
        self.stats.dtype, self.stats.quantised = form.dtype, form.quantised
        self.stats.micro_batches = thrift.micro_batches
        log.info("%.0f MB before the model; %s", base / 1e6, thrift)
        tokenizer = load_tokenizer(folder.path)
        dataset = self._prepared(settings, tokenizer)
        if own.plan.cut_layer == 0 and own.plan.tail is None:
            log.warning(
                "cut_layer 0: this device has nothing to train, and the embeddings it sends "
                "reveal its tokens to the edge"
            )
        stage = DeviceStage(name, own, folder, settings, form, thrift, self.config.cache_dir)
        log.info("%.0f MB with the model", memory_use().resident / 1e6)
        cuts = self.consent.allowed(told_cuts(folder, settings, name, load, base, thrift))
        teacher = load_teacher_front(self.config, settings, form)
        return Loaded(joined, stage, dataset, tokenizer.pad_id, cuts, teacher)

    def _fitted(
        self, joined: Joined, folder: ModelFolder, load: Load, base: int, open_dtype: bool
    ) -> tuple[Assignment, Thrift]:
        """The run's cut, or where cuts may move the first that fits this device's memory, and how.

        The cloud comes to the same from the cuts that it is told. Raises ConfigError.
        """
        own, least = joined.assignment, self.config.consent.min_cut_layer
        plans = plans_to_fit(joined.settings, self.config.name, own.plan, least)
        memory, returned = self.config, self.returns_memory
        plan, thrift = fit_plan(folder, plans, load, memory, base, returned, open_dtype)
        if plan != own.plan:
            wanted, cut = own.plan.cut_layer, plan.cut_layer
            instead = "cut_layer %d takes more than device.memory: this device joins with %d"
            log.warning(instead, wanted, cut)
        return replace(own, plan=plan), thrift

    def _folder(self, link: DeviceLink, silence: float) -> ModelFolder:
        """The model's files: from this device's disk, or the span's own from the edge."""
        if self.config.model is not None:
            return open_model(self.config.model)
        cache = self.config.cache_dir
        name = self.config.name
        try:
            return open_model(str(fetch_model(link.channel, name, cache, self.stats, silence)))
        except LinkLost as error:
            raise link.why(error) from None

    def _metrics(self) -> contextlib.AbstractContextManager[object]:
        metrics = self.config.metrics
        if not metrics.enabled:
            return contextlib.nullcontext()
        return serve_as_set(metrics, NodeCollector(self.stats))
