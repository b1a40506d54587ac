"""Whose certificate is believed. Nothing is ever silently unverified: plain http:// has to be asked for by the URL.

A pool's hosts show self-signed certificates as a rule, so the usual trust is one or several pinned fingerprints.
Certificates of further hosts, learnt over a verified connection, are pinned by host name or address.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import aiohttp

from protocol.errors import FormatError, PoolCertificateError
from protocol.xapi.address import Address

_PIN = re.compile(r"sha256:([0-9a-f]{2}(?::?[0-9a-f]{2}){31})", re.IGNORECASE)
_MAX_PEM = 1 << 20


def parse_fingerprint(text: str) -> bytes:
    """Read `sha256:<64 hex digits>`, with or without colons between the bytes. Raises ValueError."""
    match = _PIN.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"a fingerprint looks like sha256:<64 hex digits>, not {text[:100]!r}")
    return bytes.fromhex(match[1].replace(":", ""))


def format_fingerprint(digest: bytes) -> str:
    """Write a fingerprint the way `parse_fingerprint` reads it."""
    return f"sha256:{digest.hex()}"


def fingerprint(certificate: bytes) -> bytes:
    """Return the SHA-256 of a certificate in DER."""
    return hashlib.sha256(certificate).digest()


def fingerprint_of_pem(pem: str) -> bytes:
    """Return the SHA-256 of the first certificate of a PEM text. Raises FormatError."""
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    start = pem.find(begin)
    stop = pem.find(end, start)
    if len(pem) > _MAX_PEM or start < 0 or stop < 0:
        raise FormatError("PEM certificate", "no certificate in it")
    try:
        certificate = ssl.PEM_cert_to_DER_cert(pem[start : stop + len(end)])
    except ValueError as error:
        raise FormatError("PEM certificate", str(error)) from None
    if not certificate.startswith(b"\x30"):
        raise FormatError("PEM certificate", "not an ASN.1 sequence")
    return fingerprint(certificate)


@dataclass(frozen=True, slots=True)
class Trust:
    """Made by `Trust.system()`, `Trust.ca(file)` or `Trust.pinned("sha256:…", …)`."""

    ca_file: Path | None = None
    pins: frozenset[bytes] = frozenset()
    hosts: Mapping[str, frozenset[bytes]] = field(default_factory=dict)

    @classmethod
    def system(cls) -> Trust:
        """Believe what the system's authorities signed, for the host name or IP address that was asked for."""
        return cls()

    @classmethod
    def ca(cls, file: Path) -> Trust:
        """Believe what the authorities (or self-signed certificates) in a PEM file signed, for the name asked for.

        Raises ValueError if the file cannot be read or holds no certificate.
        """
        try:
            ssl.create_default_context(cafile=str(file))
        except OSError as error:
            raise ValueError(f"no certificates in {file}: {error.strerror or error}") from None
        return cls(ca_file=file)

    @classmethod
    def pinned(cls, *fingerprints: str) -> Trust:
        """Believe exactly these certificates, whatever name is in them. Raises ValueError for a bad fingerprint."""
        if not fingerprints:
            raise ValueError("at least one fingerprint is needed")
        return cls(pins=frozenset(map(parse_fingerprint, fingerprints)))

    def with_host(self, host: str, digest: bytes) -> Trust:
        """Believe at `host` only the certificate with this SHA-256, which a verified connection told us."""
        return replace(self, hosts={**self.hosts, host: frozenset({digest})})

    def pins_for(self, host: str) -> frozenset[bytes]:
        """Return the fingerprints of which `host` must show one; empty where authorities decide."""
        return self.hosts.get(host, self.pins)

    def context_for(self, host: str) -> ssl.SSLContext:
        """Return the TLS settings for `host`. With pins the handshake accepts anything: `check` must follow at once."""
        if self.pins_for(host):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
            return context
        return ssl.create_default_context(cafile=None if self.ca_file is None else str(self.ca_file))

    def check(self, address: Address, certificate: bytes | None) -> None:
        """Compare the certificate shown (DER) with the pins, if there are any. Raises PoolCertificateError."""
        pins = self.pins_for(address.host)
        if not pins:
            return
        digest = fingerprint(certificate or b"")
        if digest not in pins:
            raise mismatch(address, digest, pins)

    def for_aiohttp(self, host: str) -> ssl.SSLContext | aiohttp.Fingerprint:
        """Return what aiohttp takes as `ssl=`; it checks a fingerprint before it sends anything."""
        pins = self.pins_for(host)
        return AnyFingerprint(pins) if pins else self.context_for(host)


class AnyFingerprint(aiohttp.Fingerprint):
    """aiohttp compares with one fingerprint; a pool has several hosts, each with its own."""

    def __init__(self, pins: frozenset[bytes]) -> None:
        super().__init__(min(pins))
        self._pins = pins

    def check(self, transport: asyncio.BaseTransport) -> None:
        """Called by aiohttp right after the handshake. Raises aiohttp.ServerFingerprintMismatch."""
        get_extra_info = transport.get_extra_info
        if not get_extra_info("sslcontext"):
            return
        certificate = get_extra_info("ssl_object").getpeercert(binary_form=True)
        got = fingerprint(certificate or b"")
        if got not in self._pins:
            host, port, *_ = get_extra_info("peername")
            raise aiohttp.ServerFingerprintMismatch(self.fingerprint, got, host, port)


def mismatch(address: Address, found: bytes, expected: frozenset[bytes]) -> PoolCertificateError:
    """Make the error for a certificate that is not a pinned one."""
    wanted = ", ".join(sorted(map(format_fingerprint, expected)))
    return PoolCertificateError(str(address), f"it shows the certificate {format_fingerprint(found)}, not {wanted}")


def unverified(address: Address, error: Exception, timeout: float) -> PoolCertificateError:
    """Make the error for a certificate that no authority vouches for, saying what could be pinned instead.

    Connects once more, without sending anything, because a refused handshake does not keep the certificate.
    """
    why = getattr(error, "verify_message", "") or "the certificate is not trusted"
    found = ""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    try:
        with (
            socket.create_connection((address.host, address.port), timeout=timeout) as raw,
            context.wrap_socket(raw, server_hostname=address.host) as tls,
        ):
            found = f"; it shows {format_fingerprint(fingerprint(tls.getpeercert(binary_form=True) or b''))}"
    except OSError:
        pass
    return PoolCertificateError(str(address), why + found)
