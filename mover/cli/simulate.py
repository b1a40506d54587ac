"""mover simulate"""

from __future__ import annotations

import argparse
from pathlib import Path

import msgspec

from mover.simulator import Options
from mover.simulator.process import Whereabouts, serve


async def main(options: argparse.Namespace) -> int:
    """Serve a simulated pool until interrupted."""

    def ready(where: Whereabouts) -> None:
        if options.json:
            print(msgspec.json.encode(where).decode(), flush=True)
            return
        print(f"url          {where.url}")
        print(f"username     {where.username}")
        print(f"password     {where.password}")
        for fingerprint in where.fingerprints:
            print(f"fingerprint  {fingerprint}")
        print(f"steering     {where.steering}", flush=True)

    pool = Options(password=options.password, nbd=options.nbd, nbd_latency=options.latency, tls=not options.plain_http)
    await serve(Path(options.dir), pool, ready)
    return 0
