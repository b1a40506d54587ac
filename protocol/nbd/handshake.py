"""The greeting and the haggling over options of an NBD server, sans-I/O.

Whoever drives it receives exactly `wanted` bytes, gives them to `take`, and carries out the action that comes back.
Nothing is ever read ahead, so nothing sent in the clear can slip past a change to TLS.

Source: the NBD protocol (NetworkBlockDevice/nbd doc/proto.md); for the manners of XAPI's server xapi-project/nbd
lib/server.ml and xen-api ocaml/nbd/src/main.ml.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal, NamedTuple

REQUEST_MAGIC = 0x25609513
SIMPLE_REPLY_MAGIC = 0x67446698
STRUCTURED_REPLY_MAGIC = 0x668E33EF
HAS_FLAGS, READ_ONLY, SEND_DF, CAN_MULTI_CONN = 1, 2, 1 << 7, 1 << 8
ALLOCATION = "base:allocation"
ALLOCATION_ID = 1

_GREETING = struct.Struct(">8s8sH")
_OPTION = struct.Struct(">8sII")
_REPLY = struct.Struct(">QIII")
_REPLY_MAGIC = 0x0003E889045565A9
_FIXED_NEWSTYLE, _NO_ZEROES = 1, 2
# A name has at most 4096 bytes, and no option carries much more than names.
_MAX_PAYLOAD = 64 << 10


class Option(IntEnum):
    """What a client may ask for."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10


class Answer(IntEnum):
    """What a server may say to that."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    ERR_UNSUP = (1 << 31) + 1
    ERR_POLICY = (1 << 31) + 2
    ERR_INVALID = (1 << 31) + 3
    ERR_TLS_REQD = (1 << 31) + 5
    ERR_UNKNOWN = (1 << 31) + 6


class Reply(NamedTuple):
    """Send this and go on."""

    data: bytes


class StartTls(NamedTuple):
    """Send this, then change to TLS, then go on."""

    data: bytes


class Open(NamedTuple):
    """Find the export, then call `opened` or `refused`."""

    name: str


class Close(NamedTuple):
    """Send this and close the connection."""

    data: bytes = b""


Action = Reply | StartTls | Open | Close


class Listed(NamedTuple):
    """An export as those see it who ask what there is."""

    name: str
    description: str


@dataclass(frozen=True)
class Manners:
    """What a server offers.

    `tls`: before anything else, or not at all. `modern`: everything but EXPORT_NAME. `exports`: the answer to LIST;
    None: nobody is told.
    """

    tls: Literal["forced", "none"] = "none"
    modern: bool = True
    exports: tuple[Listed, ...] | None = None


class Handshake:
    """One connection up to the point where reading begins.

    Then `done` is true, and `structured` and `allocation` say what was agreed upon: structured replies, and for the
    export that was opened block status of base:allocation.
    """

    def __init__(self, manners: Manners) -> None:
        self.wanted = 4
        self.done = False
        self.structured = False
        self.allocation = False
        self._manners = manners
        self._greeted = False
        self._secure = manners.tls == "none"
        self._zeroes = True
        self._context_of: bytes | None = None  # the export that block status was asked for
        self._option: tuple[int, int] | None = None  # option and length of its payload, while that is awaited
        self._asked = Option.EXPORT_NAME

    def greeting(self) -> bytes:
        """What the server says first."""
        flags = _FIXED_NEWSTYLE | (_NO_ZEROES if self._manners.modern else 0)
        return _GREETING.pack(b"NBDMAGIC", b"IHAVEOPT", flags)

    def take(self, data: bytes) -> Action:
        """The next `wanted` bytes."""
        if not self._greeted:
            return self._take_flags(int.from_bytes(data, "big"))
        if self._option is None:
            magic, option, length = _OPTION.unpack(data)
            if magic != b"IHAVEOPT" or length > _MAX_PAYLOAD:
                return Close()
            self._option, self.wanted = (option, length), length
            return Reply(b"") if length else self.take(b"")
        option, _ = self._option
        self._option, self.wanted = None, _OPTION.size
        return self._take_option(option, data)

    def opened(self, size: int, flags: int) -> bytes:
        """The answer to `Open` when the export is there; `flags` are those of the transmission."""
        export = struct.pack(">QH", size, flags)
        if self._asked is Option.EXPORT_NAME:
            self.done = True
            return export + (bytes(124) if self._zeroes else b"")
        self.done = self._asked is Option.GO
        sizes = struct.pack(">HIII", 3, 1, 4096, 32 << 20)
        return (
            _reply(self._asked, Answer.INFO, b"\0\0" + export)
            + _reply(self._asked, Answer.INFO, sizes)
            + _reply(self._asked, Answer.ACK)
        )

    def refused(self) -> Reply | Close:
        """The answer to `Open` when there is no such export. EXPORT_NAME knows no way to say so."""
        if self._asked is Option.EXPORT_NAME:
            return Close()
        return Reply(_reply(self._asked, Answer.ERR_UNKNOWN))

    def _take_flags(self, flags: int) -> Action:
        self._greeted, self.wanted = True, _OPTION.size
        if self._manners.modern:
            if flags & ~(_FIXED_NEWSTYLE | _NO_ZEROES):
                return Close()
            self._zeroes = not flags & _NO_ZEROES
        return Reply(b"")

    def _take_option(self, option: int, payload: bytes) -> Action:
        if option == Option.STARTTLS:
            return self._start_tls()
        if not self._secure:
            if option in (Option.EXPORT_NAME, Option.ABORT):
                return Close()
            return Reply(_reply(option, Answer.ERR_TLS_REQD))
        if option == Option.EXPORT_NAME:
            self._asked = Option.EXPORT_NAME
            self.allocation = payload == self._context_of
            return _open(payload, Close())
        if option == Option.ABORT:
            return Close(_reply(option, Answer.ACK))
        if option == Option.LIST:
            return Reply(self._list(payload))
        if self._manners.modern:
            return self._take_modern(option, payload)
        return Reply(_reply(option, Answer.ERR_UNSUP))

    def _list(self, payload: bytes) -> bytes:
        if self._manners.exports is None:
            return _reply(Option.LIST, Answer.ERR_POLICY)
        if payload:
            return _reply(Option.LIST, Answer.ERR_INVALID)
        return b"".join(map(_listing, self._manners.exports)) + _reply(Option.LIST, Answer.ACK)

    def _start_tls(self) -> Action:
        if self._manners.tls == "none":
            return Reply(_reply(Option.STARTTLS, Answer.ERR_POLICY))
        if self._secure:
            return Reply(_reply(Option.STARTTLS, Answer.ERR_INVALID))
        self._secure = True
        return StartTls(_reply(Option.STARTTLS, Answer.ACK))

    def _take_modern(self, option: int, payload: bytes) -> Action:
        invalid = Reply(_reply(option, Answer.ERR_INVALID))
        if option in (Option.GO, Option.INFO):
            self._asked = Option(option)
            name = _leading_text(payload)
            if name is None:
                return invalid
            self.allocation = name == self._context_of
            return _open(name, invalid)
        if option == Option.STRUCTURED_REPLY:
            if payload:
                return invalid
            self.structured = True
            return Reply(_reply(option, Answer.ACK))
        if option in (Option.SET_META_CONTEXT, Option.LIST_META_CONTEXT):
            queries = _queries(payload)
            if queries is None or not self.structured:
                return invalid
            return self._meta_contexts(option, _leading_text(payload), queries)
        return Reply(_reply(option, Answer.ERR_UNSUP))

    def _meta_contexts(self, option: int, name: bytes | None, queries: list[bytes]) -> Action:
        listing = option == Option.LIST_META_CONTEXT
        chosen = ALLOCATION.encode() in queries or (listing and (not queries or b"base:" in queries))
        if not listing:
            self._context_of = name if chosen else None
        context = struct.pack(">I", 0 if listing else ALLOCATION_ID) + ALLOCATION.encode()
        return Reply((_reply(option, Answer.META_CONTEXT, context) if chosen else b"") + _reply(option, Answer.ACK))


def _reply(option: int, answer: Answer, payload: bytes = b"") -> bytes:
    return _REPLY.pack(_REPLY_MAGIC, option, answer, len(payload)) + payload


def _listing(export: Listed) -> bytes:
    name = export.name.encode()
    return _reply(Option.LIST, Answer.SERVER, struct.pack(">I", len(name)) + name + export.description.encode())


def _open(name: bytes, otherwise: Action) -> Action:
    try:
        return Open(name.decode())
    except UnicodeDecodeError:
        return otherwise


def _leading_text(payload: bytes, at: int = 0) -> bytes | None:
    """The text at this place of a payload, after its length; None if it is cut off."""
    if len(payload) < at + 4:
        return None
    end = at + 4 + int.from_bytes(payload[at : at + 4], "big")
    return payload[at + 4 : end] if len(payload) >= end else None


def _queries(payload: bytes) -> list[bytes] | None:
    """The queries for meta contexts; None if the payload is not well formed."""
    name = _leading_text(payload)
    if name is None or len(payload) < 8 + len(name):
        return None
    at = 8 + len(name)
    count = int.from_bytes(payload[at - 4 : at], "big")
    texts: list[bytes] = []
    while at < len(payload):
        text = _leading_text(payload, at)
        if text is None:
            return None
        texts.append(text)
        at += 4 + len(text)
    return texts if len(texts) == count else None
