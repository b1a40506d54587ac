"""Logging in and out; sessions that expire, are capped, and are gone after a restart.

Source: xen-api ocaml/xapi/xapi_session.ml, session_check.ml, db_gc_util.ml.
"""

from __future__ import annotations

import asyncio
import hmac
import time

from mover.simulator.database import Database
from mover.simulator.failure import Failure
from mover.simulator.options import Options
from mover.simulator.values import now


class Sessions:
    """The sessions of the pool; every host looks them up here."""

    def __init__(self, database: Database, options: Options) -> None:
        self._database = database
        self._options = options
        self._active: dict[str, float] = {}
        self._pinned: dict[str, int] = {}

    async def login(self, username: str, password: str, originator: str, host: str) -> str:
        """Open a session. A wrong password is answered late (`failed_login_delay`)."""
        if not self.authentic(username, password):
            await asyncio.sleep(self._options.failed_login_delay)
            raise Failure("SESSION_AUTHENTICATION_FAILED", username, "Authentication failure")
        return self.open(username, originator, host)

    def authentic(self, username: str, password: str) -> bool:
        options = self._options
        return username == options.username and hmac.compare_digest(password.encode(), options.password.encode())

    def open(self, username: str, originator: str, host: str) -> str:
        """A session without asking for a password. Over the cap the one idle for longest is thrown out."""
        self._expire()
        same = [ref for ref, record in self._database.items("session") if record["originator"] == originator]
        for ref in sorted(same, key=self._active.__getitem__)[: len(same) + 1 - self._options.sessions_per_originator]:
            self.close(ref)
        fields = {
            "this_host": host,
            "originator": originator,
            "auth_user_name": username,
            "is_local_superuser": True,
            "last_active": now(),
            "validation_time": now(),
        }
        ref = self._database.create("session", fields)
        self._active[ref] = time.monotonic()
        return ref

    def check(self, ref: str) -> None:
        """Count as activity. Raises SESSION_INVALID."""
        self._expire()
        record = self._database.find("session", ref)
        if record is None:
            raise Failure("SESSION_INVALID", ref)
        self._active[ref] = time.monotonic()
        record["last_active"] = now()

    def alive(self, ref: str) -> bool:
        """Whether the session is there, without touching it."""
        return self._database.exists("session", ref)

    def close(self, ref: str) -> None:
        """End a session; who waits in its name is woken."""
        self._database.destroy("session", ref)
        self._active.pop(ref, None)

    def expire_all(self) -> None:
        for ref in self._database.refs("session"):
            self.close(ref)

    def pin(self, ref: str) -> None:
        """Keep an idle session while a task of it is pending."""
        self._pinned[ref] = self._pinned.get(ref, 0) + 1

    def unpin(self, ref: str) -> None:
        self._pinned[ref] = self._pinned.get(ref, 1) - 1
        if not self._pinned[ref]:
            del self._pinned[ref]

    def _expire(self) -> None:
        oldest = time.monotonic() - self._options.session_idle
        for ref in [ref for ref, at in self._active.items() if at < oldest and ref not in self._pinned]:
            self.close(ref)
