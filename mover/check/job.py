"""All checks of a job, in the order in which a run would stumble."""

from __future__ import annotations

from collections.abc import Sequence

from mover.check.finding import Finding, failed
from mover.check.inventory import Inventory, take_stock
from mover.check.local import check_local
from mover.check.nbd import check_servers
from mover.check.pool import check_pool
from mover.check.store import check_room, open_store
from mover.check.vm import check_vm
from mover.errors import MoverError
from mover.explain import look_ahead, stored_of
from mover.explain.outlook import live_endpoints
from mover.failure import as_mover_error
from mover.job import Job, SelectedVm
from mover.run import chosen_schedule, join_pool, selected_of, with_mode
from mover.store import Store
from protocol.errors import ProtocolError
from protocol.nbd import Endpoint
from protocol.xapi import Pool


async def check_job(
    job: Job, *, schedule: str | None = None, vms: Sequence[str] = (), full: bool = False
) -> list[Finding]:
    """Look at everything that a run of `job` needs. Raises `UsageError` for an unknown schedule; all else is told."""
    chosen = chosen_schedule(job, schedule)
    findings = list(check_local(job))
    store, told = open_store(job)
    findings += told
    to_read = 0
    try:
        async with join_pool(job.pool) as (pool, _):
            stock = await take_stock(pool)
            warnings: list[str] = []
            selected = [
                with_mode(vm, chosen, full=full) for vm in selected_of(job, stock.records, vms, warnings.append)
            ]
            findings += check_pool(pool, stock, by_cbt=any(vm.backup.strategy == "cbt" for vm in selected))
            findings += [Finding(level="warning", check="selection", what=warning) for warning in warnings]
            to_read = await _check_vms(pool, job, store, selected, stock, findings)
    except ProtocolError as error:
        findings.append(failed("pool", as_mover_error(error) or MoverError(str(error))))
    except MoverError as error:
        # A secret that cannot be read was told already.
        if not any(finding.what == str(error) for finding in findings):
            findings.append(failed("pool", error))
    findings += check_room(job, to_read)
    return findings


async def _check_vms(
    pool: Pool, job: Job, store: Store | None, selected: Sequence[SelectedVm], stock: Inventory, findings: list[Finding]
) -> int:
    """Look at each VM and at the NBD servers of all of them. Returns how many bytes a run would read at most."""
    stored = stored_of(job, store)
    endpoints: list[Endpoint] = []
    to_read = 0
    for vm in selected:
        try:
            outlook = await look_ahead(pool, stored, vm, stock.records)
            for disk in vm.disks if vm.backup.strategy == "cbt" else ():
                endpoints += await live_endpoints(pool, disk.vdi)
        except ProtocolError as error:
            findings.append(failed("vm", as_mover_error(error) or MoverError(str(error)), vm.name))
            continue
        findings += check_vm(stock, vm, outlook)
        to_read += sum(disk.size if disk.to_read is None else disk.to_read for disk in outlook.disks)
    both = stock.networks_for("nbd") and stock.networks_for("insecure_nbd")
    if endpoints and not both:
        findings += await check_servers(endpoints, job.limits.nbd_connections_per_host, stock)
    return to_read
