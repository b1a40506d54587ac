"""Calls by name: looking them up, checking sessions and arguments, running them now or as a task.

Source: xen-api ocaml/xapi/server_helpers.ml, api_server.ml, ocaml/idl/ocaml_backend/gen_server.ml.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from mover.simulator.context import Context
from mover.simulator.failure import Failure, internal
from mover.simulator.sessions import Sessions
from mover.simulator.signature import Bound, Signature
from mover.simulator.tasks import Tasks
from mover.simulator.values import BadValueError, Value, coerce

_ASYNC = "Async."
_LOGINS = frozenset({"session.login_with_password"})
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Caller:
    """The host that was asked: its reference, and the master's address if it is not the master."""

    host: str
    master_address: str | None = None


class Dispatcher:
    """All calls of the pool. `fault` names the error the next call of a method is to fail with, if any."""

    def __init__(
        self,
        bound: Iterable[Bound],
        sessions: Sessions,
        tasks: Tasks,
        group: asyncio.TaskGroup,
        fault: Callable[[str], Failure | None],
    ) -> None:
        self._bound = {entry.signature.name: entry for entry in bound}
        self._aliases = {name.replace(".", "_", 1): name for name in self._bound}
        self._sessions = sessions
        self._tasks = tasks
        self._group = group
        self._fault = fault
        self._running: set[asyncio.Task[None]] = set()

    def signatures(self) -> list[Signature]:
        return [entry.signature for entry in self._bound.values()]

    def list_methods(self) -> list[str]:
        """What system.listMethods says: every call by its plain name, those included that are only a name."""
        return sorted(name for name, entry in self._bound.items() if not entry.signature.hidden)

    async def call(self, caller: Caller, name: str, params: Sequence[Value]) -> Value:
        """Carry out a call. Raises Failure, whatever happens."""
        try:
            return await self._call(caller, name, params)
        except Failure:
            raise
        except Exception as error:
            _log.exception("call of %s", name)
            raise internal(f"{type(error).__name__}: {error}") from error

    async def stop(self) -> None:
        """Cancel what runs asynchronously."""
        for running in self._running:
            running.cancel()
        if self._running:
            await asyncio.wait(self._running)

    async def _call(self, caller: Caller, name: str, params: Sequence[Value]) -> Value:
        asynchronous = name.startswith(_ASYNC)
        plain = name.removeprefix(_ASYNC)
        entry = self._bound.get(plain if asynchronous else self._aliases.get(plain, plain))
        if caller.master_address is not None:
            self._refuse_at_member(caller.master_address, plain, params)
        if entry is None:
            # It might be an extension of a host; only who has a session is told that there is none.
            if params:
                self._check_session(params[0])
            raise Failure("MESSAGE_METHOD_UNKNOWN", plain)
        signature = entry.signature
        session, values = _check_arguments(signature, params)
        if signature.session:
            self._check_session(session)
        if signature.removed:
            raise Failure("MESSAGE_REMOVED")
        if asynchronous and not (signature.asynchronous and signature.session):
            raise Failure("Fault", f"No async mode for this operation (rpc: {plain})")
        failure = self._fault(signature.name)
        context = Context(session, caller.host, signature.name)
        if not asynchronous:
            if failure:
                raise failure
            return await _run(entry, context, values)
        task = self._tasks.create(f"Async.{signature.name}", "", session, caller.host)
        context = Context(session, caller.host, signature.name, task)
        running = self._group.create_task(self._run_task(entry, context, values, failure))
        self._running.add(running)
        running.add_done_callback(self._running.discard)
        return task

    def _refuse_at_member(self, master: str, name: str, params: Sequence[Value]) -> None:
        session = params[0] if params and isinstance(params[0], str) else ""
        if self._aliases.get(name, name) in _LOGINS or self._sessions.alive(session):
            raise Failure("HOST_IS_SLAVE", master)
        raise Failure("SESSION_INVALID", session)

    def _check_session(self, session: Value) -> None:
        if not isinstance(session, str):
            raise Failure("FIELD_TYPE_ERROR", "session_id")
        self._sessions.check(session)

    async def _run_task(self, entry: Bound, context: Context, values: list[Value], failure: Failure | None) -> None:
        task = context.task or ""
        try:
            if failure:
                raise failure
            self._tasks.succeed(task, _result(await _run(entry, context, values)))
        except Failure as error:
            self._tasks.fail(task, error)
        except Exception as error:  # noqa: BLE001 - as the servers do
            _log.exception("asynchronous call of %s", context.method)
            self._tasks.fail(task, internal(f"{type(error).__name__}: {error}"))


async def _run(entry: Bound, context: Context, values: list[Value]) -> Value:
    outcome = entry.function(context, *values)
    return _result(await outcome if inspect.isawaitable(outcome) else outcome)


def _result(value: Value) -> Value:
    return "" if value is None else value


def _check_arguments(signature: Signature, params: Sequence[Value]) -> tuple[str, list[Value]]:
    """The session and the checked arguments. What is beyond the last parameter is dropped if that has a default.

    The numbers in the error leave the session out, and count only what has no default (gen_server.ml).
    """
    declared = signature.params
    count = len(params) - signature.session
    if count < signature.required or (count > len(declared) and signature.required == len(declared)):
        raise Failure("MESSAGE_PARAMETER_COUNT_MISMATCH", signature.name, str(signature.required), str(count))
    session = params[0] if signature.session else ""
    arguments = params[signature.session :]
    values = []
    for param, argument in zip(declared, arguments, strict=False):
        try:
            values.append(coerce(param.type, argument))
        except BadValueError:
            raise Failure("FIELD_TYPE_ERROR", param.name) from None
    return session, [*values, *(param.default for param in declared[len(arguments) :])]
