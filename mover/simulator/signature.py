"""Signatures of calls, and the mark that makes a Python method one."""

from __future__ import annotations

import inspect
import json
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from mover.simulator.values import NULL, Type, Value, parse_type

REQUIRED = object()
Function = Callable[..., Value | Awaitable[Value]]
_Marked = TypeVar("_Marked", bound=Callable[..., Any])


@dataclass(frozen=True)
class Param:
    """One parameter; `default` is REQUIRED where there is none."""

    name: str
    type: Type
    default: Value = REQUIRED


@dataclass(frozen=True)
class Signature:
    """What a call takes besides the session, and gives.

    `asynchronous`: whether `Async.` may be put before it. `session`: whether it needs one. `errors`: the codes it
    raises on its own account, beyond those any call can. `hidden`: not in the published data model. `removed`: known
    by name only, since the release no longer has it.
    """

    name: str
    params: tuple[Param, ...]
    result: Type
    errors: tuple[str, ...] = ()
    asynchronous: bool = True
    session: bool = True
    hidden: bool = False
    removed: bool = False

    @property
    def cls(self) -> str:
        return self.name.partition(".")[0]

    @property
    def required(self) -> int:
        return sum(param.default is REQUIRED for param in self.params)


@dataclass(frozen=True)
class Bound:
    """A signature and what answers it."""

    signature: Signature
    function: Function


def parse_signature(text: str, **marks: Any) -> Signature:
    """Read `VM.snapshot(vm: VM ref, new_name: string, ignore_vdis: VDI ref set = []) -> VM ref`."""
    name, _, rest = text.partition("(")
    inside, result = _closed(rest)
    params = tuple(_parse_param(part) for part in _split(inside) if part.strip())
    return Signature(name.strip(), params, parse_type(result.strip().removeprefix("->") or "void"), **marks)


def _closed(text: str) -> tuple[str, str]:
    """What is before the parenthesis that closes, and after it."""
    depth = 1
    for position, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if depth == 0:
            return text[:position], text[position + 1 :]
    raise ValueError(f"no closing parenthesis: {text}")


def _split(text: str) -> Iterator[str]:
    depth, start = 0, 0
    for position, char in enumerate(text):
        depth += (char == "(") - (char == ")")
        if char == "," and depth == 0:
            yield text[start:position]
            start = position + 1
    yield text[start:]


def _parse_param(text: str) -> Param:
    name, _, rest = text.partition(":")
    kind, equals, default = rest.partition(" = ")
    value = REQUIRED if not equals else NULL if default.strip() == "NULL" else json.loads(default)
    return Param(name.strip(), parse_type(kind), value)


def call(
    text: str,
    errors: str = "",
    asynchronous: bool = True,
    session: bool = True,
    hidden: bool = False,
    removed: bool = False,
) -> Callable[[_Marked], _Marked]:
    """Mark a method as the answer to the call whose signature `text` is; `errors` are separated by blanks."""
    signature = parse_signature(
        text,
        errors=tuple(errors.split()),
        asynchronous=asynchronous,
        session=session,
        hidden=hidden,
        removed=removed,
    )

    def mark(function: _Marked) -> _Marked:
        function.__signature_of_call__ = signature  # type: ignore[attr-defined]
        return function

    return mark


def calls_of(holder: object) -> Iterator[Bound]:
    """The marked methods of an object."""
    for _, method in inspect.getmembers(holder, inspect.ismethod):
        signature = getattr(method, "__signature_of_call__", None)
        if isinstance(signature, Signature):
            yield Bound(signature, method)
