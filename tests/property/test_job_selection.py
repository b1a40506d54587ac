"""What more selectors and more exclusions can do to what is backed up, and what they cannot."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from mover.job import SelectedVm, parse_job, select_vms

HEAD = '[pool]\nurl = "https://x"\nusername = "u"\npassword-env = "P"\n[store]\nurl = "/s"\n'
TAGS = ("backup", "gold", "test")
NAMES = ("web-1", "web-2", "db", "x")
DISKS = ("root", "scratch-1", "data")


@st.composite
def pools(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """VMs, VBDs and VDIs by ref."""
    vms, vbds, vdis = {}, {}, {}
    for number in range(draw(st.integers(1, 5))):
        count = draw(st.integers(0, 3))
        kind = draw(st.sampled_from(["vm", "vm", "vm", "is_a_snapshot", "is_a_template", "is_control_domain"]))
        vms[f"vm{number}"] = {
            "uuid": f"00000000-0000-4000-8000-{number:012}",
            "name_label": draw(st.sampled_from(NAMES)),
            "tags": draw(st.lists(st.sampled_from(TAGS), unique=True)),
            "VBDs": [f"vbd{number}.{position}" for position in range(count)],
            **{flag: kind == flag for flag in ("is_a_snapshot", "is_a_template", "is_control_domain")},
        }
        for position in range(count):
            vbds[f"vbd{number}.{position}"] = {
                "userdevice": str(position),
                "VDI": f"vdi{number}.{position}",
                "type": draw(st.sampled_from(["Disk", "Disk", "CD"])),
                "empty": draw(st.booleans()) and draw(st.booleans()),
            }
            vdis[f"vdi{number}.{position}"] = {
                "uuid": f"vdi-uuid-{number}-{position}",
                "name_label": draw(st.sampled_from(DISKS)),
                "tags": draw(st.lists(st.sampled_from(TAGS), unique=True)),
                "virtual_size": "65536",
            }
    return vms, vbds, vdis


criteria = st.sampled_from([f'tag = "{tag}"' for tag in TAGS] + ['name = "web-*"', 'name = "db"', "all = true"])
rules = st.lists(st.sampled_from(["0", "1", '"scratch*"', '"gold"', '"vdi-uuid-0-0"']), unique=True)
selectors = st.builds(
    lambda which, left_out: f"[[vms]]\n{which}\nexclude-disks = [{', '.join(left_out)}]\n", criteria, rules
)
exclusions = st.builds(
    lambda tags, names: f"[exclude]\ntags = {tags}\nnames = {names}\n".replace("'", '"'),
    st.lists(st.sampled_from(TAGS), unique=True),
    st.lists(st.sampled_from(["web-?", "d*"]), unique=True),
)


def chosen(job: str, pool: tuple[dict[str, Any], ...]) -> dict[str, SelectedVm]:
    return {vm.ref: vm for vm in select_vms(parse_job(HEAD + job, "f", "j"), *pool)}


@given(pools(), st.lists(selectors, min_size=1, max_size=3), selectors, exclusions)
def test_selectors_add_vms_and_exclusions_take_them_away(pool, some, another, exclusion):
    before = chosen("".join(some), pool)
    wider = chosen("".join([*some, another]), pool)
    narrower = chosen("".join([*some, exclusion]), pool)
    assert set(narrower) <= set(before) <= set(wider) == set(before) | set(chosen(another, pool))
    for ref, vm in before.items():
        assert {disk.position for disk in wider[ref].disks} <= {disk.position for disk in vm.disks}
    assert all(narrower[ref] == before[ref] for ref in narrower)


@given(pools(), st.lists(selectors, min_size=1, max_size=3))
def test_every_disk_of_a_selected_vm_is_either_read_or_left_out(pool, some):
    vms, vbds, _ = pool
    for ref, vm in chosen("".join(some), pool).items():
        drives = [vbds[vbd] for vbd in vms[ref]["VBDs"]]
        expected = sorted(vbd["userdevice"] for vbd in drives if vbd["type"] == "Disk" and not vbd["empty"])
        assert sorted(disk.position for disk in vm.disks + vm.excluded_disks) == expected
        assert not any(vms[ref][flag] for flag in ("is_a_snapshot", "is_a_template", "is_control_domain"))
    everything = chosen("[[vms]]\nall = true\n", pool)
    assert all(vm.excluded_disks == () for vm in everything.values())
