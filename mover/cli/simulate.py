"""mover simulate"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from mover.errors import UsageError
from mover.simulator import Options
from mover.simulator.process import Whereabouts, serve
from mover.units import parse_size


async def main(options: argparse.Namespace) -> int:
    """Serve a simulated pool until interrupted."""

    def ready(where: Whereabouts) -> None:
        if options.json:
            print(msgspec.json.encode(where).decode(), flush=True)
        else:
            print("\n".join(_for_a_job(where)), flush=True)

    pool = Options(password=options.password, nbd=options.nbd, nbd_latency=options.latency, tls=not options.plain_http)
    await serve(Path(options.dir), pool, ready, dict(map(_vm, options.vm)))
    return 0


def _vm(text: str) -> tuple[str, Sequence[int]]:
    """`NAME=SIZE,SIZE…`. Raises `UsageError`."""
    name, _, sizes = text.partition("=")
    try:
        wanted = [parse_size(size) for size in sizes.split(",")]
    except ValueError as error:
        raise UsageError(f"--vm {text}: {error}", "as in --vm web=1GiB,64MiB") from error
    if not name or min(wanted) == 0:
        raise UsageError(f"--vm {text}: a name and sizes of disks are needed", "as in --vm web=1GiB,64MiB")
    return name, wanted


def _for_a_job(where: Whereabouts) -> Iterator[str]:
    """Its section of a job file; strings in JSON are strings in TOML."""
    yield "[pool]"
    yield f"url = {json.dumps(where.url)}"
    yield f"username = {json.dumps(where.username)}"
    yield f"password-command = {json.dumps(['echo', where.password])}"
    if where.url.startswith("https:"):
        yield f"fingerprint = {json.dumps(where.fingerprints)}"
    yield f"# guests and faults: {where.steering}"
