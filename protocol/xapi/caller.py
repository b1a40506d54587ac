"""Calls of one session from asyncio: logging in, following the master, repeating what may be repeated, logging out.

Calls are made several at once, each over a connection of its own, all in the name of one session.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from protocol.errors import PoolCertificateError, PoolUnreachableError, ProtocolError, XapiError
from protocol.secret import Secret
from protocol.xapi.absence import Absence
from protocol.xapi.address import Address
from protocol.xapi.channel import Channel, NotSentError
from protocol.xapi.channels import AFTERMATH, Channels
from protocol.xapi.trust import Trust

# Reads whose name does not say so.
_READS = frozenset({"VDI.list_changed_blocks", "system.listMethods"})
# How often HOST_IS_SLAVE is followed: hosts that point at each other must not keep a client busy for ever.
_MAX_HOPS = 3
# A toolstack that is starting looks at no call yet.
_STARTING = "HOST_STILL_BOOTING"


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds, and how often. `call` is the longest silence during a call; the waits between attempts double.

    `task` bounds a call that runs as a task: the pool itself waits up to two hours for an object that is busy. A pool
    that has answered before may be `away` for so long; after that each call is tried once, until one is answered.
    """

    connect: float = 10.0
    call: float = 60.0
    task: float = 6 * 3600.0
    attempts: int = 5
    first_wait: float = 0.5
    longest_wait: float = 15.0
    away: float = 0.0


@dataclass(frozen=True, slots=True)
class Credentials:
    """Who logs in. The pool limits sessions per `originator`: one name for all runs keeps them countable."""

    username: str
    password: Secret
    originator: str


def is_repeatable(method: str) -> bool:
    """Whether a call only reads, so that sending it twice does no harm."""
    return method.rpartition(".")[2].startswith("get_") or method in _READS


def log_in(channel: Channel, credentials: Credentials, timeout: float) -> Secret:
    """Open a session. Blocking. Raises XapiError (HOST_IS_SLAVE, SESSION_AUTHENTICATION_FAILED) and what calls do."""
    who = (credentials.username, credentials.password, "1.0", credentials.originator)
    return Secret(str(channel.call("session.login_with_password", who, timeout)))


class Caller:
    """Makes calls; `address` is the master's as soon as a login has found it."""

    def __init__(self, address: Address, credentials: Credentials, trust: Trust, patience: Patience) -> None:
        self.session: Secret | None = None
        self.patience = patience
        self._credentials = credentials
        self._login = asyncio.Lock()
        self._channels = Channels(address, trust, patience.connect)
        self._hurried = False
        self._absence = Absence(2 * (patience.connect + patience.call + patience.longest_wait))

    @property
    def address(self) -> Address:
        """Where calls go."""
        return self._channels.address

    @property
    def trust(self) -> Trust:
        """What the pool's hosts are verified by."""
        return self._channels.trust

    @trust.setter
    def trust(self, trust: Trust) -> None:
        self._channels.trust = trust

    async def call(
        self,
        method: str,
        params: tuple[Any, ...],
        *,
        timeout: float | None = None,
        repeatable: bool | None = None,
        landed: list[Any] | None = None,
    ) -> Any:
        """See `Pool.call`. With `landed`, a cancelled call is still given a moment, and its answer left in there."""
        repeat = is_repeatable(method) if repeatable is None else repeatable
        silence = timeout or self.patience.call
        wait, hops, renewals, attempt = self.patience.first_wait, 0, 0, 0
        while True:
            attempt += 1
            try:
                return await self._exchange(method, params, silence, landed)
            except PoolCertificateError:
                raise
            except PoolUnreachableError as error:
                if not self._tries_again(attempt) or not (repeat or isinstance(error, NotSentError)):
                    raise
            except XapiError as error:
                match error.code:
                    # The host did not look at the call: it is no longer the master.
                    case "HOST_IS_SLAVE" if hops < _MAX_HOPS:
                        hops += 1
                        continue
                    # Who begins a task is told so before there is one.
                    case "SESSION_INVALID" if (repeat or method.startswith("Async.")) and not renewals:
                        renewals += 1
                        continue
                    case _ if error.code == _STARTING and self._tries_again(attempt):
                        pass
                    case _:
                        raise
            await asyncio.sleep(wait)
            wait = min(2 * wait, self.patience.longest_wait)

    def hurry(self) -> None:
        """See `Pool.hurry`."""
        self._hurried = True

    def _tries_again(self, attempt: int) -> bool:
        """Take note that the pool did not answer, and say whether to try again."""
        away = self._absence.failed(asyncio.get_running_loop().time())
        if self._hurried:
            return False
        if away is None or not self.patience.away:
            return attempt < self.patience.attempts
        return away < self.patience.away

    async def current_session(self, expired: Secret | None = None) -> Secret:
        """Return the session's reference, logging in again where there is none or where it is `expired`."""
        async with self._login:
            if self.session is None or self.session == expired:
                self.session = None
                await self._log_in()
            return self.session or Secret("")

    async def log_out(self, session: Secret) -> None:
        """End a session, this one or another, within bounds and whatever state the connections are in."""
        with suppress(ProtocolError, TimeoutError):
            async with asyncio.timeout(AFTERMATH), self._channels.one() as channel:
                silence = AFTERMATH / 2
                work = partial(channel.call, "session.logout", (session,), silence)
                await self._channels.in_thread(channel, work, silence)

    async def close(self) -> None:
        """Log out and hang up."""
        session, self.session = self.session, None
        try:
            if session is not None:
                await self.log_out(session)
        finally:
            self._channels.close()

    async def _exchange(self, method: str, params: tuple[Any, ...], silence: float, landed: list[Any] | None) -> Any:
        session = self.session or await self.current_session()
        async with self._channels.one() as channel:
            try:
                work = partial(channel.call, method, (session, *params), silence)
                answer = await self._channels.in_thread(channel, work, silence, landed)
                self._absence.answered()
                return answer
            except XapiError as error:
                if error.code != _STARTING:
                    self._absence.answered()
                # Others may have logged in again meanwhile.
                if error.code in ("SESSION_INVALID", "HOST_IS_SLAVE") and self.session == session:
                    self.session = None
                raise

    async def _log_in(self) -> None:
        """Follow the hosts to the master, and open a session there."""
        for _ in range(_MAX_HOPS):
            landed: list[Secret] = []
            try:
                async with self._channels.one() as channel:
                    work = partial(log_in, channel, self._credentials, self.patience.call)
                    self.session = await self._channels.in_thread(channel, work, self.patience.call, landed)
                return
            except XapiError as error:
                if error.code != "HOST_IS_SLAVE" or not error.params:
                    raise
                self._go_to(error.params[0])
            except asyncio.CancelledError:
                # A session made meanwhile has to be ended: the pool keeps it for a day otherwise.
                self.session = landed[0] if landed else None
                raise
        raise PoolUnreachableError(str(self.address), "its hosts name each other as the master")

    def _go_to(self, master: str) -> None:
        try:
            self._channels.go_to(self.address.sibling(master))
        except ValueError as error:
            raise PoolUnreachableError(str(self.address), f"its master is at no usable address: {error}") from None
