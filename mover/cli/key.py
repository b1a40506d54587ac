"""mover key"""

from __future__ import annotations

import argparse
from datetime import UTC, datetime

import msgspec

from mover.cli.opening import passphrase_of, store_of
from mover.cli.runner import say, show
from mover.errors import StoreDamagedError, UsageError
from mover.printable import printable
from mover.store import Slot, Store


async def main(options: argparse.Namespace) -> int:
    """Add, change, remove or list the passphrases of an encrypted store."""
    store = store_of(options.store, options)
    actions = {"add": _add, "change": _change, "remove": _remove, "list": _list}
    return actions[options.action](store, options)


def _add(store: Store, options: argparse.Namespace) -> int:
    _show([_new(store, options, options.label or "")], options)
    return 0


def _change(store: Store, options: argparse.Namespace) -> int:
    slots, _ = store.keys.slots()
    (old,) = [slot for slot in slots if slot.id == store.config.slot]
    # The new one first: whatever happens in between, one of them opens the store.
    new = _new(store, options, old.label if options.label is None else options.label)
    store.keys.remove(old.id)
    _show([new], options)
    return 0


def _remove(store: Store, options: argparse.Namespace) -> int:
    _show([store.keys.remove(options.key)], options)
    return 0


def _list(store: Store, options: argparse.Namespace) -> int:
    slots, damaged = store.keys.slots()
    _show(slots, options)
    for name, reason in damaged:
        say(f"damaged: {name}: {reason}")
    return StoreDamagedError.exit_code if damaged else 0


def _new(store: Store, options: argparse.Namespace, label: str) -> Slot:
    passphrase = passphrase_of(options, "new_")
    if passphrase is None:
        raise UsageError("a new passphrase is needed", "--new-passphrase-file, -env or -command")
    return store.add_passphrase(passphrase, label)


def _show(slots: list[Slot], options: argparse.Namespace) -> None:
    if options.json:
        fields = [{"id": slot.id, "label": slot.label, "created": slot.created} for slot in slots]
        show(msgspec.json.encode(fields).decode())
        return
    for slot in slots:
        when = datetime.fromtimestamp(slot.created, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S%z")
        show(f"{slot.id}  {when}  {printable(slot.label)}".rstrip())
