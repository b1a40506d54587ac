"""The key of an encrypted store, wrapped by passphrases: one object under `keys/` for each.

The key itself is random and never changes, so that passphrases can be added, changed and removed without touching what
is stored. Whoever has lost all of them has lost the store: there is no other way in.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from mover.errors import NotFoundError, PassphraseError, StoreDamagedError, UsageError
from mover.store.backend import Backend, ObjectMissingError
from mover.store.names import KEYS
from protocol.secret import Secret

KEY_LENGTH = 32
MAX_LENGTH = 4 << 10
# Of more, whoever has a wrong passphrase would wait for minutes.
MAX_SLOTS = 32
_MAX_LABEL = 64
_NAME = re.compile(r"keys/([0-9a-f]{16})")
_FORMAT = "mover-key"


@dataclass(frozen=True)
class Cost:
    """What Argon2id takes: KiB of memory, passes over it, lanes. The default is RFC 9106's second recommendation."""

    memory: int = 64 << 10
    passes: int = 3
    lanes: int = 4


# Whoever can write to the store must not be able to make whoever opens it run out of memory or time.
MOST = Cost(memory=1 << 20, passes=16, lanes=16)


@dataclass(frozen=True)
class Slot:
    """One wrapped key: `id` is what it is called by, `created` Unix time; `fields` is the whole of it."""

    id: str
    label: str
    created: int
    cost: Cost
    fields: dict[str, Any]


class BadSlotError(ValueError):
    """These bytes are no wrapped key. The text says why."""


@dataclass(frozen=True)
class KeyRing:
    """The wrapped keys of the store whose `store.json` is `description`."""

    backend: Backend
    store_id: str
    description: bytes

    def add(self, key: bytes, passphrase: Secret, label: str = "", cost: Cost | None = None) -> Slot:
        """Wrap the store's `key` by one more passphrase. Raises `UsageError`, and what the store raises."""
        if len(label) > _MAX_LABEL or not label.isprintable():
            raise UsageError(f"a label has at most {_MAX_LABEL} printable characters")
        if len(self.slots()[0]) >= MAX_SLOTS:
            raise UsageError(f"{self.backend.location} has {MAX_SLOTS} passphrases, which is as many as there may be")
        cost = cost or Cost()
        salt, nonce = os.urandom(16), os.urandom(12)
        about: dict[str, Any] = {
            "created": int(time.time()),
            "format": _FORMAT,
            "kdf": "argon2id",
            "label": label,
            "lanes": cost.lanes,
            "memory": cost.memory,
            "passes": cost.passes,
            "salt": salt.hex(),
            "store_id": self.store_id,
            "version": 1,
        }
        # The description is wrapped with the key: nobody without it can change what the store is like.
        plain = key + blake3(self.description).digest()
        wrapped = nonce + AESGCM(_derive(passphrase, salt, cost)).encrypt(nonce, plain, _canonical(about))
        fields = {**about, "wrapped": wrapped.hex()}
        fields["check"] = blake3(_canonical(fields)).hexdigest()
        id = secrets.token_hex(8)
        self.backend.put(f"{KEYS}{id}", _canonical(fields))
        return _slot(id, fields)

    def unlock(self, passphrase: Secret) -> tuple[bytes, str]:
        """The store's key, and the id of the slot that has it.

        Raises `PassphraseError` if no slot opens, `StoreDamagedError` if none is whole or `store.json` was changed.
        """
        slots, damaged = self.slots()
        changed = False
        for slot in slots:
            plain = _unwrap(slot, passphrase)
            if plain is None:
                continue
            if plain[KEY_LENGTH:] == blake3(self.description).digest():
                return plain[:KEY_LENGTH], slot.id
            changed = True
        where = self.backend.location
        if changed:
            raise StoreDamagedError(
                f"{where}/store.json is not what it was when the store's key was made: it was changed or replaced",
                "bring back this file, and keys/, from a copy of the store",
            )
        if not slots:
            what = f": {damaged[0][0]}: {damaged[0][1]}" if damaged else ""
            raise StoreDamagedError(
                f"{where} is encrypted, and there is no key under keys/ that can be read{what}",
                "bring back keys/ from a copy of the store; without it nothing can be read",
            )
        broken = "".join(f"; {name} is damaged: {why}" for name, why in damaged)
        raise PassphraseError(
            f"this passphrase opens none of the {len(slots)} keys of {where}{broken}",
            "it has to be one of those that `mover key` has set; a lost passphrase cannot be brought back",
        )

    def slots(self) -> tuple[list[Slot], list[tuple[str, str]]]:
        """The wrapped keys, oldest first, and the names of those that cannot be read with the reason."""
        found: list[Slot] = []
        damaged: list[tuple[str, str]] = []
        for name, size in self.backend.list(KEYS):
            if (match := _NAME.fullmatch(name)) is None:
                continue
            if len(found) + len(damaged) >= MAX_SLOTS:
                damaged.append((name, f"there are more than {MAX_SLOTS}"))
                break
            try:
                if size > MAX_LENGTH:
                    raise BadSlotError(f"it has {size} bytes")
                found.append(_decode(match[1], self.store_id, self.backend.get(name, 0, MAX_LENGTH)))
            except ObjectMissingError:
                continue
            except BadSlotError as error:
                damaged.append((name, str(error)))
        return sorted(found, key=lambda slot: (slot.created, slot.id)), damaged

    def remove(self, id: str) -> Slot:
        """Let a passphrase open the store no longer. Raises `NotFoundError`, and `UsageError` for the last one."""
        slots, _ = self.slots()
        chosen = [slot for slot in slots if slot.id == id]
        if not chosen:
            raise NotFoundError(f"{self.backend.location} has no key {id}", "`mover key list` shows what there is")
        if len(slots) == 1:
            raise UsageError(
                f"{id} is the last key of {self.backend.location}: without it nothing can be read",
                "add another passphrase first",
            )
        self.backend.delete(f"{KEYS}{id}", durable=True)
        return chosen[0]


def _derive(passphrase: Secret, salt: bytes, cost: Cost) -> bytes:
    argon = Argon2id(salt=salt, length=KEY_LENGTH, iterations=cost.passes, lanes=cost.lanes, memory_cost=cost.memory)
    return argon.derive(passphrase.reveal().encode("utf-8", "surrogateescape"))


def _unwrap(slot: Slot, passphrase: Secret) -> bytes | None:
    about = {name: value for name, value in slot.fields.items() if name not in ("wrapped", "check")}
    wrapped = bytes.fromhex(slot.fields["wrapped"])
    key = AESGCM(_derive(passphrase, bytes.fromhex(slot.fields["salt"]), slot.cost))
    try:
        return key.decrypt(wrapped[:12], wrapped[12:], _canonical(about))
    except InvalidTag:
        return None


def _decode(id: str, store_id: str, data: bytes) -> Slot:
    try:
        fields = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadSlotError("it is no JSON") from error
    if not isinstance(fields, dict) or fields.get("format") != _FORMAT or _canonical(fields) != data:
        raise BadSlotError("it is no wrapped key")
    if fields.get("check") != blake3(_canonical({k: v for k, v in fields.items() if k != "check"})).hexdigest():
        raise BadSlotError("its checksum does not match")
    if fields.get("version") != 1 or fields.get("kdf") != "argon2id":
        raise BadSlotError("it is made in a way this version does not know")
    if fields.get("store_id") != store_id:
        raise BadSlotError("it is that of another store")
    try:
        return _slot(id, fields)
    except (KeyError, TypeError, ValueError) as error:
        raise BadSlotError(f"it holds what cannot be: {error}") from error


def _slot(id: str, fields: dict[str, Any]) -> Slot:
    cost = Cost(fields["memory"], fields["passes"], fields["lanes"])
    numbers: Sequence[object] = (cost.memory, cost.passes, cost.lanes, fields["created"])
    if not all(type(number) is int for number in numbers) or not isinstance(fields["label"], str):
        raise TypeError("numbers are whole, and labels are text")
    if not (1 <= cost.passes <= MOST.passes and 1 <= cost.lanes <= MOST.lanes):
        raise ValueError("passes or lanes are out of range")
    if not 8 * cost.lanes <= cost.memory <= MOST.memory:
        raise ValueError("its memory is out of range")
    if len(bytes.fromhex(fields["salt"])) != 16 or len(bytes.fromhex(fields["wrapped"])) != 12 + 2 * KEY_LENGTH + 16:
        raise ValueError("salt or key have the wrong length")
    return Slot(id, fields["label"], fields["created"], cost, fields)


def _canonical(fields: dict[str, Any]) -> bytes:
    return json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
