"""The errors a user can meet. Each class has its exit code; the table in docs/exit-codes.md is made from them.

A message says what failed, on which VM and disk, what the other side said; `hint` says what to do.
"""

from __future__ import annotations


class MoverError(Exception):
    """The root. Shown as `error: …` and `hint: …`, without a traceback."""

    exit_code = 1
    transient = False

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(MoverError):
    """The command line asks for something that cannot be."""

    exit_code = 2


class JobError(MoverError):
    """The job file is wrong: file, line, key, what was found and what is allowed."""

    exit_code = 2


class PartialError(MoverError):
    """Some VMs failed; the others are safe."""

    exit_code = 3


class StoreMissingError(MoverError):
    """There is no store at this place."""

    exit_code = 10


class StoreLockedError(MoverError):
    """The store is in use in a way that excludes this one."""

    exit_code = 11
    transient = True


class ReportError(MoverError):
    """A log or report that the job asks for cannot be written."""

    exit_code = 4


class StateError(MoverError):
    """This program's own folder for small state cannot be written."""

    exit_code = 5


class SecretError(MoverError):
    """A password or passphrase cannot be read."""

    exit_code = 12


class StoreDamagedError(MoverError):
    """The store holds something that is not what was written."""

    exit_code = 13


class StoreFullError(MoverError):
    """The store takes no more: no space, quota, or read-only."""

    exit_code = 14


class PassphraseError(MoverError):
    """The store is encrypted, and the passphrase is missing or wrong."""

    exit_code = 16


class NotEncryptedError(MoverError):
    """The store is not encrypted, although it should be."""

    exit_code = 17


class FormatTooNewError(MoverError):
    """The store was made by a newer version."""

    exit_code = 15


class StoreUnfitError(MoverError):
    """The place cannot keep a store safely: the server ignores what a store rests on."""

    exit_code = 18


class UnreachableError(MoverError):
    """The pool does not answer, or is not trusted."""

    exit_code = 20
    transient = True


class NotFoundError(MoverError):
    """A VM, disk, network, SR or restore point that was asked for does not exist."""

    exit_code = 21


class NoIncrementalError(MoverError):
    """The job allows incrementals only, and one is impossible."""

    exit_code = 22


class PoolError(MoverError):
    """The pool refused or failed something that was asked of it."""

    exit_code = 23


class MigratingError(MoverError):
    """A VM is being migrated: its disks may be elsewhere in a moment."""

    exit_code = 26
    transient = True


class UnfitStorageError(MoverError):
    """The storage of a VM is in no state for a snapshot: its chain is too long, or its SR is full."""

    exit_code = 27
    transient = True


class TargetError(MoverError):
    """The files of a restore cannot be written."""

    exit_code = 25


class HookError(MoverError):
    """A command of the job failed, and the job says that this fails the VM."""

    exit_code = 24


class VerifyError(MoverError):
    """Damage was found."""

    exit_code = 30


class BusyError(MoverError):
    """Another run of this job is active; try again later."""

    exit_code = 75
    transient = True


class InterruptedRunError(MoverError):
    """Stopped by a signal; what is left, if anything, is warned of."""

    exit_code = 130


class StoreIoError(MoverError):
    """The store's place cannot be read or written: permission, I/O error, network."""

    exit_code = 10


class StoreUnansweredError(StoreIoError):
    """The store went away before it said whether an object was written; a later run finds out."""


class FencedError(MoverError):
    """This run was silent for so long that a prune has shut it out; what it wrote is found by the next run."""

    exit_code = 75
    transient = True


class AddressError(MoverError):
    """The address or socket to serve on cannot be had."""

    exit_code = 28


class CheckError(MoverError):
    """`mover check` found what stops the backup of a VM, or of all of them."""

    exit_code = 40


class CheckWarningError(MoverError):
    """`mover check` found nothing that stops a backup, but what makes it slower, riskier or larger."""

    exit_code = 41


def all_errors() -> list[type[MoverError]]:
    """Every class of error, the root first."""

    def below(cls: type[MoverError]) -> list[type[MoverError]]:
        return [leaf for child in cls.__subclasses__() for leaf in (child, *below(child))]

    return [MoverError, *below(MoverError)]
