"""`event.from`: what changed since a token, at most once per object and in its present state.

Source: xen-api ocaml/xapi/xapi_event.ml, ocaml/xapi-types/event_types.ml.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mover.simulator.context import Context
from mover.simulator.database import Database
from mover.simulator.failure import Failure
from mover.simulator.signature import call
from mover.simulator.values import Record, Value

_BATCH = 0.05


@dataclass(frozen=True)
class Subscription:
    """A class name in lower case ("*" for all) and one object of it, or all."""

    cls: str
    ref: str | None = None

    def covers(self, cls: str, ref: str) -> bool:
        return self.cls in ("*", cls.lower()) and self.ref in (None, ref)


def parse_subscription(text: str) -> Subscription:
    """Read `*`, `vm` or `vm/OpaqueRef:…`."""
    parts = text.split("/")
    if len(parts) == 1:
        return Subscription(text.lower())
    if len(parts) == 2:
        return Subscription(parts[0].lower(), parts[1])
    raise Failure("EVENT_SUBSCRIPTION_PARSE_FAILURE", text)


def encode_token(generation: int) -> str:
    return f"{generation:020d},{generation:020d}"


def parse_token(text: str) -> int:
    """The generation a token stands for; 0 for the empty one."""
    if not text:
        return 0
    first, comma, second = text.partition(",")
    if not (comma and first.isdigit() and second.isdigit()):
        raise Failure("EVENT_FROM_TOKEN_PARSE_FAILURE", text)
    return int(second)


class EventCalls:
    """The calls of the class `event`. `alive` says whether a session still is."""

    def __init__(self, database: Database, alive: Callable[[str], bool], record: Callable[[str, str], Record]) -> None:
        self._database = database
        self._alive = alive
        self._record = record

    @call(
        "event.from(classes: string set, token: string, timeout: float) -> an event batch",
        errors="EVENT_FROM_TOKEN_PARSE_FAILURE EVENT_SUBSCRIPTION_PARSE_FAILURE SESSION_INVALID",
        asynchronous=False,
    )
    async def from_(self, context: Context, classes: list[str], token: str, timeout: float) -> Value:
        """Wait until something that is subscribed to differs from `token`, or the time is over."""
        subscriptions = [parse_subscription(text) for text in classes]
        since = parse_token(token)
        try:
            async with asyncio.timeout(max(timeout, 0.0)):
                await self._difference(context.session, subscriptions, since)
                if any(subscription.cls != "task" for subscription in subscriptions):
                    await asyncio.sleep(_BATCH)
        except TimeoutError:
            pass
        return self._batch(subscriptions, since)

    @call("event.inject(class: string, ref: string) -> string", asynchronous=False)
    def inject(self, context: Context, cls: str, ref: str) -> str:
        """Make a change that changes nothing."""
        names = {name.lower(): name for name in self._database.models}
        self._database.touch(names.get(cls.lower(), cls), ref)
        return encode_token(self._database.generation)

    @call("event.get_current_id() -> int", asynchronous=False)
    def get_current_id(self, context: Context) -> int:
        return self._database.generation

    async def _difference(self, session: str, subscriptions: Sequence[Subscription], since: int) -> None:
        while True:
            changed = self._database.changed()
            if not self._alive(session):
                raise Failure("SESSION_INVALID", session)
            if self._events(subscriptions, since, limit=1):
                return
            await changed.wait()

    def _batch(self, subscriptions: Sequence[Subscription], since: int) -> Value:
        watched = {name for name in self._database.models if any(s.cls in ("*", name.lower()) for s in subscriptions)}
        return {
            "events": self._events(subscriptions, since),
            "valid_ref_counts": {name.lower(): self._database.count(name) for name in watched if name != "event"},
            "token": encode_token(self._database.generation),
        }

    def _events(self, subscriptions: Sequence[Subscription], since: int, limit: int | None = None) -> list[Record]:
        found: list[tuple[int, str, str, str]] = []
        for gone in self._database.deletions:
            if gone.generation > since >= gone.created and _covered(subscriptions, gone.cls, gone.ref):
                found.append((gone.generation, "del", gone.cls, gone.ref))
        for cls in self._database.models:
            if not any(subscription.cls in ("*", cls.lower()) for subscription in subscriptions):
                continue
            for ref, row in self._database.rows(cls):
                if row.modified > since and _covered(subscriptions, cls, ref):
                    found.append((row.modified, "add" if row.created > since else "mod", cls, ref))
                    if limit and len(found) >= limit:
                        break
        order = {"del": 0, "mod": 1, "add": 2}
        found.sort(key=lambda event: (order[event[1]], event[0]))
        return [self._event(*event) for event in found[:limit]]

    def _event(self, generation: int, operation: str, cls: str, ref: str) -> Record:
        event: Record = {
            "id": generation,
            "timestamp": "0.0",
            "class": cls.lower(),
            "operation": operation,
            "ref": ref,
        }
        if operation != "del":
            event["snapshot"] = self._record(cls, ref)
        return event


def _covered(subscriptions: Sequence[Subscription], cls: str, ref: str) -> bool:
    return any(subscription.covers(cls, ref) for subscription in subscriptions)
