"""From get_nbd_info and the networks' purposes to the endpoints of a disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from protocol.errors import FormatError
from protocol.nbd import Endpoint
from protocol.secret import Secret
from protocol.xapi import Trust, connect, nbd_endpoints
from tests.rawpool_fixtures import PASSWORD, USER, make_certificate, raw_pool


async def endpoints(entries: list[dict[str, Any]], purposes: list[list[str]]) -> list[Endpoint]:
    async with raw_pool() as server:
        server.methods["VDI.get_nbd_info"] = lambda vdi: entries
        server.methods["network.get_all_records"] = lambda: {
            f"OpaqueRef:{number}": {"uuid": "u", "name_label": "n", "purpose": purpose}
            for number, purpose in enumerate(purposes)
        }
        async with connect(server.url, USER, Secret(PASSWORD), Trust.system()) as pool:
            return await nbd_endpoints(pool, "OpaqueRef:v")


def entry(address: str, pem: str, **changes: Any) -> dict[str, Any]:
    export = "/uuid?session_id=OpaqueRef:s"
    return {"address": address, "port": "10809", "exportname": export, "cert": pem, "subject": "host"} | changes


async def test_no_network_for_nbd() -> None:
    assert await endpoints([], [[]]) == []


async def test_tls_with_the_certificate_of_each_host(tmp_path: Path) -> None:
    one, two = make_certificate(tmp_path, "one"), make_certificate(tmp_path, "two")
    found = await endpoints(
        [entry("fd00::1", one.pem), entry("10.0.0.1", one.pem), entry("10.0.0.2", two.pem)], [[], ["nbd"]]
    )
    assert [endpoint.address for endpoint in found] == ["10.0.0.1", "10.0.0.2", "fd00::1"]
    assert [endpoint.certificate for endpoint in found] == [one.pem, two.pem, one.pem]
    assert found[0].host == found[2].host != found[1].host
    assert found[0].port == 10809
    assert found[0].export == Secret("/uuid?session_id=OpaqueRef:s")
    assert "session_id" not in repr(found)


async def test_plain_connections_only_where_no_network_forces_tls(tmp_path: Path) -> None:
    one = make_certificate(tmp_path, "one")
    (plain,) = await endpoints([entry("10.0.0.1", one.pem)], [["insecure_nbd"]])
    assert plain.certificate is None
    (secure,) = await endpoints([entry("10.0.0.1", one.pem)], [["insecure_nbd"], ["nbd"]])
    assert secure.certificate == one.pem


@pytest.mark.parametrize("change", [{"cert": ""}, {"port": "x"}, {"port": "0"}, {"exportname": 1.0}, {"cert": "PEM"}])
async def test_entries_that_are_none(tmp_path: Path, change: dict[str, Any]) -> None:
    one = make_certificate(tmp_path, "one")
    with pytest.raises(FormatError):
        await endpoints([entry("10.0.0.1", one.pem, **change)], [["nbd"]])
