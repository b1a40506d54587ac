"""The expressions of `get_all_records_where`: `field "name__label" = "x" and not (field "type" = "nfs")`.

Source: xen-api ocaml/database/db_filter_parse.mly, db_filter_lex.mll.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from mover.simulator.failure import Failure
from mover.simulator.values import Record

Query = Callable[[Record], bool]
_TOKEN = re.compile(r"\s*(?:\"([^\"]*)\"|'([^']*)'|([()=])|(\w+))")


def compile_query(text: str) -> Query:
    """Raises INTERNAL_ERROR for what is no expression."""
    parser = _Parser(_tokens(text))
    query = parser.alternatives()
    parser.finish()
    return query


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens, position = [], 0
    text = text.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise Failure("INTERNAL_ERROR", "Db_filter.Expression_error")
        double, single, mark, word = match.groups()
        literal = double if double is not None else single
        tokens.append(("literal", literal) if literal is not None else ("mark", mark or word))
        position = match.end()
    return tokens


class _Parser:
    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self._tokens = tokens
        self._at = 0

    def alternatives(self) -> Query:
        left = self._conjunction()
        while self._take("or"):
            left = _either(left, self._conjunction())
        return left

    def finish(self) -> None:
        if self._at != len(self._tokens):
            raise Failure("INTERNAL_ERROR", "Db_filter.Expression_error")

    def _conjunction(self) -> Query:
        left = self._term()
        while self._take("and"):
            left = _both(left, self._term())
        return left

    def _term(self) -> Query:
        if self._take("not"):
            inner = self._term()
            return lambda record: not inner(record)
        if self._take("("):
            inner = self.alternatives()
            self._expect(")")
            return inner
        for word, verdict in (("true", True), ("false", False)):
            if self._take(word):
                return _constant(verdict)
        left = self._value()
        self._expect("=")
        right = self._value()
        return lambda record: left(record) == right(record)

    def _value(self) -> Callable[[Record], str]:
        if self._take("field"):
            name = self._literal().replace("__", "_")
            return lambda record: _text(record.get(name))
        literal = self._literal()
        return lambda record: literal

    def _literal(self) -> str:
        if self._at < len(self._tokens) and self._tokens[self._at][0] == "literal":
            self._at += 1
            return self._tokens[self._at - 1][1]
        raise Failure("INTERNAL_ERROR", "Db_filter.Expression_error")

    def _take(self, word: str) -> bool:
        if self._at < len(self._tokens):
            kind, text = self._tokens[self._at]
            if kind == "mark" and text.lower() == word:
                self._at += 1
                return True
        return False

    def _expect(self, word: str) -> None:
        if not self._take(word):
            raise Failure("INTERNAL_ERROR", "Db_filter.Expression_error")


def _either(left: Query, right: Query) -> Query:
    return lambda record: left(record) or right(record)


def _both(left: Query, right: Query) -> Query:
    return lambda record: left(record) and right(record)


def _constant(verdict: bool) -> Query:
    return lambda record: verdict


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
