"""`python -m bench`: measure, compare with peers and bars, print, and keep the figures as JSON."""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
import traceback
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import machine, peers
from bench.floors import lowered
from bench.measure import Case, Check, line_of
from bench.registry import Scenario, Setting, scenarios

RESULTS = Path(__file__).parent / "results"


def main() -> int:
    """0 if every bar was reached and every content right, 1 if not, 2 if it cannot be measured here."""
    options = _options()
    if options.list:
        for scenario in scenarios():
            print(f"{scenario.name:14} {scenario.about}{'' if scenario.quick else ' (not with --quick)'}")
        return 0
    if options.install_peers:
        peers.install_peers()
    if needed := peers.missing(peers.NEEDED):
        print(f"needed and not there: {', '.join(needed)} (packages {' '.join(needed.values())})", file=sys.stderr)
        return 2
    for program, package in peers.missing(peers.PEERS).items():
        print(f"PEER MISSING: {program} (package {package}); --install-peers installs it")
    chosen = _chosen(options)
    if not chosen:
        print(f"no scenario is called {', '.join(options.only)}; --list names them", file=sys.stderr)
        return 2
    options.work.mkdir(parents=True, exist_ok=True)
    os.environ["MOVER_STATE"] = str(options.work / "state")
    setting = Setting(options.work, options.mib, options.rounds, small=options.quick, tiny=options.tiny)
    report: dict[str, Any] = {
        "taken": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": options.quick,
        "machine": machine.facts(options.work),
        "mib": setting.mib,
        "rounds": setting.rounds,
        "scenarios": {},
    }
    started = time.monotonic()
    cases = {scenario.name: _measure(scenario, setting) for scenario in chosen}
    report["scenarios"] = {name: [case.as_dict() for case in measured] for name, measured in cases.items()}
    report["seconds"] = time.monotonic() - started
    path = options.json or RESULTS / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}{'-quick' if options.quick else ''}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    return _conclude(cases, path, report["seconds"])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes and fewer cases: two minutes")
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="only this scenario; repeatable")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures go (default: bench/results/)")
    parser.add_argument("--work", type=Path, metavar="DIR", help="for inputs, which are kept, and scratch files")
    parser.add_argument("--mib", type=int, help="size of the image (default: 2048, with --quick 256)")
    parser.add_argument("--rounds", type=int, help="how often everybody runs (default: 5, with --quick 2)")
    parser.add_argument("--install-peers", action="store_true", help="install missing peers with apt-get first")
    parser.add_argument("--list", action="store_true", help="only say which scenarios there are")
    parser.add_argument("--tiny", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.quick = options.quick or options.tiny
    options.mib = options.mib or (64 if options.tiny else 256 if options.quick else 2048)
    options.rounds = options.rounds or (1 if options.tiny else 2 if options.quick else 5)
    options.work = (options.work or Path(tempfile.gettempdir()) / "mover-bench").absolute()
    return options


def _chosen(options: argparse.Namespace) -> list[Scenario]:
    if options.only:
        known = {scenario.name for scenario in scenarios()}
        if unknown := [name for name in options.only if name not in known]:
            options.only = unknown
            return []
        return [scenario for scenario in scenarios() if scenario.name in options.only]
    return [scenario for scenario in scenarios() if scenario.quick or not options.quick]


def _measure(scenario: Scenario, setting: Setting) -> list[Case]:
    """All cases of a scenario. One that breaks is a failed case, and the others go on."""
    print(f"\n{scenario.name}: {scenario.about}", flush=True)
    cases: list[Case] = []
    started = time.monotonic()
    try:
        for case in scenario.run(setting):
            if setting.small:
                case.checks = [lowered(scenario.name, check) for check in case.checks]
            cases.append(case)
            _print(case)
    except Exception as error:  # noqa: BLE001 - the others shall be measured all the same
        traceback.print_exc()
        cases.append(Case("broken", failures=[f"{type(error).__name__}: {error}"]))
        _print(cases[-1])
    print(f"  ({time.monotonic() - started:.0f} s)", flush=True)
    return cases


def _print(case: Case) -> None:
    print(f"  {case.name}")
    for name, seconds in case.series.items():
        if seconds:
            print(f"    {line_of(name, seconds)}")
    for check in case.checks:
        print(f"    {_mark(check)} {check.name}: {check.value:.2f} {check.unit}{_bar(check)}")
    for failure in case.failures:
        print(f"    FAILED {failure}")
    for program in case.absent:
        print(f"    PEER MISSING {program}")
    sys.stdout.flush()


def _mark(check: Check) -> str:
    if check.bar is None:
        return "      "
    if check.met:
        return "ok    "
    return "BELOW " if check.kind == "at least" else "ABOVE "


def _bar(check: Check) -> str:
    return "" if check.bar is None else f" (bar: {check.kind} {check.bar:g})"


def _conclude(cases: dict[str, list[Case]], path: Path, seconds: float) -> int:
    bad = [f"{name}: {case.name}" for name, measured in cases.items() for case in measured if not case.good]
    print(f"\n{seconds:.0f} s; figures in {path}")
    for name in bad:
        print(f"NOT REACHED {name}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
