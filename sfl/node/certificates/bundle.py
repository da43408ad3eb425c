"""A whole set of nodes' certificates at once: what is there and good stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from sfl.node.certificates.authority import DAYS, Authority
from sfl.node.certificates.identity import Identity


@dataclass(frozen=True, slots=True)
class Wanted:
    """A node that is to have a certificate, with the hosts it is dialled at."""

    identity: Identity
    hosts: tuple[str, ...] = ()


def issue_all(
    authority: Authority,
    wanted: Iterable[Wanted],
    out: Path,
    days: int = DAYS,
    tell: Callable[[Identity, bool], None] = lambda identity, new: None,
) -> None:
    """Give each node a folder of its own under `out`, OUT/NAME, with its three files.

    `tell` hears of each and whether it was issued now. Raises ConfigError.
    """
    for node in wanted:
        folder = out / node.identity.name
        new = not authority.keeps(folder, node.identity, node.hosts)
        if new:
            authority.write(authority.issue(node.identity, node.hosts, days), folder)
        tell(node.identity, new)
