"""A disk read in full over NBD into a new store, beside programs that compress or deduplicate it as a local file."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.child import call
from bench.measure import Case, Check, MiB, Sample, interleave, ratio, ratios_to_ours, seconds_of
from bench.peers import borg_environment
from bench.registry import Scenario, Setting
from bench.servers import nbdkit

BARS = {"zstd -1 -T2": 1.0, "qemu-img convert -c": 2.5, "borg": 2.5, "restic": 4.0}


def run(setting: Setting) -> Iterator[Case]:
    """One case: everybody on the same image."""
    image = setting.image()
    case = Case(f"full of {setting.mib} MiB into a new store")
    with setting.scratch() as scratch, nbdkit("file", str(image)) as port:
        store = scratch / "store"

        def ours() -> Sample:
            shutil.rmtree(store, ignore_errors=True)
            return call("back_up", place={"ports": [port]}, store=str(store))

        samples = interleave(setting.rounds, {"ours": ours, **_peers(setting, case, image, scratch)})
        mine = samples["ours"]
        case.failures += call("compare", store=str(store), point=mine[-1].facts["point"], images=[str(image)]).facts[
            "failures"
        ]
        stored = call("stored_bytes", store=str(store)).facts["all"]
    case.series = seconds_of(samples)
    ratios_to_ours(case, BARS)
    case.check_rss(mine)
    case.facts = {"MiB stored": stored / MiB}
    for name, taken in samples.items():
        if name != "ours":
            case.facts[f"MiB by {name}"] = taken[-1].facts["stored"] / MiB
    zstd = samples.get("zstd -1 -T2")
    if zstd:
        case.checks.append(Check("bytes stored / zstd's", stored / zstd[-1].facts["stored"], None, "at most"))
    yield case


def run_ceiling(setting: Setting) -> Iterator[Case]:
    """The parts of a full, each alone, beside zstd: what no full can be faster than."""
    image = setting.image()
    case = Case(f"parts of a full of {setting.mib} MiB, each alone on two threads")
    with setting.scratch() as scratch, nbdkit("file", str(image)) as port:

        def sealed() -> Sample:
            shutil.rmtree(scratch / "store", ignore_errors=True)
            return call("seal", image=str(image), store=str(scratch / "store"))

        zstd = {name: peer for name, peer in _peers(setting, case, image, scratch).items() if name == "zstd -1 -T2"}
        samples = interleave(
            setting.rounds,
            {
                "sealed from memory": sealed,
                "only compressed": lambda: call("compress", image=str(image)),
                "only read over NBD": lambda: call("read", place={"ports": [port]}),
                **zstd,
            },
        )
    case.series = seconds_of(samples)
    for name in ("sealed from memory", "only compressed", "only read over NBD"):
        for peer in zstd:
            value = ratio(case.series[peer], case.series[name])
            case.checks.append(Check(f"{name}: times as fast as {peer}", value, unit="x"))
    yield case


def _peers(setting: Setting, case: Case, image: Path, scratch: Path) -> dict[str, Callable[[], Sample]]:
    found: dict[str, Callable[[], Sample]] = {}
    out = scratch / "out"
    environment = borg_environment(scratch / "home")

    def timed(*commands: list[str]) -> Callable[[], Sample]:
        """The last of the commands counts; each time everything is made anew."""

        def once() -> Sample:
            if out.is_dir():
                shutil.rmtree(out)
            out.unlink(missing_ok=True)
            shutil.rmtree(scratch / "home", ignore_errors=True)
            started = 0.0
            for command in commands:
                started = time.perf_counter()
                subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
            return Sample(time.perf_counter() - started, {"stored": _size(out)})

        return once

    if setting.present(case, "zstd"):
        found["zstd -1 -T2"] = timed(["zstd", "-q", "-1", "-T2", "-f", str(image), "-o", str(out)])
    if setting.present(case, "qemu-img"):
        form = ["-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd"]
        convert = ["qemu-img", "convert", "-c", "-W", "-m", "4"]
        found["qemu-img convert -c"] = timed([*convert, *form, str(image), str(out)])
    if setting.present(case, "borg"):
        found["borg"] = timed(
            ["borg", "init", "--encryption", "none", str(out)],
            ["borg", "create", "-C", "zstd,1", "--chunker-params", "fixed,1048576", f"{out}::a", str(image)],
        )
    if setting.present(case, "restic"):
        quiet = ["restic", "-q", "-r", str(out)]
        found["restic"] = timed([*quiet, "init"], [*quiet, "backup", str(image)])
    return found


def _size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(os.path.getsize(Path(folder, name)) for folder, _, names in os.walk(path) for name in names)


SCENARIOS = (
    Scenario("full", "a full over NBD into a new store, beside zstd, qemu-img, borg, restic", run),
    Scenario("ceiling", "what a full consists of, each part alone, beside zstd", run_ceiling, quick=False),
)
