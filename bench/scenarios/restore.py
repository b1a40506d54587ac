"""A disk out of the store: into a raw file and as VHD and XVA streams beside qemu-img, and blocks here and there."""

from __future__ import annotations

import random
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.child import call
from bench.inputs import GRANULE
from bench.measure import Case, Check, Sample, interleave, ratios_to_ours, seconds_of
from bench.peers import find_peer
from bench.registry import Scenario, Setting
from bench.servers import nbdkit

_CONVERT = "qemu-img convert from qcow2"
_UNPACK = "zstd -d"
_XVA_BLOCK = 1 << 20
_FILE_BLOCK = 4096


def run(setting: Setting) -> Iterator[Case]:
    """A case for each kind of target, all in the same rounds with the same peers; then blocks of one file."""
    image = setting.image()
    with setting.scratch() as scratch:
        store, target = str(scratch / "store"), scratch / "restored"
        with nbdkit("file", str(image)) as port:
            call("back_up", place={"ports": [port]}, store=store)

        def to_file() -> Sample:
            shutil.rmtree(target, ignore_errors=True)
            return call("restore_files", store=store, directory=str(target))

        size = f"restore of {setting.mib} MiB"
        cases = {
            "raw": Case(f"{size} to a raw file"),
            "vhd": Case(f"{size} as VHD stream to nowhere"),
            "xva": Case(f"{size} as XVA stream to nowhere"),
        }
        ours = {
            "raw": to_file,
            "vhd": lambda: call("restore_stream", store=store, form="vhd"),
            "xva": lambda: call("restore_stream", store=store, form="xva"),
        }
        for case in cases.values():
            setting.present(case, "qemu-img", "zstd")
        peers = _peers(image, scratch)
        samples = interleave(setting.rounds, {**ours, **peers})
        for file in samples["raw"][-1].facts["files"]:
            if subprocess.run(["cmp", "-s", file, image], check=False).returncode:
                cases["raw"].failures.append("the restored file differs from the image")
        shutil.rmtree(target)
        for form in ("vhd", "xva"):
            _compare_stream(setting, cases[form], image, scratch, store, form)
        for form, case in cases.items():
            case.series = seconds_of({"ours": samples[form], **{peer: samples[peer] for peer in peers}})
            ratios_to_ours(case, {_CONVERT: 1.0 if form == "raw" else 0.8})
            case.check_rss(samples[form])
            yield case
        yield _one_file(setting, image, store)


def _compare_stream(setting: Setting, case: Case, image: Path, scratch: Path, store: str, form: str) -> None:
    """What others find in the stream, against the image."""
    target = scratch / f"disk.{form}"
    case.failures += call("restore_stream", store=store, form=form, target=str(target)).facts["failures"]
    if form == "xva":
        case.failures += _compare_xva(target, image)
    elif setting.present(case, "qemu-img"):
        compare = ["qemu-img", "compare", "-q", "-f", "raw", "-F", "vpc", str(image), str(target)]
        if subprocess.run(compare, check=False).returncode:
            case.failures.append("qemu-img says that the VHD differs from the image")
    target.unlink()


def _compare_xva(archive: Path, image: Path) -> list[str]:
    """What tar finds in it, against the image: members are blocks of 1 MiB by number, those left out are zeros."""
    seen: set[int] = set()
    with tarfile.open(archive) as members, image.open("rb") as expected:
        for member in members:
            folder, _, name = member.name.rpartition("/")
            if not folder or not name.isdigit():
                continue
            content = members.extractfile(member)
            expected.seek(int(name) * _XVA_BLOCK)
            if content is None or content.read() != expected.read(member.size):
                return [f"the block {name} of the XVA differs from the image"]
            seen.add(int(name))
        for number in set(range(-(-image.stat().st_size // _XVA_BLOCK))) - seen:
            expected.seek(number * _XVA_BLOCK)
            if any(expected.read(_XVA_BLOCK)):
                return [f"the block {number} is missing in the XVA, and is not zeros"]
    return []


def _one_file(setting: Setting, image: Path, store: str) -> Case:
    """64 KiB at a time in no order, as somebody reads who mounts a restore point."""
    case = Case("the blocks of one file in the image, at random")
    blocks = sorted(_blocks_of(image, "/shop.sqlite"))
    chunks = sorted({block * _FILE_BLOCK // GRANULE for block in blocks})
    random.Random(5).shuffle(chunks)
    extents = [(chunk * GRANULE, GRANULE) for chunk in chunks[: setting.pick(400, 400, 20)]]
    samples = interleave(
        setting.rounds, {"ours": lambda: call("read_extents", store=store, extents=extents, image=str(image))}
    )["ours"]
    case.failures += [failure for sample in samples for failure in sample.facts["failures"]]
    case.series = {"ours": [sample.seconds for sample in samples]}
    wanted = sum(length for _, length in extents)
    case.checks.append(
        Check("bytes read from the store / bytes wanted", samples[-1].facts["read"] / wanted, 1.2, "at most", "x")
    )
    case.check_rss(samples)
    return case


def _blocks_of(image: Path, path: str) -> list[int]:
    """The blocks of 4 KiB in which debugfs says the file lies."""
    program = find_peer("debugfs")
    if program is None:
        raise RuntimeError("debugfs is missing (package e2fsprogs)")
    command = [program, "-R", f"blocks {path}", str(image)]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return [int(word) for word in said.split()]


def _peers(image: Path, scratch: Path) -> dict[str, Callable[[], Sample]]:
    """Those that are there."""
    found: dict[str, Callable[[], Sample]] = {}
    out = scratch / "out"

    def timed(*command: str) -> Callable[[], Sample]:
        def once() -> Sample:
            out.unlink(missing_ok=True)
            started = time.perf_counter()
            subprocess.run(command, check=True)
            return Sample(time.perf_counter() - started)

        return once

    if find_peer("qemu-img"):
        packed = scratch / "packed.qcow2"
        form = ["-f", "raw", "-O", "qcow2", "-o", "compression_type=zstd"]
        subprocess.run(["qemu-img", "convert", "-c", "-W", *form, str(image), str(packed)], check=True)
        found[_CONVERT] = timed("qemu-img", "convert", "-f", "qcow2", "-O", "raw", str(packed), str(out))
    if find_peer("zstd"):
        archive = scratch / "packed.zst"
        subprocess.run(["zstd", "-q", "-1", "-T2", str(image), "-o", str(archive)], check=True)
        found[_UNPACK] = timed("zstd", "-q", "-d", "-f", "--sparse", str(archive), "-o", str(out))
    return found


SCENARIOS = (Scenario("restore", "restore to a raw file and to streams, beside qemu-img; one file's blocks", run),)
