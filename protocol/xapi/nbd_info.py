"""Where a disk can be read over NBD, as the pool tells it."""

from __future__ import annotations

import ipaddress
from typing import Any

from protocol.errors import FormatError
from protocol.nbd.endpoint import Endpoint
from protocol.secret import Secret
from protocol.xapi.session import Pool
from protocol.xapi.trust import fingerprint_of_pem, format_fingerprint


async def nbd_endpoints(pool: Pool, vdi: str) -> list[Endpoint]:
    """List the addresses where the VDI with the ref `vdi` is served; empty if no network has a purpose for it.

    The pool gives certificates for plain networks too, so whether TLS is spoken follows from the purposes: any `nbd`
    in the pool forces it everywhere (xen-api `ocaml/nbd/src/main.ml`). IPv6 addresses come last: current servers
    listen on IPv4 only. Raises what `Pool.call` raises; `VDI_INCOMPATIBLE_TYPE` for a disk without data.
    """
    entries = await pool.call("VDI.get_nbd_info", vdi)
    if not entries:
        return []
    networks = await pool.call("network.get_all_records")
    secure = any("nbd" in network.get("purpose", ()) for network in networks.values())
    return sorted((_endpoint(entry, secure) for entry in entries), key=lambda endpoint: _is_ipv6(endpoint.address))


def _endpoint(entry: Any, secure: bool) -> Endpoint:
    match entry:
        case {"address": str(address), "port": port, "exportname": str(export), **rest}:
            certificate = str(rest.get("cert", ""))
        case _:
            raise FormatError("get_nbd_info answer", "an entry without address, port or export name")
    if secure and not certificate:
        raise FormatError("get_nbd_info answer", f"no certificate for {address[:60]}")
    if not str(port).isdecimal() or not 0 < int(port) < 1 << 16:
        raise FormatError("get_nbd_info answer", f"port {str(port)[:20]!r}")
    # A host has one certificate, whatever the number of its addresses.
    host = format_fingerprint(fingerprint_of_pem(certificate)) if certificate else address
    return Endpoint(address, int(port), Secret(export), certificate if secure else None, host)


def _is_ipv6(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).version == 6
    except ValueError:
        return False
