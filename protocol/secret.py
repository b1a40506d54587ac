"""A string that does not show itself."""

from __future__ import annotations


class Secret:
    """A password, session reference or NBD export name.

    `str()`, `repr()` and formatting give `***`, so that a secret in a log line or an error does not leak; the text
    comes out only by `reveal()`, at the place where it goes on a wire.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """Return the text itself."""
        return self._text

    def __repr__(self) -> str:
        return "***"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash(self._text)
