"""What the simulated pool puts on the wire, read by the standard library; and rubbish, which is refused."""

from __future__ import annotations

import json
import xmlrpc.client
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mover.simulator import jsonrpc
from mover.simulator import xmlrpc as ours
from mover.simulator.values import BadValueError, Type, coerce, parse_stamp, parse_type, stamp
from mover.simulator.xmlrpc import MalformedCallError

# What XML 1.0 can carry; a carriage return would come back as a line feed.
TEXT = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="\ufffe\uffff"))
INTS = st.integers(-(2**63), 2**63 - 1)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
DATES = st.datetimes(datetime(1000, 1, 1), datetime(9999, 1, 1)).map(lambda d: d.replace(microsecond=0, tzinfo=UTC))
SCALARS = st.one_of(TEXT, INTS, FLOATS, st.booleans(), DATES)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4), max_leaves=20
)


def as_xml_tells(value: Any) -> Any:
    """A value as a reader of XAPI's XML-RPC gets it: integers have become text."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return float(f"{value:.16g}")
    if isinstance(value, datetime):
        return xmlrpc.client.DateTime(stamp(value))
    if isinstance(value, list):
        return [as_xml_tells(item) for item in value]
    if isinstance(value, dict):
        return {key: as_xml_tells(item) for key, item in value.items()}
    return value


@given(VALUES)
def test_results_in_xml_are_read_by_the_standard_library(value: Any) -> None:
    ((answer,), method) = xmlrpc.client.loads(ours.encode_result(value))
    assert method is None
    assert answer == {"Status": "Success", "Value": as_xml_tells(value)}


@given(st.lists(TEXT, min_size=1))
def test_failures_in_xml_are_read_by_the_standard_library(description: list[str]) -> None:
    ((answer,), _) = xmlrpc.client.loads(ours.encode_failure(description))
    assert answer == {"Status": "Failure", "ErrorDescription": description}


def test_scalars_have_the_shapes_of_the_servers() -> None:
    assert ours.encode_value(12884901888) == "<value>12884901888</value>"
    assert ours.encode_value(True) == "<value><boolean>1</boolean></value>"
    assert ours.encode_value("a<b&\"c'>") == "<value>a&lt;b&amp;&quot;c'&gt;</value>"
    assert ours.encode_value(0.1) == "<value><double>0.1</double></value>"
    assert ours.encode_value(1.0) == "<value><double>1</double></value>"
    assert ours.encode_value("") == ours.encode_value(None) == "<value></value>"
    date = datetime(2026, 8, 21, 2, 0, 23, tzinfo=UTC)
    assert ours.encode_value(date) == "<value><dateTime.iso8601>20260821T02:00:23Z</dateTime.iso8601></value>"
    assert ours.encode_value([1]) == "<value><array><data><value>1</value></data></array></value>"
    struct = "<value><struct><member><name>k</name><value>v</value></member></struct></value>"
    assert ours.encode_value({"k": "v"}) == struct


JSON_VALUES = st.recursive(
    st.one_of(st.text(), INTS, FLOATS, st.booleans(), st.none()),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(st.text(), st.lists(JSON_VALUES), st.one_of(INTS, st.text()), st.sampled_from([1, 2]))
def test_calls_in_json_come_in_as_they_are(name: str, params: list[Any], number: int | str, version: int) -> None:
    call = {"method": name, "params": params, "id": number} | ({"jsonrpc": "2.0"} if version == 2 else {})
    assert jsonrpc.decode_call(json.dumps(call).encode()) == jsonrpc.Request(name, params, number, version)


@given(VALUES, st.one_of(INTS, TEXT), st.sampled_from([1, 2]))
def test_results_in_json_have_the_shape_of_their_version(value: Any, number: int | str, version: int) -> None:
    answer = json.loads(jsonrpc.encode_result(jsonrpc.Request("m", [], number, version), value))
    result = json.loads(json.dumps(value, default=stamp))
    if version == 2:
        assert answer == {"jsonrpc": "2.0", "result": result, "id": number}
    else:
        assert answer == {"result": result, "error": None, "id": number}


def test_failures_in_json_have_three_shapes() -> None:
    description = ["HANDLE_INVALID", "VM", "OpaqueRef:x"]
    first, second = (jsonrpc.Request("m", [], 3, version) for version in (1, 2))
    assert json.loads(jsonrpc.encode_failure(first, description)) == {"result": None, "error": description, "id": 3}
    assert json.loads(jsonrpc.encode_failure(second, description)) == {
        "jsonrpc": "2.0",
        "error": {"code": 1, "message": "HANDLE_INVALID", "data": ["VM", "OpaqueRef:x"]},
        "id": 3,
    }
    early = json.loads(jsonrpc.encode_early_failure(["HOST_STILL_BOOTING"]))
    assert early == {"jsonrpc": "2.0", "error": ["HOST_STILL_BOOTING"], "id": 0}


@given(st.binary() | st.text().map(str.encode) | JSON_VALUES.map(lambda value: json.dumps(value).encode()))
def test_rubbish_is_refused(body: bytes) -> None:
    for decode in (ours.decode_call, jsonrpc.decode_call):
        with pytest.raises(MalformedCallError):
            decode(body)


@pytest.mark.parametrize(
    "body",
    [
        b'{"method":"a","params":[]}',
        b'{"method":"a","params":[],"id":null}',
        b'{"method":"a","params":[],"id":true}',
        b'{"method":"a","params":[],"id":1.5}',
        b'{"method":"a","params":"x","id":1}',
        b'{"method":1,"params":[],"id":1}',
        b'{"method":"a","params":' + b"[" * 100_000,
    ],
)
def test_malformed_json_calls_are_refused(body: bytes) -> None:
    with pytest.raises(MalformedCallError):
        jsonrpc.decode_call(body)


def test_deep_xml_is_refused() -> None:
    deep = b"<value><array><data>" * 12_000 + b"</data></array></value>" * 12_000
    with pytest.raises(MalformedCallError):
        ours.decode_call(
            b"<methodCall><methodName>a</methodName><params><param>" + deep + b"</param></params></methodCall>"
        )


def test_parameters_come_in_typed_or_as_text() -> None:
    body = b"""<?xml version="1.0"?><methodCall><methodName>VDI.resize</methodName><params>
        <param><value>OpaqueRef:s</value></param><param><value><int>5</int></value></param>
        <param><value><i4>6</i4></value></param><param><value><string>7</string></value></param>
        <param><value><dateTime.iso8601>20260821T02:00:23Z</dateTime.iso8601></value></param></params></methodCall>"""
    name, params = ours.decode_call(body)
    assert name == "VDI.resize"
    assert params == ["OpaqueRef:s", 5, 6, "7", datetime(2026, 8, 21, 2, 0, 23, tzinfo=UTC)]
    assert [coerce(Type("int"), value) for value in params[1:4]] == [5, 6, 7]


@given(DATES)
def test_dates_survive(date: datetime) -> None:
    assert parse_stamp(stamp(date)) == date


@pytest.mark.parametrize("value", [5, "5", True, None])
def test_a_float_has_to_come_as_one(value: Any) -> None:
    with pytest.raises(BadValueError):
        coerce(Type("float"), value)


@pytest.mark.parametrize("value", [2**63, str(2**63), "", "x", 1.5, True, "9" * 5000, None, []])
def test_an_int_has_64_bits(value: Any) -> None:
    with pytest.raises(BadValueError):
        coerce(Type("int"), value)


TYPE_TEXTS = st.recursive(
    st.sampled_from(["int", "float", "string", "bool", "datetime", "VM ref", "VDI record", "enum vdi_type"]),
    lambda inner: (
        inner.map("{} set".format) | st.tuples(inner, inner).map(lambda pair: f"({pair[0]} -> {pair[1]}) map")
    ),
    max_leaves=1,
)


@given(TYPE_TEXTS)
def test_types_are_written_as_they_are_read(text: str) -> None:
    assert str(parse_type(text)) == text
