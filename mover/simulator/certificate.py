"""Self-signed certificates, one per host, as a fresh installation has them."""

from __future__ import annotations

import hashlib
import ipaddress
import ssl
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from mover.simulator.values import now

_VALID = timedelta(days=3650)


@dataclass(frozen=True)
class Certificate:
    """`pem` is the certificate alone; `path` holds certificate and key, as xapi-ssl.pem does."""

    path: Path
    pem: str
    subject: str

    @property
    def fingerprint(self) -> str:
        """`sha256:` and the digest of the certificate's DER form in hexadecimal."""
        return "sha256:" + hashlib.sha256(ssl.PEM_cert_to_DER_cert(self.pem)).hexdigest()

    def context(self, tls12_only: bool = False) -> ssl.SSLContext:
        """A server's context."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.path)
        if tls12_only:
            context.maximum_version = ssl.TLSVersion.TLSv1_2
        return context


def host_certificate(path: Path, hostname: str, address: str) -> Certificate:
    """Read the certificate at `path`, or make one that names the host and its address."""
    if not path.exists():
        _make(path, hostname, address)
    pem = path.read_text()
    start = pem.index("-----BEGIN CERTIFICATE-----")
    return Certificate(path, pem[start:], hostname)


def _make(path: Path, hostname: str, address: str) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hostname)])
    names = x509.SubjectAlternativeName([x509.DNSName(hostname), x509.IPAddress(ipaddress.ip_address(address))])
    start = now() - timedelta(days=1)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(start)
        .not_valid_after(start + _VALID)
        .add_extension(names, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.touch(mode=0o600)
    path.write_bytes(secret + certificate.public_bytes(serialization.Encoding.PEM))
