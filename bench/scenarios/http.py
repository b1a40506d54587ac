"""A disk as a raw stream over HTTP into a store, beside the same disk of the same pool over NBD."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

from bench.child import call
from bench.measure import Case, Sample, interleave, ratios_to_ours, seconds_of
from bench.registry import Scenario, Setting
from bench.servers import nbdkit, simulated_pool

BAR = 0.8


def run(setting: Setting) -> Iterator[Case]:
    """Neither with TLS. Both servers are the simulated pool; nbdkit tells what a fast one would give."""
    image = setting.image()
    case = Case(f"raw stream of {setting.mib} MiB and NBD, from a simulated pool")
    with (
        setting.scratch() as scratch,
        simulated_pool(scratch / "pool", "--nbd", "insecure", "--plain-http") as pool,
        nbdkit("file", str(image)) as port,
    ):
        made = pool.steer("make_vm", name="vm", sizes=[image.stat().st_size])
        pool.copy_in(made["vdis"][0], image)
        taken = call("snapshot", place={"pool": pool.where, "vm": made["vm"]})
        place = {"pool": pool.where, "vdi": taken.facts["vdis"][0]}
        store = scratch / "store"

        def into_store(**arguments: object) -> Callable[[], Sample]:
            def once() -> Sample:
                shutil.rmtree(store, ignore_errors=True)
                return call("back_up", store=str(store), **arguments)

            return once

        stream = into_store(place=place, stream=True)
        samples = interleave(
            setting.rounds,
            {
                "raw stream": stream,
                "NBD": into_store(place=place),
                "NBD from nbdkit": into_store(place={"ports": [port]}),
            },
        )
        last = stream()
        found = call("compare", store=str(store), point=last.facts["point"], images=[str(image)])
        case.failures += found.facts["failures"]
    case.series = seconds_of(samples)
    ratios_to_ours(case, {"NBD": BAR}, ours="raw stream")
    case.check_rss(samples["raw stream"])
    yield case


SCENARIOS = (Scenario("http", "a raw HTTP stream into the store, beside NBD from the same pool", run),)
