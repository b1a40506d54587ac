"""Where a disk can be read, and how long each step of reading it may take."""

from __future__ import annotations

import re
from dataclasses import dataclass

from protocol.secret import Secret

_REFERENCE = re.compile(r"(session_id=)[^\s&'\"]+|OpaqueRef:[0-9A-Za-z-]+")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One address of one host that serves the disk, as `VDI.get_nbd_info` lists them.

    `certificate` is the PEM certificate that host must show; None means a plain connection (networks with the purpose
    `insecure_nbd`). `host` names the host whatever the address: limits and measurements are kept per host.
    """

    address: str
    port: int
    export: Secret
    certificate: str | None
    host: str

    @property
    def server(self) -> str:
        """`address:port`, for messages."""
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"

    def scrub(self, message: str) -> str:
        """Take the export name out of a message: libnbd and servers like to quote it, and a session is in it."""
        return _REFERENCE.sub(r"\1***", message.replace(self.export.reveal() or "\0", "***"))


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Limits in seconds.

    `connect` is for TCP, `handshake` for everything up to the export's size: xapi-nbd plugs the disk into its control
    domain in between, which takes seconds on a busy SR. `slot` is how long the first connection of a disk waits for
    its turn in the host's budget. `request` is for one read.
    """

    connect: float = 10.0
    handshake: float = 60.0
    request: float = 60.0
    slot: float = 600.0
