"""A guest that encrypts its disk is noticed by the run that sees it, in every view; the run itself is well."""

from pathlib import Path

from mover.events import RunFinished
from mover.report.prometheus import render
from mover.report.summary import Summary
from mover.unusual import ENOUGH
from tests.pool_fixtures import GRANULE, MiB, site


async def test_an_encrypted_disk_is_flagged_and_nothing_else_changes(tmp_path: Path):
    async with site(tmp_path) as here:
        (vdi,) = here.simulator.vdis_of(here.simulator.make_vm("web", [64 * MiB]))
        guest = here.simulator.guest(vdi)
        for day in range(ENOUGH + 1):
            guest.fill(day * 4 * GRANULE, 4 * GRANULE, "text")
            assert (await here.run()).exit_code == 0
            assert here.notes() == []
        guest.fill(0, 48 * MiB, "random")
        result = await here.run()
        assert result.exit_code == 0
        (warning,) = here.notes()
        assert warning.startswith("unusual: 48 MiB changed, 75.0% of its disks")
        assert [event.outcome for event in here.events if isinstance(event, RunFinished)] == ["done"]
        summary = Summary()
        for event in here.events:
            summary(event, 1.0)
        assert summary.value.warnings == [f"web: {warning}"]
        assert "mover_run_warnings" in render(summary.value)
