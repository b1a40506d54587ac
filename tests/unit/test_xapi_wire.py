"""Decoding what the pool's API and its handlers send."""

from __future__ import annotations

import struct

import pytest

from protocol.errors import FormatError
from protocol.secret import Secret
from protocol.xapi.wire import (
    END_OF_FRAMES,
    decode_result,
    failure,
    failure_in_text,
    frame_head,
    framed_length,
    is_response_head,
    wire_value,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", ""),
        ("<value>OpaqueRef:1</value>", "OpaqueRef:1"),
        ("<value><string>x</string></value>", "x"),
        ("<value></value>", ""),
        ("<value>&lt;a&gt; &amp; &quot;b&quot;</value>", '<a> & "b"'),
        ("<value><array><data><value>a</value><value>b</value></data></array></value>", ["a", "b"]),
        ("<value><array><data/></array></value>", []),
        ("<value><struct><member><name>k</name><value>v</value></member></struct></value>", {"k": "v"}),
        ("<value><boolean>1</boolean></value>", True),
        ("<value><dateTime.iso8601>20260821T02:00:23Z</dateTime.iso8601></value>", "20260821T02:00:23Z"),
        ("plain", "plain"),
    ],
)
def test_a_tasks_result(text: str, value: object) -> None:
    assert decode_result(text) == value


@pytest.mark.parametrize(
    "text", ["<value>", "<value>a</value><value>b</value>", "<value>\x1b</value>", "<value><int>x</int></value>"]
)
def test_a_result_that_is_none(text: str) -> None:
    with pytest.raises(FormatError):
        decode_result(text)


def test_the_error_of_a_page() -> None:
    page = (
        "<html><body><h1>HTTP 500 internal server error</h1>An unexpected error occurred; … "
        "<h1> Additional information </h1>SR_BACKEND_FAILURE_46: [ ; The VDI is not available [opterr=VDI x not "
        "detached cleanly];  ]</body></html>"
    )
    error = failure_in_text(page, "/export_raw_vdi")
    assert error is not None
    assert error.code == "SR_BACKEND_FAILURE_46"
    assert error.params == ("", "The VDI is not available [opterr=VDI x not detached cleanly]", "")
    assert error.call == "/export_raw_vdi"


@pytest.mark.parametrize(
    ("text", "code", "params"),
    [
        ("VDI_IN_USE: [ OpaqueRef:x; destroy ]", "VDI_IN_USE", ("OpaqueRef:x", "destroy")),
        ("HOST_STILL_BOOTING: [  ]", "HOST_STILL_BOOTING", ()),
        ("INTERNAL_ERROR: [ a &lt;b&gt; ]", "INTERNAL_ERROR", ("a <b>",)),
    ],
)
def test_errors_in_other_texts(text: str, code: str, params: tuple[str, ...]) -> None:
    error = failure_in_text(text, "")
    assert error is not None
    assert (error.code, error.params) == (code, params)


@pytest.mark.parametrize("text", ["", "<html>Not Found</html>", "HTTP: [ x ]", "CODE_X: nothing"])
def test_no_error_in_a_text(text: str) -> None:
    assert failure_in_text(text, "") is None


def test_an_error_without_a_code() -> None:
    assert failure([], "VM.start").code == "INTERNAL_ERROR"
    assert failure("text", "VM.start").code == "INTERNAL_ERROR"
    assert failure(["A", "b"], "VM.start").params == ("b",)


def test_response_heads() -> None:
    assert is_response_head(b"HTTP/1.1 500 Internal Error\r\n")
    assert is_response_head(b"HTTP/1.0 404")
    assert not is_response_head(b"HTTP/1.1")
    assert not is_response_head(b"conectix")
    assert not is_response_head(b"HTTP/2.0 500")


def test_frames() -> None:
    assert frame_head(1 << 33, 65536) == struct.pack("<Q", 1 << 33) + struct.pack("<I", 65536)
    assert bytes(12) == END_OF_FRAMES
    assert framed_length([1, 2]) == 12 + 1 + 12 + 2 + 12
    for offset, length in [(0, 0), (0, 1 << 32), (-1, 1), (1 << 63, 1)]:
        with pytest.raises(ValueError, match="frame"):
            frame_head(offset, length)


def test_arguments() -> None:
    given = {"n": 5, "b": True, "f": 1.0, "s": Secret("hidden"), "l": [1, "x"]}
    assert wire_value(given) == {"n": "5", "b": True, "f": 1.0, "s": "hidden", "l": ["1", "x"]}
