"""Sessions, tasks, messages, networks and the pool itself, as calls.

Source: xen-api ocaml/xapi/xapi_session.ml, xapi_task.ml, xapi_message.ml, xapi_network.ml, xapi_host.ml.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from mover.simulator.context import Context
from mover.simulator.failure import Failure
from mover.simulator.pool import Pool
from mover.simulator.signature import call
from mover.simulator.values import Record, Value, now
from mover.simulator.vdi import constructor_fields

_ORIGINATOR_LIMIT = 255


class SessionCalls:
    """The calls of session. Logging in needs no session, so it is told the host by the context."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    @call(
        'session.login_with_password(uname: string, pwd: string, version: string = "", originator: string = "")'
        " -> session ref",
        errors="SESSION_AUTHENTICATION_FAILED HOST_IS_SLAVE",
        asynchronous=False,
        session=False,
    )
    async def login(self, context: Context, uname: str, pwd: str, version: str, originator: str) -> str:
        """The version is not looked at."""
        return await self._pool.sessions.login(uname, pwd, originator[:_ORIGINATOR_LIMIT], context.host)

    @call("session.logout() -> void", asynchronous=False)
    def logout(self, context: Context) -> None:
        self._pool.sessions.close(context.session)


class TaskCalls:
    """The calls of task."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    @call("task.create(label: string, description: string) -> task ref", asynchronous=False)
    def create(self, context: Context, label: str, description: str) -> str:
        return self._pool.tasks.create(label, description, context.session, context.host)

    @call("task.destroy(self: task ref) -> void", asynchronous=False)
    def destroy(self, context: Context, task: str) -> None:
        self._pool.tasks.destroy(task)

    @call("task.cancel(task: task ref) -> void", errors="OPERATION_NOT_ALLOWED")
    def cancel(self, context: Context, task: str) -> None:
        self._pool.tasks.cancel(task)

    @call("task.set_status(self: task ref, value: enum task_status_type) -> void", asynchronous=False)
    def set_status(self, context: Context, task: str, value: str) -> None:
        self._pool.database.get("task", task)
        self._pool.tasks.set_status(task, value)

    @call("task.set_progress(self: task ref, value: float) -> void", asynchronous=False)
    def set_progress(self, context: Context, task: str, value: float) -> None:
        self._pool.database.update("task", task, progress=value)

    @call("task.set_result(self: task ref, value: string) -> void", asynchronous=False)
    def set_result(self, context: Context, task: str, value: str) -> None:
        self._pool.database.update("task", task, result=value)

    @call("task.set_error_info(self: task ref, value: string set) -> void", asynchronous=False)
    def set_error_info(self, context: Context, task: str, value: list[str]) -> None:
        self._pool.database.update("task", task, error_info=value)


class MessageCalls:
    """The calls of message."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    @call(
        "message.create(name: string, priority: int, cls: enum cls, obj_uuid: string, body: string) -> message ref",
        asynchronous=False,
    )
    def create(self, context: Context, name: str, priority: int, cls: str, obj_uuid: str, body: str) -> str:
        return self._pool.message(name, cls, obj_uuid, body, priority)

    @call("message.destroy(self: message ref) -> void", asynchronous=False)
    def destroy(self, context: Context, message: str) -> None:
        self._pool.database.destroy("message", message)

    @call(
        "message.get(cls: enum cls, obj_uuid: string, since: datetime) -> (message ref -> message record) map",
        asynchronous=False,
    )
    def get(self, context: Context, cls: str, obj_uuid: str, since: datetime) -> Value:
        found = self._since(since).items()
        return {ref: message for ref, message in found if (message["cls"], message["obj_uuid"]) == (cls, obj_uuid)}

    @call("message.get_since(since: datetime) -> (message ref -> message record) map", asynchronous=False)
    def get_since(self, context: Context, since: datetime) -> Value:
        return self._since(since)

    def _since(self, since: datetime) -> dict[str, Record]:
        return {ref: dict(r) for ref, r in self._pool.database.items("message") if r["timestamp"] >= since}


class NetworkCalls:
    """The calls of network."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    @call("network.create(args: network record) -> network ref")
    def create(self, context: Context, args: Record) -> str:
        fields = constructor_fields(self._pool, "network", args)
        if not fields.get("bridge"):
            fields["bridge"] = f"xapi{self._pool.database.count('network')}"
        return self._pool.database.create("network", fields)

    @call("network.destroy(self: network ref) -> void")
    def destroy(self, context: Context, network: str) -> None:
        self._pool.database.destroy("network", network)


class PurposeCalls:
    """What a network is for: came with NBD, in API 2.8."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    @call(
        "network.add_purpose(self: network ref, value: enum network_purpose) -> void",
        errors="NETWORK_INCOMPATIBLE_PURPOSES",
    )
    def add_purpose(self, context: Context, network: str, value: str) -> None:
        """`nbd` and `insecure_nbd` do not go together anywhere in a pool."""
        database = self._pool.database
        for _, record in database.items("network"):
            for other in record["purpose"]:
                if other != value:
                    raise Failure("NETWORK_INCOMPATIBLE_PURPOSES", value, other)
        purposes = database.get("network", network)["purpose"]
        if value not in purposes:
            database.update("network", network, purpose=[*purposes, value])

    @call("network.remove_purpose(self: network ref, value: enum network_purpose) -> void")
    def remove_purpose(self, context: Context, network: str, value: str) -> None:
        purposes = self._pool.database.get("network", network)["purpose"]
        self._pool.database.update("network", network, purpose=[other for other in purposes if other != value])


class HostCalls:
    """The calls of host."""

    def __init__(self, pool: Pool, restart: Callable[[], None]) -> None:
        self._pool = pool
        self._restart = restart

    @call("host.get_servertime(host: host ref) -> datetime", asynchronous=False)
    def get_servertime(self, context: Context, host: str) -> datetime:
        self._pool.database.get("host", host)
        return now()

    @call("host.disable(host: host ref) -> void")
    def disable(self, context: Context, host: str) -> None:
        self._pool.database.update("host", host, enabled=False)

    @call("host.enable(host: host ref) -> void")
    def enable(self, context: Context, host: str) -> None:
        self._pool.database.update("host", host, enabled=True)

    @call("host.restart_agent(host: host ref) -> void")
    def restart_agent(self, context: Context, host: str) -> None:
        """Every session and task is gone."""
        self._pool.database.get("host", host)
        self._restart()
