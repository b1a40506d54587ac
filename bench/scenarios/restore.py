"""A disk out of the store, into a raw file and as a VHD stream, beside qemu-img reading compressed qcow2."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.child import call
from bench.measure import Case, Sample, interleave, ratios_to_ours, seconds_of
from bench.registry import Scenario, Setting
from bench.servers import nbdkit

_CONVERT = "qemu-img convert from qcow2"
_UNPACK = "zstd -d"


def run(setting: Setting) -> Iterator[Case]:
    """A case for each kind of target; the peers are the same, and run again beside each."""
    image = setting.image()
    with setting.scratch() as scratch:
        store = str(scratch / "store")
        with nbdkit("file", str(image)) as port:
            call("back_up", place={"ports": [port]}, store=store)
        yield _to_file(setting, image, scratch, store)
        yield _to_stream(setting, image, scratch, store)


def _to_file(setting: Setting, image: Path, scratch: Path, store: str) -> Case:
    case = Case(f"restore of {setting.mib} MiB to a raw file")
    target = scratch / "restored"

    def ours() -> Sample:
        shutil.rmtree(target, ignore_errors=True)
        return call("restore_files", store=store, directory=str(target))

    samples = interleave(setting.rounds, {"ours": ours, **_peers(setting, case, image, scratch)})
    for file in samples["ours"][-1].facts["files"]:
        if subprocess.run(["cmp", "-s", file, image], check=False).returncode:
            case.failures.append("the restored file differs from the image")
    shutil.rmtree(target)
    case.series = seconds_of(samples)
    ratios_to_ours(case, {_CONVERT: 1.0})
    case.check_rss(samples["ours"])
    return case


def _to_stream(setting: Setting, image: Path, scratch: Path, store: str) -> Case:
    case = Case(f"restore of {setting.mib} MiB as a VHD stream to nowhere")
    peers = _peers(setting, case, image, scratch)
    samples = interleave(setting.rounds, {"ours": lambda: call("restore_stream", store=store), **peers})
    vhd = scratch / "disk.vhd"
    case.failures += call("restore_stream", store=store, target=str(vhd)).facts["failures"]
    if setting.present(case, "qemu-img"):
        compare = ["qemu-img", "compare", "-q", "-f", "raw", "-F", "vpc", str(image), str(vhd)]
        if subprocess.run(compare, check=False).returncode:
            case.failures.append("qemu-img says that the VHD differs from the image")
    vhd.unlink()
    case.series = seconds_of(samples)
    ratios_to_ours(case, {_CONVERT: 0.8})
    case.check_rss(samples["ours"])
    return case


def _peers(setting: Setting, case: Case, image: Path, scratch: Path) -> dict[str, Callable[[], Sample]]:
    found: dict[str, Callable[[], Sample]] = {}
    out = scratch / "out"

    def timed(*command: str) -> Callable[[], Sample]:
        def once() -> Sample:
            out.unlink(missing_ok=True)
            started = time.perf_counter()
            subprocess.run(command, check=True)
            return Sample(time.perf_counter() - started)

        return once

    if setting.present(case, "qemu-img"):
        packed = scratch / "packed.qcow2"
        if not packed.exists():
            form = ["-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd"]
            subprocess.run(["qemu-img", "convert", "-c", "-W", *form, str(image), str(packed)], check=True)
        found[_CONVERT] = timed("qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(packed), str(out))
    if setting.present(case, "zstd"):
        archive = scratch / "packed.zst"
        if not archive.exists():
            subprocess.run(["zstd", "-q", "-1", "-T2", str(image), "-o", str(archive)], check=True)
        found[_UNPACK] = timed("zstd", "-q", "-d", "-f", "--sparse", str(archive), "-o", str(out))
    return found


SCENARIOS = (Scenario("restore", "restore to a raw file and to a VHD stream, beside qemu-img and zstd -d", run),)
