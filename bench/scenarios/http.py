"""A disk as a stream over HTTP into a store: raw, as a VHD of differences, as an XVA; beside the same disk over NBD."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator

from bench.child import call
from bench.measure import Case, Sample, interleave, ratios_to_ours, seconds_of
from bench.registry import Scenario, Setting
from bench.servers import simulated_pool

BAR = 0.8
_STREAMS = ("raw", "vhd", "xva")


def run(setting: Setting) -> Iterator[Case]:
    """A case for each kind of stream; in the quick form for the one with most to do. NBD runs once a round for all.

    Neither side with TLS; the server of all is the simulated pool.
    """
    image = setting.image()
    size = image.stat().st_size
    streams = _STREAMS[-1:] if setting.small else _STREAMS
    with (
        setting.scratch() as scratch,
        simulated_pool(scratch / "pool", "--nbd", "insecure", "--plain-http") as pool,
    ):
        made = pool.make_vm("vm", [size])
        empty = call("snapshot", place={"pool": pool.where, "vm": made["vm"]}).facts
        pool.copy_in(made["vdis"][0], image)
        taken = call("snapshot", place={"pool": pool.where, "vm": made["vm"]}).facts
        place = {
            "pool": pool.where,
            "vdi": taken["vdis"][0],
            "base": empty["vdis"][0],
            "snapshot": taken["snapshot"],
        }
        stores = {name: str(scratch / f"store {name}") for name in (*streams, "NBD")}

        def into_store(name: str) -> Callable[[], Sample]:
            def once() -> Sample:
                shutil.rmtree(stores[name], ignore_errors=True)
                stream = None if name == "NBD" else name
                return call("back_up", store=stores[name], place=place, stream=stream)

            return once

        samples = interleave(setting.rounds, {name: into_store(name) for name in stores})
        for kind in streams:
            case = Case(f"{kind} stream of {setting.mib} MiB, beside NBD")
            point = samples[kind][-1].facts["point"]
            case.failures += call("compare", store=stores[kind], point=point, images=[str(image)]).facts["failures"]
            case.series = seconds_of({name: samples[name] for name in (kind, "NBD")})
            ratios_to_ours(case, {"NBD": BAR}, ours=kind)
            case.check_rss(samples[kind])
            yield case


SCENARIOS = (Scenario("http", "raw, VHD and XVA streams into the store, beside NBD from the same pool", run),)
