"""Addresses of hosts, and whose certificates are believed."""

from __future__ import annotations

import hashlib
import ssl
from pathlib import Path

import aiohttp
import pytest

from protocol.errors import FormatError, PoolCertificateError
from protocol.xapi import Trust
from protocol.xapi.address import Address
from protocol.xapi.trust import fingerprint_of_pem, format_fingerprint, parse_fingerprint
from tests.rawpool_fixtures import make_certificate

DIGEST = hashlib.sha256(b"x").digest()
HEX = DIGEST.hex()


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("https://pool.example", Address("https", "pool.example", 443)),
        ("https://pool.example:8443/", Address("https", "pool.example", 8443)),
        ("http://10.0.0.1", Address("http", "10.0.0.1", 80)),
        ("https://[fd00::1]", Address("https", "fd00::1", 443)),
        ("pool.example", Address("https", "pool.example", 443)),
        ("fd00::1", Address("https", "fd00::1", 443)),
    ],
)
def test_urls(url: str, address: Address) -> None:
    assert Address.parse(url) == address
    assert Address.parse(address.url) == address


@pytest.mark.parametrize(
    "url", ["ftp://x", "https://", "https://u:p@x", "https://x/path", "https://x?q", "https://x:99999", "https://["]
)
def test_urls_that_are_refused(url: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        Address.parse(url)
    assert "u:p" not in str(caught.value)


def test_siblings() -> None:
    here = Address.parse("https://a.example:8443")
    assert here.sibling("10.0.0.2") == Address("https", "10.0.0.2", 8443)
    assert here.sibling("10.0.0.2:9") == Address("https", "10.0.0.2", 9)
    assert here.sibling("fd00::2").url == "https://[fd00::2]:8443/"
    assert here.sibling("[fd00::2]:9") == Address("https", "fd00::2", 9)
    for bad in ["", "a/b", "u@h", "[", "a?b"]:
        with pytest.raises(ValueError, match=r"."):
            here.sibling(bad)


def test_fingerprints() -> None:
    assert parse_fingerprint(f"sha256:{HEX}") == DIGEST
    assert parse_fingerprint(f" SHA256:{HEX.upper()}") == DIGEST
    assert parse_fingerprint("sha256:" + ":".join(HEX[i : i + 2] for i in range(0, 64, 2))) == DIGEST
    assert format_fingerprint(DIGEST) == f"sha256:{HEX}"
    for bad in ["", HEX, f"sha1:{HEX}", f"sha256:{HEX[:-2]}", f"sha256:{HEX}00", "sha256:" + "g" * 64]:
        with pytest.raises(ValueError, match="fingerprint"):
            parse_fingerprint(bad)
    with pytest.raises(ValueError, match="at least one"):
        Trust.pinned()


def test_pem(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path, "x")
    digest = hashlib.sha256(certificate.der).digest()
    assert fingerprint_of_pem(certificate.pem) == digest
    assert fingerprint_of_pem("some text\n" + certificate.pem + certificate.pem) == digest
    for bad in ["", "-----BEGIN CERTIFICATE-----", "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----"]:
        with pytest.raises(FormatError):
            fingerprint_of_pem(bad)


def test_nothing_is_unverified_without_a_pin(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path, "x")
    for trust in (Trust.system(), Trust.ca(certificate.file)):
        context = trust.for_aiohttp("h")
        assert isinstance(context, ssl.SSLContext)
        assert context.verify_mode is ssl.CERT_REQUIRED
        assert context.check_hostname
    assert isinstance(Trust.pinned(f"sha256:{HEX}").for_aiohttp("h"), aiohttp.Fingerprint)


def test_a_file_without_certificates(tmp_path: Path) -> None:
    (tmp_path / "empty.pem").write_text("nothing")
    for file in (tmp_path / "empty.pem", tmp_path / "missing.pem"):
        with pytest.raises(ValueError, match="no certificates in"):
            Trust.ca(file)


def test_a_member_shows_its_own_certificate_only() -> None:
    one, two = (Address("https", name, 443) for name in ("one", "two"))
    trust = Trust.pinned(f"sha256:{HEX}").with_host("two", hashlib.sha256(b"y").digest())
    trust.check(one, b"x")
    trust.check(two, b"y")
    for address, certificate in [(one, b"y"), (two, b"x"), (one, None), (two, b"")]:
        with pytest.raises(PoolCertificateError) as caught:
            trust.check(address, certificate)
        assert format_fingerprint(hashlib.sha256(certificate or b"").digest()) in str(caught.value)
