"""A whole federation in this process: the real cloud, edges and devices, without sockets.

What `tests.house.federation.run` does with processes, `played` does here: same settings, same
folder, same adapter, in a tenth of the time. Cloud and edges live on one event loop, each device on
a thread. Deadlines of the run go by a clock that stands still unless a test moves it.

    outcome = played(tmp_path, values)

    twin = Twin(tmp_path, values)
    twin.at("d1", 2, 0, twin.lose)            # as it begins step 0 of round 2
    outcome = twin.run()
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

from cloud_aggregator.aggregator import CloudAggregator
from device_agent import agent
from device_agent.agent import DeviceAgent
from device_agent.board_watch import BoardWatch
from device_agent.roaming import Roaming
from edge_server.server import EdgeServer
from edge_server.stage import StageServer
from sfl.cli.launch.preflight import check_before_start
from sfl.cli.launch.run import bounded, budgeted, resolved
from sfl.config import DeviceConfig, LocalDevice, RunConfig, load_run
from sfl.config.plugins import with_packages
from sfl.errors import PeerUnavailable, SflError
from sfl.models.families import FAMILIES
from sfl.models.folder import local_folder, open_model
from sfl.node.certificates.identity import Role
from sfl.node.certificates.own import OwnCertificate
from sfl.node.logs import TextLines
from sfl.plan import TIERED
from sfl.report.conclusion import concluded
from sfl.report.resume import resumed
from sfl.report.runs import open_run_folder
from sfl.transport.device.line import Line
from sfl.transport.device.link import DeviceLink
from sfl.transport.inproc import AioChannel, Channel, Services
from sfl.transport.security.signed import DeviceSignatures
from tests.house.clock import Clock
from tests.house.federation import Outcome, write_config
from tests.house.waiting import PATIENCE

NODE: ContextVar[str] = ContextVar("node", default="")
"""Whose log a line belongs to."""

CLOUD = "cloud"
STAGE_ENDS = 10.0
"""Seconds that a stage has for its end, once an edge has told it."""

Act = Callable[[str], None]
Story = Callable[["Twin"], Awaitable[None]]


class Killed(BaseException):
    """A device is gone, and says nothing any more."""


def played(folder: Path, values: dict[str, Any]) -> Outcome:
    """A run to its end; `sfl run` on the same settings leaves the same folder."""
    return Twin(folder, values).run()


def prepared(folder: Path, values: dict[str, Any]) -> RunConfig:
    """The settings as `sfl run` gives them to its nodes. Raises SflError."""
    quiet = {"metrics": {"enabled": False}}
    tiered = values.get("run", {}).get("topology") in TIERED
    nodes = ("cloud", "edge", *(["stage"] if tiered else []))
    values = {**values, **{node: {**quiet, **values.get(node, {})} for node in nodes}}
    config = load_run(write_config(folder, values))
    model = open_model(config.model.path, weights=local_folder(config.model.path) is not None)
    config = bounded(config, model.context_length)
    config = with_packages(config, FAMILIES.package(model.model_type))
    check_before_start(config, model, lambda message: None)
    return budgeted(resolved(config))


class Twin:
    """One run. `edges` says which devices dial which edge; by default all dial the run's own."""

    def __init__(
        self,
        folder: Path,
        values: dict[str, Any],
        edges: Mapping[str, Sequence[str]] | None = None,
        resume: Path | None = None,
    ) -> None:
        """With `resume` a run's folder is gone on with, and `values` are not looked at."""
        if resume is None:
            config = prepared(folder, values)
            self.folder = open_run_folder(config)
        else:
            self.folder, config = resumed(str(resume))
        self.config = config
        assert not config.lora.dropout, "threads share the generator that dropout is drawn from"
        self.clock = Clock()
        self.cache = self.folder.parent.parent / "cache"
        """Where nodes keep what they go on from."""
        names = [entry.name for entry in config.devices]
        self.edges = dict(edges or {config.edge.name: names})
        self.servers: dict[str, EdgeServer] = {}
        self.agents: dict[str, TwinDevice] = {}
        self.ended: dict[str, BaseException | None] = {}
        """Nodes that are through, and what ended each."""
        self.channels: dict[str, AioChannel] = {}
        """Edges' connections to the cloud."""
        self._acts: dict[tuple[str, int, int], list[Act]] = defaultdict(list)
        self.bug: BaseException | None = None
        self.is_over = False
        self.links: dict[str, type[DeviceLink]] = {}
        """Links of devices that do not behave as others do."""
        self.trips: dict[tuple[str, str], float] = {}
        """How far edges are from devices, in seconds."""
        self.held: set[str] = set()
        """Devices that wait for `release`."""
        self._edge_tasks: dict[str, asyncio.Task[None]] = {}
        self._stage_tasks: dict[str, asyncio.Task[None]] = {}
        self.stages: dict[str, StageServer] = {}
        self.hops: dict[str, list[AioChannel]] = defaultdict(list)
        """Servers' connections to the stage behind them."""
        self._threads: list[threading.Thread] = []

    # -- what a test may do -----------------------------------------------------------------------

    def at(self, device: str, round_: int, step: int, act: Act) -> None:
        """Have `act` done on a device's thread, right before it computes that step."""
        self._acts[device, round_, step].append(act)

    def lose(self, device: str) -> None:
        """Kill a device: its edge sees a link that breaks."""
        gone = self.agents[device]
        gone.lost = True
        gone.channel.cut()
        if threading.current_thread() is gone.thread:
            raise Killed(device)

    def cut(self, device: str) -> None:
        """Break a device's link; it dials again."""
        self.agents[device].channel.cut()

    def hold(self, device: str) -> None:
        """Have a device compute nothing until it is released, or the run is over."""
        self.held.add(device)
        while device in self.held and not self.is_over:
            time.sleep(0.002)

    def release(self, device: str) -> None:
        """Let a device that is held go on."""
        self.held.discard(device)

    def done(self) -> set[str]:
        """Devices that are through with the open round."""
        return {name for name, own in self.cloud.coordinator.progress.items() if own.reported}

    def start_device(self, name: str) -> None:
        """Start a device, for the first time or again."""
        edge = next(edge for edge, names in self.edges.items() if name in names)
        device = self.agents[name] = TwinDevice(self, self._device_config(name, edge), edge)
        self.ended.pop(name, None)
        device.thread.start()
        self._threads.append(device.thread)

    def trip(self, device: str, edge: str) -> float:
        """Seconds from a device to an edge and back."""
        return self.trips[device, edge]

    def lose_edge(self, name: str) -> None:
        """Kill an edge: its devices and the cloud see links that break."""
        self.loop.call_soon_threadsafe(self._lose_edge, name)

    def restart_edge(self, name: str) -> None:
        """Kill an edge, and start it again once it is gone."""

        def again(_: object) -> None:
            if not self._cloud_task.done():
                self._edge_tasks[name] = self.loop.create_task(self._edge(name))

        def lose() -> None:
            task = self._edge_tasks[name]
            self._lose_edge(name)
            task.add_done_callback(again)

        self.loop.call_soon_threadsafe(lose)

    def move(self, seconds: float) -> None:
        """So much later: what was due in between happens."""
        self.clock.now += seconds
        self.loop.call_soon_threadsafe(lambda: None)

    async def until(self, condition: Callable[[], Any]) -> None:
        """Wait for what must come soon."""
        for _ in range(int(PATIENCE / 0.002)):
            if condition():
                return
            await asyncio.sleep(0.002)
        raise AssertionError("it never came")

    def certificate(self, role: Role, name: str) -> OwnCertificate | None:
        """What the cloud, an edge or a device shows; none here, so that nobody signs."""
        return None

    # -- a run ------------------------------------------------------------------------------------

    def run(self, story: Story | None = None) -> Outcome:
        """All of it; `story` is played beside it, on the event loop."""
        with (
            asyncio.Runner(loop_factory=lambda: Loop(self.clock)) as runner,
            self._logs(),
            self._patience(),
            patch.object(agent, "REJOIN_PAUSE", 0.02),
        ):
            error = runner.run(self._play(story))
        code = 0 if error is None else getattr(error, "exit_code", 1)
        return Outcome(code, "" if error is None else f"{error}\n", self.folder)

    async def _play(self, story: Story | None) -> BaseException | None:
        self.loop = asyncio.get_running_loop()
        self.services = Services()
        told = None
        with contextlib.suppress(SflError), concluded(self.folder, self.config):
            cloud = self.loop.create_task(self._cloud())
            self._start_stages()
            for name in self.edges:
                self._edge_tasks[name] = self.loop.create_task(self._edge(name))
            for names in self.edges.values():
                for name in names:
                    self.start_device(name)
            told = None if story is None else asyncio.ensure_future(story(self))
            self._cloud_task = cloud
            await asyncio.wait(
                {cloud, *([told] if told else [])}, return_when=asyncio.FIRST_EXCEPTION
            )
            if not cloud.done():
                cloud.cancel()
            await asyncio.wait({cloud, *self._edge_tasks.values()})
            await self._end_stages()
            self.ended[CLOUD] = None if cloud.cancelled() else cloud.exception()
            self.is_over = True
            await asyncio.to_thread(self._join)
            if self.bug is not None:
                raise self.bug
            if told is not None:
                await told
            if not cloud.cancelled():
                cloud.result()
        return self.ended[CLOUD]

    def _join(self) -> None:
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), f"{thread.name} never ended"

    async def _cloud(self) -> None:
        NODE.set(CLOUD)
        self.cloud = CloudAggregator(
            self.config, self.folder, self.certificate("cloud", CLOUD), clock=self.clock
        )
        self.services.serve(CLOUD, self.cloud.service.handler(self.cloud.host))
        try:
            await self.cloud.to_its_end()
        finally:
            self.services.stop(CLOUD)

    def _start_stages(self) -> None:
        for number, own in enumerate(self.config.stage_nodes):
            self.start_stage(own.name, number)

    async def _end_stages(self) -> None:
        """Those that nobody has told of the end are stopped, as `sfl run` does."""
        tasks = list(self._stage_tasks.values())
        if any(self.ended.get(name) is None for name in self._edge_tasks) and tasks:
            await asyncio.wait(tasks, timeout=STAGE_ENDS)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def start_stage(self, name: str, number: int = 0) -> None:
        """Start a stage, for the first time or again; `number` is its place behind the edge."""
        self._stage_tasks[name] = self.loop.create_task(self._stage(name, number))

    def lose_stage(self, name: str) -> None:
        """Kill a stage: servers before it see links that break. It is started again."""
        self.loop.call_soon_threadsafe(self._lose_stage, name)

    def cut_hop(self, server: str) -> None:
        """Break a server's links to the stage behind it."""

        def cut() -> None:
            for channel in self.hops.pop(server, []):
                channel.cut()

        self.loop.call_soon_threadsafe(cut)

    def _lose_stage(self, name: str) -> None:
        self.services.stop(name)
        task = self._stage_tasks[name]
        task.cancel()
        number = [own.name for own in self.config.stage_nodes].index(name)
        task.add_done_callback(lambda _: self.start_stage(name, number))

    def _behind(self, number: int) -> str:
        """Who is behind the server before the stage of that number."""
        names = [own.name for own in self.config.stage_nodes]
        return names[number] if number < len(names) else ""

    async def _stage(self, name: str, number: int) -> None:
        NODE.set(name)
        behind = self._behind(number + 1)
        config = self.config.stage.model_copy(
            update={"name": name, "cache_dir": self.cache, "next": behind}
        )
        threads = config.threads
        assert threads != "auto"
        dial = partial(self._dial_stage, name, behind) if behind else None
        server = self.stages[name] = StageServer(config, threads, False, new_stage_channel=dial)
        self.services.serve(name, server.service.handler())
        try:
            await server.follow()
            self.ended[name] = None
        except (SflError, asyncio.CancelledError) as error:
            logging.getLogger("sfl.stage").error("%s", error)
            self.ended[name] = error
        except Exception as error:
            self.failed(error)
            raise
        finally:
            self.services.stop(name)
            await server.close()

    def _dial_stage(self, server: str, behind: str) -> AioChannel:
        channel = self.services.aio_channel(behind)
        self.hops[server].append(channel)
        return channel

    async def _edge(self, name: str) -> None:
        NODE.set(name)
        behind = self._behind(0)
        try:
            config = self.config.edge.model_copy(
                update={"cloud": CLOUD, "name": name, "cache_dir": self.cache, "next": behind}
            )
            threads = config.threads
            assert threads != "auto"
            dial, on = partial(self._dial_cloud, name), partial(self._dial_stage, name, behind)
            server = self.servers[name] = EdgeServer(
                config, threads, False, new_channel=dial, new_stage_channel=on if behind else None
            )
            self.services.serve(name, server.service.handler())
            await server.follow(config.connect_timeout, name)
            self.ended[name] = None
        except (SflError, asyncio.CancelledError) as error:
            logging.getLogger("sfl.edge").error("%s", error)
            self.ended[name] = error
        except Exception as error:
            self.failed(error)
            raise
        finally:
            self.services.stop(name)
            await server.close()

    def _dial_cloud(self, name: str) -> AioChannel:
        self.channels[name] = self.services.aio_channel(CLOUD)
        return self.channels[name]

    def _lose_edge(self, name: str) -> None:
        self.services.stop(name)
        self.channels[name].cut()
        self._edge_tasks[name].cancel()

    def _device_config(self, name: str, edge: str) -> DeviceConfig:
        """As `sfl run` writes it."""
        entry = self.config.device(name)
        own = {
            "edge": edge,
            "model": entry.model or None,
            "shared_train": self.config.data.train,
            "shared_eval": self.config.data.eval,
            "teacher": entry.teacher or self.config.distil.teacher or None,
            "consent": {
                "min_cut_layer": min(1, entry.least_cut),
                "teacher": self.config.distil.is_on,
            },
        }
        own["cache_dir"] = self.cache
        local = entry.model_dump(include={"name", *LocalDevice.model_fields})
        return DeviceConfig.model_validate({**local, **own})

    def failed(self, bug: BaseException) -> None:
        """What nobody foresaw ended a device: the run is stopped, and the test fails."""
        self.bug = bug
        self.loop.call_soon_threadsafe(self._cloud_task.cancel)

    def act(self, device: str, round_: int, step: int) -> None:
        """A device is about to compute a step."""
        for act in self._acts.pop((device, round_, step), []):
            act(device)

    @contextlib.contextmanager
    def _patience(self) -> Iterator[None]:
        """The machine's own time, which a test does not move: a run that hangs is a failure."""
        alarm = threading.Timer(PATIENCE, self.failed, [TimeoutError("the run never ended")])
        alarm.start()
        try:
            yield
        finally:
            alarm.cancel()

    @contextlib.contextmanager
    def _logs(self) -> Iterator[None]:
        root, handler = logging.getLogger(), NodeLogs(self.folder / "logs")
        level = root.level
        root.setLevel(logging.INFO)
        root.addHandler(handler)
        try:
            yield
        finally:
            root.removeHandler(handler)
            root.setLevel(level)
            handler.close()


class Loop(asyncio.SelectorEventLoop):
    """Time passes as usual, and what a test adds to it."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._added = clock

    def time(self) -> float:
        return super().time() + self._added.now


class TwinDevice(DeviceAgent):
    """A device that reaches its edge in this process, on a thread of its own."""

    def __init__(self, twin: Twin, config: DeviceConfig, edge: str) -> None:
        super().__init__(config, insecure=False)
        self.roaming = Roaming(config, self.stats, False, None, partial(twin.trip, config.name))
        self.own = twin.certificate("device", config.name)
        self.twin = twin
        self.lost = False
        self.channel: Channel = twin.services.channel(edge)
        self.board = Board(self.board, self.about_to_compute)  # type: ignore[assignment]
        self.thread = threading.Thread(target=self._live, name=config.name, daemon=True)

    def about_to_compute(self) -> None:
        if self.stats.round:
            self.twin.act(self.config.name, self.stats.round, self.stats.step)

    def _dial(self, patience: float) -> Line:
        if self.lost:
            raise Killed(self.config.name)
        edge = self.roaming.edges.address
        patience = self.roaming.edges.patience(patience, time.monotonic())
        peer, end = f"edge at {edge}", time.monotonic() + patience
        while not self.twin.services.is_there(edge):
            if self.twin.is_over:
                self._patience._back_by = None  # nobody is waited for any more
            if self.twin.is_over or time.monotonic() > end:
                raise PeerUnavailable(f"{peer} did not answer")
            time.sleep(0.005)
        self.channel = self.twin.services.channel(edge)
        return Line(self.channel, peer, self.stats)  # type: ignore[arg-type]

    def _join(self, line: Line, patience: float) -> DeviceLink:
        own, name = self.config, self.config.name
        kind = self.twin.links.get(name)
        if kind is None:
            return super()._join(line, patience)
        signatures = DeviceSignatures(name, self.own)
        check, came_from = self.consent.check, self._came_from
        return kind.join(line, signatures, patience, own.cache_dir, check, came_from)

    def _live(self) -> None:
        name = self.config.name
        NODE.set(name)
        ended: BaseException | None = None
        try:
            self.run(self.config.connect_timeout)
        except (SflError, Killed) as error:
            logging.getLogger("sfl.device").error("%s", error)
            ended = error
        except BaseException as error:
            logging.getLogger("sfl.device").exception("a bug")
            ended = error
            self.twin.failed(error)
        self.twin.ended[name] = ended


class Board:
    """A device's board, and where a test has its say: between two steps."""

    def __init__(self, board: BoardWatch, before: Callable[[], None]) -> None:
        self._board = board
        self._before = before

    def __enter__(self) -> Board:
        self._board.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._board.__exit__(*error)

    def rest(self) -> None:
        self._board.rest()
        self._before()


class NodeLogs(logging.Handler):
    """A file for each node, as `sfl run` leaves them."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.setFormatter(TextLines())

    def emit(self, record: logging.LogRecord) -> None:
        name = NODE.get() or record.name.rpartition(".")[2]
        with (self._folder / f"{name}.log").open("a") as file:
            file.write(self.format(record) + "\n")
