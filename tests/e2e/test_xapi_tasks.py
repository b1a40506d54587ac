"""Tasks of a pool on raw sockets: their results, and how their ends are learnt of."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from protocol.errors import OutcomeUnknownError, ProtocolError, XapiError
from protocol.xapi import Pool, open_transfers
from tests.rawpool_fixtures import RawPool, Refused, Request, joined, raw_pool


async def test_a_task_brings_its_result() -> None:
    async with raw_pool() as server:
        pending = asyncio.Event()

        async def snapshot(vm: str, name: str) -> str:
            pending.set()
            return await server.make_task()

        server.methods["Async.VM.snapshot"] = snapshot
        async with joined(server) as pool, asyncio.TaskGroup() as group:
            running = group.create_task(pool.run("VM.snapshot", "OpaqueRef:vm", "n"))
            await pending.wait()
            (ref,) = server.tasks
            await server.end_task(ref, result="<value>OpaqueRef:snap</value>")
            assert await running == "OpaqueRef:snap"
        assert server.destroyed == [ref]


async def test_many_tasks_share_one_watcher() -> None:
    async with raw_pool() as server:
        server.methods["Async.VM.start"] = lambda number: server.make_task()
        async with joined(server) as pool:
            async with asyncio.TaskGroup() as group:
                running = [group.create_task(pool.run("VM.start", str(number))) for number in range(20)]
                group.create_task(finish_all(server, 20))
            assert sorted(task.result() for task in running) == sorted(f"done {n}" for n in range(20))
            assert len(server.sessions) == 2
        assert server.sessions == set()
        assert len(server.destroyed) == 20


async def finish_all(server: RawPool, count: int) -> None:
    done: set[str] = set()
    while len(done) < count:
        async with server._changed:
            await server._changed.wait_for(lambda: set(server.tasks) - done)
            waiting = set(server.tasks) - done
        for ref in sorted(waiting):
            await server.end_task(ref, result=f"<value>done {len(done)}</value>")
            done.add(ref)


async def test_a_task_that_ended_before_anybody_looked() -> None:
    async with raw_pool() as server:

        async def quick(*_: str) -> str:
            ref = await server.make_task()
            await server.end_task(ref, "failure", error=["SR_BACKEND_FAILURE_460", "", "no log", ""])
            return ref

        server.methods["Async.VDI.list_changed_blocks"] = quick
        async with joined(server) as pool:
            with pytest.raises(XapiError) as caught:
                await pool.run("VDI.list_changed_blocks", "a", "b")
        assert caught.value.code == "SR_BACKEND_FAILURE_460"
        assert caught.value.params == ("", "no log", "")
        assert caught.value.call == "VDI.list_changed_blocks"
        assert len(server.destroyed) == 1


async def test_a_task_whose_end_was_told_before_its_name_is_not_asked_about() -> None:
    async with raw_pool() as server:
        told: asyncio.Queue[str] = asyncio.Queue()
        listening = asyncio.Semaphore(0)
        asked: list[str] = []

        async def events(*_: object) -> object:
            listening.release()
            ref = await told.get()
            return {"events": [{"class": "task", "ref": ref, "operation": "mod", "snapshot": ended(ref)}], "token": "1"}

        def ended(ref: str) -> dict[str, object]:
            return {"uuid": ref, "status": "success", "result": f"<value>{ref}</value>", "error_info": []}

        async def quick() -> str:
            await listening.acquire()
            await told.put("quick")
            await listening.acquire()  # so it has been dealt with
            return "quick"

        def look(ref: str) -> object:
            asked.append(ref)
            return ended(ref) | {"status": "pending"}

        server.methods |= {"event.from": events, "Async.VM.start": lambda: "slow", "Async.VDI.resize": quick}
        server.methods["task.get_record"] = look
        async with joined(server) as pool, asyncio.TaskGroup() as group:
            slow = group.create_task(pool.run("VM.start"))
            assert await pool.run("VDI.resize") == "quick"
            await told.put("slow")
            assert await slow == "slow"
        assert "quick" not in asked


async def test_a_task_that_vanishes_has_an_unknown_outcome() -> None:
    async with raw_pool() as server:
        server.methods["Async.VM.snapshot"] = lambda *_: server.make_task()
        async with joined(server) as pool, asyncio.TaskGroup() as group:
            running = group.create_task(outcome_unknown(pool))
            async with server._changed:
                await server._changed.wait_for(lambda: server.tasks)
            await server.drop_task(next(iter(server.tasks)))
            assert await running


async def outcome_unknown(pool: Pool) -> bool:
    with pytest.raises(OutcomeUnknownError, match=r"VM\.snapshot"):
        await pool.run("VM.snapshot", "x", "y")
    return True


async def test_cancelling_cancels_and_destroys_the_task() -> None:
    async with raw_pool() as server:
        server.methods["Async.VM.snapshot"] = lambda *_: server.make_task()
        async with joined(server) as pool:
            async with asyncio.TaskGroup() as group:
                running = group.create_task(pool.run("VM.snapshot", "x", "y"))
                async with server._changed:
                    await server._changed.wait_for(lambda: server.tasks)
                running.cancel()
            assert "task.cancel" in server.calls
            assert len(server.destroyed) == 1


async def test_the_watcher_survives_the_end_of_its_session() -> None:
    async with raw_pool() as server:
        server.methods["Async.VM.start"] = lambda *_: server.make_task()
        async with joined(server) as pool:
            for _ in range(2):
                async with asyncio.TaskGroup() as group:
                    running = group.create_task(pool.run("VM.start", "x"))
                    group.create_task(finish_all(server, 1))
                assert running.result() == "done 0"
                # Only the session of the events is gone: what is sure to be repeated is the waiting.
                server.sessions = {pool.session_ref.reveal()}
                await server._note("mod", "")


@pytest.mark.parametrize("manner", ["refuses", "denies the session", "hangs up", "has no time"])
async def test_a_task_that_no_handler_took_is_ended_first(manner: str) -> None:
    """To destroy a pending one is to ask for it when it ends, and nobody else would end it."""
    async with raw_pool() as server:
        asked = asyncio.Event()

        async def export(request: Request) -> None:
            asked.set()
            if manner == "has no time":
                await asyncio.Event().wait()
            elif manner != "hangs up":
                status = 500 if manner == "refuses" else 401
                await request.answer(b"HTTP/1.1 %d No\r\ncontent-length: 0\r\n\r\n" % status)

        async def download(pool: Pool) -> None:
            async with open_transfers(pool) as transfers:
                with pytest.raises(ProtocolError):
                    async with transfers.export_vdi("OpaqueRef:v", format="vhd") as stream:
                        await stream.read(1)

        server.handlers["/export_raw_vdi"] = export
        async with joined(server) as pool:
            async with asyncio.TaskGroup() as group:
                running = group.create_task(download(pool))
                await asked.wait()
                if manner == "has no time":
                    running.cancel()
            assert server.tasks == {}
            assert len(server.destroyed) == 1


async def test_a_task_that_a_handler_took_is_left_to_it() -> None:
    async with raw_pool() as server:

        async def export(request: Request) -> None:
            await request.answer(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nnot much")
            await server.end_task(request.query["task_id"], "failure", error=["VDI_IO_ERROR"])

        server.handlers["/export_raw_vdi"] = export
        async with joined(server) as pool, open_transfers(pool) as transfers:
            with pytest.raises(XapiError, match="VDI_IO_ERROR"):
                async with transfers.export_vdi("OpaqueRef:v", format="vhd") as stream:
                    await stream.finish()
            assert "task.set_status" not in server.calls
            assert server.tasks == {}


async def test_a_task_that_was_made_for_nobody_is_ended_first() -> None:
    async with raw_pool() as server:
        asked, answer = asyncio.Event(), asyncio.Event()

        async def slow(*_: str) -> str:
            asked.set()
            await answer.wait()
            return await server.make_task()

        server.methods["task.create"] = slow
        server.methods["task.cancel"] = lambda ref: ""  # a flag, and nobody works on this task who would look at it
        async with joined(server) as pool:
            async with asyncio.TaskGroup() as group:
                making = group.create_task(pool.create_task("late"))
                await asked.wait()
                making.cancel()
                answer.set()
            assert making.cancelled()
            assert len(server.destroyed) == 1
            assert server.tasks == {}


@pytest.mark.parametrize("code", ["MESSAGE_METHOD_UNKNOWN", "HANDLE_INVALID"])
async def test_a_pool_that_does_not_end_a_task_is_asked_to_destroy_it(code: str) -> None:
    async with raw_pool() as server:

        def refuse(*_: Any) -> str:
            raise Refused(code, "task", "x")

        server.methods["task.set_status"] = refuse
        async with joined(server) as pool:
            task = await pool.create_task("never taken")
            await pool.destroy_task(task, adopted=False)
            assert server.destroyed == [task]
