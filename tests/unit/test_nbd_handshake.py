"""The server's side of the handshake, byte for byte, with no connection anywhere."""

import struct

import pytest

from protocol.nbd.handshake import Action, Close, Handshake, Listed, Manners, Open, Reply, StartTls

XAPI = Manners("none", modern=False)
XAPI_TLS = Manners("forced", modern=False)
MODERN = Manners("none")
EXPORT_NAME, ABORT, LIST, STARTTLS, INFO, GO, STRUCTURED, LIST_META, SET_META = 1, 2, 3, 5, 6, 7, 8, 9, 10
ACK, UNSUP, POLICY, INVALID, TLS_REQD, UNKNOWN = 1, 0x80000001, 0x80000002, 0x80000003, 0x80000005, 0x80000006
CONTEXT = b"base:allocation"


def greeted(manners: Manners, flags: int = 1) -> Handshake:
    handshake = Handshake(manners)
    assert handshake.wanted == 4
    assert handshake.take(struct.pack(">I", flags)) == Reply(b"")
    assert handshake.wanted == 16
    return handshake


def option(handshake: Handshake, number: int, payload: bytes = b"") -> Action:
    """Send an option, giving the handshake exactly the bytes it wants."""
    assert handshake.wanted == 16
    action = handshake.take(b"IHAVEOPT" + struct.pack(">II", number, len(payload)))
    if payload:
        assert action == Reply(b"")
        assert handshake.wanted == len(payload)
        action = handshake.take(payload)
    return action


def answer(number: int, kind: int, payload: bytes = b"") -> bytes:
    return bytes.fromhex("0003e889045565a9") + struct.pack(">III", number, kind, len(payload)) + payload


def meta(*queries: bytes) -> bytes:
    texts = b"".join(struct.pack(">I", len(query)) + query for query in queries)
    return struct.pack(">I", 4) + b"disk" + struct.pack(">I", len(queries)) + texts


GO_DISK = struct.pack(">I", 4) + b"disk" + struct.pack(">H", 0)


@pytest.mark.parametrize(("manners", "flags"), [(XAPI, "0001"), (XAPI_TLS, "0001"), (MODERN, "0003")])
def test_the_greeting(manners: Manners, flags: str) -> None:
    assert Handshake(manners).greeting() == bytes.fromhex("4e42444d41474943 49484156454f5054" + flags)


def test_the_way_into_xapis_server() -> None:
    handshake = greeted(XAPI)
    assert option(handshake, EXPORT_NAME, b"/uuid?session_id=x") == Open("/uuid?session_id=x")
    assert not handshake.done
    assert handshake.opened(1 << 40, 3) == bytes.fromhex("0000010000000000 0003") + bytes(124)
    assert handshake.done


def test_xapis_server_always_sends_the_zeros() -> None:
    handshake = greeted(XAPI, flags=3)  # a client that asks for what was not offered
    option(handshake, EXPORT_NAME, b"disk")
    assert len(handshake.opened(512, 3)) == 134


@pytest.mark.parametrize("number", [INFO, GO, STRUCTURED, LIST_META, SET_META, 4, 11, 0xFFFFFFFF])
def test_what_xapis_server_does_not_know(number: int) -> None:
    handshake = greeted(XAPI)
    assert option(handshake, number, GO_DISK) == Reply(answer(number, UNSUP))
    assert option(handshake, EXPORT_NAME, b"disk") == Open("disk")  # and one can go on


@pytest.mark.parametrize("manners", [XAPI, MODERN])
def test_exports_are_not_listed_and_plain_stays_plain(manners: Manners) -> None:
    handshake = greeted(manners)
    assert option(handshake, LIST) == Reply(answer(LIST, POLICY))
    assert option(handshake, STARTTLS) == Reply(answer(STARTTLS, POLICY))
    assert option(handshake, ABORT) == Close(answer(ABORT, ACK))


def test_block_status_is_for_the_export_it_was_asked_for() -> None:
    for other, agreed in ((GO_DISK, True), (struct.pack(">I", 4) + b"else" + struct.pack(">H", 0), False)):
        handshake = greeted(MODERN)
        assert option(handshake, STRUCTURED, b"x") == Reply(answer(STRUCTURED, INVALID))
        assert option(handshake, STRUCTURED) == Reply(answer(STRUCTURED, ACK))
        option(handshake, SET_META, meta(CONTEXT))
        assert isinstance(option(handshake, GO, other), Open)
        handshake.opened(512, 3)
        assert handshake.done
        assert handshake.allocation is agreed


def test_list_names_the_exports_where_the_server_wants_that() -> None:
    handshake = Handshake(Manners(exports=(Listed("0", "röot"), Listed("xvdb", ""))))
    handshake.take(bytes(4))
    names = answer(LIST, 2, b"\0\0\0\x010" + "röot".encode()) + answer(LIST, 2, b"\0\0\0\x04xvdb")
    assert option(handshake, LIST) == Reply(names + answer(LIST, ACK))
    assert option(handshake, LIST, b"0") == Reply(answer(LIST, INVALID))


@pytest.mark.parametrize("number", [LIST, INFO, GO, STRUCTURED, LIST_META, SET_META, 99])
def test_tls_is_required_first(number: int) -> None:
    assert option(greeted(XAPI_TLS), number, b"xx") == Reply(answer(number, TLS_REQD))


@pytest.mark.parametrize("number", [EXPORT_NAME, ABORT])
def test_before_tls_these_close_without_a_word(number: int) -> None:
    assert option(greeted(XAPI_TLS), number, b"disk") == Close(b"")


def test_the_change_to_tls() -> None:
    handshake = greeted(XAPI_TLS)
    assert option(handshake, STARTTLS) == StartTls(bytes.fromhex("0003e889045565a9 00000005 00000001 00000000"))
    assert option(handshake, STARTTLS) == Reply(answer(STARTTLS, INVALID))
    assert option(handshake, GO, GO_DISK) == Reply(answer(GO, UNSUP))
    assert option(handshake, EXPORT_NAME, b"disk") == Open("disk")


def test_a_refusal_has_no_words_in_xapis_dialect() -> None:
    handshake = greeted(XAPI)
    option(handshake, EXPORT_NAME, b"disk")
    assert handshake.refused() == Close(b"")


@pytest.mark.parametrize("manners", [XAPI, MODERN])
@pytest.mark.parametrize(
    "head",
    [b"IHAVEOPX" + struct.pack(">II", 1, 4), b"IHAVEOPT" + struct.pack(">II", 1, 0xFFFFFFFF)],
    ids=["magic", "length"],
)
def test_nonsense_closes_the_connection(manners: Manners, head: bytes) -> None:
    assert greeted(manners).take(head) == Close(b"")


def test_a_name_that_is_no_text_closes_the_connection() -> None:
    assert option(greeted(XAPI), EXPORT_NAME, b"\xff\xfe") == Close(b"")


def test_an_empty_name_is_a_name() -> None:
    assert option(greeted(XAPI), EXPORT_NAME) == Open("")


# --- modern manners


def test_zeros_are_left_out_where_both_sides_agree() -> None:
    handshake = greeted(MODERN, flags=3)
    option(handshake, EXPORT_NAME, b"disk")
    assert handshake.opened(512, 3) == struct.pack(">QH", 512, 3)


def test_client_flags_nobody_knows_close_the_connection() -> None:
    assert Handshake(MODERN).take(struct.pack(">I", 4)) == Close(b"")
    assert Handshake(XAPI).take(struct.pack(">I", 4)) == Reply(b"")


def test_go_and_info() -> None:
    handshake = greeted(MODERN)
    for number in (INFO, GO):
        assert not handshake.done
        assert option(handshake, number, GO_DISK) == Open("disk")
        assert handshake.opened(4096, 0x183) == (
            answer(number, 3, bytes.fromhex("0000 0000000000001000 0183"))
            + answer(number, 3, bytes.fromhex("0003 00000001 00001000 02000000"))
            + answer(number, ACK)
        )
    assert handshake.done


def test_go_can_be_refused_and_tried_again() -> None:
    handshake = greeted(MODERN)
    option(handshake, GO, GO_DISK)
    assert handshake.refused() == Reply(answer(GO, UNKNOWN))
    assert option(handshake, GO, GO_DISK) == Open("disk")


@pytest.mark.parametrize(
    "payload", [b"", b"\0\0\0", struct.pack(">I", 5) + b"disk", struct.pack(">I", 2) + b"\xff\xff"]
)
def test_a_malformed_go_is_invalid(payload: bytes) -> None:
    assert option(greeted(MODERN), GO, payload) == Reply(answer(GO, INVALID))


def test_meta_contexts_come_after_structured_replies() -> None:
    handshake = greeted(MODERN)
    assert option(handshake, SET_META, meta(CONTEXT)) == Reply(answer(SET_META, INVALID))
    assert option(handshake, STRUCTURED) == Reply(answer(STRUCTURED, ACK))
    assert (handshake.structured, handshake.allocation) == (True, False)
    chosen = answer(SET_META, 4, b"\0\0\0\1" + CONTEXT) + answer(SET_META, ACK)
    assert option(handshake, SET_META, meta(b"qemu:dirty", CONTEXT)) == Reply(chosen)
    option(handshake, GO, GO_DISK)
    assert handshake.allocation
    assert option(handshake, SET_META, meta(b"qemu:dirty")) == Reply(answer(SET_META, ACK))
    option(handshake, GO, GO_DISK)
    assert not handshake.allocation  # the last choice counts


@pytest.mark.parametrize("queries", [(), (b"base:",), (CONTEXT,)], ids=str)
def test_meta_contexts_can_be_listed(queries: tuple[bytes, ...]) -> None:
    handshake = greeted(MODERN)
    option(handshake, STRUCTURED)
    listed = answer(LIST_META, 4, bytes(4) + CONTEXT) + answer(LIST_META, ACK)
    assert option(handshake, LIST_META, meta(*queries)) == Reply(listed)
    option(handshake, GO, GO_DISK)
    assert not handshake.allocation  # nothing was chosen


@pytest.mark.parametrize(
    "payload",
    [b"", meta()[:-1], meta(CONTEXT)[:-1], meta(CONTEXT) + b"\0", struct.pack(">I", 0) + b"\xff\xff\xff\xff"],
    ids=["empty", "no count", "cut", "too long", "count"],
)
def test_malformed_meta_contexts_are_invalid(payload: bytes) -> None:
    handshake = greeted(MODERN)
    option(handshake, STRUCTURED)
    assert option(handshake, SET_META, payload) == Reply(answer(SET_META, INVALID))
