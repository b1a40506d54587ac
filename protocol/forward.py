"""Reading a format strictly forwards, sans-I/O: a plan says what to do with the next bytes, a `Scan` does it.

A plan is a generator. It yields `Take` (and gets those bytes back in one piece), `Pass` (bytes that go by as views of
what was fed) or `Give` (an event), and returns where the format ends. Memory is bounded by the largest `Take`.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from typing import Generic, NamedTuple, TypeVar

from protocol.errors import FormatError

Bytes = bytes | bytearray | memoryview
Event = TypeVar("Event")

_RESPONSE = b"HTTP/1."


class Take(NamedTuple):
    """The next `length` bytes are wanted in one piece. If `optional`, the stream may end in front of them."""

    length: int
    optional: bool = False


class Pass(NamedTuple, Generic[Event]):
    """The next `length` bytes go by. `make` turns where in them a piece begins, and the piece, into an event."""

    length: int
    make: Callable[[int, memoryview], Event] | None = None


class Give(NamedTuple, Generic[Event]):
    """An event to give out."""

    event: Event


Step = Take | Pass[Event] | Give[Event]
Plan = Generator[Step[Event], bytes, None]


class Scan(Generic[Event]):
    """Takes a stream piece by piece, and gives out what a plan makes of it.

    `position` counts the bytes of the stream that were dealt with. After a `FormatError` it is of no more use.
    """

    def __init__(self, format: str, plan: Callable[[Scan[Event]], Plan[Event]]) -> None:
        self.position = 0
        self._format = format
        self._gathered = bytearray()
        self._passed = 0
        self._plan = plan(self)
        self._step = next(self._plan, None)

    def feed(self, data: Bytes) -> Iterator[Event]:
        """Take the next bytes; exhaust the iterator before feeding more. Raises `FormatError`."""
        view = memoryview(data).cast("B")
        while True:
            step = self._step
            if isinstance(step, Give):
                yield step.event
                self._advance(b"")
            elif isinstance(step, Take):
                part = view[: step.length - len(self._gathered)]
                view = self._consume(view, part)
                if len(part) == step.length:
                    self._advance(bytes(part))
                    continue
                self._gathered += part
                if len(self._gathered) < step.length:
                    return
                whole, self._gathered = bytes(self._gathered), bytearray()
                self._advance(whole)
            elif isinstance(step, Pass):
                part = view[: step.length - self._passed]
                view = self._consume(view, part)
                start = self._passed
                self._passed += len(part)
                if part and step.make:
                    yield step.make(start, part)
                if self._passed < step.length:
                    return
                self._passed = 0
                self._advance(b"")
            else:
                if view:
                    raise self._surplus(view)
                return

    def coming(self) -> tuple[Event, int] | None:
        """What the next bytes will make, with none of them yet, and how many they are; None if they are no content.

        Who receives them where they belong feeds a view of that place then.
        """
        step = self._step
        if isinstance(step, Pass) and step.make and self._passed < step.length:
            return step.make(self._passed, memoryview(b"")), step.length - self._passed
        return None

    def finish(self) -> None:
        """Say that the stream is over. Raises `FormatError` if it was cut short."""
        if self._gathered.startswith(_RESPONSE):
            raise response_inside(self._format, self.position - len(self._gathered))
        if self._gathered or not (self._step is None or (isinstance(self._step, Take) and self._step.optional)):
            raise FormatError(self._format, "the stream ends too early", self.position)

    def _consume(self, view: memoryview, part: memoryview) -> memoryview:
        self.position += len(part)
        return view[len(part) :]

    def _advance(self, answer: bytes) -> None:
        try:
            self._step = self._plan.send(answer)
        except StopIteration:
            self._step = None

    def _surplus(self, view: memoryview) -> FormatError:
        if bytes(view[: len(_RESPONSE)]) == _RESPONSE:
            return response_inside(self._format, self.position)
        return FormatError(self._format, "something follows its end", self.position)


def refuse_response(format: str, data: Bytes, offset: int) -> None:
    """Raise `FormatError` if `data`, which stands at `offset`, begins as an HTTP response does.

    A server that fails after it has said 200 writes a second response into the body (xen-api issue 4603).
    """
    if bytes(data[: len(_RESPONSE)]) == _RESPONSE:
        raise response_inside(format, offset)


def response_inside(format: str, offset: int) -> FormatError:
    """The error for a stream in which an HTTP response stands where the format goes on."""
    return FormatError(format, "the server's HTTP response to a failure instead of the data", offset)
