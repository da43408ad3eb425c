"""`sfl ca`: the certificate authority of a set of nodes, in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from sfl.node.certificates.authority import Authority

ca_app = typer.Typer(
    help="Certificates for nodes (docs/security.md): mutual TLS on every link.",
    no_args_is_help=True,
)

Dir = Annotated[
    Path, typer.Option("--dir", metavar="DIR", help="Folder of the CA; its key stays there.")
]
Days = Annotated[int, typer.Option(min=1, help="Days the certificate is valid.")]
Hosts = Annotated[
    list[str] | None,
    typer.Option(
        "--host",
        metavar="HOST",
        help="Host name or address that an edge or the cloud is dialled at, or a device's "
        "/metrics; repeatable. Default: this machine's loopback, none for a device.",
    ),
]
HERE = Path("ca")


@ca_app.command()
def init(
    folder: Dir = HERE,
    name: Annotated[str, typer.Option(help="The name of the CA.")] = "sfl",
    days: Annotated[int, typer.Option(min=1, help="Days the CA is valid.")] = 3650,
) -> None:
    """Make a CA in a folder. An existing CA stays as it is."""
    authority, new = _authority().init(folder, name, days)
    _print_authority(authority, "made a CA" if new else "there is a CA already, unchanged:")
    if new:
        typer.echo(f"keep {folder / 'ca.key'} to yourself: anyone who has it can be any node")


@ca_app.command()
def issue(
    name: Annotated[str, typer.Argument(help="The node's name, as in its configuration.")],
    role: Annotated[
        Literal["device", "edge", "cloud", "operator"], typer.Option(help="What the node is.")
    ],
    hosts: Hosts = None,
    days: Days = 365,
    folder: Dir = HERE,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to write; default: DIR/nodes/NAME.")
    ] = None,
) -> None:
    """Issue a node's certificate with a new key. Use it again for the same node to renew."""
    from sfl.node.certificates.identity import Identity

    authority = _authority().open(folder)
    issued = authority.issue(Identity(role, name), hosts or (), days)
    target = out or folder / "nodes" / name
    authority.write(issued, target)
    until = issued.certificate.not_valid_after_utc
    typer.echo(f"{target}: ca.pem, {name}.pem and {name}.key, valid until {until:%Y-%m-%d}")
    if role != "operator":
        typer.echo(f"take the folder to the node, and start it with: --certs {target}")


@ca_app.command()
def show(folder: Dir = HERE) -> None:
    """Show the CA and what it has issued."""
    authority = _authority().open(folder)
    _print_authority(authority, "CA")
    for entry in authority.entries():
        where = f"  {', '.join(entry.hosts)}" if entry.hosts else ""
        typer.echo(
            f"{entry.identity.role:<8} {entry.identity.name:<24} until "
            f"{entry.not_after:%Y-%m-%d}  {entry.serial:x}{where}"
        )


@ca_app.command()
def bundle(
    devices: Annotated[int, typer.Option(min=0, help="Devices, named device-0, ...")] = 0,
    device: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A device by name; repeatable.")
    ] = None,
    edge: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME[=HOST,...]", help="An edge; default: edge. Repeatable."),
    ] = None,
    cloud: Annotated[
        str, typer.Option(metavar="HOST,...", help="Hosts at which edges dial the cloud.")
    ] = "cloud",
    operator: Annotated[
        str, typer.Option(metavar="NAME", help="Also issue one for an operator.")
    ] = "",
    days: Days = 365,
    folder: Dir = HERE,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Where to write; default: DIR/nodes.")
    ] = None,
) -> None:
    """Issue a whole set, making the CA where there is none; what is there and good stays.

    Every node gets a folder of its own, and an edge and the cloud also their loopback addresses.
    """
    authority, _ = _authority().init(folder)
    from sfl.node.certificates.authority import LOOPBACK
    from sfl.node.certificates.bundle import Wanted, issue_all
    from sfl.node.certificates.identity import Identity

    wanted = [Wanted(Identity("cloud", "cloud"), (*_split(cloud), *LOOPBACK))]
    for text in edge or ["edge"]:
        name, _, hosts = text.partition("=")
        wanted.append(Wanted(Identity("edge", name), (*_split(hosts or name), *LOOPBACK)))
    names = [f"device-{number}" for number in range(devices)] + (device or [])
    wanted += [Wanted(Identity("device", name)) for name in dict.fromkeys(names)]
    if operator:
        wanted.append(Wanted(Identity("operator", operator)))
    issue_all(
        authority,
        wanted,
        out or folder / "nodes",
        days,
        lambda identity, new: typer.echo(f"{identity}: {'issued' if new else 'unchanged'}"),
    )


def _authority() -> type[Authority]:
    """The CA's class; its package is an extra, and is imported only here. Raises ConfigError."""
    from sfl.node.extras import require_cryptography

    require_cryptography("sfl ca")
    from sfl.node.certificates.authority import Authority

    return Authority


def _print_authority(authority: Authority, what: str) -> None:
    from sfl.node.certificates.authority import fingerprint

    certificate = authority.certificate
    typer.echo(f"{what} {certificate.subject.rfc4514_string()} in {authority.folder}")
    typer.echo(
        f"valid until {certificate.not_valid_after_utc:%Y-%m-%d}, "
        f"SHA-256 {fingerprint(certificate)}"
    )


def _split(hosts: str) -> tuple[str, ...]:
    return tuple(host for host in hosts.split(",") if host)
