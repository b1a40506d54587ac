"""mover check"""

from __future__ import annotations

import argparse
from itertools import groupby

import msgspec

from mover.check import Finding, check_job, verdict
from mover.cli.opening import job_of
from mover.cli.runner import show
from mover.printable import printable

_MARKS = {"ok": "ok     ", "info": "info   ", "warning": "WARNING", "error": "ERROR  "}


async def main(options: argparse.Namespace) -> int:
    """Say what would happen and what stops it."""
    findings = await check_job(job_of(options.job), schedule=options.schedule, vms=options.vms, full=options.full)
    code = verdict(findings)
    if options.json:
        show(msgspec.json.encode({"exit_code": code, "findings": findings}).decode())
        return code
    for where, group in groupby(findings, key=lambda finding: (finding.vm, finding.disk)):
        if where != (None, None):
            show(_where(*where))
        for finding in group:
            _show(finding, indent="" if where == (None, None) else "  ")
    errors = sum(finding.level == "error" for finding in findings)
    warnings = sum(finding.level == "warning" for finding in findings)
    show(f"{errors} errors, {warnings} warnings")
    return code


def _where(vm: str | None, disk: str | None) -> str:
    return printable(vm or "") if disk is None else f"{printable(vm or '')}, disk {disk}"


def _show(finding: Finding, indent: str) -> None:
    show(f"{indent}{_MARKS[finding.level]}  {finding.check}: {printable(finding.what)}")
    if finding.fix:
        show(f"{indent}         fix: {printable(finding.fix)}")
