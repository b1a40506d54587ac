"""What goes wrong with the other side, or in its formats. One tree; every leaf carries what a message needs.

Nothing here knows which VM or disk is concerned: `mover` adds that. `transient` says whether the same request may
succeed if it is repeated later, unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence


class ProtocolError(Exception):
    """The root: anything a server, a network or a foreign format did to us."""

    transient = False


class FormatError(ProtocolError):
    """Bytes that are not what their format says. `offset` counts bytes from the start of the stream, if known."""

    def __init__(self, format: str, reason: str, offset: int | None = None) -> None:
        where = "" if offset is None else f" at byte {offset}"
        super().__init__(f"bad {format}{where}: {reason}")
        self.format = format
        self.reason = reason
        self.offset = offset


class NbdError(ProtocolError):
    """An NBD server (`server` is host:port; the export's name is a secret and never here) and what it did."""

    transient = True

    def __init__(self, server: str, reason: str) -> None:
        super().__init__(f"NBD server {server}: {reason}")
        self.server = server
        self.reason = reason


class NbdConnectError(NbdError):
    """The connection could not be made, or the server hung up during the handshake."""


class NbdNowhereError(NbdConnectError):
    """The pool names no host that serves the disk (any more)."""

    def __init__(self) -> None:
        super().__init__("(none)", "no host offers this disk over NBD")


class NbdCertificateError(NbdConnectError):
    """The server showed another certificate than the one the pool named. Never retried."""

    transient = False


class NbdRequestError(NbdError):
    """A read was answered with an error. `errno` is NBD's (the same numbers as errno.h)."""

    def __init__(self, server: str, reason: str, errno: int) -> None:
        super().__init__(server, reason)
        self.errno = errno


class NbdTimeoutError(NbdError):
    """No answer in time."""


class XapiError(ProtocolError):
    """The pool answered a call with an error of its data model.

    `code` is XAPI's, verbatim (people search for it), `params` what came with it, `call` the method. A session's
    reference is a secret: the parameters of errors about sessions are in `params` only, not in the message.
    """

    _about_sessions = frozenset({"SESSION_INVALID", "SESSION_NOT_REGISTERED"})
    _transient = frozenset({"OTHER_OPERATION_IN_PROGRESS", "HOST_STILL_BOOTING", "VDI_IN_USE", "HOST_OFFLINE"})

    def __init__(self, code: str, params: Sequence[str] = (), call: str = "") -> None:
        detail = "" if code in self._about_sessions else ", ".join(params)
        super().__init__(f"{call or 'the pool'}: {code}" + (f" [{detail}]" if detail else ""))
        self.code = code
        self.params = tuple(params)
        self.call = call
        self.transient = code in self._transient


class PoolUnreachableError(ProtocolError):
    """No answer from the pool's API at `url`."""

    transient = True

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"cannot reach the pool at {url}: {reason}")
        self.url = url
        self.reason = reason


class PoolCertificateError(PoolUnreachableError):
    """The pool's certificate is not trusted. Never retried."""

    transient = False


class TransferError(ProtocolError):
    """A bulk HTTP transfer failed. `what` names it ("export of VDI …"); `status` is the HTTP status, if one came."""

    transient = True

    def __init__(self, what: str, reason: str, status: int | None = None) -> None:
        super().__init__(f"{what}: {reason}")
        self.what = what
        self.reason = reason
        self.status = status


class OutcomeUnknownError(ProtocolError):
    """A call was begun, and nothing can tell any more how it ended. `call` is the method; look before repeating it."""

    def __init__(self, call: str, reason: str) -> None:
        super().__init__(f"{call}: {reason}; it may have been carried out")
        self.call = call
        self.reason = reason
