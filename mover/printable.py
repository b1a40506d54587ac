"""Text from elsewhere, made fit for a terminal or a log: names on a pool can hold any character."""

from __future__ import annotations


def printable(text: str) -> str:
    r"""`text` as one line in which nothing moves the cursor, changes colours or reverses: others become `\x1b`."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def printable_lines(text: str) -> str:
    """The same for text of several lines; all but the first are indented, so that none passes for a line of ours."""
    return "\n  ".join(printable(line) for line in text.split("\n"))
