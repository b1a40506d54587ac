"""Values survive the way through XML-RPC; nothing the server says makes us raise anything but our errors."""

from __future__ import annotations

import xmlrpc.client
from contextlib import suppress
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import FormatError, XapiError
from protocol.xapi.channel import _parse, _value
from protocol.xapi.records import VDIRecord, parse_record
from protocol.xapi.wire import decode_result, failure_in_text, wire_value

# What XML 1.0 can carry; a carriage return becomes a line feed in any XML parser.
TEXT = st.text(st.characters(min_codepoint=32, blacklist_categories=("Cs",), blacklist_characters="\ufffe\uffff"))
VALUES = st.recursive(
    TEXT | st.booleans() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)


@given(VALUES)
def test_results_come_back_as_they_were(value: Any) -> None:
    document = xmlrpc.client.dumps((value,))
    text = document[document.index("<value>") : document.rindex("</value>") + len("</value>")]
    assert decode_result(text) == value


@given(VALUES)
def test_answers_come_back_as_they_were(value: Any) -> None:
    answer = {"Status": "Success", "Value": wire_value(value)}
    (decoded,) = _parse(xmlrpc.client.dumps((answer,), methodresponse=True).encode())
    assert _value(decoded, "VM.get_record") == value


@given(st.text(), st.binary())
def test_nonsense_gives_our_errors_only(text: str, data: bytes) -> None:
    with suppress(FormatError):
        decode_result(f"<value>{text}")
    with suppress(FormatError):
        decode_result(f"<value>{text}</value>")
    with suppress(FormatError, xmlrpc.client.Fault):
        _parse(data)
    with suppress(FormatError, XapiError):
        _value({"Status": text, "ErrorDescription": [text]}, "x")


NAMES = "params param value array data struct member name string int i4 boolean double base64 nil fault methodResponse"
TAGS = st.sampled_from([*NAMES.split(), "dateTime.iso8601"])
CODES = st.from_regex(r"[A-Z]{2,6}(_[A-Z0-9]{1,5}){1,3}", fullmatch=True)


@given(st.lists(st.tuples(TAGS, st.booleans(), TEXT), max_size=12))
def test_misplaced_tags_give_our_errors_only(tags: list[tuple[str, bool, str]]) -> None:
    inside = "".join(f"<{tag}>{text}</{tag}>" if closed else f"<{tag}/>" for tag, closed, text in tags)
    with suppress(FormatError, xmlrpc.client.Fault):
        _parse(f"<methodResponse>{inside}</methodResponse>".encode())


@given(
    st.from_regex(r"[A-Z]{2,6}(_[A-Z0-9]{1,5}){1,3}", fullmatch=True),
    st.lists(st.text("abc []=.", max_size=8), min_size=2),
)
def test_codes_and_parameters_of_error_pages(code: str, params: list[str]) -> None:
    error = failure_in_text(
        f"<html><body>Additional information </h1>{code}: [ {'; '.join(params)} ]</body></html>", ""
    )
    assert error is not None
    assert error.code == code
    assert "".join(error.params).replace(" ", "") == "".join(params).replace(" ", "")


@given(st.dictionaries(st.sampled_from(["uuid", "SR", "virtual_size", "tags", "sm_config", "cbt_enabled"]), VALUES))
def test_odd_records_give_our_errors_only(record: dict[str, Any]) -> None:
    with suppress(FormatError):
        parse_record(VDIRecord, "OpaqueRef:1", record)
