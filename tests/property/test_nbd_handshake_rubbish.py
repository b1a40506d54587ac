"""The server's side of the handshake against rubbish."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.nbd.handshake import Close, Handshake, Listed, Manners, Open, Reply, StartTls

XAPI_PLAIN = Manners("none", modern=False)
XAPI_TLS = Manners("forced", modern=False)
MODERN = Manners()
LISTING = Manners(exports=(Listed("0", "root"),))
every_manner = pytest.mark.parametrize("manners", [XAPI_PLAIN, XAPI_TLS, MODERN, LISTING, Manners("forced")], ids=str)


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
