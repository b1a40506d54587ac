"""Virtual TPMs: one for each VM, with contents.

Source: xen-api ocaml/xapi/xapi_vtpm.ml, ocaml/idl/datamodel_vtpm.ml. get_contents and set_contents are hidden there.
"""

from __future__ import annotations

from mover.simulator.context import Context
from mover.simulator.failure import Failure
from mover.simulator.pool import Pool
from mover.simulator.signature import call


class VtpmCalls:
    """The calls of VTPM."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    @call("VTPM.create(vM: VM ref, is_unique: bool) -> VTPM ref", errors="VTPM_MAX_AMOUNT_REACHED FEATURE_RESTRICTED")
    def create(self, context: Context, vm: str, is_unique: bool) -> str:
        """For a VM that is off and has none."""
        database = self._pool.database
        record = database.get("VM", vm)
        restrictions = database.get("pool", database.refs("pool")[0])["restrictions"]
        if restrictions.get("restrict_vtpm") != "false":
            raise Failure("FEATURE_RESTRICTED", "restrict_vtpm")
        if record["power_state"] != "Halted":
            raise Failure("VM_BAD_POWER_STATE", vm, "halted", record["power_state"].lower())
        if record["VTPMs"]:
            raise Failure("VTPM_MAX_AMOUNT_REACHED", "1")
        return database.create("VTPM", {"VM": vm, "is_unique": is_unique, "is_protected": False})

    @call("VTPM.destroy(self: VTPM ref) -> void", errors="VM_BAD_POWER_STATE")
    def destroy(self, context: Context, vtpm: str) -> None:
        self._pool.database.destroy("VTPM", vtpm)

    @call("VTPM.get_contents(self: VTPM ref) -> string", asynchronous=False, hidden=True)
    def get_contents(self, context: Context, vtpm: str) -> str:
        uuid = self._pool.database.get("VTPM", vtpm)["uuid"]
        return self._pool.database.blobs.get(uuid, "")

    @call("VTPM.set_contents(self: VTPM ref, contents: string) -> void", asynchronous=False, hidden=True)
    def set_contents(self, context: Context, vtpm: str, contents: str) -> None:
        uuid = self._pool.database.get("VTPM", vtpm)["uuid"]
        self._pool.database.set_blob(uuid, contents)


def copy_vtpm(pool: Pool, vtpm: str, vm: str) -> str:
    """A VTPM for a copy of the VM: with the same contents, unless it is to be unique."""
    record = pool.database.get("VTPM", vtpm)
    copy = pool.database.create("VTPM", {"VM": vm, "is_unique": record["is_unique"]})
    if not record["is_unique"]:
        contents = pool.database.blobs.get(record["uuid"], "")
        pool.database.set_blob(pool.database.get("VTPM", copy)["uuid"], contents)
    return copy
