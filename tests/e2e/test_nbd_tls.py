"""TLS pinned to a certificate: every way to connect checks it, and nothing is told to a server before that."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from protocol.arena import Arena
from protocol.errors import NbdCertificateError, NbdConnectError
from protocol.extent import Extent
from protocol.nbd import Endpoint, Patience, Retry, Timeouts, open_reader
from tests.nbd_fakes import Manner, fake_server
from tests.nbd_fixtures import (
    KiB,
    MiB,
    Sink,
    at,
    budget,
    connected,
    nbdkit,
    needs_nbdkit,
    nothing_left,
    pattern,
    plain,
    refused,
    secured,
    self_signed,
)

QUICK = Timeouts(connect=5, handshake=5, request=5)
HASTY = Patience(tries=3, first_pause=0.01)


@needs_nbdkit
async def test_a_disk_is_read_over_tls(tmp_path: Path) -> None:
    pem = self_signed(tmp_path / "pki")
    arena = Arena(6, 256 * KiB)
    with nbdkit("--tls=require", f"--tls-certificates={tmp_path / 'pki'}", "pattern", "64M") as port:
        async with nothing_left(arena):
            sink = Sink()
            async with open_reader(at(secured(port, pem)), budget=budget(tmp_path), timeouts=QUICK) as reader:
                await reader.read([Extent(0, reader.size)], arena, sink.take)
            sink.check([Extent(0, 64 * MiB)])


async def test_the_first_connection_refuses_another_certificate(tmp_path: Path) -> None:
    self_signed(tmp_path / "served")
    expected = self_signed(tmp_path / "expected")
    async with fake_server(pki=tmp_path / "served") as fake:
        retries: list[Retry] = []
        locate = at(secured(fake.port, expected, export="/secret"))
        with pytest.raises(NbdCertificateError):
            async with open_reader(locate, budget=budget(tmp_path), timeouts=QUICK, on_retry=retries.append):
                pass
        assert fake.connections == 1 and not retries  # never tried again
        assert fake.exports == []  # and the export's name was not given away


async def test_a_single_connection_refuses_another_certificate(tmp_path: Path) -> None:
    self_signed(tmp_path / "served")
    expected = self_signed(tmp_path / "expected")
    async with fake_server(pki=tmp_path / "served") as fake:
        with pytest.raises(NbdCertificateError):
            await refused(secured(fake.port, expected))
        assert fake.exports == []


async def test_a_certificate_of_the_same_name_is_another_certificate(tmp_path: Path) -> None:
    self_signed(tmp_path / "served", "host.example")
    expected = self_signed(tmp_path / "expected", "host.example")
    async with fake_server(pki=tmp_path / "served") as fake:
        with pytest.raises(NbdCertificateError):
            await refused(secured(fake.port, expected))


async def test_further_connections_refuse_another_certificate(tmp_path: Path) -> None:
    good = self_signed(tmp_path / "good")
    self_signed(tmp_path / "bad")
    arena = Arena(4, 64 * KiB)
    async with fake_server(pki=tmp_path / "good") as first, fake_server(pki=tmp_path / "bad") as second:
        endpoints = [secured(first.port, good, "one"), secured(second.port, good, "two")]
        async with open_reader(at(*endpoints), connections=2, budget=budget(tmp_path), timeouts=QUICK) as reader:
            with pytest.raises(NbdCertificateError, match=str(second.port)):
                await reader.read([Extent(0, reader.size)], arena, Sink().take)
        assert second.connections == 1 and second.exports == []


async def test_a_reconnection_refuses_another_certificate(tmp_path: Path) -> None:
    pem = self_signed(tmp_path / "pki")
    arena = Arena(4, 64 * KiB)
    async with fake_server(Manner(close_after=3), pki=tmp_path / "pki") as fake:
        reader_of = open_reader(
            at(secured(fake.port, pem)), connections=1, budget=budget(tmp_path), timeouts=QUICK, patience=HASTY
        )
        async with reader_of as reader:
            self_signed(tmp_path / "pki")  # from the next connection on, somebody else answers
            with pytest.raises(NbdCertificateError):
                await reader.read([Extent(0, reader.size)], arena, Sink().take)
        assert fake.connections == 2 and len(fake.exports) == 1


@pytest.mark.parametrize("offers", ["no TLS", "no NBD"])
async def test_tls_is_never_left_out(tmp_path: Path, offers: str) -> None:
    pem = self_signed(tmp_path / "pki")
    async with fake_server(Manner(refuse=offers == "no NBD")) as fake:
        with pytest.raises(NbdConnectError):
            await refused(secured(fake.port, pem, export="/secret"))
        assert fake.exports == []


@needs_nbdkit
async def test_a_server_that_insists_on_tls_is_an_error_for_a_plain_client(tmp_path: Path) -> None:
    self_signed(tmp_path / "pki")
    arguments = ("--tls=require", f"--tls-certificates={tmp_path / 'pki'}", "pattern", "1M")
    with nbdkit(*arguments) as port, pytest.raises(NbdConnectError):
        await refused(plain(port))


@pytest.mark.parametrize("pem", ["", "no PEM", "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----"])
async def test_without_a_certificate_to_compare_with_there_is_no_connection(tmp_path: Path, pem: str) -> None:
    self_signed(tmp_path / "pki")
    async with fake_server(pki=tmp_path / "pki") as fake:
        with pytest.raises(NbdCertificateError):
            await refused(secured(fake.port, pem))
        assert fake.options == []


async def test_the_hosts_own_certificate_is_the_first_of_a_chain(tmp_path: Path) -> None:
    pem = self_signed(tmp_path / "pki")
    chain = "subject=host\n" + pem + self_signed(tmp_path / "authority")
    buffer = memoryview(bytearray(64 * KiB))
    async with fake_server(pki=tmp_path / "pki") as fake, connected(secured(fake.port, chain)) as client:
        await client.read(buffer, 512)
    assert bytes(buffer) == pattern(512, 64 * KiB)


async def test_certificates_are_asked_for_again_before_each_reconnection(tmp_path: Path) -> None:
    arena = Arena(4, 64 * KiB)
    pem = [self_signed(tmp_path / "pki")]
    sink = Sink()
    async with fake_server(Manner(close_after=3), Manner(), pki=tmp_path / "pki") as fake:

        async def locate() -> Sequence[Endpoint]:
            return [secured(fake.port, pem[-1])]

        reader_of = open_reader(locate, connections=1, budget=budget(tmp_path), timeouts=QUICK, patience=HASTY)
        async with reader_of as reader:
            pem.append(self_signed(tmp_path / "pki"))  # renewed, and the pool knows
            await reader.read([Extent(0, reader.size)], arena, sink.take)
    sink.check([Extent(0, 16 * MiB)])


@needs_nbdkit
async def test_a_cancelled_tls_handshake_leaves_nothing(tmp_path: Path) -> None:
    pem = self_signed(tmp_path / "pki")
    arguments = ("--tls=require", f"--tls-certificates={tmp_path / 'pki'}", "--filter=delay", "pattern", "1M")
    with nbdkit(*arguments, "delay-open=60") as port:
        async with nothing_left():
            with pytest.raises(NbdConnectError, match="no answer to the handshake"):
                await refused(secured(port, pem), Timeouts(handshake=0.5))
