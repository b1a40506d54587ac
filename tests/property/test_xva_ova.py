"""ova.xml: what is written is read back; what the server writes is read; what nobody should write is refused."""

import tracemalloc
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.errors import FormatError
from protocol.xva.ova import MAX_OVA, Disk, Ova, OvaObject, build_ova, disks_of, export_version, parse_ova, parse_value

# As xapi writes one, shortened.
SERVER = b"""<value><struct><member><name>version</name><value><struct><member><name>hostname</name><value>xs1</value>\
</member><member><name>xapi_major</name><value>1</value></member><member><name>export_vsn</name><value>2</value>\
</member></struct></value></member><member><name>objects</name><value><array><data>\
<value><struct><member><name>class</name><value>VM</value></member><member><name>id</name><value>Ref:7</value>\
</member><member><name>snapshot</name><value><struct>\
<member><name>name_label</name><value>a &lt;b&gt; &amp; &quot;c&quot; \xc3\xa9</value></member>\
<member><name>is_a_template</name><value><boolean>0</boolean></value></member>\
<member><name>snapshot_time</name><value><dateTime.iso8601>19700101T00:00:00Z</dateTime.iso8601></value></member>\
<member><name>HVM_shadow_multiplier</name><value><double>1</double></value></member>\
<member><name>memory_target</name><value>1073741824</value></member>\
<member><name>tags</name><value><array><data/></array></value></member>\
<member><name>suspend_VDI</name><value>OpaqueRef:NULL</value></member>\
<member><name>description</name><value/></member>\
<member><name>VBDs</name><value><array><data><value>Ref:8</value></data></array></value></member>\
</struct></value></member></struct></value>\
</data></array></value></member></struct></value>"""


def test_what_the_server_writes_is_read() -> None:
    ova = parse_ova(SERVER)
    assert ova.version == {"hostname": "xs1", "xapi_major": "1", "export_vsn": "2"}
    assert export_version(ova) == 2
    ((cls, ref, record),) = ova.objects
    assert (cls, ref) == ("VM", "Ref:7")
    assert record == {
        "name_label": 'a <b> & "c" é',
        "is_a_template": False,
        "snapshot_time": datetime(1970, 1, 1, tzinfo=UTC),
        "HVM_shadow_multiplier": 1.0,
        "memory_target": "1073741824",
        "tags": [],
        "suspend_VDI": "OpaqueRef:NULL",
        "description": "",
        "VBDs": ["Ref:8"],
    }
    assert parse_ova(build_ova(ova)) == ova


def test_indentation_and_declaration_do_no_harm() -> None:
    text = b'<?xml version="1.0"?>\n' + SERVER.replace(b"><", b">\n  <").replace(b"<value>\n  </value>", b"<value/>")
    assert parse_ova(text) == parse_ova(SERVER)


speakable = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="\ufffe\uffff"))
texts = st.one_of(speakable, st.sampled_from(["", " ", "\n", "\r\n", "\t", "]]>", "&amp;", "<value>"]))
moments = st.datetimes(timezones=st.just(UTC)).map(lambda moment: moment.replace(microsecond=0))
leaves = st.one_of(texts, st.booleans(), st.floats(allow_nan=False), moments)
values = st.recursive(
    leaves,
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(texts, inner, max_size=4)),
    max_leaves=20,
)
records = st.dictionaries(texts, values, max_size=5)


@settings(max_examples=100, deadline=None)
@given(records, st.lists(st.tuples(texts, records), max_size=4))
def test_round_trip(version: dict, objects: list) -> None:
    ova = Ova(version, [OvaObject(cls, f"Ref:{n}", record) for n, (cls, record) in enumerate(objects)])
    assert parse_ova(build_ova(ova)) == ova


def test_integers_are_written_untyped_as_the_server_does() -> None:
    assert b"<name>n</name><value>7</value>" in build_ova(Ova({"n": 7, "b": True}, []))


def test_what_xml_cannot_say_is_replaced() -> None:
    assert parse_ova(build_ova(Ova({"n": "a\0b\x1b\ud800"}, []))).version == {"n": "a\ufffdb\ufffd\ufffd"}


def test_an_object_of_another_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="object"):
        build_ova(Ova({"n": object()}, []))


BILLION = b"""<?xml version="1.0"?><!DOCTYPE v [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">
<!ENTITY c "&b;&b;&b;&b;&b;&b;&b;&b;&b;&b;">]><value>&c;</value>"""
REFUSED: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "no XML"),
    "no xml": (b"hello", "no XML"),
    "cut off": (SERVER[:-10], "no XML"),
    "two roots": (b"<value/><value/>", "no XML"),
    "entities": (BILLION, "document type"),
    "a file": (b'<!DOCTYPE v [<!ENTITY x SYSTEM "file:///etc/passwd">]><value>&x;</value>', "document type"),
    "an unknown entity": (b"<value>&x;</value>", "no XML"),
    "an unknown encoding": (b'<?xml version="1.0" encoding="x-rot13"?><value/>', "version and objects"),
    "depth": (b"<value><array><data>" * 40, "levels"),
    "depth of structs": (b"<value><struct><member><name>a</name>" * 40, "levels"),
    "structs": (
        b"<value><array><data>" + b"<value><struct/></value>" * 100_000 + b"</data></array></value>",
        "version and",
    ),
    "another element": (b"<value><b>x</b></value>", "<b> has no place"),
    "another root": (b"<methodCall/>", "no place"),
    "a value in a value": (b"<value><value/></value>", "no place"),
    "two types in a value": (b"<value><int>1</int><int>2</int></value>", "no place"),
    "text and a type": (b"<value>x<int>1</int></value>", "text beside"),
    "text in a struct": (b"<value><struct>x</struct></value>", "text in <struct>"),
    "a member without a name": (b"<value><struct><member><value/></member></struct></value>", "name and a value"),
    "a member without a value": (
        b"<value><struct><member><name>x</name></member></struct></value>",
        "name and a value",
    ),
    "a member of two values": (
        b"<value><struct><member><name>x</name><value/><value/></member></struct></value>",
        "name and a value",
    ),
    "the name last": (
        b"<value><struct><member><value><boolean>1</boolean></value><name>x</name></member></struct></value>",
        "name and a value",
    ),
    "a name twice": (
        b"<value><struct>" + b"<member><name>x</name><value/></member>" * 2 + b"</struct></value>",
        "one name",
    ),
    "no integer": (b"<value><int>1e9</int></value>", "no int"),
    "an absurd integer": (b"<value><int>" + b"9" * 100_000 + b"</int></value>", "no int"),
    "no boolean": (b"<value><boolean>yes</boolean></value>", "no boolean"),
    "no number": (b"<value><double>x</double></value>", "no double"),
    "no date": (b"<value><dateTime.iso8601>today</dateTime.iso8601></value>", "no dateTime"),
    "no struct": (b"<value>x</value>", "version and objects"),
    "no objects": (b"<value><struct><member><name>version</name><value/></member></struct></value>", "version and"),
    "an object that is none": (SERVER.replace(b"<name>class</name>", b"<name>klass</name>"), "class, id and snapshot"),
    "too large": (SERVER + b" " * MAX_OVA, "the limit"),
}


@pytest.mark.parametrize(("text", "reason"), REFUSED.values(), ids=REFUSED)
def test_it_is_refused(text: bytes, reason: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(FormatError) as caught:
            parse_ova(text)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert reason in str(caught.value)
    assert peak < 8 * len(text) + (1 << 20)


def test_two_objects_with_one_id_are_refused() -> None:
    with pytest.raises(FormatError, match="same id"):
        parse_ova(build_ova(Ova({}, [OvaObject("VM", "Ref:1", {}), OvaObject("VDI", "Ref:1", {})])))


def test_too_much_is_not_written() -> None:
    with pytest.raises(ValueError, match="limit"):
        build_ova(Ova({"a": "x" * MAX_OVA}, []))


def test_which_disks_an_archive_has() -> None:
    def vdi(ref: str, sr: str = "Ref:50", size: object = "1048576") -> OvaObject:
        return OvaObject("VDI", ref, {"virtual_size": size, "SR": sr})

    def vbd(ref: str, disk: str, kind: str = "Disk", *, empty: bool = False) -> OvaObject:
        return OvaObject("VBD", ref, {"type": kind, "VDI": disk, "empty": empty})

    ova = Ova(
        {},
        [
            OvaObject("VM", "Ref:1", {"suspend_VDI": "Ref:14", "power_state": "Suspended"}),
            OvaObject("VM", "Ref:60", {"suspend_VDI": "Ref:13", "power_state": "Halted"}),
            OvaObject("SR", "Ref:50", {"content_type": "user"}),
            OvaObject("SR", "Ref:51", {"content_type": "iso"}),
            vbd("Ref:2", "Ref:9"),
            vbd("Ref:3", "Ref:10"),
            vbd("Ref:4", "Ref:11", "CD"),
            vbd("Ref:5", "OpaqueRef:NULL", "CD", empty=True),
            vbd("Ref:6", "Ref:12"),
            *(vdi(ref) for ref in ("Ref:9", "Ref:10", "Ref:11", "Ref:13")),
            vdi("Ref:12", "Ref:51"),
            vdi("Ref:14", size=4096),
        ],
    )
    assert disks_of(ova) == [
        Disk("Ref:10", 1 << 20, True),
        Disk("Ref:11", 1 << 20, False),
        Disk("Ref:12", 1 << 20, False),
        Disk("Ref:13", 1 << 20, False),
        Disk("Ref:14", 4096, True),
        Disk("Ref:9", 1 << 20, True),
    ]


@pytest.mark.parametrize(
    ("cls", "field"), [("VBD", "VDI"), ("VDI", "SR"), ("VDI", "virtual_size"), ("VM", "suspend_VDI")], ids=str
)
@pytest.mark.parametrize("value", [[], {}, ["Ref:1"], None, True, 1.5], ids=str)
def test_a_field_of_another_type_is_refused(cls: str, field: str, value: object) -> None:
    records: dict[str, dict[str, object]] = {
        "VBD": {"VDI": "Ref:2"},
        "VDI": {"SR": "Ref:4", "virtual_size": "512"},
        "VM": {"power_state": "Suspended"},
        "SR": {},
    }
    ids = ("Ref:1", "Ref:2", "Ref:3", "Ref:4")
    assert len(disks_of(Ova({}, [OvaObject(*item) for item in zip(records, ids, records.values(), strict=True)]))) == 1
    records[cls][field] = value
    with pytest.raises(FormatError, match=field):
        disks_of(Ova({}, [OvaObject(*item) for item in zip(records, ids, records.values(), strict=True)]))


def test_a_bare_value_can_be_read() -> None:
    assert parse_value(
        b"<value><array><data><value><i4>3</i4></value><value><nil/></value></data></array></value>"
    ) == [
        3,
        None,
    ]
