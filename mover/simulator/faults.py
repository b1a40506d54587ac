"""Faults on request: what is to go wrong next, in the simulated pool, for tests and for whoever drives it by hand.

A plain object that everything asks. A fault is armed `times` times; whoever meets it takes one off. The same faults
can come as JSON, for example `[{"type": "nbd", "kind": "drop", "after": 1048576}]`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Literal, TypeVar

import msgspec


class CallFault(msgspec.Struct, frozen=True, tag="call", forbid_unknown_fields=True):
    """The next call of `method` ("VM.snapshot"; "*" is any) fails with this error of the data model."""

    method: str
    code: str
    params: tuple[str, ...] = ()
    times: int = 1


class HttpFault(msgspec.Struct, frozen=True, tag="http", forbid_unknown_fields=True):
    """The next transfer by `handler` ("export_raw_vdi"; "*" is any) goes wrong after `after` bytes of body.

    `error`: a whole `500` response is written into the body (xen-api issue 4603), and the task fails with `code`.
    `close`: the connection is cut. `task`: the body is complete, and the task fails with `code` nevertheless.
    `corrupt`: one byte of what is sent is another one, and everything else is well.
    """

    kind: Literal["error", "close", "task", "corrupt"]
    handler: str = "*"
    after: int = 0
    code: str = "VDI_IO_ERROR"
    params: tuple[str, ...] = ("Device I/O errors",)
    times: int = 1


class NbdFault(msgspec.Struct, frozen=True, tag="nbd", forbid_unknown_fields=True):
    """The next NBD connection (to host number `host`, or any) goes wrong.

    Once `after` bytes of data were sent on it: `drop` cuts it, `stall` sends no more until `Faults.release`, `corrupt`
    changes the next byte. `error`: the first request reaching past `after` bytes is answered with `errno`, and the
    connection ends. `refuse`: it is closed before any byte.
    """

    kind: Literal["drop", "stall", "corrupt", "error", "refuse"]
    after: int = 0
    host: int | None = None
    errno: int = 5
    times: int = 1


class CbtFault(msgspec.Struct, frozen=True, tag="cbt", forbid_unknown_fields=True):
    """The next answer of `VDI.list_changed_blocks` calls the last `missing` of the changed blocks unchanged."""

    missing: int = 1
    times: int = 1


class SrFault(msgspec.Struct, frozen=True, tag="sr_full", forbid_unknown_fields=True):
    """The storage repository has no room left, or has again."""

    on: bool = True


class HostFault(msgspec.Struct, frozen=True, tag="host_down", forbid_unknown_fields=True):
    """Host number `host` accepts no connection and answers none, or does again."""

    host: int
    on: bool = True


class ReleaseFault(msgspec.Struct, frozen=True, tag="release", forbid_unknown_fields=True):
    """Connections that stall go on."""


class ClearFault(msgspec.Struct, frozen=True, tag="clear", forbid_unknown_fields=True):
    """Everything armed is forgotten, hosts and SR are well again."""


Fault = CallFault | HttpFault | NbdFault | CbtFault | SrFault | HostFault | ReleaseFault | ClearFault
_Timed = TypeVar("_Timed", CallFault, HttpFault, NbdFault, CbtFault)


class FaultFormatError(ValueError):
    """The JSON names no faults we know; the message says where."""


class Faults:
    """What is armed. `sr_full` and `hosts_down` are states, the rest is used up as it is met."""

    def __init__(self) -> None:
        self.sr_full = False
        self.hosts_down: set[int] = set()
        self._armed: list[CallFault | HttpFault | NbdFault | CbtFault] = []
        self._released = asyncio.Event()

    def arm(self, *faults: Fault) -> None:
        """Add faults, in the order in which they are to be met."""
        for fault in faults:
            self._arm(fault)

    def arm_json(self, document: bytes | str) -> None:
        """Add faults from a JSON array of objects. Raises FaultFormatError, and then nothing was added."""
        try:
            faults = msgspec.json.decode(document, type=list[Fault])
        except msgspec.DecodeError as error:
            raise FaultFormatError(str(error)) from None
        self.arm(*faults)

    def armed_json(self) -> bytes:
        """What is still armed, as `arm_json` takes it."""
        states: list[Fault] = [SrFault()] if self.sr_full else []
        states += [HostFault(host) for host in sorted(self.hosts_down)]
        return msgspec.json.encode([*states, *self._armed])

    def take_call(self, method: str) -> CallFault | None:
        """The fault for this call, used up; None if it is to work."""
        return self._take(CallFault, lambda fault: fault.method in (method, "*"))

    def take_http(self, handler: str) -> HttpFault | None:
        """The fault for this transfer, used up; None if it is to work."""
        return self._take(HttpFault, lambda fault: fault.handler in (handler, "*"))

    def take_nbd(self, host: int) -> NbdFault | None:
        """The fault for this connection, used up; None if it is to work."""
        return self._take(NbdFault, lambda fault: fault.host in (host, None))

    def take_cbt(self) -> CbtFault | None:
        """The fault for this list of changed blocks, used up; None if it is to be true."""
        return self._take(CbtFault, lambda fault: True)

    async def stall(self) -> None:
        """Wait for `release`."""
        await self._released.wait()

    def release(self) -> None:
        """Let everything go on that stalls now; what stalls later waits for the next release."""
        self._released.set()
        self._released = asyncio.Event()

    def clear(self) -> None:
        """Forget everything armed, and let go on what stalls."""
        self._armed.clear()
        self.sr_full = False
        self.hosts_down.clear()
        self.release()

    def _arm(self, fault: Fault) -> None:
        match fault:
            case SrFault():
                self.sr_full = fault.on
            case HostFault():
                self.hosts_down = self.hosts_down | {fault.host} if fault.on else self.hosts_down - {fault.host}
            case ReleaseFault():
                self.release()
            case ClearFault():
                self.clear()
            case CallFault() | HttpFault() | NbdFault() | CbtFault():
                self._armed.append(fault)

    def _take(self, kind: type[_Timed], fits: Callable[[_Timed], bool]) -> _Timed | None:
        for place, fault in enumerate(self._armed):
            if isinstance(fault, kind) and fits(fault):
                self._armed[place : place + 1] = _used(fault)
                return fault
        return None


def _used(fault: _Timed) -> list[_Timed]:
    return [msgspec.structs.replace(fault, times=fault.times - 1)] if fault.times > 1 else []
