"""XVAs as a server might send them, put together by hand, so that nothing of the writer under test is trusted."""

import hashlib
import io
import tarfile
from collections.abc import Iterable, Mapping
from typing import Any
from xml.sax.saxutils import escape

import xxhash

from protocol.xva.reader import BlockEnd, Checksums, Data, DiskEnd, End, Event, OvaXml, XvaReader, verify_block

MiB = 1 << 20


def xml_value(value: Any) -> str:
    match value:
        case dict():
            members = (f"<member><name>{escape(k)}</name>{xml_value(v)}</member>" for k, v in value.items())
            return f"<value><struct>{''.join(members)}</struct></value>"
        case list():
            return f"<value><array><data>{''.join(map(xml_value, value))}</data></array></value>"
        case bool():
            return f"<value><boolean>{int(value)}</boolean></value>"
        case _:
            return f"<value>{escape(str(value))}</value>"


def ova_xml(sizes: Mapping[str, int], *, export_vsn: int = 2, extra: Iterable[dict[str, Any]] = ()) -> bytes:
    """The metadata of a VM whose disks have these references and sizes."""
    objects: list[dict[str, Any]] = [{"class": "VM", "id": "Ref:9998", "snapshot": {"name_label": "vm <&>"}}]
    for place, (ref, size) in enumerate(sizes.items()):
        vbd = {"type": "Disk", "empty": False, "VDI": ref, "userdevice": place}
        vdi = {"virtual_size": size, "SR": "Ref:9999", "name_label": f"disk {place}"}
        objects.append({"class": "VBD", "id": f"Ref:{1000 + place}", "snapshot": vbd})
        objects.append({"class": "VDI", "id": ref, "snapshot": vdi})
    objects.append({"class": "SR", "id": "Ref:9999", "snapshot": {"content_type": "user"}})
    version = {"hostname": "h", "xapi_major": 1, "xapi_minor": 20, "export_vsn": export_vsn}
    return xml_value({"version": version, "objects": [*objects, *extra]}).encode()


def member(name: str, content: bytes, **fields: Any) -> bytes:
    """One member, made by Python's tarfile."""
    info = tarfile.TarInfo(name)
    info.size = len(content)
    for field, value in fields.items():
        setattr(info, field, value)
    return info.tobuf(tarfile.GNU_FORMAT) + content + bytes(-len(content) % 512)


def checked(name: str, content: bytes, kind: str = "xxhash") -> bytes:
    """A block with its checksum."""
    if kind == "xxhash":
        digest = xxhash.xxh64(content).hexdigest().upper()
        return member(name, content) + member(f"{name}.xxhash", digest.encode())
    digest = hashlib.sha1(content, usedforsecurity=False).hexdigest()
    return member(name, content) + member(f"{name}.checksum", digest.encode())


def archive(ova: bytes, *parts: bytes) -> bytes:
    return member("ova.xml", ova) + b"".join(parts) + bytes(1024)


def events(stream: bytes, piece: int = MiB, **options: Any) -> list[Event]:
    """What the reader says of a stream that comes in pieces of one size. Data views become bytes, and are joined."""
    reader = XvaReader(**options)
    said: list[Any] = []
    for start in range(0, len(stream), piece):
        for event in reader.feed(stream[start : start + piece]):
            match event, said[-1] if said else None:
                case Data(disk, offset, view), Data(_, before, data) if before + len(data) == offset:
                    said[-1] = Data(disk, before, data + bytes(view))  # type: ignore[arg-type,operator]
                case Data(disk, offset, view), _:
                    said.append(Data(disk, offset, bytes(view)))  # type: ignore[arg-type]
                case _:
                    said.append(event)
    reader.finish()
    return said


def disks_in(stream: bytes, piece: int = MiB) -> dict[str, bytes]:
    """The disks in an archive. Fails unless every checksum is right and every disk ends."""
    contents: dict[str, bytearray] = {}
    block = b""
    ended = []
    for event in events(stream, piece):
        match event:
            case OvaXml(_, ova):
                sizes = {item.id: int(item.snapshot["virtual_size"]) for item in ova.objects if item.cls == "VDI"}
            case Data(disk, offset, view):
                # Blocks that touch are joined here, not in the reader.
                content = contents.setdefault(disk, bytearray(sizes[disk]))
                content[offset : offset + len(view)] = view
            case BlockEnd(disk, offset, length, check):
                assert check is not None
                block = bytes(contents[disk][offset : offset + length])
                verify_block(block, event)
            case DiskEnd(disk, end):
                assert end == sizes[disk]
                ended.append(disk)
            case End(length):
                assert length == len(stream)
            case Checksums():
                pass
    assert ended == list(contents)
    return {disk: bytes(content) for disk, content in contents.items()}


def tar_names(stream: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(stream)) as tar:
        return tar.getnames()
