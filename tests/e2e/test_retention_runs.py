"""Retention after runs, and the space that a prune gives back, on a real pool's points."""

from pathlib import Path

from tests.pool_fixtures import GRANULE, MiB, site


def stored_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in (folder / "store" / "packs").rglob("*") if path.is_file())


async def test_old_points_go_their_space_comes_back_and_the_rest_restores(tmp_path: Path):
    async with site(tmp_path) as here:
        (vdi,) = here.simulator.vdis_of(here.simulator.make_vm("web", [24 * MiB]))
        job = here.job("[retention]\nkeep-last = 2\n")
        states = []
        for number in range(5):
            here.simulator.guest(vdi).fill(number * 2 * MiB, 8 * MiB, "random")
            states.append(here.content(vdi))
            assert (await here.run(job)).exit_code == 0
        points = here.store.points()
        assert len(points) == 2
        before = stored_bytes(tmp_path)
        report = here.store.prune()
        assert report.deleted > 0
        assert stored_bytes(tmp_path) < before - 16 * MiB
        assert list(here.store.verify(deep=True)) == []
        for point, state in zip(points, states[-2:], strict=True):
            assert await here.restored(point) == [state]
        here.simulator.guest(vdi).scatter(2, GRANULE)
        state = here.content(vdi)
        assert (await here.run(job)).exit_code == 0
        assert [plan.mode for plan in here.planned()] == ["incremental"]
        assert await here.restored(here.store.points()[-1]) == [state]


async def test_a_failed_run_forgets_nothing(tmp_path: Path):
    from mover.simulator.faults import CallFault

    async with site(tmp_path) as here:
        here.simulator.make_vm("web", [2 * MiB])
        for _ in range(2):
            assert (await here.run()).exit_code == 0
        here.simulator.faults.arm(CallFault("VM.snapshot", "SR_BACKEND_FAILURE_44", ("", "no space", "")))
        assert (await here.run(here.job("[retention]\nkeep-last = 1\n"))).exit_code != 0
        assert len(here.store.points()) == 2
