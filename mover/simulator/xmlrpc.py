"""XML-RPC as XAPI writes it: integers and strings untyped, `<double>` with 16 digits, `Status` and `Value`.

Source: ocaml-rpc src/lib/xmlrpc.ml; xen-api doc/content/xen-api/wire-protocol.md.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from datetime import datetime
from xml.parsers.expat import ExpatError
from xmlrpc.client import Binary, DateTime, Error, loads

from mover.simulator.values import Value, parse_stamp, stamp

_HEAD = '<?xml version="1.0"?>'


class MalformedCallError(ValueError):
    """A request body that is no method call."""


def decode_call(body: bytes) -> tuple[str, list[Value]]:
    """Return the method's name and parameters. Integers may have come typed or as text."""
    try:
        params, name = loads(body.decode("utf-8"))
        values = [_plain(value) for value in params]
    except RecursionError:
        raise MalformedCallError("too deep") from None
    except (ExpatError, Error, ValueError, TypeError, KeyError, IndexError, AttributeError, LookupError) as error:
        raise MalformedCallError(str(error)) from None
    if name is None:
        raise MalformedCallError("no methodCall")
    return name, values


def _plain(value: Value) -> Value:
    if isinstance(value, DateTime):
        return parse_stamp(value.value)
    if isinstance(value, Binary):
        return base64.b64encode(value.data).decode()
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return "" if value is None else value


def escape(text: str) -> str:
    """Escape text as ocaml-rpc does."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")


def encode_value(value: Value) -> str:
    """Encode one value, `<value>…</value>` included. This is also the form of a task's result."""
    return f"<value>{_content(value)}</value>"


def _content(value: Value) -> str:
    if isinstance(value, bool):
        return f"<boolean>{int(value)}</boolean>"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return f"<double>{value:.16g}</double>"
    if isinstance(value, datetime):
        return f"<dateTime.iso8601>{stamp(value)}</dateTime.iso8601>"
    if isinstance(value, Mapping):
        members = (f"<member><name>{escape(str(k))}</name>{encode_value(v)}</member>" for k, v in value.items())
        return f"<struct>{''.join(members)}</struct>"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"<array><data>{''.join(map(encode_value, value))}</data></array>"
    return escape("" if value is None else str(value))


def encode_result(value: Value) -> bytes:
    """A response that holds `value` with a Status, as every call but system.listMethods answers."""
    return encode_bare({"Status": "Success", "Value": value})


def encode_failure(description: Sequence[str]) -> bytes:
    """A response that says what went wrong."""
    return encode_bare({"Status": "Failure", "ErrorDescription": list(description)})


def encode_bare(value: Value) -> bytes:
    """A response whose only parameter is `value`."""
    body = f"<methodResponse><params><param>{encode_value(value)}</param></params></methodResponse>"
    return (_HEAD + body).encode(errors="replace")
