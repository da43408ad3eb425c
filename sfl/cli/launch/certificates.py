"""`sfl run --tls`: a CA for one run, and a certificate for each of its nodes."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

from sfl.config import RunConfig
from sfl.errors import ConfigError
from sfl.node.certificates.identity import Identity
from sfl.node.certificates.own import load_own, settings_in
from sfl.node.extras import require_cryptography

CERTIFICATES = "tls"
"""Folder of a run's own certificates, there until the run has ended."""


def prepare_certificates(config: RunConfig, folder: Path, tls: bool, resume: bool) -> None:
    """See that nodes find certificates where they are to use TLS, and none where not.

    A run that goes on has those that it had. If they are not sound any more, it gets new ones.
    Raises ConfigError.
    """
    out = folder / CERTIFICATES
    if not resume:
        shutil.rmtree(out, ignore_errors=True)
    if (tls or out.is_dir()) and not _are_sound(config, out):
        shutil.rmtree(out, ignore_errors=True)
        issue_for_run(config, folder)


def drop_certificates(folder: Path) -> None:
    """Remove a run's certificates once it has ended."""
    shutil.rmtree(folder / CERTIFICATES, ignore_errors=True)


def issue_for_run(config: RunConfig, folder: Path) -> Path:
    """Certificates under the run's folder, one folder a node; nobody else on the machine gets in.

    The CA's key is never written: what it signed here is all it ever signs.
    """
    require_cryptography("--tls")
    # Imported here: a run without --tls needs no such package.
    from sfl.node.certificates.authority import LOOPBACK, Authority
    from sfl.node.certificates.bundle import Wanted, issue_all

    out = folder / CERTIFICATES
    out.mkdir(mode=0o700, exist_ok=True)
    nodes = [
        Wanted(node, tuple(dict.fromkeys((*hosts, *LOOPBACK))) if hosts else ())
        for node, hosts in _nodes(config)
    ]
    issue_all(Authority.create(f"sfl run {folder.name}"[:56]), nodes, out)
    return out


def _nodes(config: RunConfig) -> Iterator[tuple[Identity, tuple[str, ...]]]:
    """Each node, with the host that it listens on, where it does."""
    yield Identity("cloud", "cloud"), (_host(config.cloud.listen),)
    for name in config.edges:
        yield Identity("edge", name), (_host(config.edge.listen),)
    for stage in config.stage_nodes:
        yield Identity("edge", stage.name), (_host(stage.listen),)
    for entry in config.devices:
        yield Identity("device", entry.name), ()


def _host(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")


def _are_sound(config: RunConfig, out: Path) -> bool:
    """Whether every node has a certificate that it can use now."""
    try:
        for node, _ in _nodes(config):
            load_own("--tls", settings_in(out / node.name, node.name), node.role, node.name)
    except ConfigError:
        return False
    return True
