"""`sfl run --tls`: a CA for one run, and a certificate for each of its nodes."""

from __future__ import annotations

from pathlib import Path

from sfl.config import RunConfig
from sfl.node.certificates.identity import Identity
from sfl.node.extras import require_cryptography

CERTIFICATES = "tls"
"""Folder of a run's own certificates, there while it runs."""


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
    cloud, edge = (
        tuple(dict.fromkeys((address.rpartition(":")[0].strip("[]"), *LOOPBACK)))
        for address in (config.cloud.listen, config.edge.listen)
    )
    nodes = [
        Wanted(Identity("cloud", "cloud"), cloud),
        Wanted(Identity("edge", config.edge.name), edge),
        *(Wanted(Identity("device", entry.name)) for entry in config.devices),
    ]
    issue_all(Authority.create(f"sfl run {folder.name}"[:56]), nodes, out)
    return out
