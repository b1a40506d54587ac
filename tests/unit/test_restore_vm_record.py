"""What of a saved record goes into the constructors' arguments."""

from mover.restore.vm_record import NULL, vbd_arguments, vdi_arguments, vif_arguments, vm_arguments

VM = {
    "uuid": "u",
    "name_label": "web",
    "other_config": {"mac_seed": "seed", "mover:job": "nightly", "folder": "/prod"},
    "affinity": "OpaqueRef:host",
    "resident_on": "OpaqueRef:host",
    "memory_static_max": "1073741824",
    "NVRAM": {"EFI-variables": "blob"},
    "tags": ["backup"],
    "ha_restart_priority": "restart",
    "power_state": "Running",
}


def test_vm_keeps_its_configuration_and_drops_what_belongs_to_the_old_pool():
    made = vm_arguments(VM, "web", new_macs=False)
    assert made["other_config"] == {"mac_seed": "seed", "folder": "/prod"}
    assert made["NVRAM"] == {"EFI-variables": "blob"}
    assert made["tags"] == ["backup"]
    assert made["affinity"] == NULL
    assert made["is_a_template"] is False
    assert not {"uuid", "resident_on", "power_state"} & set(made)


def test_new_macs_need_a_new_seed():
    assert vm_arguments(VM, "web", new_macs=True)["other_config"] == {"folder": "/prod"}


def test_vif_keeps_its_mac_unless_a_new_one_is_wanted():
    vif = {"device": "0", "MAC": "aa:bb:cc:dd:ee:ff", "MTU": "1500", "other_config": {}, "locking_mode": "locked"}
    kept = vif_arguments(vif, "vm", "net", new_mac=False)
    assert (kept["MAC"], kept["locking_mode"], kept["network"]) == ("aa:bb:cc:dd:ee:ff", "locked", "net")
    assert vif_arguments(vif, "vm", "net", new_mac=True)["MAC"] == ""


def test_vdi_does_not_copy_sm_config_and_is_writable():
    saved = {"name_label": "root", "type": "user", "sm_config": {"vhd-parent": "x"}, "sharable": True}
    made = vdi_arguments(saved, "sr", 5 << 20)
    assert made["sm_config"] == {}
    assert made["sharable"] is False
    assert made["virtual_size"] == str(5 << 20)


def test_drives_without_a_disk_are_empty():
    vbd = {"userdevice": "3", "bootable": False, "mode": "RO", "type": "CD", "other_config": {}}
    assert vbd_arguments(vbd, "vm", None)["empty"] is True
    assert vbd_arguments(vbd, "vm", "vdi")["VDI"] == "vdi"
