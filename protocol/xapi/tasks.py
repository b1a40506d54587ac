"""Waiting for the pool's tasks: one `event.from` for all of them, on a session and a thread of its own.

The call blocks its session until something happens, and a session is not thread-safe, so it cannot share the one that
makes the calls. All tasks are subscribed to at once: a subscription to single tasks could not be extended while the
call is blocked, and the pool coalesces events to the newest state of each object.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from protocol.errors import FormatError, ProtocolError, XapiError
from protocol.secret import Secret
from protocol.xapi.channel import Channel
from protocol.xapi.records import TaskRecord, parse_task

# Seconds the pool may hold one event.from without news.
_ROUND = 30.0
_FIRST_WAIT = 0.25
_LONGEST_WAIT = 10.0
_FAREWELL = 5.0
# How many tasks that ended before anybody watched them are remembered.
_REMEMBERED = 256

_START_AGAIN = frozenset({"EVENTS_LOST", "EVENT_FROM_TOKEN_PARSE_FAILURE"})

Progress = Callable[[float], None]


class Watch:
    """One watched task: `ended` gets its final record, or None when the task vanished."""

    def __init__(self, loop: asyncio.AbstractEventLoop, progress: Progress | None) -> None:
        self.ended: asyncio.Future[TaskRecord | None] = loop.create_future()
        self._progress = progress

    def see(self, task: TaskRecord | None) -> None:
        """Take note of a newer state."""
        if self.ended.done():
            return
        if task is None or task.ended:
            self.ended.set_result(task)
        elif self._progress is not None:
            self._progress(task.progress)


class TaskWatcher:
    """Watches tasks while anybody waits for one. `run` blocks: it belongs on a thread of its own until `stop`.

    `connect` makes a channel to where the pool's master is now; `login` opens a session on it.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        connect: Callable[[], Channel],
        login: Callable[[Channel], Secret],
        timeout: float,
    ) -> None:
        self._loop = loop
        self._connect = connect
        self._login = login
        self._timeout = timeout
        self._watches: dict[str, Watch] = {}
        self._ended: dict[str, TaskRecord] = {}  # seen to end, and not watched by then; the latest last
        self._wanted = threading.Event()
        self._stopped = threading.Event()
        self._channel: Channel | None = None
        self._session: Secret | None = None
        self._blocked: Secret | None = None

    def watch(self, task: str, progress: Progress | None = None) -> Watch:
        """Begin to watch. That it ended before is seen as well, unless much else has ended since."""
        watch = self._watches[task] = Watch(self._loop, progress)
        if (ended := self._ended.pop(task, None)) is not None:
            watch.see(ended)
        self._wanted.set()
        return watch

    def unwatch(self, task: str) -> None:
        """Stop watching."""
        self._watches.pop(task, None)
        if not self._watches and not self._stopped.is_set():
            self._wanted.clear()

    def stop(self) -> Secret | None:
        """Make `run` return. It may be blocked with the session that this returns: logging that out wakes it."""
        self._stopped.set()
        self._wanted.set()
        return self._blocked

    def abort(self) -> None:
        """Make a `run` return that could not be woken."""
        if (channel := self._channel) is not None:
            channel.abort()

    def run(self) -> None:
        """Wait for events until `stop`, connecting again with back-off where that is needed."""
        token, wait = "", _FIRST_WAIT
        while self._wanted.wait() and not self._stopped.is_set():
            try:
                token = self._round(token)
                wait = _FIRST_WAIT
            except XapiError as error:
                token = ""
                if error.code not in _START_AGAIN:
                    self._hang_up()
                    self._stopped.wait(wait)
                    wait = min(2 * wait, _LONGEST_WAIT)
            except ProtocolError:
                self._hang_up()
                self._stopped.wait(wait)
                wait = min(2 * wait, _LONGEST_WAIT)
        self._log_out()

    def _round(self, token: str) -> str:
        if self._channel is None:
            self._channel = self._connect()
        if self._session is None:
            self._session = self._login(self._channel)
        # In this order, so that `stop` either is seen here or sees that this is blocked.
        self._blocked = self._session
        if self._stopped.is_set():
            return token
        try:
            answer = self._channel.call("event.from", (self._session, ["task"], token, _ROUND), _ROUND + self._timeout)
        finally:
            self._blocked = None
        match answer:
            case {"events": list(events), "token": str(newer)}:
                seen = [event for event in map(_task_of_event, events) if event is not None]
            case _:
                raise FormatError("event.from answer", "no events or no token")
        if seen and not self._stopped.is_set():
            self._loop.call_soon_threadsafe(self._tell, seen)
        return newer

    def _hang_up(self) -> None:
        if self._channel is not None:
            self._channel.close()
        self._channel, self._session = None, None

    def _log_out(self) -> None:
        if self._channel is not None and self._session is not None:
            with suppress(ProtocolError):
                self._channel.call("session.logout", (self._session,), _FAREWELL)
        self._hang_up()

    def _tell(self, seen: list[tuple[str, TaskRecord | None]]) -> None:
        for ref, task in seen:
            if (watch := self._watches.get(ref)) is not None:
                watch.see(task)
            elif task is not None and task.ended:
                self._remember(ref, task)

    def _remember(self, ref: str, task: TaskRecord) -> None:
        """Whose reference is still on its way to whoever will watch it: a short task may end that soon."""
        self._ended[ref] = task
        if len(self._ended) > _REMEMBERED:
            del self._ended[next(iter(self._ended))]


def _task_of_event(event: Any) -> tuple[str, TaskRecord | None] | None:
    match event:
        case {"class": "task", "operation": "del", "ref": str(ref)}:
            return ref, None
        case {"class": "task", "ref": str(ref), "snapshot": dict(snapshot)}:
            with suppress(FormatError):
                return ref, parse_task(snapshot)
    return None
