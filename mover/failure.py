"""What the other side did, as an error a user can act on: message, hint and exit code."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from mover.errors import MoverError, PoolError, UnreachableError
from protocol.errors import (
    FormatError,
    NbdCertificateError,
    NbdError,
    NbdNowhereError,
    OutcomeUnknownError,
    PoolCertificateError,
    PoolUnreachableError,
    ProtocolError,
    XapiError,
)

_Error = TypeVar("_Error", bound=BaseException)

# What to do about XAPI's codes that an operator meets; codes are kept verbatim, people search for them.
_HINTS = {
    "SESSION_AUTHENTICATION_FAILED": "check username and the password's source in [pool]",
    "RBAC_PERMISSION_DENIED": "the user needs the role vm-power-admin; docs/operations.md says for what",
    "SR_BACKEND_FAILURE_44": "the SR is full: make room, or delete snapshots there and let it coalesce",
    "SR_BACKEND_FAILURE_46": "the SR says that a disk is not available: is another task using it?",
    "SR_BACKEND_FAILURE_109": "the disk's snapshot chain is too long: delete snapshots and let the SR coalesce",
    "LICENCE_RESTRICTION": "the pool's licence does not allow this",
    "LICENSE_RESTRICTION": "the pool's licence does not allow this",
    "OPERATION_BLOCKED": "the operation is blocked on this VM (blocked_operations)",
    "HOST_OFFLINE": "start the host that the disk's storage belongs to; once it is there, run the job again",
    "SESSION_INVALID": "the pool has ended the session, as a restart of its toolstack does: run the job again",
    "VDI_IO_ERROR": "the host could not read or write the disk: its /var/log/SMlog and xensource.log say why",
    "VDI_IN_USE": "something else uses the disk; try again when it has ended",
    "OTHER_OPERATION_IN_PROGRESS": "another operation runs on this object; try again when it has ended",
}
_LOGIN = frozenset({"SESSION_AUTHENTICATION_FAILED", "SESSION_AUTHORIZATION_FAILED"})


def as_mover_error(error: BaseException, where: str = "") -> MoverError | None:
    """`error` as a `MoverError` whose message begins with `where` ("web-1: "); None for what is no expected failure."""
    if isinstance(error, MoverError):
        return _placed(error, where)
    if not isinstance(error, ProtocolError):
        return None
    # A disk that cannot be reached any more because nobody can say where it is.
    error = _cause(error, PoolUnreachableError) or error
    message = f"{where}{error}"
    if isinstance(error, PoolCertificateError):
        return UnreachableError(message, "put the right fingerprint or ca-file into [pool]")
    if isinstance(error, PoolUnreachableError):
        return UnreachableError(message, "is the address right, and the pool's master up?")
    if isinstance(error, NbdCertificateError):
        return PoolError(message, "somebody else answers at this address; the pool's own certificate was expected")
    if _cause(error, NbdNowhereError):
        return PoolError(message, "is a host up that the disk's storage is plugged into? xe pbd-list says which do")
    if isinstance(error, NbdError):
        return PoolError(message, "can this machine reach the hosts' NBD port (10809)?")
    if isinstance(error, XapiError):
        hint = _HINTS.get(error.code, "")
        return UnreachableError(message, hint) if error.code in _LOGIN else PoolError(message, hint)
    if isinstance(error, OutcomeUnknownError):
        return PoolError(message, "run the job again; what the call may have left behind is swept then")
    if isinstance(error, FormatError):
        return PoolError(message, "what came was damaged or cut off on the way; the next run reads it anew")
    return PoolError(message)


def _placed(error: MoverError, where: str) -> MoverError:
    """A copy: one failure of the store is raised for several VMs, and each has its own name before it."""
    if not where or str(error).startswith(where):
        return error
    placed = copy.copy(error)
    placed.args = (f"{where}{error}", *error.args[1:])
    return placed.with_traceback(error.__traceback__)


def _cause(error: BaseException, kind: type[_Error]) -> _Error | None:
    """`error`, or what it came of, if it is of this kind."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, kind):
        cause = cause.__cause__
    return cause


@contextmanager
def naming(where: str) -> Iterator[None]:
    """In the block, what the other side does is raised as a `MoverError` whose message begins with `where`."""
    try:
        yield
    except ProtocolError as error:
        raise as_mover_error(error, where) or error from error
