"""JSON-RPC 1.0 and 2.0 as XAPI speaks them at /jsonrpc.

Source: ocaml-rpc src/lib/jsonrpc.ml; xen-api ocaml/xapi/api_server.ml.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from mover.simulator.values import Value, stamp
from mover.simulator.xmlrpc import MalformedCallError


@dataclass(frozen=True)
class Request:
    """One call. `version` is 1 or 2; the answer has the same and the same `id`."""

    name: str
    params: list[Value]
    id: int | str
    version: int


def decode_call(body: bytes) -> Request:
    """Read one request. Raises MalformedCallError, also for an id that is neither an integer nor text."""
    try:
        call = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise MalformedCallError(str(error)) from None
    if not isinstance(call, dict):
        raise MalformedCallError("not an object")
    name, params, number = call.get("method"), call.get("params", []), call.get("id")
    if not isinstance(name, str) or isinstance(number, bool) or not isinstance(number, int | str):
        raise MalformedCallError("method or id missing")
    version = 2 if call.get("jsonrpc") == "2.0" else 1
    if isinstance(params, dict) and version == 2:
        params = [params]
    if not isinstance(params, list):
        raise MalformedCallError("params is not an array")
    return Request(name, params, number, version)


def encode_result(request: Request, value: Value) -> bytes:
    if request.version == 2:
        return _encode({"jsonrpc": "2.0", "result": value, "id": request.id})
    return _encode({"result": value, "error": None, "id": request.id})


def encode_failure(request: Request, description: Sequence[str]) -> bytes:
    """The error in the shape of the request's version; the code of 2.0 is always 1."""
    if request.version == 2:
        error = {"code": 1, "message": description[0], "data": list(description[1:])}
        return _encode({"jsonrpc": "2.0", "error": error, "id": request.id})
    return _encode({"result": None, "error": list(description), "id": request.id})


def encode_early_failure(description: Sequence[str]) -> bytes:
    """An error from before dispatch: 2.0 whatever was asked, the error a bare array, the id 0."""
    return _encode({"jsonrpc": "2.0", "error": list(description), "id": 0})


def _encode(value: Value) -> bytes:
    return json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


def _plain(value: Value) -> Value:
    if isinstance(value, datetime):
        return stamp(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
