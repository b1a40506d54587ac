"""Which VMs and disks a job means."""

from typing import Any

from mover.job import parse_job, select_vms

HEAD = '[pool]\nurl = "https://x"\nusername = "u"\npassword-env = "P"\n[store]\nurl = "/s"\n'


WEB_3 = "5bb0b1e4-6e4c-4b5e-9d55-0f1d0f2f2a33"


def vm(name: str, *tags: str, vbds: tuple[str, ...] = (), **more: Any) -> dict[str, Any]:
    record = {"uuid": f"uuid-{name}", "name_label": name, "tags": list(tags), "VBDs": list(vbds)}
    return record | {"is_a_snapshot": False, "is_a_template": False, "is_control_domain": False} | more


def vbd(position: int, vdi: str, kind: str = "Disk") -> dict[str, Any]:
    return {"userdevice": str(position), "VDI": vdi, "type": kind, "empty": False}


def vdi(name: str, *tags: str, cbt: bool = False) -> dict[str, Any]:
    return {"uuid": f"uuid-{name}", "name_label": name, "tags": list(tags), "virtual_size": "65536", "cbt_enabled": cbt}


def names(job: str, vms: list[dict[str, Any]]) -> list[str]:
    records = {f"ref-{record['name_label']}": record for record in vms}
    return [found.name for found in select_vms(parse_job(HEAD + job, "f", "j"), records, {}, {})]


def test_selectors_are_a_union_and_exclusions_win():
    vms = [vm("web-1"), vm("web-2", "no-backup"), vm("db", "backup"), vm("other"), vm("web-3", "backup", uuid=WEB_3)]
    job = f'[[vms]]\ntag = "backup"\n[[vms]]\nname = "web-*"\n[exclude]\ntags = ["no-backup"]\nuuids = ["{WEB_3}"]\n'
    assert names(job, vms) == ["db", "web-1"]


def test_all_leaves_out_what_is_no_vm():
    vms = [
        vm("a"),
        vm("snap", is_a_snapshot=True, is_a_template=True),
        vm("template", is_a_template=True),
        vm("Control domain", is_control_domain=True),
    ]
    assert names("[[vms]]\nall = true\n", vms) == ["a"]


def test_names_are_matched_whole_and_case_sensitively():
    assert names('[[vms]]\nname = "web"\n', [vm("web"), vm("web-1"), vm("Web")]) == ["web"]


def test_brackets_in_a_name_stand_for_themselves():
    vms = [vm("db [prod]"), vm("db p"), vm("web [old]"), vm("web o")]
    assert names('[[vms]]\nname = "db [prod]"\n', vms) == ["db [prod]"]
    assert names('[[vms]]\nall = true\n[exclude]\nnames = ["web [old]", "db [!x]"]\n', vms) == [
        "db [prod]",
        "db p",
        "web o",
    ]
    vdis = {"d0": vdi("root [NOBAK] 1"), "d1": vdi("A"), "d2": vdi("[NOBAK]")}
    vbds = {f"b{n}": vbd(n, f"d{n}") for n in range(3)}
    job = parse_job(HEAD + '[[vms]]\nall = true\nexclude-disks = ["*[NOBAK]*"]\n', "f", "j")
    (found,) = select_vms(job, {"ref": vm("db", vbds=("b0", "b1", "b2"))}, vbds, vdis)
    assert [disk.name for disk in found.disks] == ["A"]
    assert [disk.name for disk in found.excluded_disks] == ["root [NOBAK] 1", "[NOBAK]"]


def test_disks_are_excluded_by_position_name_uuid_and_tag():
    vbds = {f"b{n}": vbd(n, f"d{n}") for n in (0, 1, 2, 10)} | {"cd": vbd(3, "iso", "CD")}
    vdis = {
        "d0": vdi("root"),
        "d1": vdi("scratch-1"),
        "d2": vdi("logs", "skip"),
        "d10": vdi("data", cbt=True),
        "iso": vdi("iso"),
    }
    vms = {"ref": vm("db", vbds=("b10", "b2", "b1", "b0", "cd"))}
    job = parse_job(HEAD + '[[vms]]\nname = "db"\nexclude-disks = [0, "scratch*", "skip"]\nmode = "full"\n', "f", "j")
    (found,) = select_vms(job, vms, vbds, vdis)
    assert [(disk.position, disk.name, disk.cbt) for disk in found.disks] == [("10", "data", True)]
    assert [disk.position for disk in found.excluded_disks] == ["0", "1", "2"]
    assert found.backup.mode == "full"
    assert found.backup.strategy == "cbt"


def test_each_key_has_the_value_of_the_first_selector_that_gives_it():
    """A tag selects a VM in general; a later selector of the same VM still says what is special about it."""
    job = parse_job(
        HEAD
        + '[backup]\nfull-read = "raw"\nkeep-snapshot = "none"\n'
        + '[[vms]]\ntag = "backup"\nmode = "full"\n'
        + '[[vms]]\nname = "db"\nmode = "incremental"\nstrategy = "xva"\nfull-read = "nbd"\n'
        + 'exclude-disks = ["scratch"]\n',
        "f",
        "j",
    )
    vbds, vdis = {"b0": vbd(0, "d0"), "b1": vbd(1, "d1")}, {"d0": vdi("root"), "d1": vdi("scratch")}
    records = {"db": vm("db", "backup", vbds=("b0", "b1")), "web": vm("web", "backup", vbds=("b1",))}
    db, web = select_vms(job, records, vbds, vdis)
    assert (db.backup.mode, db.backup.strategy, db.backup.full_read) == ("full", "xva", "nbd")
    assert (web.backup.mode, web.backup.strategy, web.backup.full_read) == ("full", "cbt", "raw")
    assert db.backup.keep_snapshot == web.backup.keep_snapshot == "none"
    assert [disk.name for disk in db.disks] == ["root"]
    assert [disk.name for disk in web.disks] == ["scratch"]


def test_a_drive_without_a_disk_and_a_disk_that_is_gone_are_no_disks():
    vbds = {"b0": vbd(0, "d0") | {"empty": True}, "b1": vbd(1, "gone"), "b2": vbd(2, "d2")}
    vms = {"ref": vm("db", vbds=("b0", "b1", "b2", "gone"))}
    (found,) = select_vms(
        parse_job(HEAD + "[[vms]]\nall = true\n", "f", "j"), vms, vbds, {"d0": vdi("a"), "d2": vdi("b")}
    )
    assert [disk.position for disk in found.disks] == ["2"]
