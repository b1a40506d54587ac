"""A full into an encrypted store beside one into a plain store, both read back; and what it takes to unlock one."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from bench.child import call
from bench.measure import Case, Check, MiB, Sample, interleave, ratio, seconds_of
from bench.registry import Scenario, Setting
from bench.servers import nbdkit

# What a full may lose by encryption: at least this much of the plain store's speed is left.
_BAR = 0.85
_PASSPHRASE = "correct horse battery staple"


def run(setting: Setting) -> Iterator[Case]:
    """One case: the same image into both.

    Trying a passphrase takes a part of a second whatever the store's size, on purpose: it is told by itself.
    """
    image = setting.image()
    case = Case(f"full of {setting.mib} MiB into an encrypted store")
    with setting.scratch() as scratch, nbdkit("file", str(image)) as port:
        stores = {"encrypted": scratch / "encrypted", "plain": scratch / "plain"}
        secrets = {"encrypted": _PASSPHRASE, "plain": None}

        def full(name: str) -> Callable[[], Sample]:
            def once() -> Sample:
                shutil.rmtree(stores[name], ignore_errors=True)
                return call("back_up", place={"ports": [port]}, store=str(stores[name]), passphrase=secrets[name])

            return once

        samples = interleave(setting.rounds, {name: full(name) for name in stores})
        unlocking = [
            call("unlock", store=str(scratch / f"empty-{number}"), passphrase=_PASSPHRASE).seconds
            for number in range(setting.rounds)
        ]
        stored = {}
        for name, store in stores.items():
            point = samples[name][-1].facts["point"]
            told = call("compare", store=str(store), point=point, images=[str(image)], passphrase=secrets[name])
            case.failures += told.facts["failures"]
            stored[name] = _size(store)
    case.series = seconds_of(samples)
    case.checks += [
        Check(
            "speed of an encrypted full / plain", ratio(case.series["plain"], case.series["encrypted"]), _BAR, unit="x"
        ),
        Check("bytes stored encrypted / plain", stored["encrypted"] / stored["plain"], None, "at most", "x"),
    ]
    case.check_rss(samples["encrypted"])
    case.facts = {f"MiB stored {name}": size / MiB for name, size in stored.items()}
    case.facts["seconds to unlock"] = unlocking
    yield case


def _size(store: Path) -> int:
    return sum(path.stat().st_size for path in store.rglob("*") if path.is_file())


SCENARIOS = (Scenario("encrypted", "a full into an encrypted store, beside a plain one", run, quick=False),)
