"""Tasks: what an asynchronous call or a bulk transfer is doing, and what became of it.

The first completion wins; a result is XML whatever the client speaks; tasks are gone after a restart.

Source: xen-api ocaml/xapi/taskHelper.ml, xapi_task.ml, db_gc_util.ml.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from mover.simulator.database import Database
from mover.simulator.failure import Failure
from mover.simulator.sessions import Sessions
from mover.simulator.values import NULL, Value, now
from mover.simulator.xmlrpc import encode_value

_KEPT_COMPLETED = timedelta(seconds=3900)
_KEPT_PENDING = timedelta(hours=24)
_COMPLETED_LIMIT = 200
FINISHED = frozenset({"success", "failure", "cancelled"})


class Tasks:
    """The tasks of the pool."""

    def __init__(self, database: Database, sessions: Sessions) -> None:
        self._database = database
        self._sessions = sessions
        self._session_of: dict[str, str] = {}
        self._doomed: set[str] = set()

    def create(self, label: str, description: str, session: str, host: str, subtask_of: str = NULL) -> str:
        self.collect()
        fields = {
            "name_label": label,
            "name_description": description,
            "created": now(),
            "resident_on": host,
            "type": "<none/>",
            "allowed_operations": ["cancel"],
            "subtask_of": subtask_of if self._database.exists("task", subtask_of) else NULL,
        }
        ref = self._database.create("task", fields)
        self._session_of[ref] = session
        self._sessions.pin(session)
        return ref

    def pending(self, ref: str) -> bool:
        record = self._database.find("task", ref)
        return record is not None and record["status"] not in FINISHED

    def succeed(self, ref: str, result: Value = "") -> None:
        """Complete with a value; "" is no value."""
        self.finish(ref, "success", result="" if result == "" else encode_value(result))

    def fail(self, ref: str, failure: Failure) -> None:
        status = "cancelled" if failure.code == "TASK_CANCELLED" else "failure"
        self.finish(ref, status, error_info=failure.description)

    def progress(self, ref: str, fraction: float) -> None:
        if self.pending(ref):
            self._database.update("task", ref, progress=min(max(fraction, 0.0), 1.0))

    def finish(self, ref: str, status: str, result: str = "", error_info: Sequence[str] = ()) -> None:
        """Complete; nothing happens if the task is complete already, or gone."""
        if not self.pending(ref):
            return
        self._release(ref)
        self._database.update(
            "task",
            ref,
            status=status,
            result=result,
            error_info=list(error_info),
            progress=1.0,
            finished=now(),
            allowed_operations=[],
            current_operations={},
        )
        if ref in self._doomed:
            self._remove(ref)

    def destroy(self, ref: str) -> None:
        """Remove a finished task; a pending one goes when it is done."""
        if self._database.get("task", ref)["status"] in FINISHED:
            self._remove(ref)
        else:
            self._doomed.add(ref)

    def cancel(self, ref: str) -> None:
        """Set the flag; it is up to the work to look at it, and disk transfers never do."""
        record = self._database.get("task", ref)
        if record["status"] in FINISHED:
            return
        self._database.update("task", ref, current_operations={**record["current_operations"], ref: "cancel"})

    def set_status(self, ref: str, status: str) -> None:
        if status in FINISHED:
            self._release(ref)
            self._database.update("task", ref, status=status, finished=now(), allowed_operations=[])
            if ref in self._doomed:
                self._remove(ref)
        else:
            self._database.update("task", ref, status=status)

    def drop_all(self) -> None:
        for ref in self._database.refs("task"):
            self._release(ref)
            self._remove(ref)

    def collect(self) -> None:
        """Throw out what is old: finished for 65 minutes, pending for a day, finished beyond the 200th."""
        time = now()
        finished = []
        for ref, record in self._database.items("task"):
            if record["status"] not in FINISHED:
                if time - record["created"] > _KEPT_PENDING:
                    self._release(ref)
                    self._remove(ref)
            elif time - record["finished"] > _KEPT_COMPLETED:
                self._remove(ref)
            else:
                finished.append((record["finished"], ref))
        for _, ref in sorted(finished)[: max(0, len(finished) - _COMPLETED_LIMIT)]:
            self._remove(ref)

    def _remove(self, ref: str) -> None:
        self._doomed.discard(ref)
        if self._database.exists("task", ref):
            self._database.destroy("task", ref)

    def _release(self, ref: str) -> None:
        session = self._session_of.pop(ref, None)
        if session is not None:
            self._sessions.unpin(session)
