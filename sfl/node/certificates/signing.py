"""A device's signature by the key of its certificate, and the check of it against the CA.

Loaded under TLS only: nodes without a certificate need no package for it.
"""

from __future__ import annotations

import datetime as dt
from typing import TypeAlias

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa

from sfl.errors import ConfigError, Refused
from sfl.node.certificates.authority import identity_of
from sfl.node.certificates.identity import Identity
from sfl.node.certificates.own import OwnCertificate

PublicKey: TypeAlias = ec.EllipticCurvePublicKey | rsa.RSAPublicKey
HASH = hashes.SHA256()
CERTIFICATE_LIMIT = 16 << 10
"""Most bytes of a certificate that is looked at."""


class Signer:
    """Signs with the key of a node's own certificate."""

    def __init__(self, own: OwnCertificate) -> None:
        _, cert, key = own.contents()
        private = serialization.load_pem_private_key(key, password=None)
        if not isinstance(private, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
            raise ConfigError(
                f"{own.identity.role}.tls.key",
                str(own.key),
                "is neither an EC nor an RSA key, and cannot sign",
                "Issue it again with `sfl ca issue`.",
            )
        self._key = private
        certificate = x509.load_pem_x509_certificate(cert)
        self.certificate = certificate.public_bytes(serialization.Encoding.DER)

    def sign(self, statement: bytes) -> bytes:
        """The signature of a statement, by SHA-256."""
        if isinstance(self._key, rsa.RSAPrivateKey):
            return self._key.sign(statement, padding.PKCS1v15(), HASH)
        return self._key.sign(statement, ec.ECDSA(HASH))


class Trust:
    """The CA's certificates, which those of others are held against."""

    def __init__(self, ca_pem: bytes) -> None:
        self._authorities = x509.load_pem_x509_certificates(ca_pem)

    def key_of(self, certificate: bytes, identity: Identity) -> PublicKey:
        """The key in a certificate (DER), once it is found to be this node's and good today.

        Raises Refused.
        """
        if not 0 < len(certificate) <= CERTIFICATE_LIMIT:
            raise Refused("it came without its certificate")
        try:
            found = x509.load_der_x509_certificate(certificate)
            issued = any(_issued(found, authority) for authority in self._authorities)
            holder, key = identity_of(found), found.public_key()
        except Exception as error:  # the package has many kinds for what is none, without a root
            raise Refused("it sent something that is not a certificate") from error
        if holder != identity:
            raise Refused(f"the certificate is of {holder or 'no node'}")
        if not issued:
            raise Refused("its certificate was not issued by this run's CA")
        if not found.not_valid_before_utc <= dt.datetime.now(dt.UTC) <= found.not_valid_after_utc:
            raise Refused("its certificate is not valid today")
        if not isinstance(key, ec.EllipticCurvePublicKey | rsa.RSAPublicKey):
            raise Refused("its key is neither an EC nor an RSA key")
        return key


def is_signed(key: PublicKey, statement: bytes, signature: bytes) -> bool:
    """Whether the holder of a key signed a statement."""
    try:
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, statement, padding.PKCS1v15(), HASH)
        else:
            key.verify(signature, statement, ec.ECDSA(HASH))
    except InvalidSignature:
        return False
    return True


def _issued(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True
