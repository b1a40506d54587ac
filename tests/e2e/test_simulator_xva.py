"""Whole VMs over HTTP: archives that programs not ours read, imports of archives put together by hand, refusals."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import xmlrpc.client
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import xxhash
import zstandard

from mover.simulator import XCP_NG_8_2, XCP_NG_8_3, XENSERVER_7_1, Options, Release
from mover.simulator.faults import HttpFault
from tests.disks_fixtures import needs, run
from tests.simulator_fixtures import MiB, Reply, RpcError, SmallPool, small_pool
from tests.simulator_fixtures import refused as unsuccessful

SIZES = (5 * MiB, 3 * MiB)


@pytest.fixture
async def pool(tmp_path: Path) -> AsyncIterator[SmallPool]:
    async with small_pool(tmp_path / "pool", Options(tls=False, linger=0.0), SIZES, power_state="Halted") as pool:
        fill(pool)
        yield pool


def fill(pool: SmallPool) -> None:
    """The first block of the first disk, something in its third one; one byte of the second disk."""
    first, second = (pool.simulator.guest(vdi) for vdi in pool.vdis)
    first.fill(0, MiB, "random")
    first.fill(2 * MiB + 65536, 65536, "text")
    second.fill(2 * MiB, 65536, "random")


def content(pool: SmallPool, vdi: str) -> bytes:
    return pool.simulator.disks.read(vdi, 0, pool.simulator.disks.size(vdi))


async def send(pool: SmallPool, verb: str, path: str, query: dict[str, str], body: bytes = b"") -> tuple[Reply, str]:
    """A request with a task of its own; the reply and the task."""
    task = await pool.call("task.create", "transfer", "")
    full = {"session_id": pool.session, "task_id": task} | query
    target = f"{path}?{'&'.join(f'{name}={value}' for name, value in full.items())}"
    length = f"Content-Length: {len(body)}\r\n" if verb == "PUT" else ""
    return await pool.http(f"{verb} {target} HTTP/1.1\r\nHost: x\r\n{length}\r\n".encode(), upload=body), task


async def exported(pool: SmallPool, **query: str) -> bytes:
    reply, task = await send(pool, "GET", "/export", {"ref": pool.vm} | query)
    assert reply.status == 200
    assert reply.header("content-length") is None
    assert reply.header("task-id") == task
    await pool.finished(task)
    return reply.rest


def members(archive: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {item.name: tar.extractfile(item).read() for item in tar}  # type: ignore[union-attr]


def document(files: dict[str, bytes]) -> Any:
    text = files["ova.xml"].decode()
    (value,), _ = xmlrpc.client.loads(f"<methodResponse><params><param>{text}</param></params></methodResponse>")
    return value


def disks_in(files: dict[str, bytes]) -> dict[str, bytes]:
    """By UUID of the VDI, what the blocks say; every checksum is compared."""
    made: dict[str, bytes] = {}
    for item in document(files)["objects"]:
        if item["class"] != "VDI":
            continue
        disk = bytearray(int(item["snapshot"]["virtual_size"]))
        offset, last = 0, -1
        for name in sorted(name for name in files if name.startswith(f"{item['id']}/") and "." not in name):
            number = int(name.rpartition("/")[2])
            offset += (number - last - 1) * MiB
            disk[offset : offset + len(files[name])] = files[name]
            offset, last = offset + len(files[name]), number
            assert files[f"{name}.xxhash"] == xxhash.xxh64(files[name]).hexdigest().upper().encode()
        assert offset == len(disk)
        made[item["snapshot"]["uuid"]] = bytes(disk)
    return made


# -- out --------------------------------------------------------------------------------------------------------------


async def test_an_export_is_a_tar_of_blocks_and_checksums(pool: SmallPool) -> None:
    archive = await exported(pool)
    assert archive[257:263] == bytes(6), "V7 headers have no magic"
    assert archive[-1024:] == bytes(1024)
    files = members(archive)
    assert next(iter(files)) == "ova.xml"
    assert disks_in(files) == {vdi: content(pool, vdi) for vdi in pool.vdis}
    blocks = [name.rpartition("/")[2] for name in files if name.startswith("Ref:") and "." not in name]
    assert sorted(blocks) == ["00000000", "00000000", "00000002", "00000002", "00000004"]
    version = document(files)["version"]
    assert version["export_vsn"] == "2"


async def test_disks_come_in_the_order_of_their_names_as_text(pool: SmallPool) -> None:
    orders = set()
    for _ in range(4):
        names = [name.rpartition("/")[0] for name in members(await exported(pool)) if "/" in name]
        assert names == sorted(names)
        orders.add(tuple(len(name) for name in dict.fromkeys(names)))
    assert len(orders) > 1, "the numbers have gone on past a power of ten"


@pytest.mark.parametrize(
    ("how", "unpack"),
    [
        ("true", gzip.decompress),
        ("gzip", gzip.decompress),
        ("zstd", lambda data: zstandard.ZstdDecompressor().decompressobj().decompress(data)),
        ("none", bytes),
    ],
)
async def test_compression(pool: SmallPool, how: str, unpack: Callable[[bytes], bytes]) -> None:
    archive = unpack(await exported(pool, use_compression=how))
    assert disks_in(members(archive)) == {vdi: content(pool, vdi) for vdi in pool.vdis}


async def test_old_releases_write_sha_1(tmp_path: Path) -> None:
    options = Options(tls=False, release=XENSERVER_7_1)
    async with small_pool(tmp_path / "pool", options, SIZES, power_state="Halted") as pool:
        fill(pool)
        files = members(await exported(pool))
        sums = {name: data for name, data in files.items() if name.endswith(".checksum")}
        assert len(sums) == 5
        for name, stated in sums.items():
            assert hashlib.sha1(files[name.removesuffix(".checksum")]).hexdigest().encode() == stated


async def test_a_keep_alive_takes_a_number_and_no_room(tmp_path: Path) -> None:
    options = Options(tls=False, xva_keep_alive=True, release=XCP_NG_8_2)
    async with small_pool(tmp_path / "pool", options, SIZES, power_state="Halted") as pool:
        fill(pool)
        files = members(await exported(pool))
        empty = [name for name, data in files.items() if not data]
        assert empty
        assert all(files[f"{name}.xxhash"] == b"EF46DB3751D8E999" for name in empty)
        assert disks_in(files) == {vdi: content(pool, vdi) for vdi in pool.vdis}


async def test_a_running_vm_is_refused_before_the_200(tmp_path: Path) -> None:
    async with small_pool(tmp_path / "pool", Options(tls=False), SIZES) as pool:
        reply, task = await send(pool, "GET", "/export", {"ref": pool.vm})
        assert reply.status == 500
        assert b"VM_BAD_POWER_STATE" in reply.rest
        with pytest.raises(RpcError) as caught:
            await pool.finished(task)
        assert caught.value.description == ["VM_BAD_POWER_STATE", pool.vm, "halted, suspended", "running"]
        snapshot = await pool.call("VM.snapshot", pool.vm, "snap", [])
        reply, task = await send(pool, "GET", "/export", {"ref": snapshot})
        await pool.finished(task)
        (vm,) = [i["snapshot"] for i in document(members(reply.rest))["objects"] if i["class"] == "VM"]
        assert (vm["is_a_snapshot"], vm["is_a_template"], vm["power_state"]) == (False, True, "Halted")


async def test_a_failure_in_mid_stream_is_told_by_the_task(pool: SmallPool) -> None:
    pool.simulator.faults.arm(HttpFault("task", "export", code="SR_BACKEND_FAILURE_46", params=("", "gone", "")))
    reply, task = await send(pool, "GET", "/export", {"ref": pool.vm})
    assert reply.status == 200
    assert disks_in(members(reply.rest)) == {vdi: content(pool, vdi) for vdi in pool.vdis}
    with pytest.raises(RpcError) as caught:
        await pool.finished(task)
    assert caught.value.description[0] == "SR_BACKEND_FAILURE_46"
    pool.simulator.faults.arm(HttpFault("error", "export", after=2 * MiB, code="SR_BACKEND_FAILURE_46"))
    reply, task = await send(pool, "GET", "/export", {"ref": pool.vm})
    assert reply.status == 200
    assert b"HTTP/1.1 500" in reply.rest[2 * MiB :]
    with pytest.raises(RpcError):
        await pool.finished(task)


@needs("tar", "xva-img")
async def test_gnu_tar_and_xva_img_read_an_export(pool: SmallPool, tmp_path: Path) -> None:
    (tmp_path / "vm.xva").write_bytes(await exported(pool))
    folder = tmp_path / "unpacked"
    folder.mkdir()
    code, output = await run("tar", "-xf", str(tmp_path / "vm.xva"), "-C", str(folder))
    assert (code, output) == (0, "")
    for item in document(members((tmp_path / "vm.xva").read_bytes()))["objects"]:
        if item["class"] != "VDI":
            continue
        for stated in list((folder / item["id"]).glob("*.xxhash")):
            block = stated.with_suffix("")
            stated.unlink()
            stated.with_suffix(".checksum").write_text(hashlib.sha1(block.read_bytes()).hexdigest())
        code, output = await run("xva-img", "-p", "disk-export", f"{folder / item['id']}/", str(tmp_path / "raw"))
        assert code == 0, output
        size = int(item["snapshot"]["virtual_size"])
        assert (tmp_path / "raw").read_bytes().ljust(size, b"\0") == content(pool, item["snapshot"]["uuid"])
        (tmp_path / "raw").unlink()


# -- in ---------------------------------------------------------------------------------------------------------------


async def imported(pool: SmallPool, archive: bytes, **query: str) -> str:
    """The VM that was made."""
    reply, task = await send(pool, "PUT", "/import", query, archive)
    assert reply.status == 200
    text = await pool.finished(task)
    (refs,), _ = xmlrpc.client.loads(f"<methodResponse><params><param>{text}</param></params></methodResponse>")
    (ref,) = refs
    return str(ref)


async def refused(pool: SmallPool, archive: bytes, **query: str) -> list[str]:
    """Why, and that nothing was made."""
    database = pool.simulator.pool.database
    before = {cls: set(database.refs(cls)) for cls in ("VM", "VDI", "VBD", "VIF", "network", "VTPM")}
    _, task = await send(pool, "PUT", "/import", query, archive)
    with pytest.raises(RpcError) as caught:
        await pool.finished(task)
    assert {cls: set(database.refs(cls)) for cls in before} == before
    return caught.value.description


@pytest.mark.parametrize("how", ["none", "gzip", "zstd"])
async def test_an_import_makes_a_vm_with_a_new_identity(pool: SmallPool, how: str) -> None:
    archive = await exported(pool, use_compression=how)
    made = await imported(pool, archive)
    database = pool.simulator.pool.database
    old, new = database.get("VM", pool.vm), database.get("VM", made)
    assert new["uuid"] != old["uuid"]
    assert new["other_config"]["mac_seed"] != old["other_config"]["mac_seed"]
    assert new["name_label"] == old["name_label"]
    assert new["version"] == 0
    assert new["current_operations"] == {}
    (old_vif,), (new_vif,) = [[database.get("VIF", vif) for vif in vm["VIFs"]] for vm in (old, new)]
    assert new_vif["MAC"] != old_vif["MAC"]
    assert new_vif["network"] == old_vif["network"]
    contents = [content(pool, vdi) for vdi in pool.simulator.vdis_of(made)]
    assert contents == [content(pool, pool.vdis[0]) + bytes(MiB), content(pool, pool.vdis[1]) + bytes(MiB)]


async def test_restore_keeps_the_identity_and_replaces_a_halted_vm(pool: SmallPool) -> None:
    database = pool.simulator.pool.database
    old = dict(database.get("VM", pool.vm))
    mac = database.get("VIF", old["VIFs"][0])["MAC"]
    archive = await exported(pool)
    assert await refused(pool, archive, restore="true") == ["VM_TO_IMPORT_IS_NOT_NEWER_VERSION", pool.vm, "0", "0"]
    made = await imported(pool, archive, restore="true", force="true")
    new = database.get("VM", made)
    assert not database.exists("VM", pool.vm)
    assert (new["uuid"], new["version"]) == (old["uuid"], 1)
    assert database.get("VIF", new["VIFs"][0])["MAC"] == mac
    assert all(database.by_uuid("VDI", vdi) for vdi in pool.vdis), "the old disks stay"


async def test_restore_does_not_replace_a_running_vm(pool: SmallPool) -> None:
    archive = await exported(pool)
    await pool.call("VM.start", pool.vm, False, False)
    assert await refused(pool, archive, restore="true") == ["VM_BAD_POWER_STATE", pool.vm, "Halted", "Running"]


async def test_restore_refuses_a_seed_that_is_in_use(pool: SmallPool) -> None:
    archive = await exported(pool)
    database = pool.simulator.pool.database
    seed = database.get("VM", pool.vm)["other_config"]["mac_seed"]
    database.update("VM", pool.vm, uuid="11111111-1111-4111-8111-111111111111")
    assert await refused(pool, archive, restore="true") == ["DUPLICATE_MAC_SEED", seed]
    await imported(pool, archive)


def without(archive: bytes, *names: str) -> bytes:
    """The archive, some of whose members are left out."""
    return rebuilt([(name, data) for name, data in members(archive).items() if not name.endswith(names)])


def rebuilt(files: list[tuple[str, bytes]]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


async def test_what_is_wrong_with_an_archive_is_refused_and_undone(pool: SmallPool) -> None:
    archive = await exported(pool)
    files = list(members(archive).items())
    flipped = bytearray(archive)
    flipped[archive.index(content(pool, pool.vdis[0])[:64]) + 7] ^= 1
    assert await refused(pool, bytes(flipped)) == ["IMPORT_ERROR_SOME_CHECKSUMS_FAILED"]
    assert (await refused(pool, archive[: len(archive) // 2]))[0] == "IMPORT_ERROR_PREMATURE_EOF"
    assert (await refused(pool, without(archive, "/00000000", "/00000000.xxhash")))[0] == "INTERNAL_ERROR"
    code = (await refused(pool, without(archive, "/00000004", "/00000004.xxhash")))[0]
    assert code in ("INTERNAL_ERROR", "IMPORT_ERROR_PREMATURE_EOF"), "as the next thing is a disk or the end"
    assert (await refused(pool, without(archive, "/00000002.xxhash")))[0] == "IMPORT_ERROR"
    backwards = rebuilt([files[0], *reversed(files[1:])])
    assert (await refused(pool, backwards))[0] in ("INTERNAL_ERROR", "IMPORT_ERROR")
    headless = rebuilt(files[1:])
    assert (await refused(pool, headless))[0] == "IMPORT_ERROR", "what does not begin with ova.xml is taken for gzip"
    unexpected = await refused(pool, gzip.compress(headless))
    assert unexpected == ["IMPORT_ERROR_UNEXPECTED_FILE", "ova.xml", files[1][0]]
    newer = files[0][1].replace(b"<name>xapi_minor</name><value>20<", b"<name>xapi_minor</name><value>21<")
    assert await refused(pool, rebuilt([("ova.xml", newer), *files[1:]])) == ["IMPORT_INCOMPATIBLE_VERSION"]
    # With force damage is passed over.
    await imported(pool, bytes(flipped), force="true")


async def test_transfer_encoding_chunked_is_refused(pool: SmallPool) -> None:
    task = await pool.call("task.create", "transfer", "")
    target = f"/import?session_id={pool.session}&task_id={task}"
    reply = await pool.http(f"PUT {target} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
    assert reply.status == 403
    with pytest.raises(RpcError) as caught:
        await pool.finished(task)
    assert caught.value.description == ["IMPORT_ERROR_CANNOT_HANDLE_CHUNKED"]


async def test_both_go_where_the_repository_is_seen(tmp_path: Path) -> None:
    options = Options(tls=False, local_sr=True, linger=0.0)
    async with small_pool(tmp_path / "pool", options, SIZES, power_state="Halted") as pool:
        fill(pool)
        archive = await exported(pool)
        database = pool.simulator.pool.database
        (local,) = [ref for ref, record in database.items("SR") if record["name_label"] == "Local storage"]
        reply, _ = await send(pool, "PUT", "/import", {"sr_id": local}, b"")
        assert reply.status == 302
        assert str(reply.header("location")).startswith(f"{pool.simulator.url_of(1)}/import?session_id=")
        assert archive


@needs("xva-img")
async def test_an_archive_made_by_xva_img_is_imported(pool: SmallPool, tmp_path: Path) -> None:
    files = members(await exported(pool))
    folder = tmp_path / "vm"
    (vdi,) = [item for item in document(files)["objects"] if item["snapshot"].get("uuid") == pool.vdis[0]]
    (other,) = [item for item in document(files)["objects"] if item["snapshot"].get("uuid") == pool.vdis[1]]
    raw = bytes(3 * MiB) + content(pool, pool.vdis[0])[: 2 * MiB]
    (tmp_path / "raw").write_bytes(raw)
    (folder / vdi["id"]).mkdir(parents=True)
    code, output = await run("xva-img", "-p", "disk-import", f"{folder / vdi['id']}/", str(tmp_path / "raw"))
    assert code == 0, output
    blocks = [(f"{vdi['id']}/{path.name}", path.read_bytes()) for path in sorted((folder / vdi["id"]).iterdir())]
    rest = [(name, data) for name, data in files.items() if name.startswith(f"{other['id']}/")]
    made = await imported(pool, rebuilt([("ova.xml", files["ova.xml"]), *sorted([*blocks, *rest])]))
    contents = [content(pool, uuid) for uuid in pool.simulator.vdis_of(made)]
    assert contents == [raw + bytes(MiB), content(pool, pool.vdis[1]) + bytes(MiB)]


# -- metadata ---------------------------------------------------------------------------------------------------------


async def metadata(pool: SmallPool, **query: str) -> bytes:
    reply, task = await send(pool, "GET", "/export_metadata", query)
    assert reply.status == 200
    assert reply.header("content-length") == str(len(reply.rest))
    await pool.finished(task)
    return reply.rest


def classes(archive: bytes) -> list[str]:
    return [item["class"] for item in document(members(archive))["objects"]]


async def test_metadata_of_several_vms_and_their_snapshots(pool: SmallPool) -> None:
    await pool.call("VM.snapshot", pool.vm, "snap", [])
    assert classes(await metadata(pool, ref=pool.vm)).count("VM") == 2
    assert classes(await metadata(pool, ref=pool.vm, export_snapshots="false")).count("VM") == 1
    without = classes(await metadata(pool, ref=pool.vm, excluded_device_types="vif,vbd"))
    assert not {"VIF", "network", "VBD", "VDI"} & set(without)
    everything = document(members(await metadata(pool, all="true")))["objects"]
    assert any(item["class"] == "VM" and item["snapshot"]["is_control_domain"] for item in everything)
    guests = document(members(await metadata(pool, all="true", include_dom0="false")))["objects"]
    assert not any(item["class"] == "VM" and item["snapshot"]["is_control_domain"] for item in guests)


@pytest.mark.parametrize(
    ("release", "served"),
    [
        (XENSERVER_7_1, False),
        (XCP_NG_8_2, False),
        (replace(XCP_NG_8_3, snapshot_metadata=False), False),
        (XCP_NG_8_3, True),
    ],
    ids=["XenServer 7.1", "XCP-ng 8.2", "the first XCP-ng 8.3", "XCP-ng 8.3"],
)
async def test_metadata_of_a_snapshot_is_refused_before_24_13(tmp_path: Path, release: Release, served: bool) -> None:
    async with small_pool(tmp_path / "pool", Options(tls=False, release=release), SIZES) as pool:
        snapshot = await pool.call("VM.snapshot", pool.vm, "snap")
        reply, task = await send(pool, "GET", "/export_metadata", {"ref": snapshot})
        assert reply.status == (200 if served else 500)
        if not served:
            why = "Exporting metadata of a snapshot is not allowed"
            assert f"OPERATION_NOT_ALLOWED: [ {why}; ]" in reply.rest.decode()
            await unsuccessful(pool.finished(task), "OPERATION_NOT_ALLOWED", why)
        assert classes(await metadata(pool, ref=pool.vm)).count("VM") == 2, "with the VM, and with all, they come"
        assert classes(await metadata(pool, all="true")).count("VM") > 2


async def with_metadata(pool: SmallPool, archive: bytes, **query: str) -> list[str]:
    reply, task = await send(pool, "PUT", "/import_metadata", query, archive)
    assert reply.status == 200
    text = await pool.finished(task)
    (refs,), _ = xmlrpc.client.loads(f"<methodResponse><params><param>{text}</param></params></methodResponse>")
    return list(refs)  # type: ignore[call-overload]


async def test_metadata_finds_its_disks_by_place_or_map(pool: SmallPool) -> None:
    archive = await metadata(pool, ref=pool.vm)
    database = pool.simulator.pool.database
    (same,) = await with_metadata(pool, archive)
    assert pool.simulator.vdis_of(same) == pool.vdis
    other = pool.simulator.vdis_of(pool.simulator.make_vm("other", SIZES, power_state="Halted"))
    pairs = {f"vdi:{old}": new for old, new in zip(pool.vdis, other, strict=True)}
    (mapped,) = await with_metadata(pool, archive, **pairs)
    assert pool.simulator.vdis_of(mapped) == other
    before = set(database.refs("VM"))
    assert await with_metadata(pool, archive, dry_run="true") == []
    assert set(database.refs("VM")) == before
    (kept,) = await with_metadata(pool, archive, restore="true", force="true")
    assert database.get("VM", kept)["version"] == 1


async def test_metadata_without_its_disks_is_refused(pool: SmallPool) -> None:
    archive = await metadata(pool, ref=pool.vm)
    database = pool.simulator.pool.database
    for vdi in pool.vdis:
        database.update("VDI", database.by_uuid("VDI", vdi), location="elsewhere")
    _, task = await send(pool, "PUT", "/import_metadata", {}, archive)
    with pytest.raises(RpcError) as caught:
        await pool.finished(task)
    assert caught.value.description[0] == "VDI_LOCATION_MISSING"
    (forced,) = await with_metadata(pool, archive, force="true")
    assert pool.simulator.vdis_of(forced) == []
