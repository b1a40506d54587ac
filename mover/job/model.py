"""The job file as typed values. docs/job.md is made from the documentation of each key here."""

from __future__ import annotations

from dataclasses import dataclass, fields

from mover.job.keys import (
    choice,
    command,
    count,
    duration,
    flag,
    key,
    many,
    one,
    pattern,
    place,
    size,
    text,
    texts,
    url,
)
from mover.units import MiB

_NAME = pattern(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "letters, digits, dots, dashes and underscores, at most 64")
_COMPRESSION = pattern(
    r"none|zstd(:([1-9]|1[0-9]))?", 'none, zstd, or zstd:LEVEL with a level from 1 to 19, as in "zstd:1"'
)
_FINGERPRINT = pattern(r"sha256:[0-9A-Fa-f]{2}(:?[0-9A-Fa-f]{2}){31}", "sha256: and 64 hex digits")
_UUID = pattern(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", "a UUID as the pool writes it, in lower case")
_ENDPOINT = url
_VARIABLE = pattern(r"[A-Za-z_][A-Za-z0-9_]*", "the name of an environment variable")


def _fingerprints(value: object) -> tuple[str, ...]:
    """One fingerprint or several: each host has its own certificate."""
    items = value if isinstance(value, list) else [value]
    return tuple(_FINGERPRINT(item) for item in items)


def _uuids(value: object) -> tuple[str, ...]:
    return tuple(_UUID(item) for item in texts(value))


def _chunk_size(value: object) -> int:
    parsed = size(value)
    if not 64 << 10 <= parsed <= 4 * MiB or parsed & (parsed - 1):
        raise ValueError("a power of two from 64KiB to 4MiB")
    return parsed


def _exclusion(value: object) -> tuple[str, ...]:
    """Positions come as numbers; everything is kept as text."""
    if not isinstance(value, list) or not all(isinstance(item, str | int) and item is not True for item in value):
        raise ValueError("a list of positions (numbers), name patterns, UUIDs or tags")
    return tuple(str(item) for item in value)


@dataclass(frozen=True, kw_only=True)
class PoolSection:
    """[pool]: where the pool is and who logs in. Exactly one of the password keys is needed."""

    url: str = key(url, doc="any member's address; a slave's answer leads to the master", example='"https://xcp-1"')
    username: str = key(text, doc="who logs in", example='"backup"')
    password_file: str | None = key(text, None, "a file whose first line is the password; not readable by others")
    password_env: str | None = key(_VARIABLE, None, "an environment variable that holds the password", private=True)
    password_command: tuple[str, ...] | None = key(
        command, None, "a command whose first line of output is the password", private=True
    )
    ca_file: str | None = key(text, None, "PEM certificates to trust for the pool's hosts")
    fingerprint: tuple[str, ...] = key(
        _fingerprints,
        (),
        "SHA-256 of the certificate to trust, or a list of them; without ca-file and fingerprint the "
        "system's authorities decide",
        'example "sha256:…"',
    )
    retry_for: float = key(
        duration,
        120.0,
        "how long a run waits for a pool that was there and does not answer any more: a master that restarts, say",
    )


@dataclass(frozen=True, kw_only=True)
class StoreSection:
    """[store]: where restore points go. chunk-size and compression are fixed when the store is made.

    The keys from endpoint on are for s3:// only. What is not given, the environment and the files of the AWS tools say.
    """

    url: str = key(
        place, doc="a folder, as file:///srv/backup/mover, or s3://bucket/prefix", example='"file:///srv/backup/mover"'
    )
    chunk_size: int = key(_chunk_size, 64 << 10, "the unit of deduplication, a power of two up to 4MiB")
    compression: str = key(_COMPRESSION, "zstd:1", "zstd:LEVEL or none")
    passphrase_file: str | None = key(text, None, "only for encrypted stores: a file with the passphrase")
    passphrase_env: str | None = key(
        _VARIABLE, None, "only for encrypted stores: a variable with the passphrase", private=True
    )
    passphrase_command: tuple[str, ...] | None = key(
        command, None, "only for encrypted stores: a command that prints it", private=True
    )
    endpoint: str | None = key(_ENDPOINT, None, "the server's URL, if it is not AWS")
    region: str | None = key(text, None, "the region of the bucket; without any, us-east-1")
    access_key_id: str | None = key(text, None, "who asks; without it AWS_ACCESS_KEY_ID, a profile, or a role")
    secret_access_key_file: str | None = key(text, None, "a file with its secret; not readable by others")
    secret_access_key_env: str | None = key(_VARIABLE, None, "a variable with its secret", private=True)
    secret_access_key_command: tuple[str, ...] | None = key(
        command, None, "a command that prints its secret", private=True
    )
    ca_file: str | None = key(text, None, "PEM certificates to trust for the endpoint, besides the system's")
    retry_for: float = key(duration, 120.0, "how long a request that fails for a passing reason is tried again")


@dataclass(frozen=True, kw_only=True)
class BackupSection:
    """[backup]: how VMs are read. Every key can be overridden in a [[vms]] selector."""

    strategy: str = key(choice("cbt", "xva"), "cbt", "cbt: changed blocks over NBD; xva: streams over HTTP")
    mode: str = key(choice("auto", "full", "incremental"), "auto", "auto: incremental where one is possible")
    full_read: str = key(choice("nbd", "raw"), "nbd", "how strategy cbt reads in full: nbd, or raw over HTTP")
    increments: str = key(choice("since-full", "since-last"), "since-full", "strategy xva: what an incremental holds")
    compression: str = key(
        choice("none", "zstd", "gzip"), "none", "strategy xva: compression of the export on the host"
    )
    cbt_audit: int = key(
        count(0, 100_000),
        0,
        "strategy cbt: so many random blocks of each disk that CBT calls unchanged are read by each incremental and "
        "compared with the last restore point; a difference makes it a full",
    )
    quiesce: bool = key(flag, False, "try a quiesced snapshot first; a regular one is taken if that fails")
    memory: bool = key(
        flag,
        False,
        "take the memory of running VMs along (VM.checkpoint): they stand still while it is written, and are restored "
        "as suspended; a regular snapshot is taken if that fails",
    )
    keep_snapshot: str = key(
        choice("data", "metadata", "auto", "none"),
        "data",
        "what stays on the pool as the next base: data: the snapshot, also of a job of fulls only; metadata: only its "
        "CBT log; auto: the snapshot, if a schedule of the job (without any: mode) can be incremental; none: nothing",
    )


@dataclass(frozen=True, kw_only=True)
class SelectorSection(BackupSection):
    """[[vms]]: which VMs; the union of all selectors is backed up. One of name, uuid, tag, all is needed.

    Where several selectors match one VM, each key has the value of the first of them that gives it, and the disks that
    any of them excludes are left out.
    """

    name: str | None = key(text, None, "a name, or a pattern with * and ?")
    uuid: str | None = key(_UUID, None, "a UUID")
    tag: str | None = key(text, None, "a tag")
    all: bool = key(flag, False, "every VM of the pool")
    exclude_disks: tuple[str, ...] = key(_exclusion, (), "disks to leave out: position, name pattern, UUID or tag")
    overrides: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class ExcludeSection:
    """[exclude]: VMs that no selector gets."""

    names: tuple[str, ...] = key(texts, (), "names or patterns")
    uuids: tuple[str, ...] = key(_uuids, (), "UUIDs")
    tags: tuple[str, ...] = key(texts, (), "tags")


@dataclass(frozen=True, kw_only=True)
class HooksSection:
    """[hooks]: commands on this machine around the snapshot."""

    pre_snapshot: tuple[str, ...] | None = key(command, None, "run before the snapshot of each VM")
    post_snapshot: tuple[str, ...] | None = key(command, None, "run after it, even if it failed")
    timeout: float = key(duration, 60.0, "how long a command may take")
    on_failure: str = key(choice("fail", "continue"), "fail", "what a failing command does to the VM's backup")


@dataclass(frozen=True, kw_only=True)
class RestoreSection:
    """[restore]: how `mover restore --job` makes VMs; its options win."""

    via: str = key(
        choice("auto", "api", "xva", "replay"),
        "auto",
        "api: the VM from its records, each disk as a VHD stream; xva: all of it as one XVA; replay: the XVA of the "
        "last full, then what changed since; auto: xva for what strategy xva has backed up, else api",
    )
    template: bool = key(flag, False, "make templates instead of VMs")


@dataclass(frozen=True, kw_only=True)
class LimitsSection:
    """[limits]: how much at once."""

    vms: int = key(count(1, 64), 4, "VMs at once")
    disks_per_host: int = key(count(1, 64), 4, "disks at once")
    nbd_connections: int = key(count(1, 16), 4, "connections per disk, at most")
    nbd_connections_per_host: int = key(
        count(1, 16), 12, "connections per host, over all disks and movers of this machine"
    )
    merge_gaps: bool = key(
        flag,
        True,
        "read short gaps between changed parts along where that is faster than another request; what is stored is the "
        "same either way",
    )
    read_rate: int = key(size, 0, "bytes a second over all disks, 0: no limit")
    note_every: float = key(
        duration,
        60.0,
        "how often a run notes down in the store how far its fulls are: one that is killed is continued from there",
    )


@dataclass(frozen=True, kw_only=True)
class ScheduleSection:
    """[[schedules]]: runs that something else starts, with `mover run JOB --schedule NAME`."""

    name: str = key(_NAME, doc="what --schedule takes", example='"nightly"')
    mode: str = key(choice("auto", "full", "incremental"), "auto", "as in [backup]; it wins over that")
    calendar: str | None = key(text, None, "systemd calendar syntax")


@dataclass(frozen=True, kw_only=True)
class RetentionSection:
    """[retention]: how many restore points of each VM stay. Without any key, all do."""

    keep_last: int = key(count(0, 100_000), 0, "the newest")
    keep_hourly: int = key(count(0, 100_000), 0, "the newest of each of so many hours")
    keep_daily: int = key(count(0, 100_000), 0, "… days")
    keep_weekly: int = key(count(0, 100_000), 0, "… weeks")
    keep_monthly: int = key(count(0, 100_000), 0, "… months")
    keep_yearly: int = key(count(0, 100_000), 0, "… years")


@dataclass(frozen=True, kw_only=True)
class ReportSection:
    """[report]: where else a run tells what it did."""

    prometheus: str | None = key(text, None, "a text file for the node exporter")
    webhook: str | None = key(url, None, "a URL that gets the summary", private=True)
    log: str | None = key(text, None, "a file of JSON lines; {job} is replaced")


@dataclass(frozen=True, kw_only=True)
class Job:
    """The whole file."""

    name: str = key(_NAME, "", "default: the file's name")
    pool: PoolSection = key(one(PoolSection), doc="")
    store: StoreSection = key(one(StoreSection), doc="")
    backup: BackupSection = key(one(BackupSection), BackupSection, "")
    vms: tuple[SelectorSection, ...] = key(many(SelectorSection), doc="")
    exclude: ExcludeSection = key(one(ExcludeSection), ExcludeSection, "")
    hooks: HooksSection = key(one(HooksSection), HooksSection, "")
    restore: RestoreSection = key(one(RestoreSection), RestoreSection, "")
    limits: LimitsSection = key(one(LimitsSection), LimitsSection, "")
    schedules: tuple[ScheduleSection, ...] = key(many(ScheduleSection), (), "")
    retention: RetentionSection = key(one(RetentionSection), RetentionSection, "")
    report: ReportSection = key(one(ReportSection), ReportSection, "")

    @property
    def secret_variables(self) -> frozenset[str]:
        """The environment variables that hold secrets of this job: nothing that it starts gets to see them."""
        named = (self.pool.password_env, self.store.passphrase_env, self.store.secret_access_key_env)
        return frozenset(name for name in named if name)


def backup_keys() -> list[str]:
    """The names of the fields of [backup], which a selector can override."""
    return [field.name for field in fields(BackupSection)]
