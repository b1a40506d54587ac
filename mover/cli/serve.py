"""mover serve"""

from __future__ import annotations

import argparse
import ipaddress
import ssl
from collections.abc import Sequence
from pathlib import Path

import msgspec

from mover.cli.opening import store_of
from mover.cli.runner import say, show
from mover.errors import NotFoundError, UsageError
from mover.printable import printable, printable_lines
from mover.serve.listener import Address, SocketAddress, TcpAddress
from mover.serve.point import serve_point
from mover.serve.tls import server_context
from mover.store import PointDisk
from mover.units import format_size

_PORT = 10809


async def main(options: argparse.Namespace) -> int:
    """Serve the disks of a point until interrupted."""
    where = _address(options)
    context = _context(options)
    remote = isinstance(where, TcpAddress) and not _is_loopback(where.host)
    if remote and context is None and not options.insecure:
        raise UsageError(
            f"whoever can reach {options.address} could read these disks: there is neither a password nor encryption",
            "use --tls-certificate with --tls-client-ca; or leave --address out and forward the port with `ssh -L`; "
            "--insecure serves them all the same",
        )
    store = store_of(options.store, options)
    point = store.point(options.point)
    if not point.record.disks:
        raise NotFoundError(f"point {point.id} of {point.record.vm_name} has no disks")

    def uri_of(there: Address, disk: PointDisk) -> str:
        return there.uri(disk.position, tls=context is not None)

    def ready(there: Address, disks: Sequence[PointDisk]) -> None:
        if options.json:
            fields = [
                {"uri": uri_of(there, disk), "position": disk.position, "name": disk.name, "size": disk.size}
                for disk in disks
            ]
            show(msgspec.json.encode({"point": point.id, "disks": fields}).decode())
            return
        for disk in disks:
            show(f"{uri_of(there, disk)}\t{printable(disk.name)}\t{format_size(disk.size)}")

    def warn(message: str) -> None:
        say(printable_lines(f"warning: {message}"))

    if remote and options.tls_client_ca is None:
        warn(f"whoever can reach {options.address} can read these disks: --tls-client-ca lets in those you choose")
    await serve_point(store, point, where, disks=options.disk, context=context, ready=ready, warn=warn)
    return 0


def _address(options: argparse.Namespace) -> Address:
    if options.socket is None:
        return TcpAddress(options.address or "127.0.0.1", _PORT if options.port is None else options.port)
    if options.address is not None:
        raise UsageError("--address is for a port, not for --socket")
    return SocketAddress(Path(options.socket).absolute())


def _context(options: argparse.Namespace) -> ssl.SSLContext | None:
    if options.tls_certificate is None:
        for name in ("tls_key", "tls_client_ca"):
            if getattr(options, name) is not None:
                raise UsageError(f"--{name.replace('_', '-')} goes with --tls-certificate")
        return None
    return server_context(options.tls_certificate, options.tls_key, options.tls_client_ca)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
