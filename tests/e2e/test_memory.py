"""The memory of a running VM: taken along, and restored with a VM that is suspended."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mover.events import Note
from mover.explain import explain
from mover.restore.options import RestoreOptions
from mover.restore.pool import restore_to_pool
from mover.run import join_pool, run_job
from mover.simulator import Options
from mover.simulator.faults import CallFault
from mover.store import MEMORY
from tests.pool_fixtures import MiB, Site, fill_some, site

SIZES = [8 * MiB, 4 * MiB]
NULL = "OpaqueRef:NULL"


def with_memory(here: Site, strategy: str = "cbt", more: str = "") -> Any:
    return here.job(f'[backup]\nstrategy = "{strategy}"\nmemory = true\n{more}')


def a_vm(here: Site, state: str = "Running") -> str:
    vm = here.simulator.make_vm("web", SIZES, power_state=state)
    fill_some(here, here.simulator.vdis_of(vm))
    return vm


def images(here: Site) -> list[dict[str, Any]]:
    """The suspend images that the pool has."""
    return [record for _, record in here.simulator.pool.database.items("VDI") if record["type"] == "suspend"]


async def restored(here: Site, **options: Any) -> tuple[dict[str, Any], list[str]]:
    """The record of the newest point's VM, restored, and what was said."""
    said: list[str] = []

    def listen(event: object) -> None:
        if isinstance(event, Note):
            said.append(event.message)

    async with join_pool(here.job().pool) as (pool, transfers):
        point = here.store.points()[-1]
        made = await restore_to_pool(here.store, point, pool, transfers, RestoreOptions(**options), listen)
    return here.simulator.pool.database.get("VM", made.ref), said


@pytest.mark.parametrize("strategy", ["cbt", "xva"])
async def test_memory_goes_into_the_point_and_comes_back_as_a_suspended_vm(tmp_path: Path, strategy: str):
    async with site(tmp_path) as here:
        vm = a_vm(here)
        taken: list[bytes] = []

        def look(event: object) -> None:
            taken.extend(here.content(record["uuid"]) for record in images(here) if not taken)

        assert (await run_job(with_memory(here, strategy), emit=look)).exit_code == 0
        assert images(here) == [], "the image does not stay on the pool"
        (point,) = here.store.points()
        assert [disk.position for disk in point.record.disks] == ["0", "1", MEMORY]
        contents = await here.restored(point)
        assert contents == [*map(here.content, here.simulator.vdis_of(vm)), *taken]
        assert any(taken[0])

        here.simulator.pool.database.update("VM", vm, power_state="Halted")
        record, said = await restored(here)
        assert record["power_state"] == "Suspended"
        assert record["blocked_operations"] == {}
        image = here.simulator.pool.database.get("VDI", record["suspend_VDI"])
        assert here.content(image["uuid"]) == taken[0]
        assert image["type"] == "suspend"
        assert not any("memory" in words for words in said)


async def test_the_next_run_is_incremental_and_its_snapshot_has_no_memory(tmp_path: Path):
    async with site(tmp_path) as here:
        vm = a_vm(here)
        for mode in ("full", "incremental"):
            assert (await here.run(with_memory(here))).exit_code == 0
            assert [plan.mode for plan in here.planned() if plan.disk != MEMORY] == [mode, mode]
            assert here.notes() == []
        records = [record for _, record in here.simulator.pool.database.items("VM") if record["snapshot_of"] == vm]
        assert [(record["power_state"], record["suspend_VDI"]) for record in records] == [("Halted", NULL)]
        assert images(here) == []


@pytest.mark.parametrize("code", ["LICENCE_RESTRICTION", "VM_CHECKPOINT_SUSPEND_FAILED"])
async def test_where_it_cannot_be_had_a_regular_snapshot_is_taken(tmp_path: Path, code: str):
    async with site(tmp_path) as here:
        a_vm(here)
        here.simulator.faults.arm(CallFault("VM.checkpoint", code, ("x",)))
        assert (await here.run(with_memory(here))).exit_code == 0
        (said,) = here.notes()
        assert "no snapshot with memory" in said and code in said and "took a regular one" in said
        assert [disk.position for disk in here.store.points()[-1].record.disks] == ["0", "1"]
        record, _ = await restored(here)
        assert record["power_state"] == "Halted"


async def test_a_vm_that_is_off_has_none(tmp_path: Path):
    async with site(tmp_path) as here:
        vm = a_vm(here)
        assert [told.memory for told in await explain(with_memory(here))] == [True]
        assert [told.memory for told in await explain(here.job())] == [False]
        here.simulator.pool.database.update("VM", vm, power_state="Halted")
        assert [told.memory for told in await explain(with_memory(here))] == [False]
        assert (await here.run(with_memory(here))).exit_code == 0
        assert here.notes() == []
        assert len(here.store.points()[-1].record.disks) == 2


async def test_a_run_that_fails_leaves_no_image(tmp_path: Path):
    async with site(tmp_path) as here:
        a_vm(here)
        here.simulator.faults.arm(CallFault("VDI.list_changed_blocks", "INTERNAL_ERROR", ("no",)))
        here.simulator.faults.arm(CallFault("VM.hard_shutdown", "INTERNAL_ERROR", ("no",)))
        assert (await here.run(with_memory(here))).exit_code == 0
        assert any("image of the VM's memory could not be removed" in note for note in here.notes())
        assert images(here) == [], "swept after the commit"


@pytest.mark.parametrize(("options", "words"), [({"via": "xva"}, "--via api does"), ({"template": True}, "a template")])
async def test_a_way_back_that_cannot_carry_memory_says_so(tmp_path: Path, options: dict[str, Any], words: str):
    async with site(tmp_path) as here:
        a_vm(here)
        assert (await here.run(with_memory(here))).exit_code == 0
        record, said = await restored(here, **options)
        assert record["power_state"] == "Halted"
        assert any("the VM's memory is not restored" in one and words in one for one in said)
        assert images(here) == []


async def test_a_vm_with_a_tpm_comes_back_without_its_memory(tmp_path: Path):
    async with site(tmp_path) as here:
        vm = a_vm(here)
        here.simulator.pool.database.create("VTPM", {"VM": vm, "is_unique": False})
        assert (await here.run(with_memory(here))).exit_code == 0
        record, said = await restored(here)
        assert record["power_state"] == "Halted" and len(record["VTPMs"]) == 1
        assert any("the VM's memory is not restored: the VM has a TPM" in one for one in said)
        assert images(here) == []


async def test_disks_alone_can_be_chosen(tmp_path: Path):
    async with site(tmp_path) as here:
        a_vm(here)
        assert (await here.run(with_memory(here))).exit_code == 0
        record, _ = await restored(here, disks=("0", "1"))
        assert (record["power_state"], images(here)) == ("Halted", [])


async def test_a_pool_that_makes_no_suspended_vm_of_it_gets_one_that_is_off(tmp_path: Path):
    async with site(tmp_path) as here:
        a_vm(here)
        assert (await here.run(with_memory(here))).exit_code == 0
        here.simulator.faults.arm(CallFault("VM.create", "VM_BAD_POWER_STATE", (NULL, "halted", "suspended")))
        record, said = await restored(here)
        assert record["power_state"] == "Halted"
        assert any("restored without its memory" in one for one in said)
        assert images(here) == []


async def test_a_restore_that_fails_leaves_no_image(tmp_path: Path):
    async with site(tmp_path, Options()) as here:
        a_vm(here)
        assert (await here.run(with_memory(here))).exit_code == 0
        before = len(list(here.simulator.pool.database.items("VDI")))
        here.simulator.faults.arm(
            CallFault("VIF.create", "INTERNAL_ERROR", ("no",)),
            CallFault("VM.set_name_label", "INTERNAL_ERROR", ("no",)),
        )
        with pytest.raises(Exception, match="INTERNAL_ERROR"):
            await restored(here)
        assert images(here) == []
        assert len(list(here.simulator.pool.database.items("VDI"))) == before
