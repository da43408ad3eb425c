"""How a service and its agents are started: what the commands of the three nodes share.

Everything that takes time to import is imported when it is needed, so that `--help` answers at
once and an agent stays small.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sfl.config import DeviceConfig, EdgeConfig
from sfl.config.service import load_service
from sfl.node.certificates.own import OwnCertificate, own_certificate
from sfl.node.extras import require_opentelemetry
from sfl.node.files import writable_folder
from sfl.node.process import run_loop

if TYPE_CHECKING:
    from sfl.jobs.values import AgentRole
    from sfl.service.agent import Agent
    from sfl.transport.jobs.attaching import Attaching
    from sfl.transport.jobs.relay import Relay

FOLDER = "service"
"""Of an agent, in its cache_dir."""
MODULES: dict[AgentRole, str] = {"edge": "edge_server", "device": "device_agent"}


@dataclass(frozen=True, slots=True)
class Asked:
    """What a service is started with."""

    overrides: list[str]
    max_runs: int | None
    output_dir: Path
    insecure: bool
    certs: Path | None
    address_file: Path | None


@dataclass(frozen=True, slots=True)
class AskedAgent:
    """What an agent is started with, and hands on to each of its nodes."""

    file: Path
    overrides: tuple[str, ...]
    insecure: bool
    certs: Path | None
    own: OwnCertificate | None
    max_runs: int | None

    def most(self, settings: EdgeConfig | DeviceConfig) -> int:
        """How many runs it computes at once."""
        return self.max_runs or settings.max_runs

    def arguments(self, section: str, settings: EdgeConfig | DeviceConfig, **own: str) -> list[str]:
        """Of a node for one run: this machine's file, and these settings of `section`.

        Nodes that are there at once cannot share one port for their metrics.
        """
        given = [f"{section}.{key}={json.dumps(value)}" for key, value in own.items()]
        if self.most(settings) > 1 and settings.metrics.port:
            given.append(f"{section}.metrics.port=0")
        every = [*self.overrides, f'{section}.service=""', *given]
        options = [word for override in every for word in ("--set", override)]
        if self.insecure:
            options.append("--insecure")
        if self.certs is not None:
            options += ["--certs", str(self.certs)]
        return [str(self.file), *options]


def attaches_to(option: str | None, setting: str) -> str:
    """The service that an agent attaches to; empty: it takes part in one run."""
    return (option or "") if option is not None else setting


def serve_runs(asked: Asked) -> None:
    """`sfl cloud` without a run. Raises SflError."""
    more = [] if asked.max_runs is None else [f"service.max_runs={asked.max_runs}"]
    settings = load_service([*asked.overrides, *more])
    own = own_certificate("cloud", None, settings.tls, asked.certs)
    folder = writable_folder(asked.output_dir, "--output-dir").resolve()
    if endpoint := settings.tracing.endpoint:
        require_opentelemetry("service.tracing.endpoint", endpoint)
    # Imported here so that `--help` answers at once.
    from sfl.report.elsewhere import check_places
    from sfl.service.server import Service
    from sfl.transport.security.handshakes import explained_handshakes

    check_places(settings.journal, settings.artifacts)

    async def serve() -> None:
        await Service(settings, folder, asked.insecure, own).run(asked.address_file)

    with explained_handshakes():
        run_loop(serve())


def serve_edge(
    settings: EdgeConfig, asked: AskedAgent, address: str, address_file: Path | None
) -> None:
    """`sfl edge --service`: also its devices attach here. Raises SflError."""
    from sfl.service.relaying import relaying
    from sfl.transport.jobs.relay import Relay
    from sfl.transport.security.addresses import joined, split_address

    host, _ = split_address("edge.listen", settings.listen)
    service, _ = split_address("--service", address)
    relay = Relay(settings.name)

    def arguments(dials: str, listens: str) -> list[str]:
        cloud = joined(service, split_address("cloud", dials)[1])
        return asked.arguments("edge", settings, cloud=cloud, listen=listens or joined(host, 0))

    async def serve() -> None:
        attaching = _attaching("edge", settings, asked, address, relay)
        agent = _agent("edge", settings, arguments, attaching)
        async with relaying(relay, settings.listen, asked.insecure, asked.own, address_file):
            await agent.serve()

    _run(serve)


def serve_device(settings: DeviceConfig, asked: AskedAgent, address: str) -> None:
    """`sfl device --service`. Raises SflError."""
    from sfl.transport.security.addresses import joined, split_address

    own_edge = split_address("device.edge", settings.edge)[0] if settings.edge else ""
    dialled = split_address("--service", address)[0]

    async def serve() -> None:
        attaching = _attaching("device", settings, asked, address)

        def arguments(dials: str, listens: str) -> list[str]:
            host, port = split_address("device.edge", dials)
            # Who attaches through its edge reaches it there; else by its own file.
            reached = dialled if agent.via else own_edge or host
            return asked.arguments("device", settings, edge=joined(reached, port))

        agent = _agent("device", settings, arguments, attaching)
        await agent.serve()

    _run(serve)


def _attaching(
    role: AgentRole,
    settings: EdgeConfig | DeviceConfig,
    asked: AskedAgent,
    address: str,
    relay: Relay | None = None,
) -> Attaching:
    from sfl.transport.jobs.attaching import Attaching

    return Attaching(
        role,
        settings.name,
        address,
        asked.most(settings),
        asked.insecure,
        asked.own,
        settings.proxy,
        relay,
    )


def _agent(
    role: AgentRole,
    settings: EdgeConfig | DeviceConfig,
    arguments: Callable[[str, str], list[str]],
    attaching: Attaching,
) -> Agent:
    from sfl.service.agent import Agent

    cache = writable_folder(settings.cache_dir, f"{role}.cache_dir")
    folder = cache / FOLDER / settings.name
    return Agent(MODULES[role], folder, arguments, attaching, listens=role == "edge")


def _run(serve: Callable[[], Coroutine[object, object, None]]) -> None:
    from sfl.transport.security.handshakes import explained_handshakes

    with explained_handshakes():
        run_loop(serve())
