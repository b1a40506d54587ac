"""A disk that is in the store already, read in full once more, beside nbdcopy, which reads it to nowhere."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator

from bench.child import call
from bench.measure import Case, Sample, interleave, ratios_to_ours, seconds_of
from bench.registry import Scenario, Setting
from bench.servers import nbdkit


def run(setting: Setting) -> Iterator[Case]:
    """One case; nothing may be stored, and the content has the root it had."""
    image = setting.image()
    case = Case(f"{setting.mib} MiB, nothing changed")
    with setting.scratch() as scratch, nbdkit("file", str(image)) as port:
        store, place = str(scratch / "store"), {"ports": [port]}
        first = call("back_up", place=place, store=store).facts

        def again() -> Sample:
            return call("back_up", place=place, store=store, new=False, compare=first["root"])

        def nbdcopy() -> Sample:
            started = time.perf_counter()
            command = ["nbdcopy", "--connections=4", "--request-size=2097152", f"nbd://127.0.0.1:{port}", "null:"]
            subprocess.run(command, check=True)
            return Sample(time.perf_counter() - started)

        contestants: dict[str, Callable[[], Sample]] = {"ours": again}
        if setting.present(case, "nbdcopy"):
            contestants["nbdcopy to null"] = nbdcopy
        samples = interleave(setting.rounds, contestants)
        for sample in samples["ours"]:
            if sample.facts["root"] != first["root"] or sample.facts["new"]:
                case.failures.append(f"{sample.facts['new']} bytes are said to be new where nothing changed")
        case.failures += call("compare", store=store, point=first["point"], images=[str(image)]).facts["failures"]
    case.series = seconds_of(samples)
    ratios_to_ours(case, {"nbdcopy to null": 0.5})
    case.check_rss(samples["ours"])
    yield case


SCENARIOS = (Scenario("unchanged", "an unchanged disk read in full, beside nbdcopy to null", run),)
