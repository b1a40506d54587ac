"""The records of a pool that has just been set up: hosts, control domains, networks, drivers, repositories."""

from __future__ import annotations

from mover.simulator.database import Database
from mover.simulator.options import Options
from mover.simulator.pool import Host
from mover.simulator.sr import allowed_operations, driver_features
from mover.simulator.values import Record
from mover.simulator.vm import GENERIC_BIOS_STRINGS

_GiB = 1 << 30
# Everything a pool may be denied; a restriction that is missing counts as one.
_UNRESTRICTED = (
    "restrict_cbt",
    "restrict_vss",
    "restrict_zstd_export",
    "restrict_vtpm",
    "restrict_checkpoint",
    "restrict_storage_xen_motion",
    "restrict_rbac",
    "restrict_pci_device_for_auto_update",
)


def found_pool(database: Database, options: Options, hosts: list[Host]) -> None:
    """Make the records, and set `ref` of each host."""
    network = _networks(database, options)
    for number, host in enumerate(hosts):
        _host(database, options, host, number, network)
    driver = database.create(
        "SM", {"name_label": "EXT SR", "type": "ext", "features": driver_features(not options.sr_without_cbt)}
    )
    shared = _repository(database, options, driver, "Shared storage", hosts, shared=True)
    if options.local_sr:
        _repository(database, options, driver, "Local storage", hosts[-1:], shared=False)
    _template(database)
    restrictions = dict.fromkeys(_UNRESTRICTED, "false") | dict(options.restrictions)
    database.create(
        "pool",
        {"name_label": options.name, "master": hosts[0].ref, "default_SR": shared, "restrictions": restrictions},
    )


def _template(database: Database) -> None:
    """One of the templates that come with the product: a VM record that is no VM."""
    fields = {"name_label": "Other install media", "is_a_template": True, "is_default_template": True}
    database.create("VM", fields | {"HVM_boot_policy": "BIOS order", "domain_type": "hvm", "user_version": 1})


def find_hosts(database: Database, hosts: list[Host]) -> None:
    """Set `ref` of each host from a database that was saved."""
    by_name = {record["hostname"]: ref for ref, record in database.items("host")}
    for number, host in enumerate(hosts):
        host.ref = by_name[hostname(number)]


def hostname(number: int) -> str:
    """The name of host `number`."""
    return f"host-{number + 1}.simulated"


def _networks(database: Database, options: Options) -> str:
    purposes = {"tls": ["nbd"], "insecure": ["insecure_nbd"], "both": ["nbd", "insecure_nbd"], "none": []}
    fields = {
        "name_label": "Pool-wide network associated with eth0",
        "bridge": "xenbr0",
        "purpose": purposes[options.nbd] if options.release.cbt else [],
    }
    database.create("network", {"name_label": "Internal network", "bridge": "xapi1"})
    return database.create("network", fields)


def _host(database: Database, options: Options, host: Host, number: int, network: str) -> None:
    release = options.release
    software = {
        "product_version": release.version,
        "product_version_text": release.version,
        "product_brand": release.brand,
        "platform_name": "XCP",
        "platform_version": release.platform,
        "build_number": "simulated",
        "hostname": "localhost",
        "date": "2026-01-01",
    }
    host.ref = database.create(
        "host",
        {
            "name_label": hostname(number),
            "hostname": hostname(number),
            "address": host.address,
            "API_version_major": release.api[0],
            "API_version_minor": release.api[1],
            "software_version": software,
            "edition": "xcp-ng" if release.brand == "XCP-ng" else "standard-per-socket",
            "editions": ["xcp-ng"],
        },
    )
    domain = database.create(
        "VM",
        {
            "name_label": f"Control domain on host: {hostname(number)}",
            "is_control_domain": True,
            "power_state": "Running",
            "resident_on": host.ref,
            "memory_static_max": 4 * _GiB,
        },
    )
    database.update("host", host.ref, control_domain=domain)
    database.create(
        "PIF",
        {
            "device": "eth0",
            "network": network,
            "host": host.ref,
            "IP": host.address,
            "MAC": f"52:54:00:00:00:{number + 1:02x}",
            "currently_attached": True,
            "management": True,
        },
    )


def _repository(
    database: Database, options: Options, driver: str, name: str, hosts: list[Host], *, shared: bool
) -> str:
    features = database.get("SM", driver)["features"]
    fields: Record = {
        "name_label": name,
        "type": database.get("SM", driver)["type"],
        "content_type": "user",
        "physical_size": options.sr_size,
        "shared": shared,
        "allowed_operations": allowed_operations(features),
    }
    repository = database.create("SR", fields)
    for host in hosts:
        database.create("PBD", {"SR": repository, "host": host.ref, "currently_attached": True})
    return repository


def make_vm(database: Database, name: str, vdis: list[str], *, uefi: bool = True, power_state: str = "Running") -> str:
    """A guest with these disks, a CD drive and one network interface. Returns its reference."""
    master = next(record["master"] for _, record in database.items("pool"))
    firmware = {"firmware": "uefi", "order": "cdn"} if uefi else {"firmware": "bios", "order": "cdn"}
    vm = database.create(
        "VM",
        {
            "name_label": name,
            "name_description": f"{name} of the simulated pool",
            "power_state": power_state,
            "resident_on": master if power_state == "Running" else "OpaqueRef:NULL",
            "memory_static_min": _GiB // 2,
            "memory_dynamic_min": _GiB,
            "memory_dynamic_max": _GiB,
            "memory_static_max": 2 * _GiB,
            "VCPUs_max": 2,
            "VCPUs_at_startup": 2,
            "actions_after_shutdown": "destroy",
            "actions_after_reboot": "restart",
            "actions_after_crash": "restart",
            "HVM_boot_policy": "BIOS order",
            "HVM_boot_params": firmware,
            "HVM_shadow_multiplier": 1.0,
            "domain_type": "hvm",
            "platform": {"device-model": "qemu-upstream-uefi" if uefi else "qemu-upstream-compat", "viridian": "true"},
            "NVRAM": {"EFI-variables": "VkFSUwEAAAA="} if uefi else {},
            "bios_strings": dict(GENERIC_BIOS_STRINGS),
            "other_config": {"mac_seed": f"5eed5eed-0000-4000-8000-{database.generation:012d}"},
            "tags": ["backup"],
        },
    )
    positions = [n for n in range(len(vdis) + 1) if n != 3]
    for position, vdi in zip(positions, vdis, strict=False):
        vbd: Record = {"VM": vm, "VDI": vdi, "userdevice": str(position), "mode": "RW", "type": "Disk"}
        vbd |= {"bootable": position == 0, "currently_attached": power_state == "Running", "unpluggable": True}
        database.create("VBD", vbd | {"device": f"xvd{'abcdefgh'[position % 8]}"})
    database.create("VBD", {"VM": vm, "userdevice": "3", "mode": "RO", "type": "CD", "empty": True, "device": "xvdd"})
    network = next(ref for ref, record in database.items("network") if record["PIFs"])
    database.create(
        "VIF",
        {
            "VM": vm,
            "network": network,
            "device": "0",
            "MAC": "02:00:00:" + ":".join(f"{database.generation >> shift & 255:02x}" for shift in (16, 8, 0)),
            "MTU": 1500,
            "currently_attached": power_state == "Running",
        },
    )
    return vm
