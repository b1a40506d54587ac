"""An export read in the clear, by libnbd.

Closing a handle is dropping the last reference to it (the Python binding of 1.14 has no other way), and an
exception refers to all that its traceback saw. So the handle is looked at through `self` only, and what libnbd raises
is gone before anything else is raised.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable

import nbd

from protocol.nbd.wire import WireLostError, milliseconds

_EINVAL = 22


class PlainWire:
    """A libnbd handle. See `protocol.nbd.wire.Wire`; made by `open_plain`."""

    def __init__(self, export: str) -> None:
        self.size = 0
        self._handle: nbd.NBD | None = nbd.NBD()
        self._handle.set_export_name(export)
        # The server has no use for them, and offering them costs a round trip.
        self._handle.set_request_structured_replies(False)
        # Only buffers of reads that succeeded are looked at.
        self._handle.set_pread_initialize(False)

    def negotiate(self, sock: socket.socket, deadline: float) -> None:
        """Get past the handshake, until `deadline` (`time.monotonic`). Raises `WireLostError`, `TimeoutError`."""
        refused = ""
        try:
            if self._handle is not None:
                self._handle.aio_connect_socket(sock.detach())
        except nbd.Error as error:
            refused = error.string
        if refused:
            raise WireLostError(refused)
        while self._handle is not None and not self._handle.aio_is_ready():
            if not self.advance(max(0.0, deadline - time.monotonic())):
                raise TimeoutError
        self.size = self._handle.get_size() if self._handle is not None else 0

    def ask(self, view: memoryview, offset: int, answered: Callable[[int], None]) -> None:
        """Send a read."""

        def complete(error: nbd.ErrorCode) -> int:
            answered(error.value)
            return 1  # retire it

        refused = "the connection was closed"
        out_of_bounds = False
        if self._handle is not None:
            try:
                self._handle.aio_pread(view, offset, complete)
                return
            except nbd.Error as error:
                refused = error.string
                out_of_bounds = error.errnum == _EINVAL and not self._handle.aio_is_dead()
        raise ValueError(refused) if out_of_bounds else WireLostError(refused)

    def advance(self, timeout: float) -> bool:
        """Deal with what has arrived."""
        reason = "the connection was closed"
        if self._handle is not None:
            try:
                something = self._handle.poll(milliseconds(timeout)) > 0
                if not self._handle.aio_is_dead() and not self._handle.aio_is_closed():
                    return something
                reason = "the server closed the connection"
            except nbd.Error as error:
                reason = error.string
        raise WireLostError(reason)

    def close(self) -> None:
        """Close, politely if nothing is on its way."""
        if self._handle is not None:
            with contextlib.suppress(nbd.Error):  # dead already, or not past the handshake
                if not self._handle.aio_in_flight():
                    self._handle.aio_disconnect()
        self._handle = None  # runs nbd_close, which closes the socket


def open_plain(sock: socket.socket, export: str, deadline: float) -> PlainWire:
    """Negotiate on a connected socket, which is ours from here on, until `deadline` (`time.monotonic`).

    Raises `WireLostError`, `TimeoutError`.
    """
    wire = PlainWire(export)
    try:
        wire.negotiate(sock, deadline)
    except BaseException:
        wire.close()
        raise
    return wire
