"""`ova.xml`, the metadata in an XVA: one XML-RPC value, a struct of the server's version and the VM's records.

Nothing in it is trusted: no document types, so no entities; no other encoding than UTF-8; size and depth are limited.
Source: xen-api ocaml/xapi/export.ml, importexport.ml; ocaml-rpc src/lib/xmlrpc.ml.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, NoReturn
from xml.parsers import expat

from protocol.errors import FormatError

# Those of real VMs have 50 kB to 2 MB. What is made of this many bytes takes at most eight times as much.
MAX_OVA = 16 << 20
MAX_DEPTH = 100

NULL = "OpaqueRef:NULL"
_DECIMAL = re.compile(r"-?[0-9]{1,19}")
_UNSPEAKABLE = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_ESCAPES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "\r": "&#13;"})
_LEAVES = frozenset({"string", "int", "i4", "i8", "boolean", "double", "dateTime.iso8601", "nil"})
_INSIDE: dict[str, frozenset[str]] = {
    "": frozenset({"value"}),
    "value": _LEAVES | {"struct", "array"},
    "struct": frozenset({"member"}),
    "member": frozenset({"name", "value"}),
    "array": frozenset({"data"}),
    "data": frozenset({"value"}),
}


class OvaObject(NamedTuple):
    """A record. `id` is its short reference in this archive (`Ref:12`), `cls` its class (`VM`, `VDI` …)."""

    cls: str
    id: str
    snapshot: dict[str, Any]


class Ova(NamedTuple):
    """The whole document. Strings, booleans, floats, aware datetimes, lists and dicts; integers that the server wrote
    untyped, as it does, are strings.
    """

    version: dict[str, Any]
    objects: list[OvaObject]


class Disk(NamedTuple):
    """A disk an archive may have: its reference, its size in bytes, and whether it has to be there."""

    ref: str
    size: int
    expected: bool


def parse_ova(data: bytes) -> Ova:
    """Parse `ova.xml`, of at most `MAX_OVA` bytes. Raises `FormatError`."""
    match parse_value(data):
        case {"version": dict() as version, "objects": list() as objects}:
            parsed = [_object(item) for item in objects]
        case _:
            _fail("it has no version and objects")
    if len({item.id for item in parsed}) < len(parsed):
        _fail("two objects have the same id")
    return Ova(version, parsed)


def build_ova(ova: Ova) -> bytes:
    """Write `ova.xml` as the server does: integers and strings untyped. Raises `ValueError` if it is too large."""
    objects = [{"class": item.cls, "id": item.id, "snapshot": item.snapshot} for item in ova.objects]
    data = _value({"version": ova.version, "objects": objects}).encode()
    if len(data) > MAX_OVA:
        raise ValueError(f"an ova.xml of {len(data)} bytes; {MAX_OVA} are the limit")
    return data


def export_version(ova: Ova) -> int:
    """Which generation of archives it is: 0 has no checksum after each block, 2 has no table at the end any more."""
    return _number(ova.version.get("export_vsn", "0"), "export_vsn", 100)


def disks_of(ova: Ova) -> list[Disk]:
    """The disks the archive may have, in its order. Expected are those of VBDs that are no CD drives, and the suspend
    image of a suspended VM, if their SR is not one of ISO files. Raises `FormatError`.
    """
    by_class: dict[str, list[OvaObject]] = {}
    for item in ova.objects:
        by_class.setdefault(item.cls, []).append(item)
    of_isos = {sr.id for sr in by_class.get("SR", []) if sr.snapshot.get("content_type") == "iso"}
    vbds = [vbd for vbd in by_class.get("VBD", []) if vbd.snapshot.get("type") != "CD"]
    suspended = [vm for vm in by_class.get("VM", []) if vm.snapshot.get("power_state") == "Suspended"]
    attached = {_reference(vbd, "VDI") for vbd in vbds} | {_reference(vm, "suspend_VDI") for vm in suspended}
    found = []
    for vdi in by_class.get("VDI", []):
        size = _number(vdi.snapshot.get("virtual_size"), f"virtual_size of {vdi.id}", 1 << 60)
        found.append(Disk(vdi.id, size, vdi.id in attached and _reference(vdi, "SR") not in of_isos))
    return sorted(found)


def parse_value(data: bytes) -> Any:
    """Parse one XML-RPC `<value>`. Raises `FormatError`."""
    if len(data) > MAX_OVA:
        _fail(f"{len(data)} bytes of metadata; {MAX_OVA} are the limit")
    parser = expat.ParserCreate("utf-8")
    target = _Target(parser)
    parser.buffer_text = True
    parser.StartElementHandler = target.start
    parser.EndElementHandler = target.end
    parser.CharacterDataHandler = target.text
    parser.StartDoctypeDeclHandler = target.doctype
    try:
        parser.Parse(data, True)
    except expat.ExpatError as error:
        _fail(f"no XML: {error}", parser.CurrentByteIndex)
    (result,) = target.root
    return result


class _Open(NamedTuple):
    """An element that has begun: its name, its text, and the values that ended in it."""

    name: str
    text: list[str]
    values: list[Any]


class _Target:
    """Makes values of what the parser sees."""

    def __init__(self, parser: expat.XMLParserType) -> None:
        self._parser = parser
        self._open = [_Open("", [], [])]

    @property
    def root(self) -> list[Any]:
        return self._open[0].values

    def start(self, name: str, _: dict[str, str]) -> None:
        inside = self._open[-1]
        if name not in _INSIDE.get(inside.name, ()) or (inside.values and inside.name in ("", "value", "array")):
            self._fail(f"<{name[:40]}> has no place in <{inside.name}>")
        if len(self._open) > MAX_DEPTH:
            self._fail(f"more than {MAX_DEPTH} levels")
        self._open.append(_Open(name, [], []))

    def text(self, text: str) -> None:
        inside = self._open[-1]
        if inside.name not in _INSIDE or inside.name == "value":
            inside.text.append(text)
        elif not text.isspace():
            self._fail(f"text in <{inside.name}>")

    def end(self, name: str) -> None:
        ended = self._open.pop()
        self._open[-1].values.append(self._made(ended))

    def doctype(self, *_: object) -> None:
        self._fail("it declares a document type")

    def _made(self, ended: _Open) -> Any:
        """What an element is worth: a value, for a member its pair."""
        name, values, text = ended.name, ended.values, "".join(ended.text)
        match name:
            case "value":
                if values and text.strip():
                    self._fail("text beside a typed value")
                return values[0] if values else text
            case "struct":
                return self._struct(values)
            case "member":
                if len(values) != 2 or not isinstance(values[0], str):
                    self._fail("a member is not a name and a value")
                return tuple(values)
            case "array":
                return values[0] if values else []
            case "data":
                return values
            case _:
                return self._leaf(name, text)

    def _struct(self, members: list[Any]) -> dict[str, Any]:
        made = dict(members)
        if len(made) < len(members):
            self._fail("a struct has two members of one name")
        return made

    def _leaf(self, name: str, text: str) -> Any:
        try:
            match name:
                case "string" | "name":
                    return text
                case "int" | "i4" | "i8" if _DECIMAL.fullmatch(text.strip()):
                    return int(text)
                case "boolean" if text.strip() in ("0", "1"):
                    return text.strip() == "1"
                case "double" if len(text) <= 400:
                    return float(text)
                case "dateTime.iso8601":
                    moment = datetime.fromisoformat(text.strip())
                    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
                case "nil":
                    return None
        except ValueError:
            pass
        return self._fail(f"{text[:40]!r} is no {name}")

    def _fail(self, reason: str) -> NoReturn:
        _fail(reason, self._parser.CurrentByteIndex)


def _object(item: Any) -> OvaObject:
    match item:
        case {"class": str() as cls, "id": str() as ref, "snapshot": dict() as snapshot}:
            return OvaObject(cls, ref, snapshot)
        case _:
            return _fail("an object is not class, id and snapshot")


def _reference(item: OvaObject, field: str) -> str:
    value = item.snapshot.get(field, NULL)
    if not isinstance(value, str):
        _fail(f"{field} of {item.id} is no reference")
    return value


def _number(value: Any, what: str, limit: int) -> int:
    number = int(value) if isinstance(value, str) and _DECIMAL.fullmatch(value.strip()) else value
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number <= limit:
        _fail(f"{what} is {str(value)[:40]!r}")
    return number


def _value(value: Any) -> str:
    return f"<value>{_content(value)}</value>"


def _content(value: Any) -> str:
    match value:
        case bool():
            return f"<boolean>{int(value)}</boolean>"
        case int():
            return str(value)
        case float():
            return f"<double>{value!r}</double>"
        case datetime():
            return f"<dateTime.iso8601>{_stamp(value)}</dateTime.iso8601>"
        case str():
            return _escaped(value)
        case Mapping():
            members = (f"<member><name>{_escaped(str(k))}</name>{_value(v)}</member>" for k, v in value.items())
            return f"<struct>{''.join(members)}</struct>"
        case Sequence():
            return f"<array><data>{''.join(map(_value, value))}</data></array>"
        case None:
            return ""
        case _:
            raise ValueError(f"{type(value).__name__} has no place in ova.xml")


def _stamp(moment: datetime) -> str:
    utc = moment.astimezone(UTC)
    return f"{utc.year:04}{utc:%m%dT%H:%M:%SZ}"


def _escaped(text: str) -> str:
    """Escaped as ocaml-rpc does; a carriage return as well, which any XML parser takes for a line feed. Characters that
    XML cannot have are replaced.
    """
    return _UNSPEAKABLE.sub("\ufffd", text).translate(_ESCAPES)


def _fail(reason: str, offset: int | None = None) -> NoReturn:
    raise FormatError("ova.xml", reason, offset)
