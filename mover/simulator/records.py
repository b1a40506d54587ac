"""The generic calls of every class, made from its fields: getters, setters, records.

Source: xen-api ocaml/idl/datamodel.ml and gen_server.ml.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from mover.simulator.context import Context
from mover.simulator.database import Database
from mover.simulator.failure import Failure
from mover.simulator.fields import ClassModel, Field
from mover.simulator.query import compile_query
from mover.simulator.signature import Bound, Function, Param, Signature
from mover.simulator.values import Record, Type, Value

_STRING = Type("string")
_VOID = Type("void")


class RecordCalls:
    """Makes the generic calls. `hidden_fields` are those the simulated release does not have."""

    def __init__(self, database: Database, hidden_fields: frozenset[tuple[str, str]] = frozenset()) -> None:
        self._database = database
        self._hidden = hidden_fields

    def record(self, cls: str, ref: str) -> Record:
        """An object as clients see it."""
        fields = self._database.get(cls, ref)
        return {name: value for name, value in fields.items() if (cls, name) not in self._hidden}

    def bound(self) -> Iterator[Bound]:
        """All generic calls of all classes."""
        for model in self._database.models.values():
            if model.recorded:
                yield from self._of_class(model)

    def _of_class(self, model: ClassModel) -> Iterator[Bound]:
        cls, database = model.name, self._database
        ref, record = Type("ref", cls), Type("record", cls)
        every = Type("map", item=record, key=ref)
        yield _bind(cls, "get_record", [("self", ref)], record, lambda c, self: self_record(self))
        yield _bind(cls, "get_by_uuid", [("uuid", _STRING)], ref, lambda c, uuid: database.by_uuid(cls, uuid))
        if model.listed:
            yield _bind(cls, "get_all", [], Type("set", item=ref), lambda c: database.refs(cls))
            yield _bind(cls, "get_all_records", [], every, lambda c: {r: self_record(r) for r in database.refs(cls)})
            yield _bind(
                cls,
                "get_all_records_where",
                [("expr", _STRING)],
                every,
                lambda c, expr: self._matching(cls, expr),
                hidden=cls != "message",
            )
        if model.named:
            yield _bind(cls, "get_by_name_label", [("label", _STRING)], Type("set", item=ref), self._by_name(cls))
        if cls != "message":
            for field in model.fields.values():
                if (cls, field.name) not in self._hidden:
                    yield from self._of_field(cls, ref, field)

        def self_record(reference: str) -> Record:
            return self.record(cls, reference)

    def _by_name(self, cls: str) -> Function:
        return lambda c, label: [ref for ref, r in self._database.items(cls) if r["name_label"] == label]

    def _matching(self, cls: str, expression: str) -> Record:
        accepts = compile_query(expression)
        return {ref: self.record(cls, ref) for ref, record in self._database.items(cls) if accepts(record)}

    def _of_field(self, cls: str, ref: Type, field: Field) -> Iterator[Bound]:
        database, name, kind = self._database, field.name, field.type

        def get(context: Context, self: str) -> Value:
            return database.get(cls, self)[name]

        def set_(context: Context, self: str, value: Value) -> None:
            database.update(cls, self, **{name: value})

        def add_to(context: Context, self: str, key: str, value: str) -> None:
            entries = database.get(cls, self)[name]
            if key in entries:
                raise Failure("MAP_DUPLICATE_KEY", cls, name, self, key)
            database.update(cls, self, **{name: {**entries, key: value}})

        def remove_from(context: Context, self: str, key: str) -> None:
            entries = database.get(cls, self)[name]
            database.update(cls, self, **{name: {k: v for k, v in entries.items() if k != key}})

        def add(context: Context, self: str, value: str) -> None:
            members = database.get(cls, self)[name]
            if value not in members:
                database.update(cls, self, **{name: [*members, value]})

        def remove(context: Context, self: str, value: str) -> None:
            members = database.get(cls, self)[name]
            database.update(cls, self, **{name: [member for member in members if member != value]})

        target = ("self", ref)
        yield _bind(cls, f"get_{name}", [target], kind, get)
        if not field.settable:
            return
        yield _bind(cls, f"set_{name}", [target, ("value", kind)], _VOID, set_)
        if kind.kind == "map":
            key, item = kind.key or _STRING, kind.item or _STRING
            yield _bind(cls, f"add_to_{name}", [target, ("key", key), ("value", item)], _VOID, add_to)
            yield _bind(cls, f"remove_from_{name}", [target, ("key", key)], _VOID, remove_from)
        if kind.kind == "set":
            item = kind.item or _STRING
            yield _bind(cls, f"add_{name}", [target, ("value", item)], _VOID, add)
            yield _bind(cls, f"remove_{name}", [target, ("value", item)], _VOID, remove)


def _bind(
    cls: str,
    name: str,
    params: list[tuple[str, Type]],
    result: Type,
    function: Callable[..., Value],
    hidden: bool = False,
) -> Bound:
    declared = tuple(Param(param, kind) for param, kind in params)
    return Bound(Signature(f"{cls}.{name}", declared, result, asynchronous=False, hidden=hidden), function)
