"""Read a job file: everything that is wrong with it is said at once, with file, line, key, found and allowed."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path
from typing import Any

from mover.errors import JobError
from mover.job.keys import Complaint, shown, table
from mover.job.model import Job, SelectorSection, backup_keys
from mover.job.position import nearest, positions

_LIMIT = 1 << 20
_SECRET_ACCESS_KEY = ("secret-access-key-file", "secret-access-key-env", "secret-access-key-command")
_PASSPHRASE = ("passphrase-file", "passphrase-env", "passphrase-command")
_FOR_BUCKETS = ("endpoint", "region", "access-key-id", "ca-file", "retry-for")
_PLACE = re.compile(r" \(at line ([0-9]+), column ([0-9]+)\)$")


def load_job(path: Path) -> Job:
    """Read the job in `path`. Raises `JobError`."""
    try:
        data = path.read_bytes()[: _LIMIT + 1]
    except OSError as error:
        raise JobError(f"cannot read the job file {path}: {error.strerror}") from error
    if len(data) > _LIMIT:
        raise JobError(f"the job file {path} is larger than {_LIMIT} bytes")
    try:
        content = data.decode()
    except UnicodeDecodeError as error:
        raise JobError(f"{path}: not UTF-8 at byte {error.start}") from error
    return parse_job(content, str(path), path.stem)


def parse_job(content: str, file: str, default_name: str) -> Job:
    """Parse the text of a job file; `file` is for messages. Raises `JobError`."""
    try:
        raw = tomllib.loads(content)
    except (ValueError, RecursionError) as error:
        # Besides its own error, tomllib lets through what int() says of a number with thousands of digits.
        place = _PLACE.search(str(error))
        where = f":{place[1]}:{place[2]}" if place else ""
        raise JobError(f"{file}{where}: not TOML: {_PLACE.sub('', str(error))}") from error
    complaints: list[Complaint] = []
    job = table(Job, raw, (), complaints)
    if job is not None:
        job = dataclasses.replace(
            job, name=job.name or default_name, vms=tuple(map(_with_overrides, job.vms, raw["vms"]))
        )
        complaints.extend(_cross_checks(job, raw))
    complaints.extend(_literal_secrets(raw))
    if complaints or job is None:
        raise JobError(_message(file, content, complaints), "every key is described in docs/job.md")
    return job


def _with_overrides(selector: SelectorSection, raw: dict[str, Any]) -> SelectorSection:
    given = {name for name in backup_keys() if name.replace("_", "-") in raw}
    return dataclasses.replace(selector, overrides=frozenset(given))


def _cross_checks(job: Job, raw: dict[str, Any]) -> list[Complaint]:
    complaints: list[Complaint] = []
    sources = [name for name in ("password-file", "password-env", "password-command") if name in raw["pool"]]
    if len(sources) != 1:
        complaints.append(
            Complaint(
                ("pool", sources[1] if sources else "password-file"),
                " and ".join(sources) or "nothing",
                "exactly one of password-file, password-env, password-command",
            )
        )
    passphrases = [name for name in _PASSPHRASE if name in raw["store"]]
    if len(passphrases) > 1:
        complaints.append(
            Complaint(("store", passphrases[1]), " and ".join(passphrases), f"one of {', '.join(_PASSPHRASE)}")
        )
    if job.pool.ca_file and job.pool.fingerprint:
        complaints.append(Complaint(("pool", "fingerprint"), "also ca-file", "one of ca-file, fingerprint"))
    complaints.extend(_bucket_checks(raw["store"]))
    if not job.vms:
        complaints.append(Complaint(("vms",), "nothing", "at least one [[vms]] selector"))
    for index, selector in enumerate(job.vms):
        given = [name for name in ("name", "uuid", "tag", "all") if getattr(selector, name)]
        if len(given) != 1:
            found = " and ".join(given) or "none"
            complaints.append(Complaint(("vms", index), found, "exactly one of name, uuid, tag, all = true"))
    complaints += _useless_snapshots(job)
    names = [schedule.name for schedule in job.schedules]
    for index, name in enumerate(names):
        if name in names[:index]:
            complaints.append(Complaint(("schedules", index, "name"), f'"{name}" again', "each name once"))
    return complaints


def _bucket_checks(store: dict[str, Any]) -> list[Complaint]:
    """Keys of [store] that are for object storage go together, and with no folder."""
    secrets = [name for name in _SECRET_ACCESS_KEY if name in store]
    given = [name for name in (*_SECRET_ACCESS_KEY, *_FOR_BUCKETS) if name in store]
    if given and not str(store["url"]).startswith("s3://"):
        return [Complaint(("store", given[0]), f"the url {shown(store['url'])}", "only for s3://bucket/prefix")]
    if len(secrets) > 1:
        return [Complaint(("store", secrets[1]), " and ".join(secrets), f"one of {', '.join(_SECRET_ACCESS_KEY)}")]
    if bool(secrets) != ("access-key-id" in store):
        name = secrets[0] if secrets else "access-key-id"
        return [Complaint(("store", name), "one without the other", "access-key-id together with its secret")]
    return []


def _useless_snapshots(job: Job) -> list[Complaint]:
    """A CBT log is of no use to strategy xva: the pool makes differences of the data of two snapshots."""
    found: list[Complaint] = []
    for path, section in [(("backup",), job.backup), *((("vms", i), one) for i, one in enumerate(job.vms))]:
        own = section.overrides if isinstance(section, SelectorSection) else {"strategy", "keep_snapshot"}
        strategy = section.strategy if "strategy" in own else job.backup.strategy
        keep = section.keep_snapshot if "keep_snapshot" in own else job.backup.keep_snapshot
        if strategy == "xva" and keep == "metadata" and own & {"strategy", "keep_snapshot"}:
            allowed = "with strategy xva: auto, data or none, because differences are made from a snapshot's data"
            found.append(Complaint((*path, "keep-snapshot"), '"metadata"', allowed))
    return found


def _literal_secrets(raw: dict[str, Any]) -> list[Complaint]:
    found: list[Complaint] = []
    for section, name in (("pool", "password"), ("store", "passphrase"), ("store", "secret-access-key")):
        values = raw.get(section)
        if isinstance(values, dict) and name in values:
            hint = f"{name}-file, {name}-env or {name}-command: a secret never stands in the job file itself"
            found.append(Complaint((section, name), f"a literal {name}", hint))
    return found


def _message(file: str, content: str, complaints: list[Complaint]) -> str:
    places = positions(content)
    literal = {("pool", "password"), ("store", "passphrase")}
    lines: list[str] = []
    for complaint in complaints:
        if complaint.path in literal and complaint.found == "an unknown key":
            continue
        line, column = nearest(places, complaint.path)
        lines.append(f"{file}:{line}:{column}: {_shown(complaint.path)}: found {complaint.found}; {complaint.allowed}")
    return "\n".join(lines)


def _shown(path: tuple[str | int, ...]) -> str:
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else part
    return text or "the job"
