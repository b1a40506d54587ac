"""Calls and sessions against a pool on raw sockets, awkward manners included."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import (
    FormatError,
    PoolCertificateError,
    PoolUnreachableError,
    XapiError,
)
from protocol.secret import Secret
from protocol.xapi import Patience, Trust, connect
from protocol.xapi.absence import Absence
from protocol.xapi.trust import fingerprint, format_fingerprint
from tests.rawpool_fixtures import (
    PASSWORD,
    QUICK,
    USER,
    Certificate,
    Refused,
    joined,
    make_certificate,
    raw_pool,
)


def pin(certificate: Certificate) -> str:
    return format_fingerprint(fingerprint(certificate.der))


async def test_versions_hosts_and_values_without_types() -> None:
    async with raw_pool() as server:
        server.methods["VDI.get_record"] = lambda ref: {"virtual_size": "12884901888", "tags": [], "ref": ref}
        async with joined(server) as pool:
            assert pool.version.product == "XCP-ng"
            assert pool.version.api == (2, 21)
            assert [host.address for host in pool.hosts.values()] == ["127.0.0.1"]
            record = await pool.call("VDI.get_record", "OpaqueRef:x")
            assert record == {"virtual_size": "12884901888", "tags": [], "ref": "OpaqueRef:x"}
        assert server.sessions == set()


async def test_integers_and_secrets_travel_as_strings() -> None:
    seen: list[Any] = []
    async with raw_pool() as server:
        server.methods["VDI.create"] = lambda record: seen.append(record) or "OpaqueRef:new"
        async with joined(server) as pool:
            await pool.call("VDI.create", {"virtual_size": 1 << 40, "read_only": False, "key": Secret("s"), "f": 1.0})
    assert seen == [{"virtual_size": str(1 << 40), "read_only": False, "key": "s", "f": 1.0}]


async def test_wrong_password_is_not_tried_again() -> None:
    async with raw_pool() as server:
        with pytest.raises(XapiError) as caught:
            async with connect(server.url, USER, Secret("wrong"), Trust.system(), patience=QUICK):
                pass
        assert caught.value.code == "SESSION_AUTHENTICATION_FAILED"
        assert server.calls.count("session.login_with_password") == 1


async def test_logs_out_when_the_body_fails_and_when_it_is_cancelled() -> None:
    async with raw_pool() as server:
        with pytest.raises(ZeroDivisionError):
            async with joined(server):
                _ = 1 // 0
        assert server.sessions == set()
        entered = asyncio.Event()

        async def stay() -> None:
            async with joined(server):
                entered.set()
                await asyncio.Event().wait()

        async with asyncio.TaskGroup() as group:
            task = group.create_task(stay())
            await entered.wait()
            assert server.sessions
            task.cancel()
        assert server.sessions == set()


async def test_a_member_sends_us_to_the_master(tmp_path: Path) -> None:
    async with raw_pool() as master, raw_pool(host="127.0.0.2", port=master.port) as member:

        def refuse(*_: str) -> str:
            raise Refused("HOST_IS_SLAVE", "127.0.0.1")

        member.methods["session.login_with_password"] = refuse
        async with joined(member) as pool:
            assert pool.address.host == "127.0.0.1"
            assert len(master.sessions) == 1
        assert master.sessions == set()


async def test_hosts_that_name_each_other_as_master_are_given_up() -> None:
    async with raw_pool() as server:

        def refuse(*_: str) -> str:
            raise Refused("HOST_IS_SLAVE", "127.0.0.1")

        server.methods["session.login_with_password"] = refuse
        with pytest.raises(PoolUnreachableError, match="each other"):
            async with joined(server, patience=Patience(attempts=1)):
                pass


async def test_a_host_that_is_no_longer_the_master_sends_any_call_on() -> None:
    async with raw_pool() as one, raw_pool(host="127.0.0.2", port=one.port) as two:
        made: list[str] = []
        two.methods["VM.create"] = lambda record: made.append("vm") or "OpaqueRef:vm"
        async with joined(one) as pool:

            def refuse(*_: Any) -> str:
                raise Refused("HOST_IS_SLAVE", "127.0.0.2")

            one.methods["VM.create"] = one.methods["session.login_with_password"] = refuse
            assert await pool.call("VM.create", {}) == "OpaqueRef:vm"
            assert pool.address.host == "127.0.0.2"
        assert made == ["vm"]
        assert two.sessions == set()


async def test_a_login_that_is_cancelled_leaves_no_session() -> None:
    async with raw_pool() as server:
        asked, answer = asyncio.Event(), asyncio.Event()

        async def slow(*_: str) -> str:
            asked.set()
            await answer.wait()
            server.sessions.add("OpaqueRef:late")
            return "OpaqueRef:late"

        async def join() -> None:
            async with joined(server):
                pass

        server.methods["session.login_with_password"] = slow
        async with asyncio.TaskGroup() as group:
            task = group.create_task(join())
            await asked.wait()
            task.cancel()
            answer.set()
        assert "session.logout" in server.calls
        assert server.sessions == set()


async def test_an_expired_session_is_renewed_and_a_read_repeated() -> None:
    async with raw_pool() as server:
        server.methods["VM.get_all"] = lambda: ["OpaqueRef:vm"]
        async with joined(server) as pool:
            before = pool.session_ref
            server.sessions.clear()
            assert await pool.call("VM.get_all") == ["OpaqueRef:vm"]
            assert pool.session_ref != before
        assert server.sessions == set()


async def test_an_expired_session_does_not_repeat_a_change() -> None:
    async with raw_pool() as server:
        server.methods["VM.create"] = lambda record: "OpaqueRef:vm"
        async with joined(server) as pool:
            server.sessions.clear()
            with pytest.raises(XapiError) as caught:
                await pool.call("VM.create", {})
            assert caught.value.code == "SESSION_INVALID"
            assert await pool.call("VM.create", {}) == "OpaqueRef:vm"
        assert server.calls.count("VM.create") == 2


async def test_an_expired_session_repeats_what_only_begins_a_task() -> None:
    async with raw_pool() as server:
        server.methods["Async.VM.create"] = lambda record: "OpaqueRef:task"
        async with joined(server) as pool:
            server.sessions.clear()
            assert await pool.call("Async.VM.create", {}) == "OpaqueRef:task"
        assert server.calls.count("Async.VM.create") == 2


@pytest.mark.parametrize(("method", "sent"), [("VM.get_all", 2), ("VM.create", 1)])
async def test_a_lost_answer_repeats_reads_only(method: str, sent: int) -> None:
    received: list[str] = []

    async with raw_pool() as server:

        async def drop_first(name: str, writer: asyncio.StreamWriter) -> bool:
            if name == method:
                received.append(name)
            return name != method or len(received) > 1

        server.before = drop_first
        server.methods[method] = lambda *_: "done"
        async with joined(server) as pool:
            if sent == 2:
                assert await pool.call(method) == "done"
            else:
                with pytest.raises(PoolUnreachableError, match=method):
                    await pool.call(method, {})
    assert len(received) == sent


@pytest.mark.parametrize(("method", "sent"), [("VM.get_all", 2), ("VM.create", 1)])
@pytest.mark.parametrize("tls", [False, True])
@pytest.mark.parametrize(
    "cut",
    [
        b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n<methodResponse><params><param><value><str",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n<methodResponse/>",
        b"HTTP/1.1 200 OK\r\n\r\n<methodResponse><params><param><value><string>a</str",
        b"HTTP/1.1 200 OK\r\n\r\n<methodResponse><params><param><value><string>caf\xc3",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-le",
    ],
    ids=["no body", "in a tag", "short", "in a tag, no length", "in a letter, no length", "no body, no length", "head"],
)
async def test_an_answer_cut_in_the_middle_is_a_lost_one(
    tmp_path: Path, method: str, sent: int, tls: bool, cut: bytes
) -> None:
    received: list[str] = []
    certificate = make_certificate(tmp_path, "host") if tls else None
    async with raw_pool(certificate) as server:

        async def cut_first(name: str, writer: asyncio.StreamWriter) -> bool:
            if name == method:
                received.append(name)
            if name != method or len(received) > 1:
                return True
            writer.write(cut)
            return False

        server.before = cut_first
        server.methods[method] = lambda *_: "done"
        async with joined(server, Trust.pinned(pin(certificate)) if certificate else None) as pool:
            if sent == 2:
                assert await pool.call(method) == "done"
            else:
                with pytest.raises(PoolUnreachableError, match=method):
                    await pool.call(method, {})
    assert len(received) == sent


async def test_an_answer_longer_than_any_is_no_lost_one(monkeypatch: pytest.MonkeyPatch) -> None:
    async with raw_pool() as server:
        server.methods["VM.get_all"] = lambda: ["x" * 100_000]
        async with joined(server) as pool:
            monkeypatch.setattr("protocol.xapi.channel.MAX_ANSWER", 10_000)
            with pytest.raises(FormatError, match="larger than 10000 bytes"):
                await pool.call("VM.get_all")
            server.methods["VM.get_all"] = list
            assert await pool.call("VM.get_all") == []
        assert server.calls.count("VM.get_all") == 2


async def test_an_idle_connection_that_the_server_closed_loses_no_call() -> None:
    async with raw_pool() as server:
        writers: list[asyncio.StreamWriter] = []

        async def remember(name: str, writer: asyncio.StreamWriter) -> bool:
            writers.append(writer)
            return True

        server.before = remember
        server.methods["VM.create"] = lambda record: "OpaqueRef:vm"
        async with joined(server) as pool:
            writers[-1].close()
            await writers[-1].wait_closed()
            assert await pool.call("VM.create", {}) == "OpaqueRef:vm"
        assert server.calls.count("VM.create") == 1


async def test_a_pool_that_was_there_is_waited_for() -> None:
    """Far longer than the attempts of one call last, and by all calls together."""
    patience = Patience(connect=5, call=5, task=20, attempts=2, first_wait=0.01, longest_wait=0.02, away=60)
    asked = 0
    async with raw_pool() as server:

        async def hang_up_at_first(name: str, writer: asyncio.StreamWriter) -> bool:
            nonlocal asked
            asked += 1
            return asked > 10

        def starting() -> list[str]:
            if asked <= 20:
                raise Refused("HOST_STILL_BOOTING")
            return ["OpaqueRef:vm"]

        server.methods["VM.get_all"] = starting
        async with joined(server, patience=patience) as pool:
            server.before = hang_up_at_first
            async with asyncio.timeout(10):
                assert await pool.call("VM.get_all") == ["OpaqueRef:vm"]
            assert asked == 21


async def test_a_pool_that_is_away_for_too_long_is_tried_once_by_each_call() -> None:
    patience = Patience(connect=5, call=5, task=20, attempts=2, first_wait=0.01, longest_wait=0.02, away=0.2)
    tries = 0
    async with raw_pool() as server:

        async def away(name: str, writer: asyncio.StreamWriter) -> bool:
            nonlocal tries
            tries += 1
            return False

        server.methods["VM.get_all"] = lambda: ["OpaqueRef:vm"]
        async with joined(server, patience=patience) as pool:
            server.before = away
            with pytest.raises(PoolUnreachableError):
                await pool.call("VM.get_all")
            assert tries > 3
            tries = 0
            with pytest.raises(PoolUnreachableError):
                await pool.call("VM.get_all")
            assert tries == 1
            server.before = None
            assert await pool.call("VM.get_all") == ["OpaqueRef:vm"], "it is asked all the same"


def test_failures_far_apart_are_not_of_one_absence() -> None:
    absence = Absence(apart=100.0)
    assert absence.failed(0.0) is None, "it was never there"
    absence.answered()
    assert absence.failed(10.0) == 0.0
    assert absence.failed(60.0) == 50.0
    assert absence.failed(161.0) == 0.0
    absence.answered()
    assert absence.failed(162.0) == 0.0


async def test_nobody_there() -> None:
    async with raw_pool() as server:
        url = server.url
    with pytest.raises(PoolUnreachableError, match="refused"):
        async with connect(url, USER, Secret(PASSWORD), Trust.system(), patience=QUICK):
            pass


async def test_a_silent_server_times_out() -> None:
    async with raw_pool() as server, joined(server) as pool:
        server.methods["VM.create"] = lambda record: asyncio.Event().wait()
        with pytest.raises(PoolUnreachableError, match="no answer"):
            await pool.call("VM.create", {}, timeout=0.2)
        server.methods["VM.get_all"] = list
        assert await pool.call("VM.get_all") == []


async def test_a_cancelled_call_frees_the_connection() -> None:
    async with raw_pool() as server:
        asked = asyncio.Event()

        async def hang(*_: Any) -> str:
            asked.set()
            await asyncio.Event().wait()
            return ""

        server.methods["VM.get_record"] = hang
        server.methods["VM.get_all"] = list
        async with joined(server, patience=Patience(call=60)) as pool:
            async with asyncio.TaskGroup() as group:
                task = group.create_task(pool.call("VM.get_record", "x"))
                await asked.wait()
                task.cancel()
            async with asyncio.timeout(10):
                assert await pool.call("VM.get_all") == []


@pytest.mark.parametrize("answer", [b"<html>", b"<methodResponse/>", b"", b"\0\xff", b"<value>1</value>"])
async def test_an_answer_that_is_none(answer: bytes) -> None:
    await not_understood(b"content-length: %d\r\n\r\n" % len(answer) + answer)


@pytest.mark.parametrize("answer", [b"<html></html>", b"<methodResponse/>", b"<a></b>", b"\0\xff", b"no"])
async def test_a_whole_answer_without_a_length_that_is_none(answer: bytes) -> None:
    await not_understood(b"\r\n" + answer)


async def not_understood(answer: bytes) -> None:
    async with raw_pool() as server:

        async def nonsense(name: str, writer: asyncio.StreamWriter) -> bool:
            if name != "VM.get_all":
                return True
            writer.write(b"HTTP/1.1 200 OK\r\n" + answer)
            return False

        server.before = nonsense
        async with joined(server) as pool:
            with pytest.raises(FormatError):
                await pool.call("VM.get_all")


async def test_an_error_page_is_read_for_its_code() -> None:
    async with raw_pool() as server:
        page = b"<html><h1> Additional information </h1>INTERNAL_ERROR: [ Not_found ]</body></html>"

        async def fail(name: str, writer: asyncio.StreamWriter) -> bool:
            if name == "VM.create":
                writer.write(b"HTTP/1.1 500 Internal Error\r\ncontent-length: %d\r\n\r\n" % len(page) + page)
            return name != "VM.create"

        server.before = fail
        async with joined(server) as pool:
            with pytest.raises(XapiError) as caught:
                await pool.call("VM.create", {})
            assert (caught.value.code, caught.value.params) == ("INTERNAL_ERROR", ("Not_found",))


# --- certificates


async def test_a_pinned_certificate(tmp_path: Path) -> None:
    right, wrong = make_certificate(tmp_path, "right"), make_certificate(tmp_path, "wrong")
    async with raw_pool(right) as server:
        async with joined(server, Trust.pinned(pin(wrong), pin(right))) as pool:
            assert pool.hosts
        calls = len(server.calls)
        with pytest.raises(PoolCertificateError) as caught:
            async with joined(server, Trust.pinned(pin(wrong))):
                pass
        assert pin(right) in str(caught.value)
        assert pin(wrong) in str(caught.value)
        assert len(server.calls) == calls, "something was sent to a server that is not trusted"


async def test_a_certificate_nobody_vouches_for(tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path, "self", "127.0.0.1")
    async with raw_pool(certificate) as server:
        with pytest.raises(PoolCertificateError) as caught:
            async with joined(server, Trust.system()):
                pass
        assert pin(certificate) in str(caught.value)
        assert server.calls == []


async def test_a_file_of_authorities_and_the_name_in_the_certificate(tmp_path: Path) -> None:
    right = make_certificate(tmp_path, "named", "127.0.0.1")
    async with raw_pool(right) as server, joined(server, Trust.ca(right.file)) as pool:
        assert pool.hosts
    stranger = make_certificate(tmp_path, "stranger")
    async with raw_pool(stranger) as server:
        with pytest.raises(PoolCertificateError):
            async with joined(server, Trust.ca(stranger.file)):
                pass
        assert server.calls == []


async def test_no_secret_in_what_can_be_shown() -> None:
    async with raw_pool() as server:
        server.methods["VM.get_all"] = lambda: ["x"]
        async with joined(server) as pool:
            shown = f"{pool!r} {pool.session_ref!r} {pool.session_ref} {vars(pool)!r} {vars(pool._caller)!r}"
            with pytest.raises(XapiError) as caught:
                await pool.call("VM.unknown")
            shown += repr(caught.value)
            assert "session-" not in shown
            assert PASSWORD not in shown
