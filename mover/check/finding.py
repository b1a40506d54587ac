"""One thing that was looked at, and what was seen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import msgspec

from mover.errors import CheckError, CheckWarningError, MoverError

Level = Literal["ok", "info", "warning", "error"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """`check` names what was looked at, `what` says what was seen, `fix` what to do about it.

    `error` stops the backup of the VM, or of all of them if there is no `vm`; `warning` makes it slower, riskier or
    larger; `info` is worth knowing. `vm` is a name, `disk` a position.
    """

    level: Level
    check: str
    what: str
    vm: str | None = None
    disk: str | None = None
    fix: str | None = None


def failed(check: str, error: MoverError, vm: str | None = None) -> Finding:
    """An error that a run would end with, as a finding."""
    return Finding(level="error", check=check, what=str(error), vm=vm, fix=error.hint or None)


def verdict(findings: Iterable[Finding]) -> int:
    """The exit code: 0 if a run would go well, else that of `CheckError` or `CheckWarningError`."""
    levels = {finding.level for finding in findings}
    if "error" in levels:
        return CheckError.exit_code
    return CheckWarningError.exit_code if "warning" in levels else 0
