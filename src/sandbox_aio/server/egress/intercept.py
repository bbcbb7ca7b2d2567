"""Certificates for the hosts to whose requests a rule adds headers: issued here, trusted in the sandbox alone."""

from __future__ import annotations

import datetime
import functools
import ipaddress
import os
import ssl
from collections import OrderedDict
from typing import TYPE_CHECKING, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ..grants import write_private

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["BUNDLE_PATH", "CA_VARIABLES", "CertificateAuthority"]

BUNDLE_PATH: Final = "/etc/sandbox-aio/ca-certificates.crt"
"""Where a sandbox finds whom to trust: whom this machine trusts, and us."""

CA_VARIABLES: Final = (
    "SSL_CERT_FILE",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
    "PIP_CERT",
    "GIT_SSL_CAINFO",
)
"""By which programs are told of it."""

MAX_LEAVES: Final = 256
"""Hosts whose certificates are kept; the one not used for longest goes."""
CA_DAYS: Final = 3650
LEAF_DAYS: Final = 7
RENEWED_BEFORE: Final = datetime.timedelta(days=1)


class CertificateAuthority:
    """A key of the server's own, in `state_dir`/keys, made when first needed. It never leaves the server.

    Every method may raise OSError, or ValueError if the file was damaged.
    """

    def __init__(self, state_dir: Path) -> None:
        self._path = state_dir / "keys" / "egress-ca.pem"
        self._leaves: OrderedDict[str, tuple[datetime.datetime, ssl.SSLContext]] = OrderedDict()

    @functools.cached_property
    def _own(self) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        try:
            data = self._path.read_bytes()
        except FileNotFoundError:
            return self._generate()
        key = serialization.load_pem_private_key(data, None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError(f"{self._path} holds another kind of key; restore it, or remove it")
        return key, x509.load_pem_x509_certificate(data)

    @functools.cached_property
    def _leaf_key(self) -> ec.EllipticCurvePrivateKey:
        return ec.generate_private_key(ec.SECP256R1())

    @property
    def certificate(self) -> bytes:
        """The certificate of the authority, PEM: what may be told to anybody."""
        return self._own[1].public_bytes(serialization.Encoding.PEM)

    def bundle(self) -> bytes:
        """Whom a sandbox shall trust, PEM. Reads this machine's own bundle."""
        found = os.environ.get("SSL_CERT_FILE") or ssl.get_default_verify_paths().cafile
        try:
            with open(found or os.devnull, "rb") as file:
                trusted = file.read()
        except OSError:
            trusted = b""
        return trusted.rstrip(b"\n") + b"\n" + self.certificate

    def context(self, host: str) -> ssl.SSLContext:
        """By which a client in a sandbox takes us for a host."""
        now = datetime.datetime.now(datetime.UTC)
        until, context = self._leaves.get(host, (now, None))
        if context is None or until - RENEWED_BEFORE < now:
            until = now + datetime.timedelta(days=LEAF_DAYS)
            context = self._issue(host, now, until)
        self._leaves[host] = until, context
        self._leaves.move_to_end(host)
        while len(self._leaves) > MAX_LEAVES:
            self._leaves.popitem(last=False)
        return context

    def _issue(self, host: str, now: datetime.datetime, until: datetime.datetime) -> ssl.SSLContext:
        key, authority = self._own
        try:
            name: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(host))
        except ValueError:
            name = x509.DNSName(host)
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key())
        leaf = (
            _builder(authority.subject, x509.Name([]), self._leaf_key.public_key(), now, until)
            .add_extension(x509.SubjectAlternativeName([name]), critical=True)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
            .add_extension(identifier, critical=False)
            .sign(key, hashes.SHA256())
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(["http/1.1"])
        descriptor = os.memfd_create("leaf", os.MFD_CLOEXEC)  # The only door of `ssl` for a key is a file's name.
        try:
            os.write(descriptor, _private_pem(self._leaf_key) + leaf.public_bytes(serialization.Encoding.PEM))
            context.load_cert_chain(f"/proc/self/fd/{descriptor}")
        finally:
            os.close(descriptor)
        return context

    def _generate(self) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
        now = datetime.datetime.now(datetime.UTC)
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sandbox-aio egress")])
        usage = x509.KeyUsage(
            digital_signature=True,
            key_cert_sign=True,
            crl_sign=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            encipher_only=False,
            decipher_only=False,
        )
        certificate = (
            _builder(name, name, key.public_key(), now, now + datetime.timedelta(days=CA_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA256())
        )
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_private(self._path, _private_pem(key) + certificate.public_bytes(serialization.Encoding.PEM))
        return key, certificate


def _builder(
    issuer: x509.Name,
    subject: x509.Name,
    key: ec.EllipticCurvePublicKey,
    begin: datetime.datetime,
    end: datetime.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .issuer_name(issuer)
        .subject_name(subject)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin - datetime.timedelta(hours=1))
        .not_valid_after(end)
    )


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
