"""How a simulated pool is to be: which release, how many hosts, what it allows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal


@dataclass(frozen=True)
class Release:
    """A product release as far as a backup client can tell.

    `api` is host.API_version; `cbt` whether CBT and NBD exist (API 2.8); `snapshot_ignores_disks` whether VM.snapshot
    takes its third parameter (21.4.0); `snapshot_metadata` whether the metadata of a snapshot can be exported (24.13.0:
    the first releases of XCP-ng 8.3 are older); `quiesce` whether snapshot_with_quiesce is still there (API < 2.14);
    `xva_checksum` what stands beside the blocks of an XVA (xxhash since 8.1).
    """

    brand: str
    version: str
    platform: str
    api: tuple[int, int]
    cbt: bool = True
    snapshot_ignores_disks: bool = True
    snapshot_metadata: bool = True
    quiesce: bool = False
    xva_checksum: Literal["xxhash", "sha1"] = "xxhash"


XCP_NG_8_3 = Release("XCP-ng", "8.3.0", "3.4.0", (2, 21))
XCP_NG_8_2 = Release("XCP-ng", "8.2.1", "3.2.1", (2, 16), snapshot_ignores_disks=False, snapshot_metadata=False)
XENSERVER_7_6 = Release(
    "XenServer",
    "7.6.0",
    "2.7.0",
    (2, 11),
    snapshot_ignores_disks=False,
    snapshot_metadata=False,
    quiesce=True,
    xva_checksum="sha1",
)
XENSERVER_7_1 = replace(XENSERVER_7_6, version="7.1.0", platform="2.3.0", api=(2, 5), cbt=False)


@dataclass(frozen=True)
class Options:
    """Choices for one simulated pool. Times are seconds, sizes bytes, `bandwidth` bytes per second.

    `nbd`: networks with purpose `nbd` (TLS is forced), `insecure_nbd` (plain), both (everybody is refused) or none.
    `linger`: how long a control domain keeps a disk attached after an NBD client left.
    `durations`: seconds a method takes ("VM.snapshot"), during which its object is busy.
    `local_sr`: also make an SR that only the last host sees.
    `xva_keep_alive`: exports of VMs hold an empty block in each run of zeros, as if it had taken seconds to read.
    """

    hosts: int = 2
    tls: bool = True
    release: Release = XCP_NG_8_3
    username: str = "root"
    password: str = "simulated"
    nbd: Literal["tls", "insecure", "both", "none"] = "tls"
    nbd_latency: float = 0.0
    nbd_bandwidth: float | None = None
    linger: float = 0.2
    local_sr: bool = False
    sr_features: frozenset[str] = field(default=frozenset())
    sr_without_cbt: bool = False
    sr_size: int = 8 << 40
    restrictions: Mapping[str, str] = field(default_factory=dict)
    durations: Mapping[str, float] = field(default_factory=dict)
    failed_login_delay: float = 0.0
    data_destroy_wait: float = 4.0
    session_idle: float = 86_400.0
    sessions_per_originator: int = 500
    head_timeout: float = 60.0
    xva_keep_alive: bool = False
    name: str = "simulated pool"
