"""A pool as a logged-in client sees it: calls, tasks, hosts, and whose certificates are believed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

from protocol.errors import FormatError, OutcomeUnknownError, PoolUnreachableError, ProtocolError, XapiError
from protocol.secret import Secret
from protocol.xapi.address import Address
from protocol.xapi.caller import Caller, Credentials, Patience, log_in
from protocol.xapi.channel import Channel
from protocol.xapi.channels import AFTERMATH
from protocol.xapi.records import HostRecord, PoolRecord, TaskRecord, parse_records, parse_task
from protocol.xapi.tasks import Progress, TaskWatcher, Watch
from protocol.xapi.trust import Trust, fingerprint_of_pem
from protocol.xapi.wire import decode_result, failure

# Seconds between two looks at a task whose events may have been lost.
_FIRST_LOOK = 1.0
_LOOK_AGAIN = 30.0
# Seconds for a task to end once it is cancelled: few kinds of work look whether they are.
_LAST_WAIT = 10.0


@dataclass(frozen=True, slots=True)
class Version:
    """What the pool runs: `product` is its brand ("XCP-ng"), `release` the product's version ("8.3.0")."""

    product: str
    release: str
    api: tuple[int, int]


class Pool:
    """A session with a pool, made by `connect`. All of it belongs to one event loop."""

    def __init__(self, caller: Caller, watcher: TaskWatcher, record: PoolRecord, hosts: dict[str, HostRecord]) -> None:
        self.record = record
        self.hosts = hosts
        self._caller = caller
        self._watcher = watcher

    @property
    def address(self) -> Address:
        """Where the master's API is."""
        return self._caller.address

    @property
    def session_ref(self) -> Secret:
        """The session's reference; another one after an expired session was renewed."""
        return self._caller.session or Secret("OpaqueRef:NULL")

    @property
    def master(self) -> HostRecord:
        """The master's record, as of the login."""
        return self.hosts[self.record.master]

    @property
    def version(self) -> Version:
        """What the master runs."""
        software = self.master.software_version
        return Version(
            software.get("product_brand", ""),
            software.get("product_version", ""),
            (self.master.API_version_major, self.master.API_version_minor),
        )

    async def call(self, method: str, *args: Any, timeout: float | None = None, repeatable: bool | None = None) -> Any:
        """Make a synchronous call and return its value: strings, booleans, floats, lists and dicts.

        Integers come, and are sent, as strings. `timeout` is the longest silence in seconds. After a lost connection
        or an expired session a call that only reads is repeated; any other only where it surely has not begun.
        `repeatable` overrides the distinction.

        Raises XapiError, PoolUnreachableError, PoolCertificateError, FormatError.
        """
        return await self._caller.call(method, args, timeout=timeout, repeatable=repeatable)

    async def run(self, method: str, *args: Any, timeout: float | None = None, progress: Progress | None = None) -> Any:
        """Run a call as a task (`Async.…`), wait for its end, and return its decoded result.

        Cancelling this cancels the task and waits a little for its end: what it has made is there then, and if it still
        goes on, a note of the exception says so. `timeout` in seconds bounds the whole; `progress` is told 0 to 1.

        Raises what `call` raises, and OutcomeUnknownError when the task vanished.
        """
        started: list[str] = []
        try:
            async with asyncio.timeout(timeout or self._caller.patience.task):
                task: str = await self._caller.call(f"Async.{method}", args, landed=started)
                record = await self.wait(task, method, progress)
        except TimeoutError:
            await self._give_up(started)
            raise PoolUnreachableError(str(self.address), f"{method} has not ended in time") from None
        except BaseException as error:
            if not await self._give_up(started):
                error.add_note(f"{method} was cancelled and still goes on on the pool")
            raise
        await self.destroy_task(task)
        return result_of(record, method)

    async def wait(self, task: str, call: str, progress: Progress | None = None) -> TaskRecord:
        """Wait for a task's end. `call` names it in errors. Raises as `run` does, but not for a failed task."""
        watch = self.watch(task, progress)
        try:
            return await self.end_of(task, watch, call)
        finally:
            self.unwatch(task)

    def watch(self, task: str, progress: Progress | None = None) -> Watch:
        """Begin to watch a task without waiting for it."""
        return self._watcher.watch(task, progress)

    def unwatch(self, task: str) -> None:
        """Stop watching a task."""
        self._watcher.unwatch(task)

    async def end_of(self, task: str, watch: Watch, call: str) -> TaskRecord:
        """Wait for the end of a task that is watched already. See `wait`."""
        patience = _FIRST_LOOK
        while not watch.ended.done():
            await asyncio.wait({watch.ended}, timeout=patience)
            if not watch.ended.done():
                # An event can get lost with its session, or have come long before the watch began.
                watch.see(await self._look(task))
                patience = _LOOK_AGAIN
        record = watch.ended.result()
        if record is None:
            raise OutcomeUnknownError(call, "its task vanished before its end was seen")
        return record

    async def create_task(self, label: str) -> str:
        """Make a pending task of our own, for an HTTP handler to adopt and complete. See `destroy_task`."""
        made: list[str] = []
        try:
            return str(await self._caller.call("task.create", (label, ""), repeatable=True, landed=made))
        except BaseException:
            for task in made:
                await self.destroy_task(task, adopted=False)
            raise

    async def destroy_task(self, task: str, *, adopted: bool = True) -> None:
        """Destroy a task; it is no error if it is gone or the pool away. A pending one goes when it ends.

        One of our own that no handler `adopted` is ended here: nobody else would, and the pool keeps it for a day.
        """
        with suppress(ProtocolError, TimeoutError):
            async with asyncio.timeout(AFTERMATH):
                if not adopted:
                    # In this order: the pool does not look, as it is told the status, whether to destroy the task.
                    with suppress(XapiError):
                        await self.call("task.set_status", task, "failure", repeatable=True)
                await self.call("task.destroy", task, repeatable=True)

    def hurry(self) -> None:
        """From now on a pool that does not answer is not waited for: somebody wants an end, and cleaning up is left."""
        self._caller.hurry()

    async def renewed_session(self, expired: Secret) -> Secret:
        """Return a session's reference that is not the `expired` one."""
        return await self._caller.current_session(expired)

    async def trust_for(self, host: str) -> Trust:
        """Return a trust that covers the pool's host at `host` (a name or an IP address).

        A member's certificate is learnt from the master, over the connection that is verified already. Raises
        PoolUnreachableError if the pool has no host there, so that no session is ever shown to a stranger.
        """
        if host == self.address.host or host in self._caller.trust.hosts:
            return self._caller.trust
        ref = next((ref for ref, record in self.hosts.items() if self._is_at(record, host)), None)
        if ref is None:
            raise PoolUnreachableError(str(self.address), f"it has no host at {host}")
        try:
            pem = await self.call("host.get_server_certificate", ref)
        except XapiError as error:
            if error.code != "MESSAGE_METHOD_UNKNOWN":
                raise
            return self._caller.trust
        self._caller.trust = self._caller.trust.with_host(host, fingerprint_of_pem(str(pem)))
        return self._caller.trust

    def _is_at(self, record: HostRecord, host: str) -> bool:
        with suppress(ValueError):
            return self.address.sibling(record.address).host == host
        return False

    async def _look(self, task: str) -> TaskRecord | None:
        try:
            return parse_task(await self.call("task.get_record", task))
        except XapiError as error:
            if error.code == "HANDLE_INVALID":
                return None
            raise

    async def _give_up(self, tasks: list[str]) -> bool:
        """Cancel what nobody waits for any more, and say whether it has ended, or may have: the pool may be away.

        Within bounds and without errors.
        """
        ended = True
        for task in tasks:
            try:
                async with asyncio.timeout(AFTERMATH):
                    await self.call("task.cancel", task)
            except XapiError:
                pass
            except (ProtocolError, TimeoutError):
                continue
            ended = await self._ends_soon(task) and ended
            await self.destroy_task(task)
        return ended

    async def _ends_soon(self, task: str) -> bool:
        """Whether a task ends while it is worth waiting for; also if the pool is away, and nobody knows."""
        watch = self.watch(task)
        try:
            watch.see(await self._look(task))
            # No `asyncio.timeout`: Python 3.11.2 does not tell its end from a cancellation in who was cancelled before.
            await asyncio.wait({watch.ended}, timeout=_LAST_WAIT)
            if not watch.ended.done():
                watch.see(await self._look(task))
            return watch.ended.done()
        except ProtocolError:
            return True
        finally:
            self.unwatch(task)


def result_of(record: TaskRecord, call: str) -> Any:
    """Return what an ended task brought. Raises XapiError if it failed or was cancelled."""
    if record.status == "success":
        return decode_result(record.result)
    if record.status == "cancelled" and not record.error_info:
        raise XapiError("TASK_CANCELLED", (), call)
    raise failure(list(record.error_info), call)


@asynccontextmanager
async def connect(
    url: str,
    username: str,
    password: Secret,
    trust: Trust,
    *,
    originator: str = "mover",
    patience: Patience | None = None,
) -> AsyncIterator[Pool]:
    """Log in to the pool at `url` (any of its hosts), and always log out again.

    Raises ValueError for a bad URL, PoolUnreachableError, PoolCertificateError, XapiError.
    """
    patience = patience or Patience()
    credentials = Credentials(username, password, originator)
    caller = Caller(Address.parse(url), credentials, trust, patience)

    def channel_of_events() -> Channel:
        return Channel(caller.address, caller.trust, patience.connect)

    def session_of_events(channel: Channel) -> Secret:
        return log_in(channel, credentials, patience.call)

    loop = asyncio.get_running_loop()
    watcher = TaskWatcher(loop, channel_of_events, session_of_events, patience.connect + patience.call)
    executor = ThreadPoolExecutor(1, "xapi-events")
    watching = loop.run_in_executor(executor, watcher.run)
    try:
        pools = parse_records(PoolRecord, await caller.call("pool.get_all_records", ()))
        hosts = parse_records(HostRecord, await caller.call("host.get_all_records", ()))
        record = next(iter(pools.values()), None)
        if record is None or record.master not in hosts:
            raise FormatError("pool record", "its master is not among its hosts")
        yield Pool(caller, watcher, record, hosts)
    finally:
        blocked = watcher.stop()
        try:
            if blocked is not None:
                await caller.log_out(blocked)
            await asyncio.wait({watching}, timeout=AFTERMATH)
        finally:
            watcher.abort()
            executor.shutdown(wait=False)
            await caller.close()
