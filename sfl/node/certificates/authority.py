"""A run's certificate authority: makes certificates, keeps what it issued.

With `signing` the only modules that know the package `cryptography`.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from sfl.errors import ConfigError
from sfl.node.certificates.identity import (
    NAME,
    ROLES,
    SERVERS,
    Identity,
    identity_in,
    server_name,
)
from sfl.node.files import writable_folder, write_atomic

CA_DAYS = 3650
DAYS = 365
BACKDATED = dt.timedelta(hours=1)
"""So that a node whose clock is a little slow takes a certificate made just now."""
LOOPBACK = ("localhost", "127.0.0.1", "::1")
RENEW = dt.timedelta(days=30)
"""Validity left below which a bundle issues anew."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate and its key, in PEM. The key is shown to nobody by accident."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    def __repr__(self) -> str:
        return f"Issued({self.certificate.subject.rfc4514_string()})"

    @property
    def cert_pem(self) -> bytes:
        """The certificate."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The private key, not encrypted: nodes start unattended."""
        return self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )


@dataclass(frozen=True, slots=True)
class Entry:
    """One certificate of the authority's list."""

    identity: Identity
    hosts: tuple[str, ...]
    not_after: dt.datetime
    serial: int


class Authority:
    """A CA: its own certificate and key, and the folder it is in, where it has one."""

    def __init__(self, own: Issued, folder: Path | None = None) -> None:
        self._own = own
        self.folder = folder

    @property
    def certificate(self) -> x509.Certificate:
        """The CA's own certificate."""
        return self._own.certificate

    @property
    def cert_pem(self) -> bytes:
        """The CA's own certificate, for every node."""
        return self._own.cert_pem

    @classmethod
    def create(cls, name: str = "sfl", days: int = CA_DAYS) -> Authority:
        """A new CA, in memory only."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} CA")])
        public = key.public_key()
        builder = _dated(x509.CertificateBuilder(), dt.timedelta(days=days))
        builder = builder.subject_name(subject).issuer_name(subject).public_key(public)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        builder = builder.add_extension(_usage(signs=True), True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), False)
        return cls(Issued(builder.sign(key, hashes.SHA256()), key))

    @classmethod
    def init(cls, folder: Path, name: str = "sfl", days: int = CA_DAYS) -> tuple[Authority, bool]:
        """The CA in a folder, and whether it was made now; one that is there stays as it is.

        Raises ConfigError.
        """
        cert, key = folder / "ca.pem", folder / "ca.key"
        if cert.exists() and key.exists():
            return cls.open(folder), False
        if cert.exists():
            raise ConfigError(
                "--dir", str(folder), "has a CA's ca.pem, not its ca.key", "Choose another folder."
            )
        authority = cls.create(name, days)
        folder = writable_folder(folder, "--dir", private=True)
        if not (folder / ".gitignore").exists():
            write_atomic(folder / ".gitignore", "*\n")  # a checkout must not take the key along
        # The certificate comes last: a folder with it is complete.
        write_private(key, authority._own.key_pem)
        write_atomic(cert, authority.cert_pem)
        authority.folder = folder
        return authority, True

    @classmethod
    def open(cls, folder: Path) -> Authority:
        """The CA in a folder. Raises ConfigError."""
        try:
            own = read_pair(folder / "ca.pem", folder / "ca.key")
        except FileNotFoundError:
            raise ConfigError(
                "--dir", str(folder), "there is no CA", f"Make one: sfl ca init --dir {folder}."
            ) from None
        except (ValueError, TypeError, OSError) as error:
            raise ConfigError(
                "--dir", str(folder), f"the CA cannot be read: {error}", "Restore its files."
            ) from None
        return cls(own, folder)

    def issue(self, identity: Identity, hosts: Iterable[str] = (), days: int = DAYS) -> Issued:
        """A new certificate with a new key; listed where the CA has a folder.

        A server without hosts gets the loopback ones; a device's hosts are for its `/metrics`.
        Raises ConfigError.
        """
        hosts = _hosts(identity, tuple(dict.fromkeys(hosts)))
        self._check(identity, days)
        key = ec.generate_private_key(ec.SECP256R1())
        builder = _dated(x509.CertificateBuilder(), dt.timedelta(days=days))
        common = x509.NameAttribute(NameOID.COMMON_NAME, identity.name[:64])
        role = x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, identity.role)
        builder = builder.subject_name(x509.Name([role, common]))
        builder = builder.issuer_name(self.certificate.subject).public_key(key.public_key())
        uses = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if hosts:
            uses.append(ExtendedKeyUsageOID.SERVER_AUTH)
        signer = self._own.key.public_key()
        extensions: list[tuple[x509.ExtensionType, bool]] = [
            (x509.BasicConstraints(ca=False, path_length=None), True),
            (_usage(signs=False), True),
            (x509.ExtendedKeyUsage(uses), False),
            (x509.SubjectAlternativeName(_names(identity, hosts)), False),
            (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
            (x509.AuthorityKeyIdentifier.from_issuer_public_key(signer), False),
        ]
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        issued = Issued(builder.sign(self._own.key, hashes.SHA256()), key)
        if self.folder is not None:
            serial = f"{issued.certificate.serial_number:x}"
            write_atomic(self.folder / "issued" / f"{serial}.pem", issued.cert_pem)
        return issued

    def write(self, issued: Issued, folder: Path) -> Path:
        """Write a node's three files, NAME.pem, NAME.key and ca.pem; the key is for its owner only.

        Raises ConfigError where another node of that name has its files there.
        """
        identity = entry_of(issued.certificate).identity
        cert = folder / f"{identity.name}.pem"
        there = identity_at(cert)
        if cert.exists() and there != identity:
            raise ConfigError(
                "--out", str(folder), f"{cert.name} is of {there}", "Choose another folder."
            )
        folder = writable_folder(folder, "--out", private=True)
        write_private(folder / f"{identity.name}.key", issued.key_pem)
        write_atomic(cert, issued.cert_pem)
        write_atomic(folder / "ca.pem", self.cert_pem)
        return cert

    def entries(self) -> list[Entry]:
        """What was issued, the role and the name in order, the latest first."""
        folder = (self.folder or Path()) / "issued"
        found = [
            entry_of(x509.load_pem_x509_certificate(path.read_bytes()))
            for path in sorted(folder.glob("*.pem"))
        ]
        found.sort(key=lambda entry: entry.not_after, reverse=True)
        return sorted(found, key=lambda e: (ROLES.index(e.identity.role), e.identity.name))

    def keeps(self, folder: Path, identity: Identity, hosts: Iterable[str]) -> bool:
        """Whether a node's files are there, of this CA, for these hosts, and good for a while."""
        try:
            pair = read_pair(folder / f"{identity.name}.pem", folder / f"{identity.name}.key")
            pair.certificate.verify_directly_issued_by(self.certificate)
            trusted = (folder / "ca.pem").read_bytes()
        except (OSError, ValueError, TypeError, InvalidSignature):
            return False
        entry = entry_of(pair.certificate)
        return (
            trusted == self.cert_pem
            and entry.identity == identity
            and set(entry.hosts) == set(_hosts(identity, tuple(hosts)))
            and entry.not_after - dt.datetime.now(dt.UTC) > RENEW
        )

    def _check(self, identity: Identity, days: int) -> None:
        if not NAME.fullmatch(identity.name):
            raise ConfigError(
                "NAME",
                identity.name,
                "is not a valid name of a node",
                "Use letters, digits, _, . and -.",
            )
        left = (self.certificate.not_valid_after_utc - dt.datetime.now(dt.UTC)).days
        if not 0 < days <= left:
            fix = f"The CA itself ends in {left} days: 1 to {left}."
            raise ConfigError("--days", days, "is not possible", fix)


def write_private(path: Path, content: bytes) -> None:
    """Replace a file in one step; from its first byte on nobody but its owner can read it."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    aside.unlink(missing_ok=True)
    try:
        handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


def read_pair(cert: Path, key: Path) -> Issued:
    """A certificate and its key. Raises OSError, ValueError where they are none, or not a pair."""
    certificate = x509.load_pem_x509_certificate(cert.read_bytes())
    private = serialization.load_pem_private_key(key.read_bytes(), password=None)
    if not isinstance(private, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{key} is no EC key")
    if private.public_key() != certificate.public_key():
        raise ValueError(f"{key} does not belong to {cert}")
    return Issued(certificate, private)


def identity_at(cert: Path) -> Identity | None:
    """Whose certificate a file is, if anybody's."""
    try:
        certificate = x509.load_pem_x509_certificate(cert.read_bytes())
    except (OSError, ValueError):
        return None
    return identity_of(certificate)


def identity_of(certificate: x509.Certificate) -> Identity | None:
    """Whose a certificate is, if anybody's."""
    return identity_in(
        _alternatives(certificate).get_values_for_type(x509.UniformResourceIdentifier)
    )


def entry_of(certificate: x509.Certificate) -> Entry:
    """What a certificate says. Raises ConfigError where it is none of ours."""
    names, identity = _alternatives(certificate), identity_of(certificate)
    if identity is None:
        subject = certificate.subject.rfc4514_string()
        raise ConfigError(
            "certificate", subject, "is not a node's", "Keep only certificates of nodes there."
        )
    hosts = [
        name
        for name in names.get_values_for_type(x509.DNSName)
        if not name.endswith(f".{identity.role}.sfl")
    ]
    hosts += [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    return Entry(identity, tuple(hosts), certificate.not_valid_after_utc, certificate.serial_number)


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of a certificate, as other programs show it."""
    text = certificate.fingerprint(hashes.SHA256()).hex().upper()
    return ":".join(text[i : i + 2] for i in range(0, len(text), 2))


def _alternatives(certificate: x509.Certificate) -> x509.SubjectAlternativeName:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return x509.SubjectAlternativeName([])
    return extension.value


def _hosts(identity: Identity, hosts: tuple[str, ...]) -> tuple[str, ...]:
    if identity.role == "operator" and hosts:
        raise ConfigError("--host", hosts[0], "an operator is not dialled", "Leave it out.")
    for host in hosts:
        _check_host(host)
    return hosts or (LOOPBACK if identity.role in SERVERS else ())


def _check_host(host: str) -> None:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        labels = host.removeprefix("*.").split(".")
        if not all(_is_label(label) for label in labels):
            raise ConfigError(
                "--host",
                host,
                "is not a host name or IP address",
                "Write it without port and scheme.",
            ) from None


def _is_label(label: str) -> bool:
    return bool(label) and all(c.isascii() and (c.isalnum() or c in "-_") for c in label)


def _names(identity: Identity, hosts: tuple[str, ...]) -> list[x509.GeneralName]:
    names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(identity.uri)]
    for host in hosts:
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host.lower()))
        names.append(x509.DNSName(server_name(identity.role, host)))
    return names


def _dated(builder: x509.CertificateBuilder, valid: dt.timedelta) -> x509.CertificateBuilder:
    now = dt.datetime.now(dt.UTC)
    builder = builder.not_valid_before(now - BACKDATED).not_valid_after(now + valid)
    return builder.serial_number(x509.random_serial_number())


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )
