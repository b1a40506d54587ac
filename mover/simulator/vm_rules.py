"""What may be done with a VM in its present state.

Source: xen-api ocaml/xapi/xapi_vm_lifecycle.ml.
"""

from __future__ import annotations

from mover.simulator.database import Database
from mover.simulator.failure import Failure
from mover.simulator.values import Record

_ON_SNAPSHOT = "revert clone copy export destroy hard_shutdown metadata_export".split()
_ON_TEMPLATE = "clone copy export provision destroy metadata_export changing_memory_limits".split()
_IN_STATE = {
    "Halted": "snapshot clone copy create_template make_into_template export metadata_export start start_on destroy "
    "changing_memory_limits changing_static_range changing_VCPUs changing_NVRAM migrate_send create_vtpm",
    "Running": "snapshot checkpoint snapshot_with_quiesce pause clean_shutdown hard_shutdown clean_reboot hard_reboot "
    "suspend pool_migrate migrate_send metadata_export changing_dynamic_range",
    "Paused": "snapshot checkpoint unpause hard_shutdown hard_reboot metadata_export",
    "Suspended": "snapshot checkpoint resume resume_on hard_shutdown copy export metadata_export destroy migrate_send",
}
_ALWAYS = frozenset({"update_allowed_operations", "assert_operation_valid"})


def permitted(record: Record) -> list[str]:
    """The operations of a VM's state, whoever blocked them."""
    if record["is_control_domain"]:
        return []
    if record["is_a_snapshot"]:
        return list(_ON_SNAPSHOT)
    if record["is_a_template"]:
        return list(_ON_TEMPLATE)
    return _IN_STATE[record["power_state"]].split()


def allowed_operations(record: Record) -> list[str]:
    """VM.allowed_operations: nothing while something is going on."""
    if record["current_operations"]:
        return []
    return sorted(set(permitted(record)) - set(record["blocked_operations"]))


def states_of(operation: str) -> list[str]:
    return [state for state, operations in _IN_STATE.items() if operation in operations.split()]


def assert_allowed(database: Database, vm: str, operation: str) -> Record:
    """Raises what stands against the operation; returns the VM's record."""
    record = database.get("VM", vm)
    if operation in record["blocked_operations"]:
        raise Failure("OPERATION_BLOCKED", vm, record["blocked_operations"][operation])
    if operation in permitted(record) or operation in _ALWAYS:
        return record
    if record["is_control_domain"]:
        raise Failure("OPERATION_NOT_ALLOWED", "This operation is not allowed on dom0")
    if record["is_a_snapshot"]:
        raise Failure("VM_IS_SNAPSHOT", vm, operation)
    if record["is_a_template"]:
        raise Failure("VM_IS_TEMPLATE", vm, operation)
    expected = ", ".join(states_of(operation)).lower()
    raise Failure("VM_BAD_POWER_STATE", vm, expected, record["power_state"].lower())
