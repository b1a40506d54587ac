"""Bytes and texts of the pool's API and its data handlers, without any I/O.

Sources: xen-api `ocaml/xapi/xapi_task.ml` (task results are XML-RPC values as text), `ocaml/vhd-tool/src/chunked.ml`
(the framing of `chunked` raw imports), `ocaml/libs/http-lib/http_svr.ml` (errors as HTML, also inside a body).
"""

from __future__ import annotations

import html
import re
import struct
import xmlrpc.client
from collections.abc import Iterable
from typing import Any
from xml.parsers.expat import ExpatError

from protocol.errors import FormatError, XapiError
from protocol.secret import Secret

_FRAME = struct.Struct("<QI")
FRAME_HEAD_LENGTH = _FRAME.size
END_OF_FRAMES = bytes(FRAME_HEAD_LENGTH)

_STATUS_LINE = re.compile(rb"HTTP/1\.[01] \d{3}")
STATUS_LINE_LENGTH = len("HTTP/1.1 500")
_FAILURE = re.compile(r"\b([A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+): \[ ?(.*) ?\]", re.DOTALL)
_MAX_ERROR_TEXT = 1 << 16

# What the parser of the standard library raises on an answer that is XML but not XML-RPC, or not XML at all.
MALFORMED = (ExpatError, xmlrpc.client.ResponseError, ValueError, TypeError, LookupError, AttributeError)


def plain_value(value: Any) -> Any:
    """Turn a decoded XML-RPC value into strings, booleans, floats, lists and dicts only (dates stay as written)."""
    if isinstance(value, xmlrpc.client.DateTime):
        return value.value
    if isinstance(value, list | tuple):
        return [plain_value(item) for item in value]
    if isinstance(value, dict):
        return {str(key): plain_value(item) for key, item in value.items()}
    return value


def wire_value(value: Any) -> Any:
    """Turn an argument into what the pool takes: integers travel as strings, secrets are revealed here only."""
    if isinstance(value, Secret):
        return value.reveal()
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, list | tuple):
        return [wire_value(item) for item in value]
    if isinstance(value, dict):
        return {key: wire_value(item) for key, item in value.items()}
    return value


def decode_result(text: str) -> Any:
    """Decode a task's `result`: empty for nothing, else `<value>…</value>`. Raises FormatError."""
    if not text.lstrip().startswith("<value"):
        return text
    document = f"<params><param>{text}</param></params>"
    try:
        values, _ = xmlrpc.client.loads(document)
        (value,) = values
    except MALFORMED as error:
        raise FormatError("task result", str(error)) from None
    return plain_value(value)


def failure(details: Any, call: str) -> XapiError:
    """Make the error for an ErrorDescription or error_info: a list of the code and its parameters."""
    match details:
        case [code, *params]:
            return XapiError(str(code), [str(param) for param in params], call)
        case _:
            return XapiError("INTERNAL_ERROR", ["failed without saying why"], call)


def failure_in_text(text: str, call: str) -> XapiError | None:
    """Find `CODE: [ p1; p2 ]` in an HTML error page of the server, or None."""
    body = text[:_MAX_ERROR_TEXT]
    match = _FAILURE.search(body)
    if match is None:
        return None
    inside = match[2].removesuffix(" ")
    params = [html.unescape(part) for part in inside.split("; ")] if inside.strip() else []
    return XapiError(match[1], params, call)


def is_response_head(data: bytes | bytearray | memoryview) -> bool:
    """Whether a body begins like an HTTP response: the server's way to report a failure after its 200.

    See xen-api issue 4603. Needs at least `STATUS_LINE_LENGTH` bytes to say yes.
    """
    return _STATUS_LINE.match(data) is not None


def frame_head(offset: int, length: int) -> bytes:
    """Return the head of one piece of a `chunked` raw import. A piece without bytes would end the stream."""
    if not 0 < length < 1 << 32 or not 0 <= offset < 1 << 63:
        raise ValueError(f"no frame can hold {length} bytes at {offset}")
    return _FRAME.pack(offset, length)


def framed_length(lengths: Iterable[int]) -> int:
    """Return how many bytes a `chunked` raw import of pieces of these lengths takes, terminator included."""
    return sum(FRAME_HEAD_LENGTH + length for length in lengths) + len(END_OF_FRAMES)
