"""The server's side of the handshake against rubbish, and its answers byte by byte."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.nbd.handshake import Close, Handshake, Manners, Open, Reply, StartTls

XAPI_PLAIN = Manners("none", modern=False)
XAPI_TLS = Manners("forced", modern=False)
MODERN = Manners()
every_manner = pytest.mark.parametrize("manners", [XAPI_PLAIN, XAPI_TLS, MODERN, Manners("forced")], ids=str)


def reply(option: int, answer: int, payload: bytes = b"") -> bytes:
    return struct.pack(">QIII", 0x0003E889045565A9, option, answer, len(payload)) + payload


def begun(manners: Manners, flags: int = 1) -> Handshake:
    handshake = Handshake(manners)
    assert handshake.wanted == 4
    assert handshake.take(struct.pack(">I", flags)) == Reply(b"")
    return handshake


def ask(handshake: Handshake, option: int, payload: bytes = b""):
    assert handshake.wanted == 16
    action = handshake.take(b"IHAVEOPT" + struct.pack(">II", option, len(payload)))
    if payload:
        assert action == Reply(b"")
        assert handshake.wanted == len(payload)
        action = handshake.take(payload)
    return action


def named(name: bytes, *info: int) -> bytes:
    return struct.pack(">I", len(name)) + name + struct.pack(f">H{len(info)}H", len(info), *info)


@every_manner
@given(data=st.data())
def test_rubbish_is_answered_or_ends_it(manners: Manners, data: st.DataObject):
    handshake = Handshake(manners)
    for _ in range(8):
        assert 0 < handshake.wanted <= 1 << 16
        option = st.builds(
            lambda option, length: b"IHAVEOPT" + struct.pack(">II", option, length),
            st.integers(0, 12),
            st.integers(0, 40),
        )
        size = handshake.wanted
        piece = data.draw(option if size == 16 else st.binary(min_size=size, max_size=size))
        match handshake.take(piece):
            case Close():
                return
            case Open():
                refusal = handshake.refused()
                if isinstance(refusal, Close):
                    return
            case Reply(answer) | StartTls(answer):
                assert answer == b"" or answer.startswith(bytes.fromhex("0003e889045565a9"))


def test_a_payload_of_unreasonable_length_ends_it():
    handshake = begun(MODERN)
    assert handshake.take(b"IHAVEOPT" + struct.pack(">II", 6, 1 << 31)) == Close()


def test_zeroes_are_left_out_only_where_both_agreed():
    assert Handshake(MODERN).greeting()[-2:] == b"\0\3"
    assert Handshake(XAPI_TLS).greeting()[-2:] == b"\0\1"
    for manners, flags, zeroes in [(MODERN, 1, 124), (MODERN, 3, 0), (XAPI_PLAIN, 3, 124)]:
        handshake = begun(manners, flags)
        assert ask(handshake, 1, b"disk") == Open("disk")
        assert handshake.opened(1 << 20, 3) == struct.pack(">QH", 1 << 20, 3) + bytes(zeroes)
        assert handshake.done


def test_go_tells_size_and_block_sizes():
    handshake = begun(MODERN)
    for option, done in ((6, False), (7, True)):
        assert ask(handshake, option, named(b"disk", 3)) == Open("disk")
        assert handshake.opened(1 << 20, 0x103) == (
            reply(option, 3, struct.pack(">HQH", 0, 1 << 20, 0x103))
            + reply(option, 3, struct.pack(">HIII", 3, 1, 4096, 32 << 20))
            + reply(option, 1)
        )
        assert handshake.done is done


def test_an_export_that_is_not_there():
    handshake = begun(MODERN)
    assert ask(handshake, 7, named(b"none")) == Open("none")
    assert handshake.refused() == Reply(reply(7, (1 << 31) + 6))
    assert ask(handshake, 1, b"none") == Open("none")
    assert handshake.refused() == Close()


def test_block_status_needs_structured_replies_first():
    handshake = begun(MODERN)
    query = struct.pack(">I", 4) + b"disk" + struct.pack(">II", 1, 15) + b"base:allocation"
    assert ask(handshake, 10, query) == Reply(reply(10, (1 << 31) + 3))
    assert not handshake.allocation
    assert ask(handshake, 8) == Reply(reply(8, 1))
    assert ask(handshake, 10, query) == Reply(reply(10, 4, struct.pack(">I", 1) + b"base:allocation") + reply(10, 1))
    assert handshake.structured
    assert handshake.allocation
    other = struct.pack(">I", 4) + b"disk" + struct.pack(">II", 1, 6) + b"qemu:x"
    assert ask(handshake, 10, other) == Reply(reply(10, 1))
    assert not handshake.allocation


@pytest.mark.parametrize("payload", [b"", b"\0\0\0\5disk", b"\0\0\0\0\0\0\0\2\0\0\0\1x", b"\0\0\0\0\0\0\0\1\0\0\0\2x"])
def test_queries_that_are_cut_off_are_invalid(payload: bytes):
    handshake = begun(MODERN)
    ask(handshake, 8)
    assert ask(handshake, 10, payload) == Reply(reply(10, (1 << 31) + 3))


def test_tls_is_asked_for_once():
    handshake = begun(XAPI_TLS)
    assert ask(handshake, 5) == StartTls(reply(5, 1))
    assert ask(handshake, 5) == Reply(reply(5, (1 << 31) + 3))
    assert ask(handshake, 1, b"disk") == Open("disk")
